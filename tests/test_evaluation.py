"plm.evaluation against plain loops (reference_evaluation.py) and against pytorch-metric-learning."
import math
import faiss, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import FaissKMeans
from scipy import stats
from scipy.stats import pearsonr
from sklearn.metrics import normalized_mutual_info_score
import reference_evaluation as reference
import plm.evaluation
from plm import sampling
from plm.evaluation import (correlation, interval, label_purity, map_at_r, nmi, ranking, recall_at_k, retrieval_metrics,
                            some_classes, summary)

KEYS = ['recall_at_1', 'recall_at_2', 'recall_at_4', 'recall_at_8', 'map_at_r', 'nmi']


def unit(n, d, seed=0):
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=1)


def classes(n, c, seed=0):
    labels = torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(seed))
    labels[:4] = torch.tensor([0, 0, 1, 1]) # always two classes of two
    return labels


def library(z, labels, **search):
    calculator = AccuracyCalculator(include=('precision_at_1', 'mean_average_precision_at_r'), k='max_bin_count',
                                    device=torch.device('cpu'), **search)
    return calculator.get_accuracy(z, labels)


# ---- ranking

def grid(n, d, sides, seed):
    return torch.randint(0, sides, (n, d), generator=torch.Generator().manual_seed(seed)).float()


@settings(max_examples=60, deadline=None)
@given(n=st.integers(4, 60), d=st.integers(1, 6), sides=st.integers(1, 3), seed=st.integers(0, 99), data=st.data())
def test_ranking_on_a_grid_full_of_ties_is_the_plain_sort(n, d, sides, seed, data):
    z, k = grid(n, d, sides, seed), data.draw(st.integers(1, n-1))
    assert np.array_equal(ranking(z, k).numpy(), reference.ranking(z, k))


@pytest.mark.parametrize('d', [4, 300]) # below and above the size at which FAISS turns to a matrix product (1.15)
@pytest.mark.parametrize('k', [3, 150]) # below and above the width at which FAISS turns from heaps to reservoirs (100)
def test_ranking_of_exact_copies(d, k):
    # ties wider than the search looks ahead
    z = unit(12, d).repeat(50, 1)[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    distances = torch.stack([(z.double() - row).square().sum(1) for row in z.double()]).fill_diagonal_(torch.inf)
    assert torch.equal(ranking(z, k), distances.sort(dim=1, stable=True).indices[:, :k])


def test_no_query_finds_itself_in_a_collapsed_embedding():
    near = ranking(torch.ones(200, 8), 5)
    assert not (near == torch.arange(200)[:, None]).any()
    assert near[100].tolist() == [0, 1, 2, 3, 4] and near[2].tolist() == [0, 1, 3, 4, 5]


def test_a_nearly_collapsed_embedding_is_ranked_below_the_rounding_of_single_precision():
    z = 1 + 1e-4*unit(500, 300) # squared distances near 1e-8, squared lengths near 300
    distances = torch.stack([(z.double() - row).square().sum(1) for row in z.double()]).fill_diagonal_(torch.inf)
    assert torch.equal(ranking(z, 5), distances.sort(dim=1, stable=True).indices[:, :5])


def test_ranking_of_random_points_is_the_plain_sort():
    z = unit(150, 32)
    assert np.array_equal(ranking(z, 40).numpy(), reference.ranking(z, 40))


def test_ranking_does_not_depend_on_threads_or_scale():
    z, before = unit(800, 64), faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1); one = ranking(z, 10)
        faiss.omp_set_num_threads(2); two = ranking(z, 10)
    finally: faiss.omp_set_num_threads(before)
    assert torch.equal(one, two)
    assert torch.equal(one, ranking(1024*z, 10)) and torch.equal(one, ranking(z/1024, 10)) # powers of two: no rounding


@pytest.mark.parametrize('k', [0, 10, -1])
def test_ranking_names_the_widest_k(k):
    with pytest.raises(ValueError, match='1 to 9'): ranking(unit(10, 3), k)


@settings(max_examples=60, deadline=None)
@given(q=st.integers(1, 30), n=st.integers(1, 40), d=st.integers(1, 6), sides=st.integers(1, 3),
       seed=st.integers(0, 99), data=st.data())
