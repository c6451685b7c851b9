"""Supervised losses with and without NAMR: batches, networks, what the ranking changes and what it leaves alone,
resuming, evaluating, what a gain is, what is refused."""
import ast, csv, json
from pathlib import Path
import numpy as np, pytest, torch, yaml
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning import distances as pml_distances, losses as pml
from torch import nn
from plm import supervised, training
from plm.checkpoint import load_state, save_state
from plm.core import generator_at
from plm.datasets import SPLITS, save_splits
from plm.encoder import Encoder, embed
from plm.evaluation import interval
from plm.images import Augment, as_input
from plm.methods import PLM, PLMConstants
from plm.namr import in_mean_distances, rerank
from plm.runs import RunData
from plm.supervised import (EUCLIDEAN, LOSSES, RANKED, VARIANTS, ClassBalancedBatches, MetricConstants,
                            StructureConstants, Supervised, TwoHeads, UnsupervisedNAMR, class_structure, embed_both,
                            evaluate, gain, gains_table, load_namr, namr_table, plot_gains, run_all, serving_table)
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
STRUCTURE = StructureConstants(hidden=16, alpha=10, t=3, C=3)
UNLABELLED = PLMConstants(
    lr=1e-3, k=5, m=2, T=0.9, max_neighbors=19, similarity='piecewise', n_alpha=3, n_beta=0.5, delta=1.4, n_proxies=4,
    terms=['point', 'proxy', 'neighborhood'], gamma=0.9, n_views=1, view='plain',
    refresh='full')
BUDGET = TrainConstants(backbone='convnet', weights='none', dim=8, crop=None, precision='float32', norm='moving',
                        epochs=2, batch_size=20)


def start(): return Encoder(dim=8, address=(3,))


def replace(constants, **changes): return constants.model_copy(update=changes)


def make(name='triplet', structure=None, weight=1.):
    "A supervised method before training, with a structure head if there are constants of NAMR."
    encoder = TwoHeads(start(), 8, hidden=structure and structure.hidden)
    return Supervised(encoder, CONSTANTS[name], name, LABELS, 4, structure, weight)


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
    for v in ('namr', 'flat'): assert torch.equal(networks['plain'](x), networks[v](x))
    assert networks['wide'](x).shape == (6, 16) and torch.equal(networks['scaled'](x), networks['nasa'](x))
    assert torch.allclose(nn.functional.normalize(networks['nasa'](x), dim=1), networks['plain'](x), atol=1e-6)
    assert all(torch.equal(weights_of(n.backbone), weights_of(start().backbone)) for n in networks.values())
    assert torch.equal(weights_of(networks['nasa'].structure), weights_of(networks['namr'].structure))
    other_seed = p.add_heads(start(), 'triplet', 'plain', 1)
    assert not torch.equal(weights_of(networks['plain'].head), weights_of(other_seed.head))
    plm = p.add_heads(start(), 'plm', 'plain', 0) # PLM keeps the head it is given
    assert torch.equal(plm.eval()(x), start().eval()(x))
    e, w = embed_both(networks['namr'], IMAGES)
    assert torch.allclose(e, embed(networks['namr'], IMAGES, block=7), atol=1e-6) and w.shape == e.shape
    assert embed_both(networks['flat'], IMAGES)[1] is None


def test_rankings_of_the_variants():
    p = load_namr(OURS)
    p = replace(p, structure=replace(p.structure, C=7), unsupervised=replace(p.unsupervised, weight=0.2))
    for loss, own in p.losses.items():
        assert [v for v in VARIANTS if p.ranking(loss, v)[0]] == list(RANKED)
        (nasa, weight), published = p.ranking(loss, 'nasa'), (2, 2.)
        assert (nasa.C, weight) == published
        assert p.ranking(loss, 'flat') == p.ranking(loss, 'namr') == (p.structure, own.weight)
    assert p.ranking('plm', 'namr') == (p.structure, 0.2)
    assert {(loss, v) for loss, v, _ in p.runs() if v == 'scaled'} == {(loss, 'scaled') for loss in EUCLIDEAN}


