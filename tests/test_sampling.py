"""Neighbours against a full table of distances; batches against the promises of their docstrings."""
import faiss, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader, TensorDataset
import plm.sampling
from plm.sampling import (NeighborSearch, NeighborhoodBatches, RandomBatches, _by_product, centered, nearest,
                          nearest_neighbors, not_self)

def cloud(n, d, seed, kind):
    "Points of several kinds, the awkward ones among them: many ties, copies, all in one place, one far away."
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=g)
    if kind == 'lattice': z = torch.randint(0, 3, (n, d), generator=g).float()
    if kind == 'copies': z = z[torch.randint(0, max(1, n//4), (n,), generator=g)]
    if kind == 'one place': z = torch.ones(n, d)
    if kind == 'outlier': z[0] = 100
    return z
kinds = st.sampled_from(['normal', 'lattice', 'copies', 'one place', 'outlier'])

def check_neighbors(z, found):
    "The rows of `found` are distinct others, nearest first, and nobody left out is nearer (within 32-bit rounding)."
    n, k = found.shape
    assert found.dtype == torch.int64 and (found != torch.arange(n)[:, None]).all()
    assert all(len(set(row)) == k for row in found.tolist())
    z = z.double() - z.double().mean(0)
    table = torch.cdist(z, z, compute_mode='donot_use_mm_for_euclid_dist').square().fill_diagonal_(torch.inf)
    tolerance = 1e-5*z.square().sum(1).max().clamp_min(1e-9)
    assert ((table.gather(1, found) - table.sort(1).values[:, :k]).abs() < tolerance).all()

@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 20), st.data(), st.integers(0, 999), kinds)
def test_neighbors_are_the_nearest_others(n, d, data, seed, kind):
    k = data.draw(st.integers(1, n - 1))
    z = cloud(n, d, seed, kind)
    found = nearest_neighbors(z, k)
    assert found.shape == (n, k)
    check_neighbors(z, found)
    assert torch.equal(found, nearest_neighbors(z, k))

def test_neighbors_beyond_the_small_case():
    z = torch.nn.functional.normalize(cloud(3000, 24, 0, 'normal'))
    check_neighbors(z, nearest_neighbors(z, 120)) # FAISS keeps its best in another way from 100 on

def test_far_from_the_origin():
    z = cloud(200, 8, 1, 'normal').double()
    assert torch.equal(nearest_neighbors(z + 1e4, 10), nearest_neighbors(z, 10))

def test_self_is_dropped_by_index_among_many_copies():
    z = torch.cat([torch.zeros(50, 3), torch.ones(50, 3)])
    found = nearest_neighbors(z, 10)
    assert (found[:50] < 50).all() and (found[50:] >= 50).all()
    assert (found != torch.arange(100)[:, None]).all()

def test_ties_do_not_depend_on_threads():
    z, before = cloud(2000, 4, 2, 'lattice'), faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1); one = nearest_neighbors(z, 30)
        faiss.omp_set_num_threads(2); two = nearest_neighbors(z, 30)
    finally: faiss.omp_set_num_threads(before)
    assert torch.equal(one, two)

def test_input_is_left_alone():
    z = torch.randn(40, 6, requires_grad=True)
    before = z.detach().clone()
    assert not nearest_neighbors(z, 3).requires_grad
    assert torch.equal(z, before)
    assert torch.equal(nearest_neighbors(z.T.contiguous().T, 3), nearest_neighbors(z, 3)) # strides do not matter

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_result_is_on_the_device_of_the_points():
    z = cloud(500, 16, 3, 'normal')
    found = nearest_neighbors(z.cuda(), 5)
    assert found.is_cuda
    check_neighbors(z, found.cpu())
    s = NeighborhoodBatches(500); s.refresh(z.cuda())
    assert len(list(s)) == 5

@pytest.mark.parametrize('z, k, says', [
    (torch.zeros(5, 2), 5, 'N - 1 = 4'), (torch.zeros(5, 2), 0, 'between 1'), (torch.zeros(0, 2), 1, 'N = 0'),
    (torch.zeros(5), 1, 'shape'), (torch.full((5, 2), float('nan')), 1, 'NaN'),
    (torch.full((5, 2), float('inf')), 1, 'infinite')])