def test_ranking_in_a_gallery_full_of_ties_is_the_plain_sort(q, n, d, sides, seed, data):
    queries, gallery, k = grid(q, d, sides, seed), grid(n, d, sides, seed + 100), data.draw(st.integers(1, n))
    assert np.array_equal(ranking(queries, k, gallery).numpy(), reference.gallery_ranking(queries, gallery, k))


def test_a_gallery_of_copies_wider_than_the_search_looks_ahead():
    assert ranking(torch.zeros(3, 4), 5, torch.ones(100, 4)).tolist() == [[0, 1, 2, 3, 4]]*3
    assert ranking(torch.ones(2, 4), 2, torch.cat([torch.zeros(60, 4), torch.ones(60, 4)])).tolist() == [[60, 61]]*2


def test_more_queries_than_are_asked_at_a_time():
    "A block has some 2^21 neighbours: those of a few points on both sides of a seam, and of copies across it."
    z = unit(4300, 4)
    z[4200:4300] = z[:100]
    seam = len(plm.evaluation._Ranking(z).blocks(torch.arange(4300), 1000)[0])
    near, asked = ranking(z, 1000)[:, :3], [0, 50, seam - 1, seam, 4200, 4299]
    assert seam < 4200
    for i in asked:
        order = (z.double() - z[i].double()).square().sum(1).sort(stable=True).indices[:4].tolist()
        assert near[i].tolist() == [j for j in order if j != i][:3]
    assert torch.equal(ranking(z, 3, z[:40])[asked], ranking(z[asked], 3, z[:40]))


@pytest.mark.parametrize('k', [0, 10, -1])
def test_ranking_names_the_widest_k_of_a_gallery(k):
    with pytest.raises(ValueError, match=f'k={k} neighbours asked of 9 images: give k from 1 to 9.$'):
        ranking(unit(3, 4), k, unit(9, 4))


def test_queries_and_gallery_must_be_of_one_space():
    with pytest.raises(ValueError, match='queries have 3 dimensions and the gallery has 4'):
        ranking(unit(5, 3), 1, unit(5, 4))
    with pytest.raises(ValueError, match='gallery'): ranking(unit(5, 3), 1, torch.full((5, 3), torch.nan))


# ---- metrics

@settings(max_examples=40, deadline=None)
@given(n=st.integers(6, 40), c=st.integers(2, 12), sides=st.integers(1, 4), seed=st.integers(0, 99))
def test_metrics_are_the_plain_loops(n, c, sides, seed):
    z, labels = grid(n, 2, sides, seed), classes(n, c, seed)
    near = ranking(z, n-1)
    plain = reference.ranking(z, n-1)
    for k in (1, 2, n-1):
        assert recall_at_k(near, labels, k) == pytest.approx(reference.recall_at_k(plain, labels.tolist(), k),
                                                             abs=1e-12)
    assert recall_at_k(near, labels, n-1) == 1
    assert map_at_r(near, labels) == pytest.approx(reference.map_at_r(plain, labels.tolist()), abs=1e-12)


def by_tables(z, labels, ks):
    near = ranking(z, max(*ks, labels.bincount().max().item() - 1))
    return {**{f'recall_at_{k}': recall_at_k(near, labels, k) for k in ks}, 'map_at_r': map_at_r(near, labels)}


AWKWARD = {'points': unit(700, 32), 'far': unit(300, 300) + 5, 'tiny': 1e-6*unit(400, 8), 'huge': 1e6*unit(400, 8),
           'nearly collapsed': 1 + 1e-4*unit(400, 100), 'one point': torch.ones(200, 3), 'nothing': torch.zeros(150, 3),
           'copies': unit(20, 300).repeat(30, 1), 'grid': grid(600, 3, 3, 0)}


@pytest.mark.parametrize('block', [64, None])
@pytest.mark.parametrize('name', AWKWARD)
def test_figures_of_blocks_are_those_of_the_whole_table(monkeypatch, name, block):
    z = AWKWARD[name]
    if block: monkeypatch.setattr(plm.evaluation._Ranking, 'blocks', lambda self, rows, k: rows.split(block))
    for c in (2, 30, 120):
        labels = classes(len(z), c)
        found, expected = retrieval_metrics(z, labels, (1, 2, 10, 100)), by_tables(z, labels, (1, 2, 10, 100))
        assert {name: value for name, value in found.items() if name != 'nmi'} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('name', AWKWARD)