@pytest.mark.parametrize('norm', ['moving', 'still'])
def test_two_heads_have_the_settings_of_the_encoder(norm):
    encoder = Encoder(dim=8, crop=24, precision='bf16', norm=norm)
    two = TwoHeads(encoder, hidden=4)
    x = as_input(IMAGES[:6])
    assert torch.equal(two.eval()(x), encoder.eval()(x)) and not torch.equal(two(x), start().eval()(x))
    kinds = {m.training for m in two.train().modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {norm == 'moving'} and encoder.head is not two.head


@pytest.mark.parametrize('training', [True, False])
def test_embedding_leaves_the_mode_alone(training):
    encoder = TwoHeads(start(), hidden=4).train(training)
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
    distance = pml_distances.LpDistance()
    loss, miner = LOSSES[name](CONSTANTS[name], 8, 6, distance)
    assert type(loss) is kind and (miner is None) == (name in ('contrastive', 'proxy-anchor'))
    assert (loss.distance is distance) == (name in EUCLIDEAN)
    if name == 'triplet': assert (loss.margin, miner.cutoff, miner.nonzero_loss_cutoff) == (0.1, 0.5, 1.4)
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
    "λ = 0: the same network as without NAMR, to the last bit."
    plain, namr, with_it = make(name), make(name, STRUCTURE, weight=0.), make(name, STRUCTURE)
    log, other, _ = train(plain, 'plain', tmp_path), train(namr, 'namr', tmp_path), train(with_it, 'with', tmp_path)
    assert [row.get('metric') for row in log] == [row.get('metric') for row in other] and log[1]['metric'] > 0
    for part in ('backbone', 'head'):
        assert torch.equal(weights_of(getattr(plain.encoder, part)), weights_of(getattr(namr.encoder, part)))
    assert not torch.equal(weights_of(plain.encoder.backbone), weights_of(with_it.encoder.backbone))


def test_flat_is_a_structure_of_ones():
    "Without a head the ranking sees w = 1."
    flat = Supervised(TwoHeads(start(), 8), CONSTANTS['triplet'], 'triplet', LABELS, 4, STRUCTURE, 0.7)
    index = torch.arange(20)
    terms = flat.step(IMAGES[index], index, Augment(), generator_at(0))
    e = flat.encoder(Augment()(IMAGES[index], generator_at(0)))
    expected = 0.7*slow.multi_cluster_ranking(e.detach(), torch.ones_like(e), 3)
    assert terms['rank'].item() == pytest.approx(expected, rel=1e-4)


def test_nasa_sees_embeddings_in_mean_distances():
    "The triplet loss of a linear layer's embeddings, their mean distance 1, distances not those of unit vectors."
    p = load_namr(OURS)
    encoder = replace(p, train=replace(p.train, dim=8)).add_heads(start(), 'contrastive', 'nasa', 0)
    method = Supervised(encoder, CONSTANTS['contrastive'], 'contrastive', LABELS, 4, *p.ranking('contrastive', 'nasa'))
    index = torch.arange(20)
    terms = method.step(IMAGES[index], index, Augment(), generator_at(0))
    x = in_mean_distances(encoder(Augment()(IMAGES[index], generator_at(0))).detach())
    d, y = torch.cdist(x, x), LABELS[index]
    assert d.sum()/380 == pytest.approx(1, abs=1e-4)
    same = (y[:, None] == y).fill_diagonal_(False)
    other = y[:, None] != y
    far = (1 - d[other]).clamp_min(0)
    expected = d[same].mean() + far[far > 0].mean()
    assert terms['metric'].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize('refresh, n_views', [('full', 1), ('kept', 1), ('full', 2)])
def test_unsupervised_namr_without_weight_is_plm(tmp_path, refresh, n_views):
    p = replace(UNLABELLED, refresh=refresh, n_views=n_views)
    plain, namr = PLM(TwoHeads(start()), p), UnsupervisedNAMR(TwoHeads(start(), hidden=4), p, STRUCTURE, 0.)
    log, other = train(plain, 'plain', tmp_path), train(namr, 'namr', tmp_path)
    assert [row.get('point') for row in log] == [row.get('point') for row in other] and other[-1]['rank'] == 0
    assert torch.equal(weights_of(plain.encoder.head), weights_of(namr.encoder.head))
    assert torch.equal(plain.kept, namr.kept) if refresh == 'kept' else namr.kept is None


def test_a_teacher_that_sees_a_view_sees_another_one_than_the_student():
    p = replace(UNLABELLED, view='augmented')
    index, namr = torch.arange(20), UnsupervisedNAMR(TwoHeads(start(), hidden=4), p, STRUCTURE, 0.)
    terms = [namr.step(IMAGES[index], index, Augment(), generator_at(0)), PLM(TwoHeads(start()), p).step(
        IMAGES[index], index, Augment(), generator_at(0))]
    assert terms[0]['point'] == terms[1]['point']


@pytest.mark.parametrize('name', ['triplet', 'proxy-anchor'])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, name):
    def new(): return make(name, STRUCTURE) # the miner of triplet draws at random
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

