"""NAMR against plain loops; index against brute force; any metric loss inside; where gradients go; what is refused."""
import faiss, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning import losses, miners
from torch import nn
from plm.core import generator_at
from plm.losses import PLMLoss, distances
from plm.namr import (NAMR, StructureHead, adaptive_distances, adaptive_search, in_mean_distances, lift_items,
                      lift_queries, multi_cluster_ranking, ranking_centres, rerank)
from plm.proxies import Proxies
import reference_namr as slow

faiss.omp_set_num_threads(1)


def unit(n, d, *address, copies=False, dtype=torch.float64):
    z = F.normalize(torch.randn(n, d, generator=generator_at('unit', *address), dtype=torch.float64), dim=1)
    return (z[torch.arange(n)//2] if copies else z).to(dtype)


def weights(n, d, *address, dtype=torch.float64):
    "Between 0.5 and 1.5."
    return (0.5 + torch.rand(n, d, generator=generator_at('weights', *address), dtype=torch.float64)).to(dtype)


sizes = dict(n=st.integers(3, 14), d=st.integers(2, 7), seed=st.integers(0, 10**6), copies=st.booleans())
LABELS = torch.arange(12)//3


# the head

@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(2, 6), f=st.integers(1, 8), d=st.integers(1, 9), hidden=st.integers(1, 7),
       size=st.sampled_from([0.1, 3., 1e3]), seed=st.integers(0, 10**6))
def test_structure_is_the_formula_within_its_bounds(n, f, d, hidden, size, seed):
    head = StructureHead(f, d, hidden).double()
    with torch.no_grad():
        for k, p in enumerate(head.parameters()): p.copy_(torch.randn(p.shape, generator=generator_at(seed, k)))
    h = size*torch.randn(n, f, generator=generator_at(seed, 'h'), dtype=torch.float64)
    w = head(h).detach()
    assert w.shape == (n, d) and (w - slow.structure(h, head)).abs().max() < 1e-6
    assert w.min() >= 0.5 and w.max() <= 1.5


def test_structure_in_evaluation_does_not_depend_on_the_batch():
    head, h = StructureHead(5, 6), torch.randn(20, 5, generator=generator_at('h'))
    for _ in range(3): head(h)
    head.eval()
    assert torch.allclose(head(h)[:1], head(h[:1]), atol=1e-6)


# distance, lift, index

@settings(max_examples=60, deadline=None, derandomize=True)
@given(q=st.integers(1, 6), **sizes)
def test_adaptive_distances_are_the_double_loop(q, n, d, seed, copies):
    e_q, w_q, e_x = unit(q, d, seed, 'q'), weights(q, d, seed), unit(n, d, seed, copies=copies)
    e_q[0] = e_x[0]
    expected = slow.adaptive_distances(e_q, w_q, e_x)
    D = adaptive_distances(e_q, w_q, e_x)
    assert D.shape == (q, n) and D.min() >= 0 and (D - expected).abs().max() < 1e-12
    single = adaptive_distances(e_q.float(), w_q.float(), e_x.float())
    assert single.dtype == torch.float32 and single.min() >= 0 and (single - expected).abs().max() < 1e-5
    own = (w_q*e_q.square()).sum(1, keepdim=True)
    assert (own - lift_queries(e_q, w_q)@lift_items(e_x).T - expected).abs().max() < 1e-12
    lifted = lift_items(e_x) # side by side
    assert torch.equal(lifted[:, ::2], e_x) and torch.equal(lifted[:, 1::2], e_x.square())
    assert (adaptive_distances(e_q, torch.ones_like(w_q), e_x) - torch.cdist(e_q, e_x)**2).abs().max() < 1e-12


def test_far_from_the_origin_nothing_is_lost():
    e, w = unit(20, 5, dtype=torch.float32), weights(20, 5, dtype=torch.float32)
    shifted = (e*1024).round()/1024 + 64 # exact in 32 bits
    assert (adaptive_distances(shifted, w, shifted) - slow.adaptive_distances(shifted, w, shifted)).abs().max() < 1e-4


@settings(max_examples=15, deadline=None, derandomize=True)
@given(n=st.integers(1, 200), d=st.integers(2, 24), seed=st.integers(0, 10**6))
def test_flat_index_is_brute_force_exactly_where_32_bits_are_exact(n, d, seed):
    "On a coarse binary grid every product and sum is exact in float32: distances are the same, ties included."
    e_q, e_x, w = ((32*x).round()/32 for x in (unit(7, d, seed, 'q'), unit(n, d, seed), weights(7, d, seed)))
    index = faiss.IndexFlatIP(2*d)
    index.add(lift_items(e_x).float().numpy())
    D, found = adaptive_search(index, e_q.float(), w.float(), n)
    expected = slow.adaptive_distances(e_q, w, e_x)
    assert torch.equal(D.double(), expected.sort(1).values) and torch.equal(expected.gather(1, found), D.double())
    assert torch.equal(found.sort(1).values, torch.arange(n).expand(7, n))


def test_flat_index_is_brute_force_up_to_rounding():
    e_q, e_x, w = unit(40, 128, 'q'), unit(2000, 128, 'x'), weights(40, 128)
    index = faiss.IndexFlatIP(256)
    index.add(lift_items(e_x).float().numpy())
    D, found = adaptive_search(index, e_q, w, 2000)
    expected = (w[:, None]*(e_q[:, None] - e_x).square()).sum(2)
    order = expected.argsort(1)
    assert D.dtype == e_q.dtype and (D - expected.gather(1, found)).abs().max() < 2e-6
    gap = expected.gather(1, found) - expected.gather(1, order)
    assert gap.abs().max() < 2e-6 # another item only where they are equally far
    assert (found == order).float().mean() > 0.95


@pytest.mark.parametrize('kind', ['Flat', 'IVF8,Flat', 'HNSW8', 'PQ4x4np', 'IDMap,Flat', 'PCA16,Flat'])
def test_other_inner_product_indexes_serve(kind):
    e, w = unit(300, 8, dtype=torch.float32), weights(300, 8, dtype=torch.float32)
    index = faiss.index_factory(16, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(lift_items(e).numpy())
    if kind == 'IDMap,Flat': index.add_with_ids(lift_items(e).numpy(), torch.arange(300).numpy())
    else: index.add(lift_items(e).numpy())
    D, found = adaptive_search(index, e, w, 10)
    assert D.shape == found.shape == (300, 10) and (D >= 0).all() and (D[:, 1:] >= D[:, :-1]).all()
    true = adaptive_distances(e, w, e).argsort(1)[:, :10]
    assert (found[:, :, None] == true[:, None]).any(2).float().mean() > 0.3 # against 0.03 by chance


def test_what_an_index_does_not_find_is_infinitely_far():
    e, w = unit(100, 8, dtype=torch.float32), weights(100, 8, dtype=torch.float32)
    index = faiss.index_factory(16, 'IVF20,Flat', faiss.METRIC_INNER_PRODUCT)
    index.train(lift_items(e).numpy()), index.add(lift_items(e).numpy())
    D, found = adaptive_search(index, e, w, 50) # one list of twenty is looked at
    assert (found < 0).any() and torch.equal(found < 0, D.isinf()) and D.min() >= 0


def test_distances_of_items_do_not_need_their_structure():
    e, w = unit(6, 4), weights(6, 4)
    other = w.clone()
    other[3:] = weights(3, 4, 'other')
    found = adaptive_distances(e, w, e)[:3]
    assert torch.equal(found, adaptive_distances(e, other, e)[:3])
    few = adaptive_distances(e[:3], w[:3], e) # a product of another shape may sum in another order
    torch.testing.assert_close(few, found, rtol=1e-12, atol=1e-12)


# a short list

@settings(max_examples=40, deadline=None, derandomize=True)
@given(q=st.integers(1, 5), K=st.integers(1, 9), **sizes)
def test_rerank_is_the_sort_of_the_short_list(q, K, n, d, seed, copies):
    e_q, w_q, e_x = unit(q, d, seed, 'q'), weights(q, d, seed), unit(n, d, seed, copies=copies)
    short = torch.stack([torch.randperm(n, generator=generator_at(seed, i))[:K] for i in range(q)])
    short[0, -1] = -1 # what an index has not found
    again = rerank(e_q, w_q, e_x, short)
    if not copies: assert torch.equal(again, slow.rerank(e_q, w_q, e_x, short))
    D = slow.adaptive_distances(e_q, w_q, e_x).gather(1, again.clamp_min(0)).masked_fill(again < 0, torch.inf)
    assert torch.equal(D.sort(1).values, D) and torch.equal(again.sort(1).values, short.sort(1).values)
    near = torch.cdist(e_q, e_x).argsort(dim=1, stable=True)[:, :K]
    assert copies or torch.equal(rerank(e_q, torch.ones_like(w_q), e_x, near), near) # w = 1 is the plain distance


# ranking

@settings(max_examples=60, deadline=None, derandomize=True)
@given(C=st.integers(2, 6), alpha=st.sampled_from([0., 1., 10.]), t=st.sampled_from([0.5, 3.]), **sizes)
def test_ranking_is_the_formula(C, alpha, t, n, d, seed, copies):
    e, w = 3*unit(n, d, seed, copies=copies), weights(n, d, seed)
    assert (in_mean_distances(e) - slow.in_mean_distances(e)).abs().max() < 1e-6
    assert (ranking_centres(e, C, t) - torch.tensor(slow.ranking_centres(e, C, t))).abs().max() < 1e-6
    loss = multi_cluster_ranking(e, w, C, alpha, t)
    assert loss.shape == () and loss >= 0
    assert abs(loss.item() - slow.multi_cluster_ranking(e, w, C, alpha, t)) < 1e-6


def test_two_centres_are_nasa_to_the_last_bit():
    "Written as the two centres of the page, with the same operations in between."
    e, w = unit(40, 16, dtype=torch.float32), weights(40, 16, dtype=torch.float32)
    x = in_mean_distances(e)
    others = ~torch.eye(40, dtype=torch.bool)
    d = distances(x, x)[others]
    mu, s = d.mean(), d.std(unbiased=False)
    near, far = torch.maximum(0.2*mu, mu - 3*s), mu
    assert torch.equal(ranking_centres(x), torch.stack([near, far]))
    dw = adaptive_distances(x, w, x)[others].sqrt()
    off = torch.stack([(dw - near).abs(), (dw - far).abs()], 1)
    p = torch.softmax(-10*off, 1)
    assert torch.equal(multi_cluster_ranking(e, w), (p*off).sum(1).mean())


def test_distances_on_the_centres_cost_nothing_and_others_are_drawn_there():
    "Two places: half of the pairs coincide, the others are equally far. Then the far centre is below the far pairs."
    e = torch.tensor([[0.], [0.], [1.], [1.]]).double().requires_grad_()
    w = torch.ones(4, 1).double().requires_grad_()
    multi_cluster_ranking(e, w).backward()
    assert (w.grad > 0).all() # the far pairs, 1.5 mean distances apart, shall be nearer
    assert multi_cluster_ranking(e, w, alpha=1e6) < multi_cluster_ranking(e, w, alpha=0) # the nearer centre, or both


def test_ranking_gradients_are_right():
    e, w = unit(7, 3).requires_grad_(), weights(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(adaptive_distances, (e, w, unit(4, 3, 'x').requires_grad_()))
    assert torch.autograd.gradcheck(lambda w: multi_cluster_ranking(e, w), w)
    slope_e, slope_w = torch.autograd.grad(multi_cluster_ranking(e, w), (e, w))
    assert (slope_e != 0).all() and (slope_w != 0).all()
    assert abs((e*slope_e).sum()) < 1e-9 # no slope along the scale of e
    assert abs(multi_cluster_ranking(100*e, w) - multi_cluster_ranking(e, w)) < 1e-9
    centres = ranking_centres(e)
    assert not centres.requires_grad


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kind', ['two copies', 'all in pairs', 'one place', 'almost one place', 'two places'])
def test_degenerate_batches_have_finite_gradients(kind, dtype):
    e = unit(12, 6, copies=kind == 'all in pairs', dtype=dtype)
    if kind == 'two copies': e[1] = e[0]
    if kind == 'one place': e = e[:1].repeat(12, 1)
    if kind == 'almost one place': e = F.normalize(e[:1] + 1e-7*e, dim=1)
    if kind == 'two places': e = e[:2].repeat(6, 1)
    e_, w_ = e.clone().requires_grad_(), weights(12, 6, dtype=dtype).requires_grad_()
    loss = multi_cluster_ranking(e_, w_)
    loss.backward()
    assert all(x.isfinite().all() for x in (loss, e_.grad, w_.grad))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_count_as_float32(dtype):
    e, w = unit(30, 16, dtype=dtype), weights(30, 16, dtype=dtype)
    assert torch.equal(multi_cluster_ranking(e, w), multi_cluster_ranking(e.float(), w.float()))
    e, w = e.float().requires_grad_(), w.float()
    with torch.autocast('cpu', dtype): loss = multi_cluster_ranking(e, w)
    loss.backward()
    assert loss == multi_cluster_ranking(e, w) and e.grad.isfinite().all()


# any metric loss

def pml(d=6, n_classes=4):
    proxy_anchor = losses.ProxyAnchorLoss(n_classes, d)
    with torch.no_grad(): proxy_anchor.proxies.copy_(torch.randn(n_classes, d, generator=generator_at('proxies')))
    return {'triplet': losses.TripletMarginLoss(), 'contrastive': losses.ContrastiveLoss(),
            'multi-similarity': losses.MultiSimilarityLoss(), 'proxy-anchor': proxy_anchor}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), C=st.integers(2, 11), weight=st.sampled_from([0., 0.3, 2.]))
def test_namr_is_the_two_losses(seed, C, weight):
    e, w = unit(12, 6, seed), weights(12, 6, seed)
    expected = weight*slow.multi_cluster_ranking(e, w, C)
    for loss in pml().values():
        terms = NAMR(loss, C, weight)(e, w, LABELS)
        assert list(terms) == ['metric', 'rank'] and torch.equal(terms['metric'], loss(e, LABELS))
        assert abs(terms['rank'].item() - expected) < 1e-6


def test_own_parameters_are_shared_with_the_loss_and_trained():
    loss = losses.ProxyAnchorLoss(4, 6)
    namr = NAMR(loss)
    assert [id(p) for p in namr.parameters()] == [id(loss.proxies)] and 'metric_loss.proxies' in namr.state_dict()
    before = loss.proxies.detach().clone()
    opt = torch.optim.SGD(namr.parameters(), lr=0.1)
    sum(namr(unit(12, 6, dtype=torch.float32), weights(12, 6, dtype=torch.float32), LABELS).values()).backward()
    opt.step()
    assert not torch.equal(loss.proxies, before) and next(namr.parameters()) is loss.proxies


def test_a_miner_picks_for_the_metric_loss():
    e, w, loss, miner = unit(12, 6), weights(12, 6), losses.TripletMarginLoss(), miners.BatchHardMiner()
    value = NAMR(loss, miner=miner)(e, w, LABELS)['metric']
    assert value == loss(e, LABELS, miner(e, LABELS)) != loss(e, LABELS)


def test_plm_as_the_metric_loss_gives_its_terms():
    z, t, w = (x.float() for x in (unit(12, 6), unit(12, 6, 't'), weights(12, 6)))
    z.requires_grad_(), w.requires_grad_()
    plm = PLMLoss(Proxies(n=5, dim=6))
    namr = NAMR(plm, weight=0.5)
    terms, own = namr(z, w, t), plm(z, t)
    assert set(terms) == {'point', 'proxy', 'neighborhood', 'rank'} and all(torch.equal(terms[k], own[k]) for k in own)
    assert set(map(id, namr.parameters())) == set(map(id, plm.parameters()))
    sum(terms.values()).backward()
    assert z.grad.any() and w.grad.any() and all(p.grad.any() for p in namr.parameters())


def test_any_callable_will_do():
    e, w = unit(12, 6), weights(12, 6)
    assert NAMR(lambda e, target: (e*target).sum())(e, w, e)['metric'].item() == pytest.approx(12)


def test_training_lowers_both_terms():
    labels, embedding, structure = torch.arange(30)//5, nn.Linear(8, 6), StructureHead(8, 6, 16)
    centres, noise = (torch.randn(n, 8, generator=generator_at(a)) for n, a in ((6, 'centres'), (30, 'noise')))
    x = centres[labels] + 0.5*noise
    with torch.no_grad(): embedding.weight.copy_(torch.randn(6, 8, generator=generator_at('weight'))/3)
    namr = NAMR(losses.TripletMarginLoss())
    opt, history = torch.optim.Adam([*embedding.parameters(), *structure.parameters()], lr=0.02), []
    for _ in range(40):
        terms = namr(F.normalize(embedding(x), dim=1), structure(x), labels)
        opt.zero_grad()
        sum(terms.values()).backward()
        opt.step()
        history.append([v.item() for v in terms.values()])
    assert history[-1][0] < history[0][0] and history[-1][1] < history[0][1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_everything_runs_on_the_gpu():
    batch = unit(12, 6, dtype=torch.float32), weights(12, 6, dtype=torch.float32), LABELS
    for loss in pml().values():
        namr = NAMR(loss, miner=miners.MultiSimilarityMiner())
        here = namr(*batch)
        there = namr.cuda()(*(x.cuda() for x in batch))
        for k in here: assert there[k].is_cuda and abs(here[k] - there[k].cpu()) < 1e-4*(1 + here[k].abs())
    e, w, _ = batch
    h = torch.randn(12, 5, generator=generator_at('h'))
    assert StructureHead(5, 6).cuda()(h.cuda()).is_cuda
    index = faiss.IndexFlatIP(12)
    index.add(lift_items(e).numpy())
    D, found = adaptive_search(index, e.cuda(), w.cuda(), 5)
    assert D.is_cuda and found.is_cuda and torch.equal(found.cpu(), adaptive_search(index, e, w, 5)[1])
    assert torch.equal(rerank(e.cuda(), w.cuda(), e.cuda(), found).cpu(), found.cpu())


E, W, nan = unit(12, 6), weights(12, 6), torch.full((12, 6), float('nan')).double()
FLAT = faiss.IndexFlatIP(12)
FLAT.add(lift_items(E).float().numpy())
zero = W.clone()
zero[0, 0] = 0
triplet = losses.TripletMarginLoss
@pytest.mark.parametrize('call, says', [
    (lambda: StructureHead(5, 6)(torch.zeros(3, 4)), 'length 4'),
    (lambda: StructureHead(6, 6)(nan.float()), 'features h have NaN'),
    (lambda: adaptive_distances(E, zero, E), 'w must be positive, but 1 of 72'),
    (lambda: adaptive_distances(E, -W, E), 'positive'),
    (lambda: adaptive_distances(E, W[:, :3], E), 'same shape'),
    (lambda: adaptive_distances(E, W[:4], E), 'same shape'),
    (lambda: adaptive_distances(E, W, E[:, :3]), '6 dimensions and items 3'),
    (lambda: adaptive_distances(nan, W, E), 'sample embeddings e have NaN'),
    (lambda: adaptive_distances(E, nan, E), 'structure embeddings w have NaN'),
    (lambda: adaptive_distances(E, W, nan), 'items e_x have NaN'),
    (lambda: rerank(E, zero, E, torch.zeros(12, 3).long()), 'positive'),
    (lambda: in_mean_distances(E[:1]), 'a batch of 1'),
    (lambda: in_mean_distances(nan), 'sample embeddings e have NaN'),
    (lambda: ranking_centres(E, 1), 'C must be at least 2'),
    (lambda: multi_cluster_ranking(E, W, C=1), 'C must be at least 2'),
    (lambda: multi_cluster_ranking(E, zero), 'positive'),
    (lambda: multi_cluster_ranking(E, W[:, :3]), 'same shape'),
    (lambda: adaptive_search(faiss.IndexFlatL2(12), E, W, 3), 'make it for the inner product'),
    (lambda: adaptive_search(faiss.IndexHNSWFlat(12, 8), E, W, 3), 'METRIC_INNER_PRODUCT'),
    (lambda: adaptive_search(faiss.IndexFlatIP(6), E, W, 3), r'length 6 .* cannot hold .*IndexFlatIP\(12\)'),
    (lambda: adaptive_search(faiss.IndexFlatIP(12), E, W, 3), "in 1..0, the index's size"),
    (lambda: adaptive_search(FLAT, E, W, 13), 'in 1..12'),
    (lambda: adaptive_search(FLAT, E, W, 0), 'in 1..12'),
    (lambda: adaptive_search(FLAT, E, zero, 3), 'positive'),
    (lambda: NAMR(triplet(), C=1), 'C must'),
    (lambda: NAMR(triplet(), weight=-1), 'weight must be at least 0'),
    (lambda: NAMR(triplet(), alpha=float('nan')), 'alpha'),
    (lambda: NAMR(triplet())(E, zero, LABELS), 'positive'),
    (lambda: NAMR(triplet())(E, W[:, :3], LABELS), 'same shape'),
    (lambda: NAMR(triplet())(E[:1], W[:1], LABELS[:1]), 'a batch of 1')])
def test_wrong_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says): call()
