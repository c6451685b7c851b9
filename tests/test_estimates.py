"plm.estimates against plain loops (reference_estimates.py), on cases where the answer is known, and as a protocol."
import subprocess, sys, warnings
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.stats import pearsonr
from sklearn.cluster import AgglomerativeClustering, KMeans
from torch.nn.functional import normalize
import reference_estimates as reference
from plm.estimates import (NAMES, PUBLISHED, Estimate, batch_estimates, difference, epoch_of_batches, estimate_table,
                           judge_estimates, nearest_groups, piece_gain, quality, random_walk_similarity, same_cluster,
                           set_estimates, walk_correlations)
from plm.manifold import PiecewiseLinearManifold
from plm.similarity import Binary, PiecewiseLinear, Similarity


def unit(n, d, seed=0): return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def blobs(n_classes=4, each=10, noise=0.02):
    "Classes that nobody can miss."
    z = torch.eye(n_classes + 2)[:n_classes].repeat_interleave(each, 0)
    z = normalize(z + noise*torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    return z, torch.arange(n_classes).repeat_interleave(each)


# ---- one by one

@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 25), d=st.integers(1, 4), sides=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_nearest_groups_are_the_plain_sort_ties_included(n, d, sides, seed, data):
    t = torch.randint(0, sides, (n, d), generator=torch.Generator().manual_seed(seed)).float()
    sizes = torch.tensor(data.draw(st.lists(st.integers(0, n-1), min_size=n, max_size=n)))
    groups = nearest_groups(t, sizes)
    assert groups.tolist() == reference.nearest_groups(t, sizes)
    assert torch.equal(groups.sum(1), sizes + 1)


def test_nearest_groups_are_what_a_piece_without_a_test_takes():
    t = unit(40, 8)
    for k in (3, 7, 39): assert torch.equal(nearest_groups(t, k), PiecewiseLinearManifold(3, None, k)(t).members)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 14), k=st.integers(1, 13), alpha=st.sampled_from([0.1, 0.9, 0.97]), seed=st.integers(0, 99))
def test_random_walk_is_the_sum_of_all_walks(n, k, alpha, seed):
    z, k = unit(n, 3, seed), min(k, n-1)
    s = random_walk_similarity(z, k, alpha)
    np.testing.assert_allclose(s.numpy(), reference.random_walk(z, k, alpha), atol=1e-9)
    assert torch.equal(s, s.T) and (s.diagonal() == 1).all() and 0 <= s.min() and s.max() <= 1


def test_random_walk_is_where_walkers_stop():
    "A walker that stops with probability 1 - alpha ends at j with probability (1 - alpha) R_ij sqrt(d_j / d_i)."
    z, k, alpha, start = unit(12, 3), 3, 0.8, 0
    ends, degree = reference.simulated_walk(z, k, alpha, start, 20_000, np.random.default_rng(0))
    near = np.array(reference.nearest_groups(z, [k]*len(z)), dtype=float) - np.eye(len(z))
    r = np.linalg.inv(np.eye(12) - alpha*np.maximum(near, near.T)/np.sqrt(np.outer(degree, degree)))
    s = random_walk_similarity(z, k, alpha).numpy()[start]
    r = s*np.sqrt(r.diagonal()*r[start, start]) # before it was scaled
    np.testing.assert_allclose((1 - alpha)*r*np.sqrt(degree/degree[start]), ends, atol=0.015)


def test_random_walk_of_copies_and_of_one_place():
    same_place = random_walk_similarity(torch.ones(6, 3), 2)
    assert torch.isfinite(same_place).all() and (same_place.diagonal() == 1).all()
    two = torch.tensor([[0.], [1.]])
    assert random_walk_similarity(two, 1, 0.5)[0, 1].item() == pytest.approx(0.5) # R = [[1, a], [a, 1]]/(1 - a²)


@pytest.mark.parametrize('clustering', [KMeans(4, n_init=4, random_state=0), AgglomerativeClustering(4)])
def test_clusters_of_plain_blobs_are_the_classes(clustering):
    z, labels = blobs()
    assert torch.equal(same_cluster(z, clustering), labels[:, None] == labels)


def test_clusters_are_the_librarys():
    z = unit(60, 5)
    cluster = AgglomerativeClustering(7).fit_predict(z.double().numpy())
    assert same_cluster(z, AgglomerativeClustering(7)).tolist() == [[bool(a == b) for b in cluster] for a in cluster]