@pytest.mark.parametrize('unit', [True, False])
def test_evaluation_is_the_ranking_by_brute_force(unit):
    encoder = TwoHeads(start(), 8, hidden=16, unit=unit)
    encoder.structure.train()(encoder.features(as_input(IMAGES))) # batch statistics, so that w is not nearly 1
    found = evaluate(encoder, IMAGES, LABELS)
    e, w = (t.double() for t in embed_both(encoder, IMAGES))
    def figures(D):
        first, precision = [], []
        for i in range(40):
            others = sorted((j for j in range(40) if j != i), key=lambda j: D[i, j].item())
            right = [bool(LABELS[j] == LABELS[i]) for j in others[:4]] # a class has 4 others
            first.append(right[0])
            precision.append(sum(sum(right[:r + 1])/(r + 1) for r in range(4) if right[r])/4)
        return np.mean(first), np.mean(precision)
    plain, adaptive = slow.adaptive_distances(e, torch.ones_like(w), e), slow.adaptive_distances(e, w, e)
    assert (found['recall_at_1'], found['map_at_r']) == pytest.approx(figures(plain))
    assert (found['adaptive_recall_at_1'], found['adaptive_map_at_r']) == pytest.approx(figures(adaptive))
    assert figures(plain) != figures(adaptive) # else this would test nothing
    short = plain.fill_diagonal_(torch.inf).argsort(1)[:, :32]
    again = rerank(e, w, e, short)[:, 0]
    assert found['reranked_recall_at_1'] == pytest.approx((LABELS[again] == LABELS).double().mean().item())
    by_class = figures(slow.adaptive_distances(e, class_structure(e, LABELS), e))[0]
    assert found['class_recall_at_1'] == pytest.approx(by_class)
    assert found['w_spread'] == pytest.approx(w.std(unbiased=False).item(), rel=1e-4) and 0 < found['w_own'] < 1


def test_class_structure_by_hand():
    e = torch.tensor([[0., 0], [2, 1], [0, 0], [1, 4]])
    w = class_structure(e, torch.tensor([7, 7, 9, 9])) # variances 1 and 1/4, 1/4 and 4; means 5/8 and 17/8
    assert torch.allclose(w[0], torch.tensor([(5/8)**0.5, 1.5])) and torch.equal(w[0], w[1])
    assert torch.allclose(w[2], torch.tensor([1.5, (17/32)**0.5]))


# ---- many runs

def small(tmp_path, **changes):
    own = yaml.safe_load(OURS.read_text()) | {'seeds': [0], 'workers': 1}
    own['train'] |= dict(dim=8, epochs=1, batch_size=20, per_class=5)
    own['structure'] |= dict(hidden=16)
    own['unsupervised'] |= dict(epochs=1)
    own['losses'] = {'triplet': own['losses']['triplet']}
    (tmp_path/'namr.yaml').write_text(yaml.safe_dump(own | changes))
    return load_namr(tmp_path/'namr.yaml')