def test_neighbors_refuse(z, k, says):
    with pytest.raises(ValueError, match=says): nearest_neighbors(z, k)

def by_product(z, rows, k):
    "The nearest others of some points, found as on a GPU."
    x = centered(z)
    found = _by_product(x, x[rows], k + 1)[1]
    return found[not_self(found, rows)].view(len(rows), k)

@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 20), st.data(), st.integers(0, 999), kinds)
def test_the_product_of_a_gpu_finds_the_nearest(n, d, data, seed, kind):
    z, k = cloud(n, d, seed, kind), data.draw(st.integers(1, n - 1))
    check_neighbors(z, by_product(z, torch.arange(n), k))

def test_the_product_orders_as_faiss_does():
    z, rows = cloud(900, 32, 5, 'normal') + 30, torch.randperm(900)[:400]
    assert torch.equal(by_product(z, rows, 30), nearest_neighbors(z, 30)[rows])

@pytest.mark.parametrize('search', [nearest, _by_product])
def test_distances_are_squared_and_sorted(search):
    x, queries = cloud(200, 8, 0, 'normal'), cloud(30, 8, 1, 'normal')
    d2, near = search(x, queries, 12)
    torch.testing.assert_close(d2, torch.cdist(queries, x).square().gather(1, near), rtol=0, atol=1e-4)
    assert torch.equal(d2, d2.sort(1).values) and d2.shape == (30, 12)
    assert [part.shape for part in search(x, queries[:0], 3)] == [(0, 3), (0, 3)]

def sheet(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.sin(torch.randn(n, 6, generator=g) @ torch.randn(6, d, generator=g))

def recall(found, true): return (found[:, :, None] == true[:, None]).any(2).double().mean().item()

# 9 and 1: odd, each coordinate has a code of its own
@pytest.mark.parametrize('d, k, enough', [(16, 25, 0.95), (9, 5, 0.8), (1, 3, 0.9)])
def test_an_index_keeps_its_promise(d, k, enough):
    z = sheet(4000, d)
    true, rows = nearest_neighbors(z, k), torch.arange(4000)
    search = NeighborSearch(z, k, exact_up_to=3999, enough=enough)
    found = search(rows)
    assert search.recall >= enough and abs(recall(found, true) - search.recall) < 0.03
    assert (found != rows[:, None]).all() and all(len(set(row)) == k for row in found.tolist())
    assert found.dtype == torch.int64
    assert torch.equal(search(rows[7:99]), found[7:99]) # whoever else is asked about
    assert torch.equal(search._exact(rows[:50]), true[:50])
    if d > 1: assert search.cells[0] < search.cells[1] and not torch.equal(found, true) # else this tests no index

def test_an_index_looks_at_more_cells_for_more_recall():
    z = sheet(4000, 24)
    few, many = (NeighborSearch(z, 10, exact_up_to=100, enough=e) for e in (0.5, 0.97))
    assert few.cells[0] < many.cells[0] and few.recall < 0.97 <= many.recall

def test_a_promise_that_cannot_be_kept_is_kept_by_exact_search():
    z = cloud(2000, 40, 0, 'normal') # noise: no cell is better than another
    search = NeighborSearch(z, 20, exact_up_to=100, enough=0.999)
    assert search.recall == 1 and search.cells is None
    assert torch.equal(search(torch.arange(2000)), nearest_neighbors(z, 20))

def test_cells_that_hold_too_few_are_not_the_last_word():
    search, rows = NeighborSearch(sheet(4000, 8), 99, exact_up_to=100, enough=0.5), torch.arange(4000)
    faiss.downcast_index(search._index.base_index).nprobe = 1 # a cell holds about 60
    assert search.cells is not None and (search._by_index(rows) < 0).any()
    found = search(rows)
    assert all(len(set(row)) == 99 for row in found.tolist()) and (found >= 0).all() and (found != rows[:, None]).all()

def test_an_index_of_copies_finds_others():
    z = cloud(3000, 8, 3, 'copies')
    found = nearest_neighbors(z, 10, exact_up_to=100)
    assert (found != torch.arange(3000)[:, None]).all() and all(len(set(row)) == 10 for row in found.tolist())

def test_an_index_does_not_depend_on_threads():
    z, before = sheet(3000, 16), faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1); one = nearest_neighbors(z, 10, exact_up_to=100)
        faiss.omp_set_num_threads(2); two = nearest_neighbors(z, 10, exact_up_to=100)
    finally: faiss.omp_set_num_threads(before)
    assert torch.equal(one, two)

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data(), st.integers(0, 99), st.integers(0, 99))
def test_random_batches_are_one_pass(n, data, seed, epoch):
    b = data.draw(st.integers(1, n))
    s = RandomBatches(n, b, seed)
    s.set_epoch(epoch)
    batches = list(s)
    flat = sum(batches, [])
    assert len(batches) == len(s) == n//b and all(len(x) == b for x in batches)
    assert len(set(flat)) == len(flat) and min(flat) >= 0 and max(flat) < n
    again = RandomBatches(n, b, seed) # a resumed run: no earlier epoch was drawn
    again.set_epoch(epoch)
    torch.rand(3) # the global generator has no say
    assert list(again) == batches