def test_rankings_are_the_plain_sort_however_the_search_rounds(monkeypatch, name):
    z = AWKWARD[name][:300]
    d2 = torch.stack([(z.double() - row).square().sum(1) for row in z.double()]).fill_diagonal_(torch.inf)
    plain = d2.sort(dim=1, stable=True).indices[:, :20]
    assert torch.equal(ranking(z, 20), plain)
    def coarse(x, queries, k): # as on a GPU that has been told to multiply in less than 32 bits
        d2, near = sampling._by_product(x.bfloat16().float(), queries.bfloat16().float(), len(x))
        d2, order = (d2*(1 + 1e-3*torch.sin(1e6*d2))).sort(dim=1)
        return d2[:, :k], near.gather(1, order)[:, :k]
    for search in (sampling._by_product, coarse):
        monkeypatch.setattr(plm.evaluation, 'nearest', search)
        assert torch.equal(ranking(z, 20), plain)


def test_memory_does_not_grow_with_the_number_of_queries_times_the_largest_class(monkeypatch):
    "Rankings of one large class are long; those of the others stay short."
    z, labels = unit(3000, 8), torch.cat([torch.zeros(1000, dtype=torch.long), torch.arange(2000)//2 + 1])
    expected, asked, real = by_tables(z, labels, (1, 2)), [], plm.evaluation._Ranking
    class Counting(real):
        def blocks(self, rows, k): return [part for block in super().blocks(rows, k) for part in block.split(500)]
        def __call__(self, rows, k):
            asked.append((len(rows), k))
            return super().__call__(rows, k)
    monkeypatch.setattr(plm.evaluation, '_Ranking', Counting)
    assert retrieval_metrics(z, labels, (1, 2))['map_at_r'] == pytest.approx(expected['map_at_r'], abs=1e-12)
    assert sum(n for n, _ in asked) == 3000 and sum(n*k for n, k in asked) < 1100*1000
    assert all(len(block)*1000 < 2**21 for block in real(z).blocks(torch.arange(3000), 1000))


@pytest.mark.parametrize('seed', range(3))
def test_random_embeddings_score_as_in_pytorch_metric_learning(seed):
    z, labels = unit(400, 16, seed), classes(400, 150, seed) # about 2.7 images per class, many classes of one
    assert (labels.bincount() == 1).any()
    ours, judged = retrieval_metrics(z, labels), library(z, labels)
    assert ours['recall_at_1'] == pytest.approx(judged['precision_at_1'], abs=1e-12)
    assert ours['map_at_r'] == pytest.approx(judged['mean_average_precision_at_r'], abs=1e-12)


def test_tied_embeddings_score_as_in_pytorch_metric_learning_given_the_order():
    "Among equals FAISS promises no order, so with ties the library's own search may differ; the formulas may not."
    z, labels = grid(300, 3, 3, 0), classes(300, 40)
    judged = library(z, labels, knn_func=lambda query, k, *_: (None, ranking(query, k)))
    near = ranking(z, labels.bincount().max().item() - 1)
    assert recall_at_k(near, labels, 1) == pytest.approx(judged['precision_at_1'], abs=1e-12)
    assert map_at_r(near, labels) == pytest.approx(judged['mean_average_precision_at_r'], abs=1e-12)


def test_copies_within_a_class_score_as_in_pytorch_metric_learning():
    "Copies of one image carry one label, so their order among themselves changes nothing, whoever searches."
    z, labels = unit(80, 16).repeat(3, 1), classes(80, 20).repeat(3)
    near, judged = ranking(z, labels.bincount().max().item() - 1), library(z, labels)
    assert recall_at_k(near, labels, 1) == judged['precision_at_1'] == 1
    assert map_at_r(near, labels) == pytest.approx(judged['mean_average_precision_at_r'], abs=1e-12)


def test_perfect_and_worst_embedding():
    labels = torch.arange(12) // 3
    assert retrieval_metrics(torch.eye(4)[labels], labels) == dict.fromkeys(KEYS, 1.)
    far = torch.tensor([[0.], [100], [1], [101]]) # nearest other is always of the other class
    near, labels = ranking(far, 1), torch.tensor([0, 0, 1, 1])
    assert recall_at_k(near, labels, 1) == 0 == map_at_r(near, labels)


def test_names_of_classes_do_not_matter():
    z, labels = unit(60, 8), classes(60, 6)
    renamed = torch.tensor([1000, -3, 7, 99, 12, 5])[labels]
    before, after = retrieval_metrics(z, labels), retrieval_metrics(z, renamed)
    assert {k: before[k] for k in KEYS[:5]} == {k: after[k] for k in KEYS[:5]}
    assert before['nmi'] == pytest.approx(after['nmi'], abs=1e-12)


def test_metrics_have_the_keys_of_the_csv_and_repeat_to_the_last_digit():
    z, labels = unit(300, 24), classes(300, 30)
    first = retrieval_metrics(z, labels, seed=3)
    assert list(first) == KEYS and all(isinstance(v, float) for v in first.values())
    assert first == retrieval_metrics(z, labels, seed=3)
    other = retrieval_metrics(z, labels, seed=4)
    assert {k: first[k] for k in KEYS[:5]} == {k: other[k] for k in KEYS[:5]} and first['nmi'] != other['nmi']
    assert list(retrieval_metrics(z, labels, ks=(1, 10)))[:2] == ['recall_at_1', 'recall_at_10']


def test_gradients_and_half_precision_are_accepted():
    z, labels = unit(60, 8).requires_grad_(), classes(60, 6)
    assert retrieval_metrics(z, labels) == retrieval_metrics(z.detach(), labels)
    assert retrieval_metrics(z.detach().half(), labels)['recall_at_8'] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda_embeddings_score_the_same():
    z, labels = unit(300, 24), classes(300, 30)
    assert ranking(z.cuda(), 5).is_cuda
    expected = retrieval_metrics(z, labels)
    assert retrieval_metrics(z.cuda(), labels.cuda()) == retrieval_metrics(z.cuda(), labels) == pytest.approx(expected)
    rounds = {'a': list(rounds_of(300, 2, 0))}
    on_gpu, expected = (retrieval_metrics(x, labels, rounds=rounds) for x in (z.cuda(), z))
    assert on_gpu == retrieval_metrics(z.cuda(), labels.cuda(), rounds=rounds) == pytest.approx(expected)


# ---- queries and galleries

def rounds_of(n, n_rounds, seed):
    "Random halves."
    for i in range(n_rounds):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1000*seed + i)).numpy()
        yield order[:n//2], order[n//2:]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(8, 40), c=st.integers(2, 6), n_rounds=st.integers(1, 3), sides=st.integers(1, 3),
       seed=st.integers(0, 999))
