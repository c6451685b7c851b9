"""Supervised losses with and without NAMR: batches, networks, what the ranking changes and what it leaves alone, resuming, judging, what a gain is, what is refused."""
import ast, csv, json
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch, yaml
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning import losses as pml
from torch import nn
from plm import supervised, training
from plm.core import generator_at
from plm.data import Augment, save_splits
from plm.encoder import Encoder, as_input, embed
from plm.evaluation import interval
from plm.namr import NAMR
from plm.params import PLMParams, TrainParams
from plm.supervised import (LOSSES, VARIANTS, ClassBalancedBatches, MetricParams, StructureParams, Supervised, TwoHeads, UnsupervisedNAMR, embed_both, gain, judge, load_namr, metric_loss, namr_table,
                            new_encoder, plot_gains, run_all, runs_of)
from plm.training import PLM, fit, load_state, save_state
import reference_namr as slow

ROOT = Path(__file__).parent.parent
OURS = ROOT/'pipelines/namr/params.yaml'
LABELS = torch.arange(40)//5
IMAGES = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8, generator=generator_at('images'))
CONSTANTS = {'triplet': MetricParams(1e-3, 0.1, None, None, 1.), 'contrastive': MetricParams(1e-3, 1., None, None, 1.), 'multi-similarity': MetricParams(1e-3, 0.1, 2., None, 1.),
             'proxy-anchor': MetricParams(1e-3, 0.1, 32., 100., 1.)}
STRUCTURE = StructureParams(band=0.5, C=5, margin=0.02, metric_on='plain', gamma=0.9)
UNLABELLED = PLMParams(lr=1e-3, k=5, m=2, T=0.9, n_alpha=3, n_beta=0.5, delta=1.4, n_proxies=4, gamma=0.9, visit=None, similarity='piecewise', terms=['point', 'proxy', 'neighborhood'], view='plain', refresh='full')
BUDGET = TrainParams(backbone='convnet', weights='none', dim=8, crop=None, precision='float32', norm='moving', epochs=2, batch_size=20)


def start(): return Encoder('convnet', 8, (3,))


def train(method, name, scratch, **kw): return fit(method, name, IMAGES, BUDGET, 1e-3, 0, lambda: {'val_recall_at_1': 0.}, scratch, **kw)


def weights_of(module): return torch.cat([p.detach().flatten() for p in module.state_dict().values() if p.is_floating_point()])


# ---- batches

@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 7), per_class=st.integers(2, 6), sizes=st.lists(st.integers(1, 9), min_size=7, max_size=12), seed=st.integers(0, 99))
def test_batches_hold_so_many_classes_with_so_many_images(classes, per_class, sizes, seed):
    labels = torch.repeat_interleave(3*torch.arange(len(sizes)), torch.tensor(sizes)) # class numbers with gaps
    labels = labels[torch.randperm(len(labels), generator=generator_at(seed))]
    if len(labels) < classes*per_class:
        with pytest.raises(ValueError, match='batch_size must lie between 1 and n = '): ClassBalancedBatches(labels, classes*per_class, per_class, seed)
        return
    batches = ClassBalancedBatches(labels, classes*per_class, per_class, seed)
    found = list(batches)
    assert len(found) == len(batches) == len(labels)//(classes*per_class) and found == list(batches)
    for batch in found:
        of = labels[batch]
        assert of.unique(return_counts=True)[1].tolist() == [per_class]*classes
        for c in of.unique():
            own, there = torch.tensor(batch)[of == c], int((labels == c).sum())
            assert len(own.unique()) == min(per_class, there) # nobody twice before everybody was there once


def test_another_epoch_or_seed_gives_other_batches():
    a, b = ClassBalancedBatches(LABELS, 20, 4, 0), ClassBalancedBatches(LABELS, 20, 4, 1)
    first = list(a)
    assert first != list(b)
    a.set_epoch(1)
    assert first != list(a)
    a.set_epoch(0)
    assert first == list(a)


# ---- networks

