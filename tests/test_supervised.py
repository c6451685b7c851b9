"""Supervised losses with and without NAMR: batches, networks, what the ranking changes and what it leaves alone,
resuming, evaluating, what a gain is, what is refused."""
import ast, csv, json
from pathlib import Path
import numpy as np, pytest, torch, yaml
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning import losses as pml
from torch import nn
from plm import supervised, training
from plm.checkpoint import load_state, save_state
from plm.core import generator_at
from plm.datasets import SPLITS, save_splits
from plm.encoder import Encoder, embed
from plm.evaluation import interval
from plm.images import Augment, as_input
from plm.methods import PLM, PLMConstants
from plm.namr import NAMR
from plm.supervised import (LOSSES, VARIANTS, ClassBalancedBatches, MetricConstants, StructureConstants, Supervised,
                            TwoHeads, UnsupervisedNAMR, embed_both, evaluate, gain, load_namr, namr_table, plot_gains,
                            run_all)
from plm.training import Run, TrainConstants, fit
import reference_namr as slow

ROOT = Path(__file__).parent.parent
OURS = ROOT/'pipelines/namr/params.yaml'
LABELS = torch.arange(40)//5
IMAGES = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8, generator=generator_at('images'))
COMMON = dict(lr=1e-3, margin=0.1, alpha=None, proxy_lr=None, weight=1.)
CONSTANTS = {'triplet': MetricConstants(**COMMON), 'contrastive': MetricConstants(**COMMON | dict(margin=1.)),
             'multi-similarity': MetricConstants(**COMMON | dict(alpha=2.)),
             'proxy-anchor': MetricConstants(**COMMON | dict(alpha=32., proxy_lr=100.))}
STRUCTURE = StructureConstants(band=0.5, C=5, margin=0.02, metric_on='plain', gamma=0.9)
UNLABELLED = PLMConstants(
    lr=1e-3, k=5, m=2, T=0.9, max_neighbors=19, similarity='piecewise', n_alpha=3, n_beta=0.5, delta=1.4, n_proxies=4,
    terms=['point', 'proxy', 'neighborhood'], gamma=0.9, view='plain', refresh='full')
BUDGET = TrainConstants(backbone='convnet', weights='none', dim=8, crop=None, precision='float32', norm='moving',
                        epochs=2, batch_size=20)


def start(): return Encoder(dim=8, address=(3,))


def replace(constants, **changes): return constants.model_copy(update=changes)


def make(name='triplet', structure=None, weight=1.):
    "A supervised method before training, with a structure head if there are constants of NAMR."
    encoder = TwoHeads(start(), 8, band=0.5 if structure else None)
    return Supervised(encoder, replace(CONSTANTS[name], weight=weight), name, LABELS, 4, structure)


def train(method, name, scratch, key=()): return fit(method, IMAGES, Run(name, BUDGET, 1e-3, 0, scratch, key))


def weights_of(module):
    return torch.cat([p.detach().flatten() for p in module.state_dict().values() if p.is_floating_point()])


# ---- batches

@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 7), per_class=st.integers(2, 6), seed=st.integers(0, 99),
       sizes=st.lists(st.integers(1, 9), min_size=7, max_size=12))
def test_batches_hold_so_many_classes_with_so_many_images(classes, per_class, sizes, seed):
    labels = torch.repeat_interleave(3*torch.arange(len(sizes)), torch.tensor(sizes)) # class numbers with gaps
    labels = labels[torch.randperm(len(labels), generator=generator_at(seed))]
    size = classes*per_class
    if len(labels) < size:
        with pytest.raises(ValueError, match='batch_size must lie between 1 and n = '):
            ClassBalancedBatches(labels, size, per_class, seed)
        return
    batches = ClassBalancedBatches(labels, size, per_class, seed)
    found = list(batches)
    assert len(found) == len(batches) == len(labels)//size and found == list(batches)
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
    networks = {v: p.add_heads(start(), 'triplet', v, 0).eval() for v in VARIANTS}
    x = as_input(IMAGES[:6])
    assert torch.equal(networks['plain'](x), networks['namr'](x)) and networks['wide'](x).shape == (6, 16)
    assert all(torch.equal(weights_of(n.backbone), weights_of(start().backbone)) for n in networks.values())
    other_seed = p.add_heads(start(), 'triplet', 'plain', 1)
    assert not torch.equal(weights_of(networks['plain'].head), weights_of(other_seed.head))
    plm = p.add_heads(start(), 'plm', 'plain', 0) # PLM keeps the head it is given
    assert torch.equal(plm.eval()(x), start().eval()(x))
    e, w = embed_both(networks['namr'], IMAGES)
    assert torch.allclose(e, embed(networks['namr'], IMAGES, block=7), atol=1e-6) and (w == 1).all()