def test_rounds_are_the_plain_loops(n, c, n_rounds, sides, seed):
    z, labels, rounds = grid(n, 3, sides, seed), classes(n, c, seed), list(rounds_of(n, n_rounds, seed))
    if not all(len(set(labels[g].tolist())) > 1 and np.isin(labels[q], labels[g]).any() for q, g in rounds): return
    widest, ks = n - n//2, sorted({1, 2, n - n//2})
    got = retrieval_metrics(z, labels, ks, rounds={'a': rounds, 'b': rounds[:1]})
    for test, pairs in (('a', rounds), ('b', rounds[:1])):
        for k in ks:
            plain = np.mean([reference.gallery_recall(z.numpy(), labels.tolist(), q, g, k) for q, g in pairs])
            assert got[f'{test}/recall_at_{k}'] == pytest.approx(plain, abs=1e-12)
        if f'{test}/map_at_r' in got:
            plain = np.mean([reference.gallery_map_at_r(z.numpy(), labels.tolist(), q, g) for q, g in pairs])
            assert got[f'{test}/map_at_r'] == pytest.approx(plain, abs=1e-12)
        else: assert max((labels[g] == c).sum() for q, g in pairs for c in labels[q].tolist()) == 1 # R@1 over again
    alone = retrieval_metrics(z, labels, ks, rounds={'b': rounds[:1]})
    assert alone == {name[2:]: v for name, v in got.items() if name.startswith('b/')}
    assert got[f'a/recall_at_{widest}'] == 1