def test_the_variants_share_what_they_can():
    p = load_namr(OURS)
    p = replace(p, train=replace(p.train, dim=8))
    networks = {v: new_encoder(start(), 'triplet', v, p, 0).eval() for v in VARIANTS}
    x = as_input(IMAGES[:6])
    assert torch.equal(networks['plain'](x), networks['namr'](x)) and networks['wide'](x).shape == (6, 16)
    assert all(torch.equal(weights_of(n.backbone), weights_of(start().backbone)) for n in networks.values())
    assert not torch.equal(weights_of(networks['plain'].head), weights_of(new_encoder(start(), 'triplet', 'plain', p, 1).head))
    assert torch.equal(new_encoder(start(), 'plm', 'plain', p, 0).eval()(x), start().eval()(x)) # PLM keeps the head it is given
    e, w = embed_both(networks['namr'], IMAGES, block=7)
    assert torch.allclose(e, embed(networks['namr'], IMAGES), atol=1e-6) and (w == 1).all()


def test_the_start_is_left_alone(tmp_path):
    encoder = start()
    before = weights_of(encoder)
    train(Supervised(TwoHeads(encoder, 8), 'triplet', CONSTANTS['triplet'], LABELS, 4, None, 0), 'a', tmp_path)
    assert torch.equal(before, weights_of(encoder))


# ---- losses

@pytest.mark.parametrize('name, kind', [('triplet', pml.TripletMarginLoss), ('contrastive', pml.ContrastiveLoss), ('multi-similarity', pml.MultiSimilarityLoss), ('proxy-anchor', pml.ProxyAnchorLoss)])
def test_losses_are_those_of_the_library(name, kind):
    loss, miner = metric_loss(name, CONSTANTS[name], 8, 6, seed=1)
    assert type(loss) is kind and (miner is not None) == (name == 'multi-similarity')
    if name == 'triplet': assert loss.margin == 0.1
    if name == 'contrastive': assert (loss.neg_margin, loss.pos_margin) == (1, 0)
    if name == 'multi-similarity': assert (loss.alpha, loss.beta, loss.base, miner.epsilon) == (2, 50, 0.5, 0.1)
    if name == 'proxy-anchor':
        assert loss.proxies.shape == (8, 6) and (loss.margin, loss.alpha) == (0.1, 32)
        assert torch.equal(loss.proxies, metric_loss(name, CONSTANTS[name], 8, 6, seed=1)[0].proxies) and not torch.equal(loss.proxies, metric_loss(name, CONSTANTS[name], 8, 6, seed=2)[0].proxies)


def test_proxies_learn_at_their_own_rate_and_do_not_decay():
    method = Supervised(TwoHeads(start(), 8), 'proxy-anchor', CONSTANTS['proxy-anchor'], LABELS, 4, None, 0)
    network, proxies = method.groups(1e-3)
    assert proxies['params'] == list(method.metric.parameters()) and proxies['lr'] == pytest.approx(0.1) and proxies['weight_decay'] == 0
    assert len(network['params']) == len(list(method.encoder.parameters())) and network['lr'] == 1e-3


# ---- what the ranking changes

@pytest.mark.parametrize('name', LOSSES)
def test_without_weight_the_ranking_changes_nothing(name, tmp_path):
    "λ = 0, metric loss on the plain distance: the same network as without NAMR, to the last bit."
    plain = Supervised(TwoHeads(start(), 8), name, CONSTANTS[name], LABELS, 4, None, 0)
    namr = Supervised(TwoHeads(start(), 8, band=0.5), name, replace(CONSTANTS[name], weight=0.), LABELS, 4, STRUCTURE, 0)
    log, other = train(plain, 'plain', tmp_path), train(namr, 'namr', tmp_path)
    assert [row.get('metric') for row in log] == [row.get('metric') for row in other] and log[1]['metric'] > 0
    for part in ('backbone', 'head'): assert torch.equal(weights_of(getattr(plain.encoder, part)), weights_of(getattr(namr.encoder, part)))
    with_it = Supervised(TwoHeads(start(), 8, band=0.5), name, CONSTANTS[name], LABELS, 4, STRUCTURE, 0)
    train(with_it, 'with', tmp_path)
    assert not torch.equal(weights_of(plain.encoder.backbone), weights_of(with_it.encoder.backbone)) and (embed_both(with_it.encoder, IMAGES)[1] - 1).abs().max() > 1e-4