def test_estimates_do_not_touch_their_input_and_take_gradients_and_half_precision():
    z = unit(30, 6).requires_grad_()
    before = z.detach().clone()
    for e in (set_estimates(z, 3, k=4) | batch_estimates(z)).values():
        assert e.similarity is None or torch.isfinite(e.similarity).all()
    assert torch.equal(z, before) and z.grad is None
    assert same_cluster(z.half(), KMeans(3, n_init=1, random_state=0)).shape == (30, 30)


# ---- together

def test_estimates_of_a_batch_are_what_they_are_named():
    t, manifold, similarity = unit(40, 10), PiecewiseLinearManifold(2, 0.8, 20), PiecewiseLinear(5, 0.25)
    found = batch_estimates(t, manifold, similarity, k=6)
    size = {name: e.groups.sum(1) for name, e in found.items() if e.groups is not None}
    pieces = manifold(t)
    assert torch.equal(found['plm'].groups, pieces.members)
    assert torch.equal(found['plm'].similarity, similarity(pieces))
    assert found['plm_whole_batch'].groups.all() and (size['plm_nearest_k'] == 6).all()
    assert torch.equal(found['plm_binary'].similarity, Binary(0.8)(pieces))
    assert torch.equal(size['plm'], size['nearest_same_size'])
    assert torch.equal(size['plm_admitted'], size['plm'] - 3) and torch.equal(size['next_nearest'], size['plm'] - 3)
    for name in ('plm_admitted', 'next_nearest'): assert not (found[name].groups & nearest_groups(t, 2)).any()
    distance = torch.cdist(t.double(), t.double())
    torch.testing.assert_close(found['distance_decay'].similarity.double(), (1 + distance/2)**-5, atol=1e-3, rtol=0)
    assert list(set_estimates(t, 4) | found) == list(NAMES)


def test_without_a_threshold_the_piece_is_as_many_as_it_may_visit():
    found = batch_estimates(unit(20, 8), PiecewiseLinearManifold(T=None, max_neighbors=19))
    assert torch.equal(found['plm'].similarity, found['plm_whole_batch'].similarity)
    assert found['nearest_same_size'].groups.all() and (found['plm_binary'].similarity == 1).all()


@settings(max_examples=20, deadline=None)
@given(n=st.integers(7, 20), d=st.integers(3, 6), sides=st.integers(1, 3), seed=st.integers(0, 99))
def test_degenerate_batches_give_finite_symmetric_estimates(n, d, sides, seed):
    t = torch.randint(-sides, sides + 1, (n, d), generator=torch.Generator().manual_seed(seed)).float()
    t = normalize(t + (t == 0).all(1, keepdim=True), dim=1) # copies everywhere
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # scikit-learn says that there are fewer places than clusters
        found = set_estimates(t, 3, k=2) | batch_estimates(t)
    for name, e in found.items():
        if e.similarity is not None:
            assert torch.isfinite(e.similarity).all(), name
            torch.testing.assert_close(e.similarity, e.similarity.T, atol=1e-6, rtol=0)
            assert e.similarity.max() <= 1 + 1e-5 and (name == 'cosine' or e.similarity.min() >= 0), name
        if e.groups is not None: assert e.groups.dtype == torch.bool and e.groups.shape == (n, n)
        for metric, value in quality([e], [torch.arange(n) % 2]).items(): assert np.isfinite(value), (name, metric)


def test_order_of_the_points_does_not_matter():
    z, order = unit(50, 8), torch.randperm(50, generator=torch.Generator().manual_seed(0))
    again = batch_estimates(z[order])
    for name, e in batch_estimates(z).items():
        e, other = e.restrict(order), again[name]
        if e.similarity is not None: torch.testing.assert_close(e.similarity, other.similarity, atol=2e-3, rtol=0)
        if e.groups is not None: assert torch.equal(e.groups, other.groups), name


def test_same_seed_same_estimates():
    z = unit(80, 6)
    one, two = set_estimates(z, 8, seed=3), set_estimates(z, 8, seed=3)
    assert all(torch.equal(one[n].similarity, two[n].similarity) for n in one)
    assert not torch.equal(one['kmeans'].groups, set_estimates(z, 8, seed=4)['kmeans'].groups)


# ---- quality