def test_a_run_is_found_again_until_something_that_decides_it_changes(tmp_path, monkeypatch):
    def write(images=IMAGES):
        arrays = images[:, 0].numpy(), LABELS.numpy()
        save_splits({split: (*arrays, [f'{split}{i}' for i in range(8)]) for split in SPLITS}, tmp_path/'data')
    shared = replace(BUDGET, epochs=1)
    def go(p, plm=UNLABELLED):
        return run_all('glyphs', p, RunData(str(tmp_path)), shared, plm, scratch=tmp_path/'scratch')
    write()
    save_state(start().state_dict(), tmp_path/'pretrain/0/encoder.pt')
    p = small(tmp_path)
    first = go(p)
    assert list(first) == p.runs()
    assert p.runs() == [('triplet', v, 0) for v in VARIANTS] + [('plm', v, 0) for v in ('plain', 'flat', 'namr')]
    state = load_state(first['triplet', 'namr', 0])
    assert 'structure.net.0.weight' in state['encoder'] and [row['epoch'] for row in state['log']] == [0, 1]
    assert state['log'][1]['rank'] > 0 and {'adaptive_recall_at_1', 'val_map_at_r'} < state['figures'].keys()
    assert go(replace(p, workers=2)) == first # how many run side by side decides nothing
    def other_loss(**changes): return replace(p, losses={'triplet': replace(p.losses['triplet'], **changes)})
    with pytest.raises(RuntimeError, match='glyphs, triplet, plain, seed 0: ValueError: embeddings have NaN'):
        go(other_loss(lr=float('inf')))
    monkeypatch.setattr(supervised, 'run_jobs', lambda *args: None) # from here on only the names are looked at
    def renamed(p=p, **kw): return {key[:2] for key, file in go(p, **kw).items() if file != first[key]}
    everything, labelled = {key[:2] for key in first}, {('triplet', v) for v in VARIANTS}
    ranked = {key for key in everything if key[1] in RANKED}
    assert renamed() == set() and renamed(replace(p, structure=replace(p.structure, alpha=9))) == ranked
    assert renamed(replace(p, structure=replace(p.structure, C=9))) == ranked - {('triplet', 'nasa')}
    assert renamed(other_loss(weight=9.)) == {('triplet', 'flat'), ('triplet', 'namr')}
    assert renamed(other_loss(margin=2.)) == labelled == renamed(replace(p, train=replace(p.train, epochs=2)))
    assert renamed(replace(p, unsupervised=replace(p.unsupervised, epochs=2))) == everything - labelled
    assert renamed(plm=replace(UNLABELLED, m=1)) == everything - labelled
    moved = LABELS.clone()
    moved[[0, 39]] = moved[[39, 0]]
    np.save(tmp_path/'data/train_labels.npy', moved.numpy())
    assert renamed() == labelled # PLM does not know of them
    write(images=IMAGES.flip(0))
    assert renamed() == everything
    write()
    save_state(Encoder(dim=8, address=(4,)).state_dict(), tmp_path/'pretrain/0/encoder.pt')
    assert renamed() == everything


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
    assert both == gain(rows, 'd', 'triplet', 'namr', 'plain') == gain(iter(rows), 'd', 'triplet', 'namr', 'plain')
    assert gain(rows, 'd', 'triplet', 'namr', 'wide')[0] == pytest.approx(0.05)
    header, (triplet, plm) = namr_table(rows)
    assert header[2:] == list(VARIANTS) and [triplet[1], plm[1]] == ['triplet', 'plm']
    assert triplet[2:4] == ['60.0 ± 14.1', '55.0'] and plm[3] == ''
    as_text = [{k: str(v) for k, v in r.items()} for r in rows] # as csv gives them
    assert namr_table(as_text) == (header, [triplet, plm])
    header, (triplet, plm) = gains_table(as_text)
    assert header[4:6] == ['namr − plain', 'namr − wide'] and triplet[5] == '+5.0 (one seed)'
    assert plm[4].startswith('-5.0 ± ') and plm[5] == triplet[2] == ''
    ax, = plot_gains(as_text).axes
    assert ax.get_title() == 'd' and ax.get_legend_handles_labels()[1] == ['namr − plain', 'namr − wide']
    with pytest.raises(ValueError, match='on d, plm has no seed with both namr and wide'):
        gain(rows, 'd', 'plm', 'namr', 'wide')


def test_what_serving_gains_is_taken_within_runs():
    figures = dict(recall_at_1=0.5, adaptive_recall_at_1=0.52, reranked_recall_at_1=0.51, class_recall_at_1=0.6,
                   w_spread=0.2, w_own=0.8)
    rows = [dict(dataset='d', loss='triplet', variant='nasa', seed=s, metric=m, value=str(v + 0.1*s))
            for s in (0, 1) for m, v in figures.items()]
    header, lines = serving_table(rows, 'nasa')
    assert lines == [['d', 'triplet', '+2.0 ± 0.0', '+1.0 ± 0.0', '+10.0 ± 0.0', '0.25', '0.85']]
    assert serving_table(rows, 'namr')[1] == []


def test_the_published_rows_are_complete():
    p, rows = load_namr(OURS), list(csv.DictReader(open(ROOT/'results/namr.csv')))
    assert list(rows[0]) == ['dataset', 'loss', 'variant', 'seed', 'metric', 'value']
    keys = {tuple(r[k] for k in ('dataset', 'loss', 'variant', 'seed')) for r in rows if r['metric'] == 'recall_at_1'}
    assert keys == {(d, loss, v, str(s)) for d in {r['dataset'] for r in rows} for loss, v, s in p.runs()}
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
    (lambda p: p['structure'].update(C=1), 'structure.C: .* greater than or equal to 2, got 1'),
    (lambda p: p['structure'].update(hidden=0), 'structure.hidden'),
    (lambda p: p['structure'].update(alpha=-1), 'structure.alpha'),
    (lambda p: p['structure'].update(t='3'), 'structure.t: .* valid number'),
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
    (lambda: load_namr(OURS).add_heads(start(), 'triplet', 'broad', 0), "'broad'")])
def test_what_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words): wrong()