def test_random_batches_differ_by_seed_and_epoch():
    def first(seed, epoch):
        s = RandomBatches(1000, 50, seed); s.set_epoch(epoch)
        return next(iter(s))
    assert len({tuple(first(s, e)) for s in range(3) for e in range(3)}) == 9

@pytest.mark.parametrize('n, b', [(5, 6), (5, 0), (0, 1)])
def test_random_batches_refuse(n, b):
    with pytest.raises(ValueError, match='between 1 and n'): RandomBatches(n, b)

@settings(max_examples=80, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 60), st.integers(0, 999), kinds,
       st.sampled_from([None, 1, 30]))
def test_neighborhood_batches(k, groups, extra, seed, kind, n_batches):
    b = k*groups
    n = b + extra
    z = cloud(n, 5, seed, kind)
    s = NeighborhoodBatches(n, b, k, seed, n_batches)
    s.refresh(z)
    batches = list(s)
    assert len(batches) == len(s) == (n_batches or n//b)
    near = nearest_neighbors(z, n - 1).tolist() if b == n else nearest_neighbors(z, b - 1).tolist()
    for batch in batches:
        assert len(batch) == len(set(batch)) == b and min(batch) >= 0 and max(batch) < n
        for at in range(0, b, k): # each group is its query and the nearest that the batch does not hold yet
            query, taken = batch[at], set(batch[:at + 1])
            assert batch[at + 1:at + k] == [j for j in near[query] if j not in taken][:k - 1]
    if n_batches is None: # the budget of one pass
        queries = [batch[at] for batch in batches for at in range(0, b, k)]
        if b*2 <= n: assert len(queries) == len(set(queries))
    assert list(s) == batches

# 23: more than a pass; 130: queries wait
@pytest.mark.parametrize('n, n_batches, seed', [(1000, None, 0), (1000, 23, 1), (130, 4, 2)])
def test_searching_for_the_next_queries_gives_the_batches_of_a_whole_table(monkeypatch, n, n_batches, seed):
    z, searched = cloud(n, 5, seed, 'normal'), []
    def counting(search): return lambda rows: searched.append(len(rows)) or search(rows)
    def batches(block):
        searched.clear()
        monkeypatch.setattr(plm.sampling, '_block', block)
        s = NeighborhoodBatches(n, 100, 5, seed, n_batches)
        s.refresh(z, divide=counting)
        return list(s)
    whole = batches(n)
    assert searched == [n]
    for block in (1, 64, n - 1):
        assert batches(block) == whole
        # waiting ones are asked as well
        assert len(searched) > (block < 100) and max(searched) <= min(block, (n_batches or n//100)*20) + 20

@pytest.mark.parametrize('kind', ['one place', 'copies', 'lattice', 'outlier'])
def test_batches_of_many_points_are_distinct_whatever_the_ties(monkeypatch, kind):
    monkeypatch.setattr(plm.sampling, '_block', 64)
    s = NeighborhoodBatches(400, exact_up_to=300)
    s.refresh(cloud(400, 6, 0, kind))
    batches = list(s)
    assert all(len(b) == len(set(b)) == 100 for b in batches) and batches == list(s)

def test_batches_by_an_index_are_mostly_those_of_exact_search(monkeypatch):
    monkeypatch.setattr(plm.sampling, '_block', 1000)
    z = sheet(4000, 16)
    def batches(**how):
        s = NeighborhoodBatches(4000, **how); s.refresh(z)
        return torch.tensor(list(s)).view(-1, 5).sort(1).values, s.search
    (exact, _), (near, search) = batches(), batches(exact_up_to=3000, enough=0.9)
    assert search.cells is not None and (exact == near).all(1).double().mean() > 0.85 # groups of the same points

@pytest.mark.parametrize('seed', range(8))
def test_queries_that_had_to_wait_come_later(seed):
    # 54 of 60 points are queries; half of the points are in each batch, so many have to wait
    s = NeighborhoodBatches(60, 30, 5, seed, n_batches=9)
    s.refresh(cloud(60, 3, seed, 'normal'))
    queries = [batch[at] for batch in s for at in range(0, 30, 5)]
    assert len(set(queries)) == 54

def test_epoch_seed_and_embeddings_decide():
    z = cloud(400, 6, 0, 'normal')
    def epoch(seed, e, z):
        s = NeighborhoodBatches(400, seed=seed)
        s.set_epoch(e); s.refresh(z)
        return list(s)
    assert epoch(1, 7, z) == epoch(1, 7, z) != epoch(1, 8, z)
    assert epoch(2, 7, z) != epoch(1, 7, z) != epoch(1, 7, z.flip(0))

def test_groups_are_of_one_cluster():
    label = torch.arange(50).repeat_interleave(20)
    g = torch.Generator().manual_seed(0)
    z = torch.randn(50, 16, generator=g)[label]*10 + torch.randn(1000, 16, generator=g)*0.1
    s = NeighborhoodBatches(1000, 100, 5); s.refresh(z)
    same = np.mean([len(set(label[torch.tensor(b[i:i + 5])].tolist())) == 1 for b in s for i in range(0, 100, 5)])
    assert same > 0.9 # a cluster can run out of points when it is drawn five times in a batch

def test_as_batch_sampler():
    z = cloud(300, 4, 0, 'normal')
    for s in (RandomBatches(300, 100), NeighborhoodBatches(300)):
        if isinstance(s, NeighborhoodBatches): s.refresh(z)
        loader = DataLoader(TensorDataset(z), batch_sampler=s)
        assert len(loader) == 3
        for (rows,), batch in zip(loader, s): assert torch.equal(rows, z[batch])

@pytest.mark.parametrize('kwargs, says', [
    (dict(n=100, batch_size=10, k=10), 'below batch_size'), (dict(n=100, batch_size=10, k=11), 'below batch_size'),
    (dict(n=100, batch_size=10, k=1), 'RandomBatches'), (dict(n=100, batch_size=12, k=5), 'batch_size=10'),
    (dict(n=99), 'n = 99'), (dict(n=100, n_batches=0), 'at least 1')])
def test_neighborhood_batches_refuse(kwargs, says):
    with pytest.raises(ValueError, match=says): NeighborhoodBatches(**kwargs)

def test_every_search_of_an_epoch_is_divided(monkeypatch):
    monkeypatch.setattr(plm.sampling, '_block', 64)
    # what another process would answer
    def wrong(search): return lambda rows: (rows[:, None] + torch.arange(1, 100)) % 200
    s = NeighborhoodBatches(200)
    s.refresh(cloud(200, 4, 0, 'normal'), wrong)
    for batch in s: assert batch[1:5] == [(batch[0] + i) % 200 for i in range(1, 5)]

def test_refresh_refuses():
    s = NeighborhoodBatches(200)
    with pytest.raises(RuntimeError, match='refresh'): next(iter(s))
    with pytest.raises(ValueError, match='n = 200'): s.refresh(torch.zeros(199, 4))
    z = torch.randn(200, 4); z[3, 1] = float('nan')
    with pytest.raises(ValueError, match='row 3'): s.refresh(z)
    with pytest.raises(RuntimeError, match='refresh'): next(iter(s)) # a refused refresh leaves nothing behind