@pytest.mark.parametrize('refresh', ['full', 'kept'])
def test_unsupervised_namr_without_weight_is_plm(tmp_path, refresh):
    p = replace(UNLABELLED, refresh=refresh)
    plain, namr = PLM(TwoHeads(start()), p, 0), UnsupervisedNAMR(TwoHeads(start(), band=0.5), p, STRUCTURE, 0., 0)
    log, other = train(plain, 'plain', tmp_path), train(namr, 'namr', tmp_path)
    assert [row.get('point') for row in log] == [row.get('point') for row in other] and other[-1]['rank'] == 0
    assert torch.equal(weights_of(plain.encoder.head), weights_of(namr.encoder.head))
    assert torch.equal(plain.kept, namr.kept) if refresh == 'kept' else not hasattr(namr, 'kept')


@pytest.mark.parametrize('unsupervised', [False, True])
def test_the_reference_is_the_momentum_backbone_on_the_plain_image(unsupervised, monkeypatch):
    method = (UnsupervisedNAMR(TwoHeads(start(), band=0.5), UNLABELLED, STRUCTURE, 0.7, 0) if unsupervised else
              Supervised(TwoHeads(start(), 8, band=0.5), 'triplet', CONSTANTS['triplet'], LABELS, 4, STRUCTURE, 0)).train()
    with torch.no_grad():
        for p in method.momentum.parameters(): p.add_(0.05*torch.randn(p.shape, generator=generator_at('moved'))) # not what the trained one is
    backbone = method.momentum.encoder.backbone if unsupervised else method.momentum.encoder
    seen, forward = [], NAMR.forward
    monkeypatch.setattr(NAMR, 'forward', lambda self, e, w, target, reference: seen.append((target, reference)) or forward(self, e, w, target, reference))
    index = torch.arange(20)
    terms = method(IMAGES[index], index, Augment(), generator_at(0))
    sum(terms.values()).backward()
    (target, reference), = seen
    expected = nn.functional.normalize(backbone(as_input(IMAGES[index]).contiguous(memory_format=torch.channels_last)), dim=1)
    assert torch.allclose(reference, expected, atol=1e-6) and not reference.requires_grad and all(p.grad is None for p in method.momentum.parameters())
    assert torch.allclose(target, method.momentum(as_input(IMAGES[index])), atol=1e-6) if unsupervised else torch.equal(target, LABELS[index])
    assert terms['rank'] > 0 and method.namr.weight == (0.7 if unsupervised else 1)
    before = weights_of(method.momentum)
    with torch.no_grad():
        for p in method.encoder.parameters(): p += 0.1
    method.after_step()
    assert torch.allclose(weights_of(method.momentum), 0.9*before + 0.1*weights_of(method.encoder if unsupervised else method.encoder.backbone), atol=1e-5)


def test_an_interrupted_run_ends_as_if_nothing_had_happened(tmp_path, monkeypatch):
    def make(): return Supervised(TwoHeads(start(), 8, band=0.5), 'proxy-anchor', CONSTANTS['proxy-anchor'], LABELS, 4, STRUCTURE, 0)
    whole = make()
    log = train(whole, 'run', tmp_path)
    real, calls = training._epoch, []
    def once(*args):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(training, '_epoch', once)
    with pytest.raises(KeyboardInterrupt): train(make(), 'run', tmp_path)
    monkeypatch.setattr(training, '_epoch', real)
    assert len(list(tmp_path.glob('run-0-*.pt'))) == 1
    again = make()
    kept = list(tmp_path.glob('run-0-*.pt'))
    train(make(), 'run', tmp_path, key=('another loss',)) # decided by something else: begins anew, and leaves the state alone
    assert list(tmp_path.glob('run-0-*.pt')) == kept
    assert train(again, 'run', tmp_path) == log and torch.equal(weights_of(whole), weights_of(again)) and not list(tmp_path.glob('*.pt'))


# ---- judging