@pytest.mark.parametrize('norm', ['moving', 'still'])
def test_two_heads_have_the_settings_of_the_encoder(norm):
    encoder = Encoder(dim=8, crop=24, precision='bf16', norm=norm)
    two = TwoHeads(encoder, band=0.5)
    x = as_input(IMAGES[:6])
    assert torch.equal(two.eval()(x), encoder.eval()(x)) and not torch.equal(two(x), start().eval()(x))
    kinds = {m.training for m in two.train().modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {norm == 'moving'} and encoder.head is not two.head


@pytest.mark.parametrize('training', [True, False])
def test_embedding_leaves_the_mode_alone(training):
    encoder = TwoHeads(start(), band=0.5).train(training)
    embed_both(encoder, IMAGES)
    assert encoder.training == encoder.backbone.training == training


def test_the_start_is_left_alone(tmp_path):
    encoder = start()
    before = weights_of(encoder)
    train(Supervised(TwoHeads(encoder, 8), CONSTANTS['triplet'], 'triplet', LABELS, 4), 'a', tmp_path)
    assert torch.equal(before, weights_of(encoder))


# ---- losses

@pytest.mark.parametrize('name, kind', [
    ('triplet', pml.TripletMarginLoss), ('contrastive', pml.ContrastiveLoss),
    ('multi-similarity', pml.MultiSimilarityLoss), ('proxy-anchor', pml.ProxyAnchorLoss)])
def test_losses_are_those_of_the_library(name, kind):
    loss, miner = LOSSES[name](CONSTANTS[name], 8, 6)
    assert type(loss) is kind and (miner is not None) == (name == 'multi-similarity')
    if name == 'triplet': assert loss.margin == 0.1
    if name == 'contrastive': assert (loss.neg_margin, loss.pos_margin) == (1, 0)
    if name == 'multi-similarity': assert (loss.alpha, loss.beta, loss.base, miner.epsilon) == (2, 50, 0.5, 0.1)
    if name == 'proxy-anchor': assert loss.proxies.shape == (8, 6) and (loss.margin, loss.alpha) == (0.1, 32)


def test_first_proxies_depend_on_the_seed_alone():
    def proxies(seed):
        method = Supervised(TwoHeads(start(), 6), CONSTANTS['proxy-anchor'], 'proxy-anchor', LABELS, 4, seed=seed)
        return method.metric.proxies
    torch.manual_seed(7)
    first = proxies(1)
    assert first.shape == (8, 6) and torch.equal(first, proxies(1)) and not torch.equal(first, proxies(2))


def test_proxies_learn_at_their_own_rate_and_do_not_decay():
    method = make('proxy-anchor')
    network, proxies = method.groups(1e-3)
    assert proxies['params'] == list(method.metric.parameters())
    assert proxies['lr'] == pytest.approx(0.1) and proxies['weight_decay'] == 0
    assert len(network['params']) == len(list(method.encoder.parameters())) and network['lr'] == 1e-3


# ---- what the ranking changes

@pytest.mark.parametrize('name', LOSSES)
def test_without_weight_the_ranking_changes_nothing(name, tmp_path):
    "λ = 0, metric loss on the plain distance: the same network as without NAMR, to the last bit."
    plain, namr, with_it = make(name), make(name, STRUCTURE, weight=0.), make(name, STRUCTURE)
    log, other, _ = train(plain, 'plain', tmp_path), train(namr, 'namr', tmp_path), train(with_it, 'with', tmp_path)
    assert [row.get('metric') for row in log] == [row.get('metric') for row in other] and log[1]['metric'] > 0
    for part in ('backbone', 'head'):
        assert torch.equal(weights_of(getattr(plain.encoder, part)), weights_of(getattr(namr.encoder, part)))
    assert not torch.equal(weights_of(plain.encoder.backbone), weights_of(with_it.encoder.backbone))
    assert (embed_both(with_it.encoder, IMAGES)[1] - 1).abs().max() > 1e-4


@pytest.mark.parametrize('refresh', ['full', 'kept'])
def test_unsupervised_namr_without_weight_is_plm(tmp_path, refresh):
    p = replace(UNLABELLED, refresh=refresh)
    plain, namr = PLM(TwoHeads(start()), p), UnsupervisedNAMR(TwoHeads(start(), band=0.5), p, STRUCTURE, 0.)
    log, other = train(plain, 'plain', tmp_path), train(namr, 'namr', tmp_path)
    assert [row.get('point') for row in log] == [row.get('point') for row in other] and other[-1]['rank'] == 0
    assert torch.equal(weights_of(plain.encoder.head), weights_of(namr.encoder.head))
    assert torch.equal(plain.kept, namr.kept) if refresh == 'kept' else namr.kept is None


@pytest.mark.parametrize('unsupervised', [False, True])
def test_the_reference_is_the_momentum_backbone_on_the_plain_image(unsupervised, monkeypatch):
    method = make(structure=STRUCTURE)
    if unsupervised: method = UnsupervisedNAMR(TwoHeads(start(), band=0.5), UNLABELLED, STRUCTURE, 0.7)
    method.train()
    with torch.no_grad(): # not what the trained one is
        for p in method.momentum.parameters(): p.add_(0.05*torch.randn(p.shape, generator=generator_at('moved')))
    seen, forward = [], NAMR.forward
    def look(self, e, w, *taught):
        seen.append(taught)
        return forward(self, e, w, *taught)
    monkeypatch.setattr(NAMR, 'forward', look)
    index = torch.arange(20)
    terms = method.step(IMAGES[index], index, Augment(), generator_at(0))
    sum(terms.values()).backward()
    (target, reference), = seen
    expected = nn.functional.normalize(method.momentum.encoder.features(as_input(IMAGES[index])), dim=1)
    assert torch.allclose(reference, expected, atol=1e-6) and not reference.requires_grad
    assert all(p.grad is None for p in method.momentum.parameters())
    embedding = method.momentum(as_input(IMAGES[index]))
    assert torch.allclose(target, embedding, atol=1e-6) if unsupervised else torch.equal(target, LABELS[index])
    assert terms['rank'] > 0 and method.namr.weight == (0.7 if unsupervised else 1)
    before = weights_of(method.momentum)
    with torch.no_grad():
        for p in method.encoder.parameters(): p += 0.1
    method.after_step()
    assert torch.allclose(weights_of(method.momentum), 0.9*before + 0.1*weights_of(method.encoder), atol=1e-5)


def test_a_teacher_that_sees_a_view_sees_another_one_than_the_student():
    p = replace(UNLABELLED, view='augmented')
    index, namr = torch.arange(20), UnsupervisedNAMR(TwoHeads(start(), band=0.5), p, STRUCTURE, 0.)
    terms = [namr.step(IMAGES[index], index, Augment(), generator_at(0)), PLM(TwoHeads(start()), p).step(
        IMAGES[index], index, Augment(), generator_at(0))]
    assert terms[0]['point'] == terms[1]['point']


def test_an_interrupted_run_ends_as_if_nothing_had_happened(tmp_path, monkeypatch):
    def new(): return make('proxy-anchor', STRUCTURE)
    whole = new()
    log = train(whole, 'run', tmp_path)
    real, calls = training._train_epoch, []
    def once(*args):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(training, '_train_epoch', once)
    with pytest.raises(KeyboardInterrupt): train(new(), 'run', tmp_path)
    monkeypatch.setattr(training, '_train_epoch', real)
    again, kept = new(), list(tmp_path.glob('run-0-*.pt'))
    assert len(kept) == 1
    train(new(), 'run', tmp_path, key=('another loss',)) # another run: begins anew, leaves the state alone
    assert list(tmp_path.glob('run-0-*.pt')) == kept
    assert train(again, 'run', tmp_path) == log and torch.equal(weights_of(whole), weights_of(again))
    assert not list(tmp_path.glob('*.pt'))


# ---- evaluating

def test_evaluation_is_the_ranking_by_brute_force():
    encoder = TwoHeads(start(), 8, band=1.)
    with torch.no_grad():
        encoder.structure.linear.weight.copy_(5*torch.randn(8, 1152, generator=generator_at('w')))
    found = evaluate(encoder, IMAGES, LABELS)
    e, w = (t.double() for t in embed_both(encoder, IMAGES))
    for prefix, weights in (('', w), ('sample_', torch.ones_like(w))):
        D = slow.adaptive_distances(e, weights, e)
        first, precision = [], []
        for i in range(40):
            others = sorted((j for j in range(40) if j != i), key=lambda j: D[i, j].item())
            right = [bool(LABELS[j] == LABELS[i]) for j in others[:4]] # a class has 4 others
            first.append(right[0])
            precision.append(sum(sum(right[:r + 1])/(r + 1) for r in range(4) if right[r])/4)
        assert found[f'{prefix}recall_at_1'] == pytest.approx(np.mean(first))
        assert found[f'{prefix}map_at_r'] == pytest.approx(np.mean(precision))
    pairs = [(found[name], found[f'sample_{name}']) for name in ('recall_at_1', 'map_at_r')]
    assert any(a != b for a, b in pairs) # else this would test nothing
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
    main['train'] |= dict(dim=8, epochs=1, batch_size=20)
    main['plm'] |= dict(n_proxies=4, m=2)
    (tmp_path/'params.yaml').write_text(yaml.safe_dump(main))
    return load_namr(tmp_path/'namr.yaml')


def test_a_run_is_found_again_until_something_that_decides_it_changes(tmp_path, monkeypatch):
    def write(images=IMAGES):
        arrays = images[:, 0].numpy(), LABELS.numpy()
        save_splits({split: (*arrays, [f'{split}{i}' for i in range(8)]) for split in SPLITS}, tmp_path/'data')
    def go(p):
        return run_all('glyphs', p, tmp_path, params=tmp_path/'params.yaml', scratch=tmp_path/'scratch')
    write()
    save_state(start().state_dict(), tmp_path/'pretrain/0/encoder.pt')
    p = small(tmp_path)
    first = go(p)
    assert list(first) == p.runs()
    assert p.runs() == [('triplet', v, 0) for v in VARIANTS] + [('plm', 'plain', 0), ('plm', 'namr', 0)]
    state = load_state(first['triplet', 'namr', 0])
    assert 'structure.linear.weight' in state['encoder'] and [row['epoch'] for row in state['log']] == [0, 1]
    assert state['log'][1]['rank'] > 0
    assert go(replace(p, workers=2)) == first # how many run side by side decides nothing
    def other_loss(**changes): return replace(p, losses={'triplet': replace(p.losses['triplet'], **changes)})
    with pytest.raises(RuntimeError, match='glyphs, triplet, plain, seed 0: FloatingPointError: the loss is'):
        go(other_loss(lr=float('inf')))
    monkeypatch.setattr(supervised, 'run_jobs', lambda *args: None) # from here on only the names are looked at
    def renamed(p=p): return {key[:2] for key, file in go(p).items() if file != first[key]}
    everything, labelled = {key[:2] for key in first}, {('triplet', v) for v in VARIANTS}
    assert renamed() == set() and renamed(replace(p, structure=replace(p.structure, band=0.4))) == everything
    assert renamed(other_loss(weight=2.)) == labelled == renamed(replace(p, train=replace(p.train, epochs=2)))
    assert renamed(replace(p, unsupervised=replace(p.unsupervised, epochs=2))) == everything - labelled
    moved = LABELS.clone()
    moved[[0, 39]] = moved[[39, 0]]
    np.save(tmp_path/'data/train_labels.npy', moved.numpy())
    assert renamed() == labelled # PLM does not know of them
    write(images=IMAGES.flip(0))
    assert renamed() == everything
    write()
    save_state(Encoder(dim=8, address=(4,)).state_dict(), tmp_path/'pretrain/0/encoder.pt')
    assert renamed() == everything
    with pytest.raises(ValueError, match="C = 30 must be below PLM's train.batch_size = 20"):
        go(replace(p, structure=replace(p.structure, C=30)))


def test_only_the_supervised_runs_ask_for_train_labels():
    "In plm and in the stages: calls of load_labels, and files named by hand."
    asking = []
    for file in [*(ROOT/'plm').glob('*.py'), *(ROOT/'nbs/pipeline').glob('*.ipynb')]:
        text = file.read_text()
        if file.suffix == '.ipynb':
            cells = [c['source'] for c in json.loads(text)['cells'] if c['cell_type'] == 'code']
            text = '\n'.join(''.join(source) for source in cells)
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)
                 and getattr(node.func, 'id', getattr(node.func, 'attr', '')) == 'load_labels']
        asks = any(k.arg == 'supervised' for call in calls for k in call.keywords)
        if asks or 'train_labels' in text: asking.append(file.name)
    assert asking == ['supervised.py']