def test_every_estimate_is_right_about_plain_blobs():
    z, labels = blobs()
    found = set_estimates(z, 4, k=5) | batch_estimates(z, PiecewiseLinearManifold(m=1, max_neighbors=9))
    for name, e in found.items():
        scores = quality([e], [labels])
        if scores.get('group_size') and name != 'plm_whole_batch': assert scores['label_purity'] == 1, name
        # right about the pairs they name, silent about the others
        few = name in ('plm_binary', 'nearest_same_size', 'plm_whole_batch')
        if e.similarity is not None: assert scores['correlation'] > (0.3 if few else 0.8), name


def test_quality_by_hand():
    labels, itself = torch.tensor([0, 0, 1]), torch.eye(3, dtype=torch.bool)
    groups = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1]]).bool()
    s = torch.tensor([[1, 0.9, 0.2], [0.9, 1, 0.4], [0.2, 0.4, 1]])
    r = pytest.approx(pearsonr([0.9, 0.2, 0.4], [1, 0, 0])[0])
    assert quality([Estimate(s, groups)], [labels]) == {'label_purity': (1/2 + 0)/2, 'group_size': 1, 'correlation': r}
    assert quality([Estimate(groups=itself)], [labels]) == {'group_size': 0}
    assert quality([Estimate(groups=groups & ~itself)], [labels])['group_size'] == 1 # the point itself never counts
    assert quality([Estimate(torch.ones(3, 3))], [labels]) == {}


def test_restriction_keeps_the_order_asked_for():
    s = torch.arange(16.).view(4, 4)
    cut = Estimate(s, s > 7).restrict(torch.tensor([3, 1]))
    assert cut.similarity.tolist() == [[15, 13], [7, 5]] and cut.groups.tolist() == [[True, True], [False, False]]


def test_judging_pools_each_estimate_over_the_pairs_of_the_batches():
    z, labels, grade = unit(60, 6), torch.arange(60) % 7, PiecewiseLinear(2, 0.3)
    index = epoch_of_batches(z, 20, 5, 1)
    found = judge_estimates(z, labels, index, (4, 0.8), 3, similarity=grade, k=4, sigma=2)
    own = [labels[i] for i in index]
    sets = set_estimates(z, 7, 3, 4, 0.8)
    batches = [batch_estimates(z[i], similarity=grade, k=4, sigma=2) for i in index]
    assert list(found) == [*sets, *batches[0]] and set(found) == set(NAMES)
    for name, scores in found.items():
        pooled = [sets[name].restrict(i) for i in index] if name in sets else [b[name] for b in batches]
        assert scores == quality(pooled, own), name


def test_the_walk_is_tried_where_there_are_points_for_it():
    z, labels = unit(30, 5), torch.arange(30) % 3
    one, two = ([(z, epoch_of_batches(z, 10, 5, seed))] for seed in (0, 1))
    found, alone = walk_correlations(one + two, labels), [walk_correlations(x, labels) for x in (one, two)]
    assert {k for k, _ in found} == {5, 10, 20} and len(found) == 12
    for constants, value in found.items():
        assert value == pytest.approx((alone[0][constants] + alone[1][constants])/2)
    few = walk_correlations([(z[:4], [torch.arange(4)])], labels[:4])
    assert {k for k, _ in few} == {3}
    with pytest.raises(ValueError, match='of the same class'): walk_correlations(one, labels*0)


# ---- what a piece says that distance does not

AREAS = ('area_distance', 'area_similarity', 'area_share')


@settings(max_examples=8, deadline=None)
@given(n=st.integers(12, 20), d=st.integers(3, 6), m=st.integers(1, 3), bins=st.integers(1, 9), seed=st.integers(0, 99))
def test_piece_gain_is_the_plain_loop(n, d, m, bins, seed):
    z, labels = unit(n, d, seed), torch.arange(n) % 3
    for centred in (False, True):
        found = piece_gain(z, labels, 5, m, 10, bins, centred=centred)
        wanted = reference.piece_gain(z, labels.tolist(), 5, m, 10, bins, centred=centred)
        assert found == pytest.approx(wanted, abs=1e-9)


def test_piece_gain_judges_any_similarity_by_the_one_piece():
    class Nearer(Similarity):
        def directed(self, pieces, others):
            assert len(pieces.points) == 1 and pieces.members is None
            return -pieces.squared_lengths(others.points)[1]
    z, labels = unit(60, 4), torch.arange(60) % 2
    found = piece_gain(z, labels, 5, 2, 30, 10, Nearer())
    assert found['area_similarity'] == found['area_distance']
    other = reference.piece_gain(z, labels.tolist(), 5, 2, 30, 10, 6, 0.25)
    assert piece_gain(z, labels, 5, 2, 30, 10, PiecewiseLinear(6, 0.25)) == pytest.approx(other, abs=1e-9)


