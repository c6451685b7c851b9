"plm.indexes: the truth against plain loops, crowds that lie as the embeddings do, curves that measure what they say."
import csv
import faiss, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
import reference_indexes as slow
import plm.indexes
from plm.core import write_csv
from plm.indexes import (INDEXES, Side, build_index, crowd, exact_neighbors, index_curve, index_table, make_side,
                         plot_indexes, recall)
from plm.namr import adaptive_distances, rerank

faiss.omp_set_num_threads(1)


def embeddings(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=g)
    return F.normalize(torch.randn(n, d, generator=g), dim=1), 0.5 + (a - 0.4).sigmoid() # as a structure head gives


@pytest.fixture(scope='module')
def sides():
    e, w = embeddings(300, 64)
    many, shape = crowd(e, w, 1600, seed=1)
    e_q, w_q, e_x = many[:100], shape[:100], many[100:]
    return {'sample': make_side(e_q, e_x), 'NAMR': make_side(e_q, e_x, w_q),
            're-ranked': make_side(e_q, e_x, w_q, short=32)}


# the truth

@given(st.integers(1, 6), st.integers(2, 25), st.integers(1, 5), st.integers(1, 12), st.booleans(), st.booleans(),
       st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_exact_neighbors_are_those_of_the_loop(Q, N, d, k, inside, twins, seed):
    (e_x, w_x), g = embeddings(N, d, seed), torch.Generator().manual_seed(seed)
    if twins: e_x[1::2] = e_x[::2][:N//2] # each point twice
    own = torch.randint(N, (Q,), generator=g) if inside else None
    e_q, w_q = (e_x[own], w_x[own]) if inside else embeddings(Q, d, seed + 1)
    if k > N - inside:
        with pytest.raises(ValueError, match='k must lie between'): exact_neighbors(e_q, w_q, e_x, k, own)
        return
    found = exact_neighbors(e_q, w_q, e_x, k, own)
    true, D = slow.neighbors(e_q, w_q, e_x, k, own)
    assert found.shape == (Q, k) and all(len(set(row)) == k for row in found.tolist())
    assert torch.allclose(D.gather(1, found), D.gather(1, true), atol=1e-12) # equal distances stand in any order
    if inside: assert (found != own[:, None]).all()


def test_exact_neighbors_beyond_a_block():
    e_x = embeddings(120_001, 3)[0]
    e_q, w_q = embeddings(4, 3, 1)
    e_x[[10, 60_000, 120_000]] = e_q[:3]
    found = exact_neighbors(e_q, w_q, e_x, 5)
    assert found[:3, 0].tolist() == [10, 60_000, 120_000]
    D = (w_q.double()[:, None]*(e_q.double()[:, None] - e_x.double()).square()).sum(2)
    assert torch.equal(found, D.topk(5, largest=False).indices)
    own = torch.tensor([10, 60_000, 120_000])
    assert torch.equal(exact_neighbors(e_q[:3], w_q[:3], e_x, 4, own), found[:3, 1:])


def test_exact_neighbors_see_what_32_bits_do_not():
    "Nearly equal points: the quick formula cannot order them, the second pass can."
    middle = F.normalize(torch.ones(1, 16), dim=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    near = (middle + 1e-4*torch.linspace(0.1, 1, 12)[:, None]*embeddings(1, 16)[0])[order]
    e_x = torch.cat([near, embeddings(3000, 16, 3)[0]])
    ones = torch.ones_like(middle)
    true = (middle.double() - e_x.double()).square().sum(1).argsort()[:4]
    assert torch.equal(exact_neighbors(middle, ones, e_x, 4)[0], true)
    assert not torch.equal(adaptive_distances(middle, ones, e_x)[0].argsort()[:4], true) # so the pass is needed


def test_bad_input():
    e, w = embeddings(10, 4)
    with pytest.raises(ValueError, match='k must lie between 1 and 10'): exact_neighbors(e, w, e, 11)
    with pytest.raises(ValueError, match='k must lie between 1 and 9'):
        exact_neighbors(e, w, e, 10, torch.arange(10))
    with pytest.raises(ValueError, match='k must lie'): exact_neighbors(e, w, e, 0)
    with pytest.raises(ValueError, match='must be positive'): make_side(e, e, -w, 2)
    with pytest.raises(ValueError, match='must be positive'): make_side(e, e, -w, 2, short=5)
    for short in (-1, 0, 1):
        with pytest.raises(ValueError, match=f'short must be at least k = 2.* got {short}'):
            make_side(e, e, w, 2, short=short)
    with pytest.raises(ValueError, match='4 dimensions and items 3'): make_side(e, e[:, :3], k=2)
    with pytest.raises(ValueError, match='NaN'): make_side(e, e*float('nan'), k=2)
    with pytest.raises(ValueError, match='same shape'): crowd(e, w[:5], 10, 0)
    with pytest.raises(ValueError, match="Did you mean 'HNSW'"): index_curve({}, 'HNWS')
    for draw in (plot_indexes, index_table):
        with pytest.raises(ValueError, match='recall_at_10: .* results/index.csv'): draw([])
    with pytest.raises(RuntimeError, match='Flatt'): build_index(e, faiss.METRIC_L2, 'Flatt')


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_recall_counts_what_is_among_the_found(Q, k, seed):
    g = torch.Generator().manual_seed(seed)
    rows = lambda n: torch.stack([torch.randperm(12, generator=g)[:n] for _ in range(Q)])
    found, true = rows(8), rows(k)
    found[:, 6:] = -1
    hits = sum(int(t) in found[q].tolist() for q in range(Q) for t in true[q])
    assert abs(recall(found, true) - hits/(Q*k)) < 1e-6


# crowds

def test_a_crowd_keeps_what_embeddings_promise():
    e, w = embeddings(200, 16)
    x, v = crowd(e, w, 5000, seed=3)
    assert x.shape == v.shape == (5000, 16) and x.dtype == v.dtype == torch.float32
    assert torch.allclose(x.norm(dim=1), torch.ones(5000), atol=1e-6)
    assert w.min() <= v.min() and v.max() <= w.max()
    assert (w.mean(0) - v.mean(0)).abs().max() < 0.05 and abs(w.mean() - 1) > 0.05 # whatever their mean is
    assert all(torch.equal(a, b) for a, b in zip((x, v), crowd(e, w, 5000, seed=3)))
    assert not torch.equal(x, crowd(e, w, 5000, seed=4)[0])
    assert all(torch.equal(a, b) for a, b in zip((e, w), embeddings(200, 16))) # untouched


def test_without_a_gap_a_crowd_lies_between_near_pairs():
    """Each image twice: the median nearest distance, and with it the noise, is 0. Then e and w are mixtures of two near
    images by the same share."""
    e, w = (x.repeat(2, 1) for x in embeddings(40, 8))
    near = torch.cdist(e, e).argsort(dim=1)[:, :14]
    for x, v in zip(*crowd(e, w, 20, seed=0)):
        best = 1
        for a in range(40):
            for b in near[a].tolist():
                both = torch.stack([w[a] - w[b], v - w[b]])
                share = (both[0]@both[1]/both[0].square().sum()).clamp(0, 1) if (e[a] != e[b]).any() else 1.
                mixed_w, mixed_e = (share*t[a] + (1 - share)*t[b] for t in (w, e))
                off = (mixed_w - v).abs().max() + (F.normalize(mixed_e, dim=0) - x).abs().max()
                best = min(best, off.item())
        assert best < 1e-5


def test_the_noise_is_as_wide_as_it_says():
    "Two images: the nearest distance is their distance, and what leaves the plane of the two is noise."
    d = 200
    e = torch.zeros(2, d)
    e[0, 0], e[1, 0], e[1, 1] = 1, 0.96, 0.28
    x, _ = crowd(e, torch.ones(2, d), 4000, seed=0)
    gap = (e[0] - e[1]).norm()
    before = x/x[:, :2].norm(dim=1, keepdim=True) # normalisation taken back, but for the chord's sagging (1 %)
    assert abs(before[:, 2:].square().sum(1).mean().sqrt()/(0.7*gap*((d - 2)/d)**0.5) - 1) < 0.03


# sides and indexes

def test_flat_is_brute_force(sides):
    for side in (sides['sample'], sides['NAMR']):
        index, factory, _ = build_index(side.items, side.metric, 'Flat')
        found = torch.from_numpy(index.search(side.queries.numpy(), 10)[1])
        assert factory == 'Flat' and index.ntotal == 1500 and recall(found, side.true) > 0.998


def test_the_truth_of_a_side_is_in_its_own_distance(sides):
    e, w = embeddings(300, 64)
    many, shape = crowd(e, w, 1600, seed=1)
    many, shape = many.double(), shape.double()
    adaptive = adaptive_distances(many[:100], shape[:100], many[100:])
    assert torch.equal(sides['NAMR'].true, adaptive.argsort(1)[:, :10])
    assert torch.equal(sides['sample'].true, torch.cdist(many[:100], many[100:]).argsort(1)[:, :10])
    assert recall(sides['sample'].true, sides['NAMR'].true) < 0.99 # or there would be nothing to tell apart
    assert sides['NAMR'].items.shape[1] == 2*sides['sample'].items.shape[1]
    assert torch.equal(sides['re-ranked'].true, sides['NAMR'].true)


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('factory', ['Flat', 'IVF32,Flat', 'PQ16np'])
def test_re_ranked_is_what_the_loop_finds(factory, inside):
    "Cells of about 16 hold no list of 20; twins are equally far, and not even all queries are found by their own code."
    e, w = crowd(*embeddings(100, 16), 500, seed=2)
    e[250:] = e[:250] # each point twice
    own = torch.arange(3, 500, 25) if inside else None
    e_q, w_q = (e[own], w[own]) if inside else crowd(*embeddings(100, 16), 20, seed=3)
    side = make_side(e_q, e, w_q, k=5, own=own, short=20)
    index, _, _ = build_index(side.items, side.metric, factory)
    near = torch.from_numpy(index.search(e_q.numpy(), 20 + inside)[1])
    assert (near < 0).any() == factory.startswith('IVF')
    found, slowly = side.found(index), slow.reranked(near, e_q, w_q, e, 5, 20, own)
    assert torch.equal(found, slowly)
    assert not torch.equal(found, near[:, :5]) # the second look changes something
    assert recall(found, side.true) == pytest.approx(slow.recall(slowly, side.true))


def test_re_ranking_the_whole_is_brute_force(sides):
    side = sides['re-ranked']
    for short in (1500, 4000): # more than there are
        whole = Side(side.metric, side.queries, side.items, side.true, None, side.w, short)
        assert recall(whole.found(build_index(side.items, side.metric, 'Flat')[0]), side.true) == 1


@pytest.mark.parametrize('name', ['Flat', 'IVF'])
def test_without_a_structure_re_ranked_is_the_sample_embedding(name, sides):
    "Where nothing is compressed. HNSW walks farther for a longer list, and codes are mended by a second look."
    sample = sides['sample']
    ones = make_side(sample.queries, sample.items, torch.ones_like(sample.queries), short=32)
    assert torch.equal(ones.true, sample.true)
    for nprobe in (1, 2, 8):
        index, _, _ = build_index(sample.items, sample.metric, INDEXES[name][0])
        if name == 'IVF': index.nprobe = nprobe
        assert torch.equal(ones.found(index), sample.found(index))
    rows = index_curve({'sample': sample, 're-ranked': ones}, name, repeats=1)
    found = {(r['embedding'], r['setting']): r['value'] for r in rows if r['metric'] == 'recall_at_10'}
    assert all(value == found['sample', setting] for (_, setting), value in found.items())


def test_one_index_serves_the_plain_search_and_the_second_look(sides, monkeypatch):
    built = []
    def counted(items, metric, factory):
        built.append(items.shape[1])
        return build_index(items, metric, factory)
    monkeypatch.setattr(plm.indexes, 'build_index', counted)
    index_curve(sides, 'IVF', repeats=1)
    assert built == [64, 128]
    others = make_side(sides['sample'].queries, sides['sample'].items.clone())
    index_curve(sides | {'others': others}, 'Flat', repeats=1)
    assert built == [64, 128]*2 + [64]


@pytest.mark.parametrize('name', INDEXES)
def test_curves_are_complete_and_repeat(name, sides):
    rows, again = (index_curve(sides, name, repeats=1) for _ in range(2))
    def timeless(rows): return [r | {'value': '/' if 'second' in r['metric'] else r['value']} for r in rows]
    assert timeless(rows) == timeless(again)
    factory, knob, values = INDEXES[name]
    assert len(rows) == 3*(3 + 2*len(values)) and all(r['value'] > 0 for r in rows)
    for embedding in sides:
        curve = [r['value'] for r in rows if r['embedding'] == embedding and r['metric'] == 'recall_at_10']
        assert len(curve) == len(values) and all(b > a - 0.02 for a, b in zip(curve, curve[1:]))
        assert curve[-1] > {'PQ16': 0.4}.get(name, 0.6)
        if len(values) > 1: assert curve[-1] > curve[0] # the knob does something


def test_curves_count_recall_without_the_query_itself():
    e, w = (x.repeat_interleave(20, 0) for x in embeddings(75, 64))
    e = F.normalize(e + 1e-3*embeddings(1500, 64, 7)[0], dim=1) # 20 of a kind: their codes are the same
    own = torch.arange(5, 1500, 10)
    side = make_side(e[own], e, w[own], own=own)
    index, _, _ = build_index(side.items, side.metric, 'PQ16np')
    found = torch.from_numpy(index.search(side.queries.numpy(), 11)[1])
    lost = ~(found == own[:, None]).any(1)
    assert 0 < lost.sum() < len(own) # some do not even find themselves
    rows = index_curve({'NAMR': side}, 'PQ16', repeats=1)
    value, = [r['value'] for r in rows if r['metric'] == 'recall_at_10']
    assert abs(value - slow.recall(found, side.true, own)) < 1e-6
    assert abs(value - slow.recall(found, side.true)) > 1e-3 # to count it would make a difference
    e, w = crowd(*embeddings(300, 64), 1500, seed=1)
    exact = index_curve({'NAMR': make_side(e[own], e, w[own], own=own)}, 'Flat', repeats=1)[-2]
    assert exact['metric'] == 'recall_at_10' and exact['value'] > 0.998


def test_bytes_are_those_of_the_vectors(sides):
    rows = [r for name in ('Flat', 'PQ32') for r in index_curve(sides, name, repeats=1) if r['metric'] == 'index_bytes']
    size = {(r['index'], r['embedding']): r['value'] for r in rows}
    for embedding, d in (('sample', 64), ('NAMR', 128)):
        assert 0 <= size['Flat', embedding] - 1500*d*4 < 200
        assert 0 <= size['PQ32', embedding] - 1500*32 - 256*d*4 < 300 # codes and codebook
    assert size['Flat', 're-ranked'] == size['Flat', 'sample'] # the index holds what a second look reads
    assert size['PQ32', 're-ranked'] == size['PQ32', 'sample'] + 1500*64*4 # a code does not


def test_squares_beside_their_coordinates_compress_as_the_plain_embedding_does(sides):
    namr = sides['NAMR']
    def apart(lifted): return torch.cat([lifted[:, ::2], lifted[:, 1::2]], 1)
    other = Side(namr.metric, apart(namr.queries), apart(namr.items), namr.true, None)
    rows = index_curve(sides | {'apart': other}, 'PQ32', repeats=1)
    found = {r['embedding']: r['value'] for r in rows if r['metric'] == 'recall_at_10'}
    assert abs(found['NAMR'] - found['sample']) < 0.04 and found['NAMR'] > found['apart'] + 0.1


def test_the_lift_is_stored_without_differences_from_the_cell(sides):
    for name, by_residual in (('sample', True), ('NAMR', False)):
        index, _, _ = build_index(sides[name].items, sides[name].metric, INDEXES['IVF+PQ32'][0])
        assert index.by_residual == by_residual


def test_cells_follow_the_number_of_vectors():
    for n, cells in ((60, 8), (2000, 32), (4000, 64)):
        assert build_index(embeddings(n, 4)[0], faiss.METRIC_L2, 'IVF{cells},Flat')[1] == f'IVF{cells},Flat'


def test_a_row_names_the_cells_of_its_own_index(sides):
    e, _ = embeddings(400, 64)
    rows = index_curve(sides | {'few': make_side(e[:50], e[50:])}, 'IVF', repeats=1)
    named = {(r['embedding'], r['setting'].split(' ')[0]) for r in rows}
    assert named == {*((name, 'IVF32,Flat') for name in sides), ('few', 'IVF16,Flat')}


def test_searches_run_on_one_thread_and_the_others_are_given_back(sides, monkeypatch):
    used = []
    def watched(*args):
        used.append(threads())
        return rerank(*args)
    monkeypatch.setattr(plm.indexes, 'rerank', watched)
    before = torch.get_num_threads()
    def threads(): return faiss.omp_get_max_threads(), torch.get_num_threads()
    try:
        faiss.omp_set_num_threads(2)
        torch.set_num_threads(2)
        index_curve(sides, 'Flat', repeats=1)
        assert threads() == (2, 2) and used == [(1, 1)]
        namr = sides['NAMR']
        short = Side(namr.metric, namr.queries[:, :5], namr.items, namr.true, None)
        with pytest.raises(Exception): index_curve({'NAMR': short}, 'Flat')
        assert threads() == (2, 2) # after an error, too
    finally:
        faiss.omp_set_num_threads(1)
        torch.set_num_threads(before)


# picture and table

def made():
    "Two sizes, the larger without plain wide; IVF at three settings, and PQ32, which has one."
    knobs = {'IVF': ((' nprobe=1', 0.8, 9000), (' nprobe=4', 0.96, 3000), (' nprobe=8', 0.99, 1000)),
             'PQ32': (('', 0.7, 500),)}
    for n in (2000, 100_000):
        for index, points in knobs.items():
            for slower, embedding in enumerate(['sample', 'NAMR', 're-ranked'] + ['plain wide']*(n == 2000), 1):
                common = dict(dataset='glyphs', vectors=n, embedding=embedding, index=index)
                figures = {'build_seconds': 1.25, 'index_bytes': 3*2**20, 'bytes_per_vector': 3*2**20/n}
                for metric, value in figures.items(): yield dict(common, setting=index, metric=metric, value=value)
                for knob, found, speed in points:
                    for metric, value in {'recall_at_10': found, 'queries_per_second': speed/slower}.items():
                        yield dict(common, setting=index + knob, metric=metric, value=value)


def test_picture_and_table_say_what_the_rows_say(tmp_path):
    write_csv(list(made()), tmp_path/'index.csv')
    for rows in (made(), list(made()), csv.DictReader(open(tmp_path/'index.csv'))): # in a file all is text
        rows = list(rows)
        fig = plot_indexes(rows)
        assert [ax.get_title() for ax in fig.axes] == ['IVF', 'PQ32', '', '']
        assert [ax.get_ylabel().split(' ')[0] for ax in fig.axes] == ['2,000', '', '100,000', '']
        assert [len(ax.lines) for ax in fig.axes] == [4, 4, 3, 3] and {ax.get_yscale() for ax in fig.axes} == {'log'}
        for ax in fig.axes[::2]:
            sample, namr = ax.lines[:2]
            assert list(sample.get_xdata()) == [80, 96, 99] and list(namr.get_ydata()) == [4500, 1500, 500]
        named, = fig.legends
        shown = {line.get_label(): (line.get_color(), line.get_marker()) for line in named.get_lines()}
        assert list(shown) == ['sample', 'NAMR', 're-ranked', 'plain wide']
        assert all(len(set(looks)) == 4 for looks in zip(*shown.values())) # told apart by colour, and by mark
        for ax in fig.axes:
            assert all(shown[line.get_label()] == (line.get_color(), line.get_marker()) for line in ax.lines)
        header, lines = index_table(rows)
        assert lines[1] == ['2,000', 'IVF', 'NAMR', '3.0', '1573', '1.2', '99.0', '1,500']
        assert len(header) == len(lines[1]) and len(lines) == 14
        assert index_table(rows, enough=0.995)[1][0][-1] == '–'
        assert index_table(rows, enough=0.5)[1][0][-1] == '9,000'