# ---- gains

def rows_of(values):
    return [dict(dataset='d', loss=loss, variant=v, seed=s, metric='recall_at_1', value=x)
            for (loss, v), xs in values.items() for s, x in enumerate(xs)]


def test_gains_are_taken_within_seeds_that_both_have():
    rows = rows_of({('triplet', 'plain'): [0.5, 0.7], ('triplet', 'namr'): [0.6, 0.75, 0.99],
                    ('triplet', 'wide'): [0.55], ('plm', 'plain'): [0.4, 0.4], ('plm', 'namr'): [0.4, 0.3]})
    both = interval([0.6 - 0.5, 0.75 - 0.7])
    assert both == gain(rows, 'd', 'triplet', 'plain') == gain(iter(rows), 'd', 'triplet', 'plain')
    assert gain(rows, 'd', 'triplet', 'wide')[0] == pytest.approx(0.05)
    header, (triplet, plm) = namr_table(rows)
    assert header[2:5] == list(VARIANTS) and [triplet[1], plm[1]] == ['triplet', 'plm']
    assert triplet[2] == '60.0 ± 14.1' and triplet[3] == '55.0' and triplet[6] == '+5.0 (one seed)'
    assert plm[3] == plm[6] == '' and plm[5].startswith('-5.0 ± ')
    as_text = [{k: str(v) for k, v in r.items()} for r in rows] # as csv gives them
    assert namr_table(as_text) == (header, [triplet, plm])
    ax, = plot_gains(as_text).axes
    assert ax.get_title() == 'd' and ax.get_legend_handles_labels()[1] == ['over plain', 'over wide']
    with pytest.raises(ValueError, match='on d, plm has no seed with both namr and wide'):
        gain(rows, 'd', 'plm', 'wide')