def test_judging_is_the_ranking_by_brute_force():
    encoder = TwoHeads(start(), 8, band=1.)
    with torch.no_grad(): encoder.structure.linear.weight.copy_(5*torch.randn(8, 1152, generator=generator_at('w')))
    found = judge(encoder, IMAGES, LABELS)
    e, w = (t.double() for t in embed_both(encoder, IMAGES))
    for prefix, weights in (('', w), ('sample_', torch.ones_like(w))):
        D = slow.adaptive_distances(e, weights, e)
        first, precision = [], []
        for i in range(40):
            others = sorted((j for j in range(40) if j != i), key=lambda j: D[i, j].item())
            right = [bool(LABELS[j] == LABELS[i]) for j in others[:4]] # a class has 4 others
            first.append(right[0])
            precision.append(sum(sum(right[:r + 1])/(r + 1) for r in range(4) if right[r])/4)
        assert found[f'{prefix}recall_at_1'] == pytest.approx(np.mean(first)) and found[f'{prefix}map_at_r'] == pytest.approx(np.mean(precision))
    assert found['recall_at_1'] != found['sample_recall_at_1'] or found['map_at_r'] != found['sample_map_at_r'] # else this would test nothing
    assert found['w_spread'] == pytest.approx(w.std(unbiased=False).item(), rel=1e-4) and 0 < found['w_own'] < 1


# ---- many runs

def small(tmp_path, **changes):
    own = yaml.safe_load(OURS.read_text()) | {'seeds': [0], 'workers': 1}
    own['train'] |= dict(dim=8, epochs=1, batch_size=20, per_class=5)
    own['structure'] |= dict(C=5, margin=0.02)
    own['unsupervised'] |= dict(epochs=1)
    own['losses'] = {'triplet': own['losses']['triplet']}
    (tmp_path/'namr.yaml').write_text(yaml.safe_dump(own | changes))
    main = yaml.safe_load((ROOT/'params.yaml').read_text())
    main['glyphs']['train'] |= dict(dim=8, epochs=1, batch_size=20)
    main['glyphs']['plm'] |= dict(n_proxies=4, m=2)
    (tmp_path/'params.yaml').write_text(yaml.safe_dump(main))
    return load_namr(tmp_path/'namr.yaml')


def test_a_run_is_found_again_until_something_that_decides_it_changes(tmp_path, monkeypatch):
    def write(labels=LABELS, images=IMAGES): save_splits({split: (images[:, 0].numpy(), labels.numpy(), [f'{split}{i}' for i in range(8)]) for split in ('source', 'train', 'val', 'test')}, tmp_path/'data')
    write()
    save_state(start().state_dict(), tmp_path/'pretrain/0/encoder.pt')
    def go(p): return run_all('glyphs', p, tmp_path, params=tmp_path/'params.yaml', scratch=tmp_path/'scratch')
    p = small(tmp_path)
    first = go(p)
    assert list(first) == runs_of(p) == [('triplet', v, 0) for v in VARIANTS] + [('plm', 'plain', 0), ('plm', 'namr', 0)]
    state = load_state(first['triplet', 'namr', 0])
    assert 'structure.linear.weight' in state['encoder'] and [row['epoch'] for row in state['log']] == [0, 1] and state['log'][1]['rank'] > 0
    assert go(replace(p, workers=2)) == first # how many run side by side decides nothing
    with pytest.raises(RuntimeError, match='glyphs, triplet, plain, seed 0: FloatingPointError: the loss is'): go(replace(p, losses={'triplet': replace(p.losses['triplet'], lr=float('inf'))}))
    monkeypatch.setattr(supervised, 'run_jobs', lambda *args: None) # from here on only the names are looked at
    def renamed(p=p): return {key[:2] for key, file in go(p).items() if file != first[key]}
    everything = {key[:2] for key in first}
    assert renamed() == set() and renamed(replace(p, structure=replace(p.structure, band=0.4))) == everything
    assert renamed(replace(p, losses={'triplet': replace(p.losses['triplet'], weight=2.)})) == {('triplet', v) for v in VARIANTS} == renamed(replace(p, train=replace(p.train, epochs=2)))
    assert renamed(replace(p, unsupervised=replace(p.unsupervised, epochs=2))) == {('plm', 'plain'), ('plm', 'namr')}
    moved = LABELS.clone(); moved[[0, 39]] = moved[[39, 0]]
    np.save(tmp_path/'data/train_labels.npy', moved.numpy())
    assert renamed() == {('triplet', v) for v in VARIANTS} # PLM does not know of them
    write(images=IMAGES.flip(0))
    assert renamed() == everything
    write()
    save_state(Encoder('convnet', 8, (4,)).state_dict(), tmp_path/'pretrain/0/encoder.pt')
    assert renamed() == everything
    with pytest.raises(ValueError, match='C = 30 clusters cannot be cut from the 19 other points of PLM'): go(replace(p, structure=replace(p.structure, C=30)))