def segments(n=300, classes=5, d=4, seed=0):
    "Classes that are line segments; all cross in the origin."
    label = torch.arange(n) % classes
    return unit(classes, d, seed)[label]*torch.linspace(-1, 1, n)[:, None], label


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99))
def test_piece_gain_does_not_know_axes_units_or_names(seed):
    z, labels = unit(100, 5, seed).double(), torch.randint(0, 4, (100,), generator=torch.Generator().manual_seed(seed))
    found = piece_gain(z, labels, 6, 2, 40, 10)
    assert piece_gain(z, torch.tensor([7, -1, 0, 3])[labels], 6, 2, 40, 10) == found
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)).double()).Q
    assert piece_gain(z@turn, labels, 6, 2, 40, 10) == pytest.approx(found, abs=2e-3) # neighbours are found in 32 bits
    moved = piece_gain(3*z + 1, labels, 6, 2, 40, 10)
    for name in ('purity', 'area_distance', 'area_share'): assert moved[name] == pytest.approx(found[name], abs=2e-3)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_a_piece_tells_crossing_segments_and_nothing_of_random_labels(seed):
    z, labels = segments(seed=seed)
    found = piece_gain(z, labels, 4, 1)
    assert found['area_share'] > 0.9 and found['area_share'] > found['area_distance']
    shuffled = piece_gain(z, labels[torch.randperm(300, generator=torch.Generator().manual_seed(seed))], 4, 1)
    for name in AREAS: assert abs(shuffled[name] - 0.5) < 0.05, name


def test_piece_gain_where_there_is_nothing_to_order():
    z, labels = blobs(2, 30)
    assert piece_gain(z, labels, 5, 2, 29, 10) == {'purity': 1} # nobody of the other class is judged
    copies = piece_gain(torch.ones(20, 3), torch.arange(20) % 2, 4, 2, 10, 3)
    assert all(copies[name] == 0.5 for name in AREAS) # one place: all are as near, and along any piece
    everything = piece_gain(unit(60, 3), torch.arange(60) % 2, 8, 3, 30, 5)
    assert everything['area_share'] == 0.5 # a piece of all dimensions holds everybody, whatever rounding says


def test_piece_gain_is_repeatable_leaves_its_input_and_takes_gradients_and_half_precision():
    z, labels = segments()
    z, before = z.requires_grad_(), z.clone()
    found = piece_gain(z, labels, 4, 1)
    assert found == piece_gain(z, labels, 4, 1) and torch.equal(z, before) and z.grad is None
    assert piece_gain(z.half(), labels, 4, 1)['area_share'] > 0.9