def test_a_missing_variant_leaves_a_blank():
    rows = rows_of({('triplet', 'plain'): [0.5, 0.6], ('plm', 'namr'): [0.4, 0.4]})
    triplet, plm = namr_table(rows)[1]
    assert triplet[2:] == ['55.0 ± 7.1', '', '', '', ''] and plm[2:] == ['', '', '40.0 ± 0.0', '', '']
    rows = rows_of({('plm', 'plain'): [0.4, 0.4], ('plm', 'namr'): [0.4, 0.3]})
    assert len(plot_gains(rows).axes) == 1 # nobody to compare with in width


def test_the_published_rows_are_complete():
    p, rows = load_namr(OURS), list(csv.DictReader(open(ROOT/'results/namr.csv')))
    assert list(rows[0]) == ['dataset', 'loss', 'variant', 'seed', 'metric', 'value']
    keys = {tuple(r[k] for k in ('dataset', 'loss', 'variant', 'seed')) for r in rows if r['metric'] == 'recall_at_1'}
    assert keys == {(d, loss, v, str(s)) for d in ('glyphs', 'omniglot') for loss, v, s in p.runs()}
    assert len(p.seeds) >= 3 and all(0 <= float(r['value']) <= 1 for r in rows)
    assert len({tuple(r.values())[:-1] for r in rows}) == len(rows)