@pytest.mark.parametrize('seed', range(3))
def test_a_gallery_scores_as_in_pytorch_metric_learning(seed):
    z, labels = unit(500, 16, seed), classes(500, 120, seed) # some queries have no answer in the gallery
    q, g = map(torch.as_tensor, next(rounds_of(500, 1, seed)))
    assert not torch.isin(labels[q], labels[g]).all()
    judge = AccuracyCalculator(include=('precision_at_1', 'mean_average_precision_at_r'), k='max_bin_count',
                               device=torch.device('cpu'))
    judged = judge.get_accuracy(z[q], labels[q], z[g], labels[g])
    ours = retrieval_metrics(z, labels, (1, 10), rounds={'half': [(q, g)]})
    assert list(ours) == ['recall_at_1', 'recall_at_10', 'map_at_r']
    assert ours['recall_at_1'] == pytest.approx(judged['precision_at_1'], abs=1e-12)
    assert ours['map_at_r'] == pytest.approx(judged['mean_average_precision_at_r'], abs=1e-12)


def test_no_rounds_is_each_against_all_others():
    z, labels = unit(60, 8), classes(60, 6)
    for rounds in ({}, None): assert retrieval_metrics(z, labels, rounds=rounds) == retrieval_metrics(z, labels)


def test_names_of_classes_do_not_matter_in_a_gallery():
    z, labels, rounds = unit(60, 8), classes(60, 6), {'a': list(rounds_of(60, 2, 0))}
    renamed = torch.tensor([1000, -3, 7, 99, 12, 5])[labels]
    assert retrieval_metrics(z, labels, rounds=rounds) == retrieval_metrics(z, renamed, rounds=rounds)


@pytest.mark.parametrize('rounds, ks, message', [
    ({'a': []}, (1,), "the test 'a' has no round"),
    ({'a': [([0, 1], [1, 2])]}, (1,), 'both query and'),
    ({'a': [([0, 1], [4, 5])]}, (1,), 'no query has an image of its class'),
    ({'a': [([0, 2], [1])]}, (1,), 'one class only'),
    ({'a': [([0, 2], [1, 3])]}, (3,), 'k=3 neighbours asked of 2'),
])
def test_rounds_that_ask_nothing_are_named(rounds, ks, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(torch.eye(6), torch.tensor([0, 0, 1, 1, 2, 3]), ks, rounds=rounds)


def test_labels_of_queries_and_gallery_are_counted():
    near = ranking(unit(4, 3), 2, unit(6, 3, 1))
    with pytest.raises(ValueError, match=r'shape \(4,\), one class per query'):
        recall_at_k(near, torch.zeros(3), 1, torch.arange(6))


# ---- a part of a large set

@given(st.lists(st.integers(1, 12), min_size=2, max_size=30), st.integers(4, 60), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_part_is_of_whole_classes(sizes, most, seed):
    labels = torch.repeat_interleave(7*torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    part = some_classes(labels, most)
    assert torch.equal(part, some_classes(labels, most)) and torch.equal(part, part.unique())
    assert len(part) <= max(most, 0)
    if len(labels) <= most: assert torch.equal(part, torch.arange(len(labels))); return
    of, counts = labels[part].unique(return_counts=True)
    whole = torch.tensor([(labels == c).sum() for c in of])
    assert torch.equal(counts, whole) or (len(of) <= 2 and whole.sum() > most and len(part) == most)
    # also where two classes are too many: half of each
    if sum(s > 1 for s in sizes) >= 2: assert (whole > 1).all() and len(of) >= 2 and counts.min() > 1


# ---- NMI

def test_nmi_is_the_library_on_its_own_clusters():
    z, labels = unit(400, 16), classes(400, 40)
    clusters = FaissKMeans(niter=20, seed=5, min_points_per_centroid=1)(z, 40).numpy()
    assert nmi(z, labels, seed=5) == pytest.approx(reference.nmi(labels.tolist(), clusters.tolist()), abs=1e-9)
    assert nmi(z, labels, seed=5) == pytest.approx(normalized_mutual_info_score(labels.numpy(), clusters), abs=1e-12)


def test_nmi_does_not_depend_on_threads():
    z, labels, before = unit(500, 32), classes(500, 25), faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1); one = nmi(z, labels)
        faiss.omp_set_num_threads(2); two = nmi(z, labels)
    finally: faiss.omp_set_num_threads(before)
    assert one == two


def test_nmi_of_a_collapsed_embedding_is_low():
    assert 0 <= nmi(torch.ones(100, 8), classes(100, 10)) < 0.3


# ---- errors

@pytest.mark.parametrize('z, labels, message', [
    (torch.full((10, 3), torch.nan), torch.arange(10) % 2, 'NaN'),
    (unit(10, 3), torch.zeros(10), 'one class only'),
    (unit(10, 3), torch.arange(10), 'single image'),
    (unit(10, 3), torch.arange(9) % 2, r'shape \(10,\)'),
    (unit(10, 3), (torch.arange(10) % 2)[:, None], r'shape \(10,\)'),
    (unit(8, 3), torch.arange(8) % 2, 'k=8'),
    (unit(10, 3).flatten(), torch.arange(10) % 2, r'\(B, d\)'),
])
def test_errors_name_the_input(z, labels, message):
    with pytest.raises(ValueError, match=message): retrieval_metrics(z, labels)


def test_metrics_ask_for_enough_neighbours():
    near, labels = ranking(unit(10, 3), 2), torch.arange(10) % 2
    with pytest.raises(ValueError, match=r'ranking\(z, 4\)'): map_at_r(near, labels)
    with pytest.raises(ValueError, match=r'ranking\(z, 3\)'): recall_at_k(near, labels, 3)


# ---- estimates of similarity

def symmetric(n, seed):
    return (lambda x: x + x.T)(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.double))


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4), c=st.integers(1, 4), share=st.floats(0, 1),
       seed=st.integers(0, 999))