def test_piece_gain_holds_differences_of_one_point_only():
    "All differences at once would be 1.2 GB here."
    code = ('import resource, torch\nfrom plm.estimates import piece_gain\nz = torch.randn(1500, 512)\n'
            'def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024\n'
            'piece_gain(z[:300], torch.arange(300) % 9)\nbefore = peak()\n'
            'piece_gain(z, torch.arange(1500) % 9)\nprint(peak() - before)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100*2**20


# ---- protocol

@pytest.mark.parametrize('n, batch_size, sizes', [(100, 20, [20]*5), (105, 20, [20]*5), (20, 20, [20]), (7, 20, [7])])
def test_batches_are_those_of_training(n, batch_size, sizes):
    z = unit(n, 5)
    batches = epoch_of_batches(z, batch_size, 5, seed=1)
    assert [len(b) for b in batches] == sizes and all(len(b.unique()) == len(b) for b in batches)
    if n == len(batches[0]): return
    for b in batches: # the first query and its neighbours
        assert set(nearest_groups(z, 4)[b[0]].nonzero()[:, 0].tolist()) <= set(b.tolist())
    assert not torch.equal(batches[0], epoch_of_batches(z, batch_size, 5, seed=2)[0])


def rows():
    values = {('plm', 'before', 'label_purity'): (0.5, 0.6), ('plm', 'after', 'label_purity'): (0.7, 0.7),
              ('kmeans', 'before', 'label_purity'): (0.4, 0.3), ('kmeans', 'before', 'group_size'): (3., 4.)}
    return [dict(dataset='glyphs', embedding=e, estimate=n, seed=s, metric=m, value=v)
            for (n, e, m), vs in values.items() for s, v in enumerate(vs)]


def test_table_has_mean_deviation_and_published():
    header, lines = estimate_table([{k: str(v) for k, v in r.items()} for r in rows()])['glyphs'] # as csv gives them
    def cell(line, column): return lines[line][header.index(column)]
    assert [line[0] for line in lines] == ['PLM', 'k-means'] and cell(0, 'seeds') == '2'
    assert cell(0, 'purity before') == '0.550 ± 0.071' and cell(0, 'purity after') == '0.700 ± 0.000'
    assert cell(1, 'purity after') == '' and cell(1, 'others inside before') == '3.5 ± 0.7'
    assert 'correlation before' not in header
    assert lines[0][-2:] == ['0.67, 0.45, 0.62', '0.61, 0.45, 0.67']
    assert lines[1][-2:] == ['0.38, 0.29, 0.32', '0.37, 0.21, 0.32']
    header, lines = estimate_table(rows()[:1])['glyphs']
    assert cell(0, 'purity before') == '0.500' # one seed, no deviation


def test_published_figures_stand_for_known_estimates():
    for of in PUBLISHED.values():
        assert of.keys() <= NAMES.keys() and all(len(v) == 3 and all(0 < x < 1 for x in v) for v in of.values())
    assert 'random_walk' not in PUBLISHED['label_purity']


def test_difference_goes_seed_by_seed():
    plm, kmeans = dict(estimate='plm', embedding='before'), dict(estimate='kmeans', embedding='before')
    assert difference(rows(), 'label_purity', plm, kmeans) == pytest.approx([0.1, 0.3])
    missing_one = [r for r in rows() if not (r['estimate'] == 'kmeans' and r['seed'] == 0)]
    assert difference(missing_one[::-1], 'label_purity', plm, kmeans) == pytest.approx([0.3])
    assert difference(rows(), 'correlation', plm, kmeans) == []


# ---- errors

@pytest.mark.parametrize('call, message', [
    (lambda: random_walk_similarity(unit(10, 3), 10), 'k must lie between 1 and N - 1 = 9'),
    (lambda: random_walk_similarity(unit(10, 3), 0), 'k must lie'),
    (lambda: random_walk_similarity(unit(10, 3), 3, 1.), 'alpha'),
    (lambda: random_walk_similarity(torch.full((5, 2), torch.nan), 2), 'NaN'),
    (lambda: nearest_groups(unit(5, 2), 5), 'between 0 and B - 1 = 4'),
    (lambda: nearest_groups(unit(5, 2), -1), 'between 0 and'),
    (lambda: same_cluster(torch.full((5, 2), torch.nan), KMeans(2)), 'NaN'),
    (lambda: same_cluster(unit(5, 2), KMeans(6)), 'n_clusters=6'),
    (lambda: batch_estimates(unit(3, 5)), 'B=3'),
    (lambda: estimate_table([]), 'run the stage'),
    (lambda: piece_gain(torch.full((300, 4), torch.nan), torch.arange(300) % 2), 'NaN'),
    (lambda: piece_gain(unit(200, 4), torch.arange(200) % 2), 'more than 200 points, got 200'),
    (lambda: piece_gain(unit(300, 4), torch.arange(300) % 2, m=0), 'm=0'),
    (lambda: piece_gain(unit(300, 4), torch.arange(300) % 2, k=2), 'k=2'),
    (lambda: piece_gain(unit(300, 4), torch.arange(300) % 2, k=200), 'k=200'),
    (lambda: piece_gain(unit(300, 4), torch.arange(300) % 2, bins=0), 'bins=0'),
    (lambda: piece_gain(unit(300, 4), torch.zeros(300)), r'two classes or more, got shape .300,. and 1'),
    (lambda: piece_gain(unit(300, 4), torch.arange(299) % 2), 'one for each of 300 points'),
])
def test_errors_name_the_input(call, message):
    with pytest.raises(ValueError, match=message): call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda_gives_the_estimates_of_the_cpu():
    z = unit(60, 16)
    here, there = (set_estimates(x, 5, k=5) | batch_estimates(x) for x in (z, z.cuda()))
    for name, e in here.items():
        g, s = there[name].groups, there[name].similarity
        if e.groups is not None: assert g.is_cuda and torch.equal(g.cpu(), e.groups), name
        if e.similarity is not None: torch.testing.assert_close(s.cpu(), e.similarity, atol=2e-3, rtol=0)
    assert all(b.is_cuda for b in epoch_of_batches(z.cuda(), 20, 5))