def test_only_the_supervised_runs_ask_for_train_labels():
    "In plm and in the stages: calls of load_labels, and files named by hand."
    asking = []
    for file in [*(ROOT/'plm').glob('*.py'), *(ROOT/'nbs/pipeline').glob('*.ipynb')]:
        text = file.read_text() if file.suffix == '.py' else ''.join(''.join(c['source']) + '\n' for c in json.loads(file.read_text())['cells'] if c['cell_type'] == 'code')
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and getattr(node.func, 'id', getattr(node.func, 'attr', '')) == 'load_labels']
        if any(k.arg == 'supervised' for call in calls for k in call.keywords) or 'train_labels' in text: asking.append(file.name)
    assert asking == ['supervised.py']


# ---- gains

def rows_of(values): return [dict(dataset='d', loss=loss, variant=v, seed=s, metric='recall_at_1', value=x) for (loss, v), xs in values.items() for s, x in enumerate(xs)]


def test_gains_are_taken_within_seeds_that_both_have():
    rows = rows_of({('triplet', 'plain'): [0.5, 0.7], ('triplet', 'namr'): [0.6, 0.75, 0.99], ('triplet', 'wide'): [0.55], ('plm', 'plain'): [0.4, 0.4], ('plm', 'namr'): [0.4, 0.3]})
    assert gain(rows, 'd', 'triplet', 'plain') == interval([0.6 - 0.5, 0.75 - 0.7]) and gain(rows, 'd', 'triplet', 'wide')[0] == pytest.approx(0.05)
    header, lines = namr_table(rows)
    assert header[2:5] == list(VARIANTS) and [line[1] for line in lines] == ['triplet', 'plm']
    assert lines[0][2] == '60.0 ± 14.1' and lines[0][3] == '55.0' and lines[0][6] == '+5.0 (one seed)' and lines[1][3] == lines[1][6] == '' and lines[1][5].startswith('-5.0 ± ')
    as_text = [{k: str(v) for k, v in r.items()} for r in rows] # as csv gives them
    assert namr_table(as_text) == (header, lines)
    assert [ax.get_title() for ax in plot_gains(as_text).axes] == ['d']
    with pytest.raises(ValueError, match='on d, plm has no seed with both namr and wide'): gain(rows, 'd', 'plm', 'wide')


def test_a_missing_variant_leaves_a_blank():
    rows = rows_of({('triplet', 'plain'): [0.5, 0.6], ('plm', 'namr'): [0.4, 0.4]})
    assert [line[2:] for line in namr_table(rows)[1]] == [['55.0 ± 7.1', '', '', '', ''], ['', '', '40.0 ± 0.0', '', '']]
    rows = rows_of({('plm', 'plain'): [0.4, 0.4], ('plm', 'namr'): [0.4, 0.3]})
    assert len(plot_gains(rows).axes) == 1 # nobody to compare with in width


def test_the_published_rows_are_complete():
    p, rows = load_namr(OURS), list(csv.DictReader(open(ROOT/'docs/namr.csv')))
    assert list(rows[0]) == ['dataset', 'loss', 'variant', 'seed', 'metric', 'value']
    keys = {tuple(r[k] for k in ('dataset', 'loss', 'variant', 'seed')) for r in rows if r['metric'] == 'recall_at_1'}
    assert keys == {(d, loss, v, str(s)) for d in ('glyphs', 'omniglot') for loss, v, s in runs_of(p)} and len(p.seeds) >= 3
    assert all(0 <= float(r['value']) <= 1 for r in rows) and len({tuple(r.values())[:-1] for r in rows}) == len(rows)