def test_purity_is_the_plain_loop(sizes, c, share, seed):
    g = torch.Generator().manual_seed(seed)
    groups = [torch.rand(n, n, generator=g) < share for n in sizes]
    labels = [torch.randint(0, c, (n,), generator=g) for n in sizes]
    if not any((x & ~torch.eye(len(x), dtype=torch.bool)).any() for x in groups):
        with pytest.raises(ValueError, match='nothing to be pure'): label_purity(groups, labels)
        return
    expected = reference.label_purity([(x.tolist(), y.tolist()) for x, y in zip(groups, labels)])
    assert label_purity(groups, labels) == pytest.approx(expected, abs=1e-12)
    if len(sizes) == 1: assert label_purity(groups[0], labels[0]) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 10), min_size=1, max_size=4), c=st.integers(1, 4), seed=st.integers(0, 999),
       scale=st.floats(1e-6, 1e6), shift=st.floats(-10, 10))
def test_correlation_is_the_plain_loop_and_scipy(sizes, c, seed, scale, shift):
    g = torch.Generator().manual_seed(seed)
    s = [symmetric(n, seed + i) for i, n in enumerate(sizes)]
    labels = [torch.randint(0, c, (n,), generator=g) for n in sizes]
    batches = [(x.tolist(), y.tolist()) for x, y in zip(s, labels)]
    x, y = reference.pairs(batches)
    if len(set(y)) < 2:
        with pytest.raises(ValueError, match='pairs of both kinds'): correlation(s, labels)
        return
    found = correlation(s, labels)
    assert found == pytest.approx(reference.correlation(batches), abs=1e-9)
    assert found == pytest.approx(pearsonr(x, y)[0], abs=1e-9)
    assert correlation([scale*x + shift*scale for x in s], labels) == pytest.approx(found, abs=1e-6)
    assert correlation([-x for x in s], labels) == pytest.approx(-found, abs=1e-12)


def test_the_truth_is_pure_and_correlates_and_its_opposite_does_not():
    labels = torch.arange(12)//3
    same = labels[:, None] == labels
    assert label_purity(same, labels) == 1 and label_purity(~same, labels) == 0
    assert correlation(same.double(), labels) == pytest.approx(1)
    assert correlation((~same).double(), labels) == pytest.approx(-1)


def test_a_group_of_everybody_has_the_purity_of_the_base_rate():
    labels = classes(40, 5)
    same = (labels[:, None] == labels).double().fill_diagonal_(0)
    everybody = torch.ones(40, 40, dtype=torch.bool)
    assert label_purity(everybody, labels) == pytest.approx(same.sum().item()/(40*39), abs=1e-12)


def test_purity_counts_each_point_once_and_the_lonely_class_as_wrong():
    groups, labels = torch.eye(6, dtype=torch.bool), torch.tensor([0, 0, 0, 0, 1, 2])
    groups[0, [1, 2, 3, 4]] = True # 3/4
    groups[5, 0] = True # class 2 has one image: 0, not left out
    assert label_purity(groups, labels) == 3/8 # a mean over points, not over pairs, which would be 3/5
    groups[4, 4] = False # the diagonal says nothing
    assert label_purity(groups, labels) == 3/8