# ---- what is refused

@pytest.mark.parametrize('change, words', [
    (lambda p: p.update(seeds=[]), 'seeds: .* at least 1 item'), (lambda p: p.update(seeds=[1, 1]), 'names one twice'),
    (lambda p: p.update(seeds=['a']), 'seeds.0: .* valid integer'), (lambda p: p.update(seeds=[True]), 'seeds.0'),
    (lambda p: p.update(workers=0), 'workers: .* greater than or equal to 1, got 0'),
    (lambda p: p['train'].update(per_class=1), 'train.per_class: .* greater than or equal to 2'),
    (lambda p: p['train'].update(per_class=7), 'batch_size = 100 must be a multiple of train.per_class = 7'),
    (lambda p: p['train'].update(batch_size=101), 'train.batch_size: .* multiple of 2'),
    (lambda p: p['train'].update(backbone='resnet18'), 'train.backbone is not a parameter'),
    (lambda p: p['train'].update(dim=1), 'train.dim: .* 2, got 1'), (lambda p: p['train'].update(dim=0), 'train.dim'),
    (lambda p: p.update(extra=1), 'extra is not a parameter'), (lambda p: p.pop('train'), 'train is missing'),
    (lambda p: p['losses']['proxy-anchor'].update(alpha=None), 'losses.proxy-anchor: .* alpha and proxy_lr: set'),
    (lambda p: p['losses']['triplet'].update(proxy_lr=3.), 'losses.triplet: of alpha and proxy_lr it has none'),
    (lambda p: p['losses'].update(triplett=p['losses']['triplet']), "loss 'triplett'.*'triplet'"),
    (lambda p: p['losses']['triplet'].update(lr=0), r'losses.triplet.lr: .* greater than 0, got 0'),
    (lambda p: p['losses']['triplet'].update(lr=float('inf')), r'losses.triplet.lr: .* finite'),
    (lambda p: p['losses']['triplet'].pop('weight'), 'losses.triplet.weight is missing'),
    (lambda p: p['losses']['triplet'].update(weight=-1), 'losses.triplet.weight'),
    (lambda p: p.update(losses={}), 'losses: .* at least 1 item'), (lambda p: p.update(losses=3), 'losses: .* got 3'),
    (lambda p: p['structure'].update(band=1.5), 'structure.band: .* less than or equal to 1'),
    (lambda p: p['structure'].update(C=100), 'structure.C = 100 must be below train.batch_size = 100'),
    (lambda p: p['structure'].update(margin=0.5), r'margin must lie between 0 and 2/\(C - 1\)'),
    (lambda p: p['structure'].update(metric_on='adaptiv'), "structure.metric_on: .* 'plain' or 'adaptive'"),
    (lambda p: p['unsupervised'].update(epochs=0.5), 'unsupervised.epochs: .* integer')])