# ---- what is refused

@pytest.mark.parametrize('change, words', [
    (lambda p: p.update(seeds=[]), 'seeds'), (lambda p: p.update(seeds=[1, 1]), 'without repetitions'), (lambda p: p.update(seeds=['a']), 'seeds'), (lambda p: p.update(workers=0), 'workers'),
    (lambda p: p['train'].update(per_class=1), 'train.per_class must be at least 2'), (lambda p: p['train'].update(per_class=7), 'per_class = 7 .* must divide train.batch_size = 100'), (lambda p: p.update(extra=1), 'and no others'),
    (lambda p: p.pop('train'), 'must have the entries'), (lambda p: p['train'].update(backbone='resnet18'), 'train.backbone is not a parameter'), (lambda p: p['train'].update(dim=1), 'train.dim .* at least 2'),
    (lambda p: p['losses']['proxy-anchor'].update(alpha=None), 'losses.proxy-anchor.alpha .* must be a number, got None'), (lambda p: p['losses']['triplet'].update(proxy_lr=3.), 'losses.triplet.proxy_lr .* must be null'),
    (lambda p: p['losses'].update(triplett=p['losses']['triplet']), "loss 'triplett'.*'triplet'"), (lambda p: p['losses']['triplet'].update(lr=0), r'losses.triplet.lr must be a number above 0'),
    (lambda p: p['losses']['triplet'].pop('weight'), 'losses.triplet.weight is missing'), (lambda p: p['losses']['triplet'].update(weight=-1), 'losses.triplet.weight'), (lambda p: p.update(losses={}), 'losses'),
    (lambda p: p['structure'].update(band=1.5), 'structure.band must be above 0'), (lambda p: p['structure'].update(C=100), 'C = 100 clusters cannot be cut from the 99'), (lambda p: p['structure'].update(margin=0.5), r'margin must lie between 0 and 2/\(C - 1\)'),
    (lambda p: p['structure'].update(metric_on='adaptiv'), 'plain or adaptive'), (lambda p: p['train'].update(dim=0), 'train.dim'), (lambda p: p['unsupervised'].update(epochs=0.5), 'unsupervised.epochs must be int')])
def test_mistakes_in_the_constants(tmp_path, change, words):
    p = yaml.safe_load(OURS.read_text())
    change(p)
    (tmp_path/'namr.yaml').write_text(yaml.safe_dump(p))
    with pytest.raises(ValueError, match=words): load_namr(tmp_path/'namr.yaml')


def test_mistakes_in_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='top folder'): load_namr(tmp_path/'no.yaml')
    (tmp_path/'namr.yaml').write_text('seeds: [')
    with pytest.raises(ValueError, match='not valid YAML'): load_namr(tmp_path/'namr.yaml')


@pytest.mark.parametrize('wrong, words', [
    (lambda: ClassBalancedBatches(LABELS, 20, 3), 'divide batch_size = 20, got 3'), (lambda: ClassBalancedBatches(LABELS, 20, 1), 'at least 2'), (lambda: ClassBalancedBatches(LABELS[:0]), 'between 1 and n = 0'),
    (lambda: ClassBalancedBatches(LABELS, 40, 4), 'needs 10 classes, there are 8'), (lambda: metric_loss('tripplet', CONSTANTS['triplet'], 8, 6), "'tripplet'.*'triplet'"),
    (lambda: Supervised(TwoHeads(start(), 8), 'triplet', CONSTANTS['triplet'], LABELS, 4, STRUCTURE, 0), 'Give both or neither'), (lambda: embed_both(TwoHeads(start(), 8), IMAGES), 'no structure head'),
    (lambda: new_encoder(start(), 'triplet', 'broad', load_namr(OURS), 0), "'broad'"), (lambda: TwoHeads(start(), 8, band=2.), 'band')])
def test_what_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words): wrong()