def test_pooling_is_not_the_mean_of_batches():
    big, small = torch.ones(6, 6, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    y6, y2 = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0])
    assert label_purity([big, small], [y6, y2]) == pytest.approx((6*0.4 + 2*1)/8)
    s = torch.zeros(2, 2)
    assert math.isnan(correlation(s.repeat(3, 3), y6))
    pooled = pearsonr([0]*15 + [1], [1]*3 + [0]*9 + [1]*3 + [1])[0]
    assert correlation([s.repeat(3, 3), s + 1], [y6, y2]) == pytest.approx(pooled)


def test_pairs_between_batches_do_not_count():
    s, labels = symmetric(6, 0), torch.tensor([0, 0, 1, 0, 1, 1])
    cut = [s[:3, :3], s[3:, 3:]]
    assert correlation(cut, [labels[:3], labels[3:]]) != pytest.approx(correlation(s, labels), abs=1e-3)
    # (batches, N, N) will do as well
    assert correlation(torch.stack(cut), labels.view(2, 3)) == correlation(cut, [labels[:3], labels[3:]])


@pytest.mark.parametrize('metric, x, labels, message', [
    (label_purity, torch.eye(3), torch.arange(3), 'must be bool'),
    (label_purity, torch.ones(3, 4, dtype=torch.bool), torch.arange(3), 'do not go with labels'),
    (label_purity, torch.ones(3, 3, dtype=torch.bool), torch.arange(4), 'do not go with labels'),
    (label_purity, [torch.ones(3, 3, dtype=torch.bool)], [torch.arange(3)]*2, '1 batches of groups but 2'),
    (label_purity, [], [], 'nothing to be pure'),
    (correlation, torch.full((3, 3), torch.nan), torch.tensor([0, 0, 1]), 'NaN'),
    (correlation, torch.arange(9.).view(3, 3), torch.tensor([0, 0, 1]), 'symmetric'),
    (correlation, torch.ones(3, 3), torch.zeros(3), '3 are of the same class'),
    (correlation, torch.ones(3, 3), torch.arange(3), '0 are of the same class'),
    (correlation, [], [], 'of 0 pairs'),
])
def test_estimates_that_cannot_be_judged(metric, x, labels, message):
    with pytest.raises(ValueError, match=message): metric(x, labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_estimates_are_judged_on_cuda_too():
    s, labels = symmetric(20, 0), classes(20, 4)
    assert correlation(s.cuda(), labels) == pytest.approx(correlation(s, labels), abs=1e-12)
    assert label_purity((s > 0).cuda(), labels.cuda()) == label_purity(s > 0, labels)


# ---- summary

def test_summary_is_mean_and_sample_deviation():
    rows = [dict(dataset=d, method=m, seed=str(s), metric=k, value=str(v)) # strings, as csv gives them
            for d in 'ab' for m in ('x', 'y') for k in KEYS for s, v in enumerate(np.random.default_rng(0).random(4))]
    found = summary(rows)
    for d in 'ab':
        for k in KEYS:
            values = [float(r['value']) for r in rows if (r['dataset'], r['method'], r['metric']) == (d, 'y', k)]
            assert found[d]['y'][k] == {'mean': pytest.approx(np.mean(values)),
                                        'std': pytest.approx(np.std(values, ddof=1)), 'n': 4}


def test_summary_of_one_seed_has_no_deviation_and_of_a_seed_twice_is_an_error():
    row = dict(dataset='a', method='x', seed=0, metric='nmi', value=0.5)
    assert summary([row]) == {'a': {'x': {'nmi': {'mean': 0.5, 'n': 1}}}}
    with pytest.raises(ValueError, match='seed 0'): summary([row, {**row, 'seed': '0'}])


@pytest.mark.parametrize('n', [2, 3, 7])
def test_the_interval_is_that_of_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.random(n), rng.random(n)
    middle, half = interval((a - b).tolist())
    assert [middle - half, middle + half] == pytest.approx(stats.ttest_rel(a, b).confidence_interval(0.95))
    assert interval([0.25]) == (0.25, math.inf)
    with pytest.raises(ValueError, match='no seed in common'): interval([])