def test_mistakes_in_the_constants(tmp_path, change, words):
    p = yaml.safe_load(OURS.read_text())
    change(p)
    (tmp_path/'namr.yaml').write_text(yaml.safe_dump(p))
    with pytest.raises(ValueError, match=f'namr.yaml.*{words}'): load_namr(tmp_path/'namr.yaml')


def test_mistakes_in_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='top folder'): load_namr(tmp_path/'no.yaml')
    (tmp_path/'namr.yaml').write_text('seeds: [')
    with pytest.raises(ValueError, match='not valid YAML'): load_namr(tmp_path/'namr.yaml')


@pytest.mark.parametrize('wrong, words', [
    (lambda: ClassBalancedBatches(LABELS, 20, 3), 'divide batch_size = 20, got 3'),
    (lambda: ClassBalancedBatches(LABELS, 20, 1), 'at least 2'),
    (lambda: ClassBalancedBatches(LABELS[:0]), 'between 1 and n = 0'),
    (lambda: ClassBalancedBatches(LABELS, 40, 4), 'needs 10 classes, there are 8'),
    (lambda: Supervised(TwoHeads(start(), 8), CONSTANTS['triplet'], 'tripplet', LABELS, 4), "'tripplet'.*'triplet'"),
    (lambda: Supervised(TwoHeads(start(), 8), CONSTANTS['triplet'], 'triplet', LABELS, 4, STRUCTURE),
     'Give both or neither'),
    (lambda: embed_both(TwoHeads(start(), 8), IMAGES), 'no structure head'),
    (lambda: load_namr(OURS).add_heads(start(), 'triplet', 'broad', 0), "'broad'"),
    (lambda: TwoHeads(start(), 8, band=2.), 'band')])
def test_what_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words): wrong()
