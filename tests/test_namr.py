"""NAMR against plain loops; index against brute force; any metric loss inside; where gradients go; what is refused."""
import faiss, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning import distances, losses, miners
from torch import nn
from plm.core import generator_at
from plm.losses import PLMLoss
from plm import namr as module
from plm.namr import (AdaptiveDistance, StructureHead, adaptive_distances, adaptive_search, lift_items, lift_queries,
                      near_to_far)
from plm.proxies import Proxies
import reference_namr as slow

faiss.omp_set_num_threads(1)


# the defaults are for batches of 100; here are a dozen points
def NAMR(loss, C=4, margin=0.2, *args, **kw): return module.NAMR(loss, C, margin, *args, **kw)
def multi_cluster_ranking(e, w, order, C=4, margin=0.2): return module.multi_cluster_ranking(e, w, order, C, margin)


def unit(n, d, *address, copies=False, dtype=torch.float64):
    z = F.normalize(torch.randn(n, d, generator=generator_at('unit', *address), dtype=torch.float64), dim=1)
    return (z[torch.arange(n)//2] if copies else z).to(dtype)


def weights(n, d, *address, dtype=torch.float64):
    "Positive, mean 1, between 0.5 and 1.5."
    a = torch.rand(n, d, generator=generator_at('weights', *address), dtype=torch.float64)
    return (1 + (a - a.mean(1, keepdim=True))/2).to(dtype)


sizes = dict(n=st.integers(3, 14), d=st.integers(2, 7), seed=st.integers(0, 10**6), copies=st.booleans())
LABELS = torch.arange(12)//3


# the head

@settings(max_examples=50, deadline=None, derandomize=True)
@given(n=st.integers(1, 6), f=st.integers(1, 8), d=st.integers(2, 9), band=st.sampled_from([0.01, 0.5, 1.]),
       size=st.sampled_from([0.1, 3., 1e4]), seed=st.integers(0, 10**6))
def test_structure_is_the_formula_within_its_band(n, f, d, band, size, seed):
    head = StructureHead(f, d, band)
    with torch.no_grad():
        for p in head.parameters(): p.copy_(size*torch.randn(p.shape, generator=generator_at(seed)))
    h = torch.randn(n, f, generator=generator_at(seed, 'h'))
    w = head(h).detach()
    expected = slow.structure(h, head.linear.weight.detach(), head.linear.bias.detach(), band)
    assert (w - expected).abs().max() < 1e-3 # float32 sums of large numbers before the tanh
    assert (w.mean(1) - 1).abs().max() < 1e-6 and w.min() > max(0, 1 - band) and w.max() < 1 + band


def test_training_begins_at_the_plain_distance_and_can_leave_it():
    e, h = unit(10, 6, dtype=torch.float32), torch.randn(10, 5, generator=generator_at('h'), requires_grad=True)
    head, order = StructureHead(5, 6), near_to_far(torch.randn(10, 3, generator=generator_at('reference')))
    assert (head(h) == 1).all() and torch.allclose(adaptive_distances(e, head(h), e), torch.cdist(e, e)**2, atol=1e-5)
    before = multi_cluster_ranking(e, head(h), order, 3)
    before.backward()
    assert (head.linear.weight.grad != 0).all() and not h.grad.any()
    with torch.no_grad():
        for p in head.parameters(): p -= 0.1*p.grad
    after = multi_cluster_ranking(e, head(h), order, 3)
    after.backward()
    assert after < before and h.grad.any()


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
    assert torch.equal(adaptive_distances(e[:3], w[:3], e), adaptive_distances(e, other, e)[:3])


# clusters and ranking

@settings(max_examples=60, deadline=None, derandomize=True)
@given(**sizes)
def test_order_is_the_plain_sort(n, d, seed, copies):
    x = unit(n, d, seed, copies=copies)
    assert torch.equal(near_to_far(x), slow.near_to_far(x))
    by_number = torch.tensor([[j for j in range(n) if j != i] for i in range(n)])
    assert torch.equal(near_to_far(torch.ones(n, d)), by_number) # all in one place


def test_small_distances_far_from_the_origin_are_told_apart():
    "Above 25 points cdist would go over inner products, whose rounding is larger than these distances."
    x = 100 + 1e-7*unit(40, 3)
    assert torch.equal(near_to_far(x), slow.near_to_far(x))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), share=st.sampled_from([0.05, 0.5, 0.95]), **sizes)
def test_ranking_is_the_formula(data, share, n, d, seed, copies):
    C = data.draw(st.integers(2, n - 1))
    margin = share*2/(C - 1)
    e, w, order = unit(n, d, seed, copies=copies), weights(n, d, seed), near_to_far(unit(n, 3, seed, 'reference'))
    loss = multi_cluster_ranking(e, w, order, C, margin)
    assert loss.shape == () and loss >= 0
    assert abs(loss.item() - slow.multi_cluster_ranking(e, w, order, C, margin)) < 1e-9


@pytest.mark.parametrize('n, C', [(5, 2), (10, 3), (10, 9), (8, 7), (101, 4)])
def test_clusters_are_equal_up_to_one(n, C):
    lengths = [len(p) for p in slow.clusters(list(range(n)), C)]
    assert sum(lengths) == n and max(lengths) - min(lengths) <= 1


def test_ranking_is_zero_when_the_order_is_kept_and_not_when_it_is_reversed():
    "Points on a circle of four well separated places: each anchor's clusters by its own distance are apart."
    place = torch.tensor([[0., 0.], [1., 0.], [3., 0.], [9., 0.]]).double()
    e = (place[:, None] + 1e-3*torch.randn(4, 6, 2, generator=generator_at('places')).double()).flatten(0, 1)
    w, order = torch.ones(24, 2).double(), near_to_far(e)
    assert multi_cluster_ranking(e, w, order, 2, 0.1) == 0
    assert multi_cluster_ranking(e, w, order.flip(1), 2, 0.1) > 1


def test_one_anchor_by_hand():
    """Squared distances 1, 4, 9, 16 from 0: means 2.5 and 12.5 over 7.5. Only the first anchor's order differs between
    the two losses."""
    e, w = torch.cat([torch.arange(5.)[:, None], torch.zeros(5, 1)], 1).double(), torch.ones(5, 2).double()
    order = near_to_far(e)
    flipped = order.clone()
    flipped[0] = order[0].flip(0)
    difference = multi_cluster_ranking(e, w, flipped, 2, 1.5) - multi_cluster_ranking(e, w, order, 2, 1.5)
    assert abs(5*difference - ((1.5 + 4/3) - (1.5 - 4/3))) < 1e-12


def test_ranking_gradients_are_right():
    e, w, order = unit(7, 3).requires_grad_(), weights(7, 3).requires_grad_(), near_to_far(unit(7, 4, 'reference'))
    assert torch.autograd.gradcheck(lambda e, w: multi_cluster_ranking(e, w, order, 3, 0.4), (e, w))
    assert torch.autograd.gradcheck(adaptive_distances, (e, w, unit(4, 3, 'x').requires_grad_()))
    loss = multi_cluster_ranking(e, w, order, 3, 0.4)
    slope_e, slope_w = torch.autograd.grad(loss, (e, w))
    assert loss > 0 and (slope_e != 0).all() and (slope_w != 0).all()
    assert abs((e*slope_e).sum()) < 1e-12 # no slope along the scale of e,
    assert (w*slope_w).sum(1).abs().max() < 1e-12 # nor of any row of w
    assert abs(multi_cluster_ranking(100*e, 0.3*w, order, 3, 0.4) - loss) < 1e-9


def test_the_reference_gets_no_gradient():
    reference = unit(12, 5).requires_grad_()
    assert not near_to_far(reference).requires_grad
    e, w = unit(12, 4, 'e').requires_grad_(), weights(12, 4).requires_grad_()
    terms = NAMR(losses.TripletMarginLoss())(e, w, LABELS, reference)
    sum(terms.values()).backward()
    assert reference.grad is None


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('metric_on', ['plain', 'adaptive'])
@pytest.mark.parametrize('kind', ['two copies', 'all in pairs', 'one place', 'almost one place', 'two places'])
def test_degenerate_batches_have_finite_gradients(kind, metric_on, dtype):
    e = unit(12, 6, copies=kind == 'all in pairs', dtype=dtype)
    if kind == 'two copies': e[1] = e[0]
    if kind == 'one place': e = e[:1].repeat(12, 1)
    if kind == 'almost one place': e = F.normalize(e[:1] + 1e-7*e, dim=1)
    if kind == 'two places': e = e[:2].repeat(6, 1)
    for loss in pml().values():
        e_, w_ = e.clone().requires_grad_(), weights(12, 6, dtype=dtype).requires_grad_()
        terms = NAMR(loss, metric_on=metric_on)(e_, w_, LABELS, e)
        sum(terms.values()).backward()
        assert all(torch.isfinite(v).all() for v in (*terms.values(), e_.grad, w_.grad))


# any metric loss

def pml(d=6, n_classes=4):
    proxy_anchor = losses.ProxyAnchorLoss(n_classes, d)
    with torch.no_grad(): proxy_anchor.proxies.copy_(torch.randn(n_classes, d, generator=generator_at('proxies')))
    return {'triplet': losses.TripletMarginLoss(), 'contrastive': losses.ContrastiveLoss(),
            'multi-similarity': losses.MultiSimilarityLoss(), 'proxy-anchor': proxy_anchor}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), C=st.integers(2, 11), weight=st.sampled_from([0., 0.3, 2.]))
def test_namr_on_the_plain_distance_is_the_two_losses(seed, C, weight):
    e, w, reference, margin = unit(12, 6, seed), weights(12, 6, seed), unit(12, 3, seed, 'reference'), 1/C
    expected = weight*slow.multi_cluster_ranking(e, w, slow.near_to_far(reference), C, margin)
    for loss in pml().values():
        terms = NAMR(loss, C, margin, weight)(e, w, LABELS, reference)
        assert list(terms) == ['metric', 'rank'] and torch.equal(terms['metric'], loss(e, LABELS))
        assert abs(terms['rank'].item() - expected) < 1e-9


@pytest.mark.parametrize('seed', range(4))
def test_metric_losses_on_the_adaptive_distance_are_the_formulas(seed):
    e, w, table = unit(12, 6, seed), weights(12, 6, seed), pml()
    proxies = table['proxy-anchor'].proxies.detach()
    expected = {'triplet': slow.triplet(e, w, LABELS, 0.05), 'contrastive': slow.contrastive(e, w, LABELS, 0, 1),
                'multi-similarity': slow.multi_similarity(e, w, LABELS, 2, 50, 0.5),
                'proxy-anchor': slow.proxy_anchor(e, w, LABELS, proxies, 32, 0.1)}
    for name, loss in table.items():
        value = NAMR(loss, metric_on='adaptive')(e, w, LABELS, e)['metric'].item()
        assert abs(value/expected[name] - 1) < 1e-6, name
        plain = loss(e, LABELS).item()
        assert abs(value - plain) > 1e-4, name # it does see w
        at_one = NAMR(loss, metric_on='adaptive')(e, torch.ones_like(w), LABELS, e)['metric'].item()
        assert abs(at_one/plain - 1) < 1e-6, name # and begins where the plain one does


@pytest.mark.parametrize('metric_on', ['plain', 'adaptive'])
@pytest.mark.parametrize('name', ['triplet', 'contrastive', 'multi-similarity', 'proxy-anchor'])
def test_gradients_of_the_metric_term_go_where_they_should(name, metric_on):
    loss = pml()[name]
    namr = NAMR(loss, metric_on=metric_on)
    e, w = unit(12, 6).requires_grad_(), weights(12, 6).requires_grad_()
    slope_e, slope_w = torch.autograd.grad(namr(e, w, LABELS, e)['metric'], (e, w), allow_unused=True)
    assert slope_e.any() and (slope_w is not None and bool(slope_w.any())) == (metric_on == 'adaptive')
    def metric(e, w): return namr(e, w, LABELS, e.detach())['metric']
    if metric_on == 'adaptive': assert torch.autograd.gradcheck(metric, (e, w), atol=1e-4)


@pytest.mark.parametrize('metric_on', ['plain', 'adaptive'])
def test_own_parameters_are_shared_with_the_loss_and_trained(metric_on):
    loss = losses.ProxyAnchorLoss(4, 6)
    namr = NAMR(loss, metric_on=metric_on)
    assert [id(p) for p in namr.parameters()] == [id(loss.proxies)] and 'metric_loss.proxies' in namr.state_dict()
    before = loss.proxies.detach().clone()
    opt = torch.optim.SGD(namr.parameters(), lr=0.1)
    e, w = unit(12, 6, dtype=torch.float32), weights(12, 6, dtype=torch.float32)
    sum(namr(e, w, LABELS, unit(12, 3)).values()).backward()
    opt.step()
    assert not torch.equal(loss.proxies, before) and next(namr.parameters()) is loss.proxies


def test_the_loss_given_is_left_as_it_was():
    "One loss object may serve a plain and an adaptive wrapper side by side; stored bound methods must follow the copy."
    for loss in pml().values():
        kind, e = type(loss.distance), unit(12, 6)
        before = loss(e, LABELS)
        adaptive = NAMR(loss, metric_on='adaptive')
        adaptive(e, weights(12, 6), LABELS, e)
        assert type(loss.distance) is kind and torch.equal(loss(e, LABELS), before)
        bound = getattr(adaptive.metric_loss, 'loss_method', None)
        assert bound is None or bound.__self__ is adaptive.metric_loss


def test_power_of_the_distance_is_kept():
    e, w = unit(12, 6), weights(12, 6)
    loss = losses.ContrastiveLoss(pos_margin=0, neg_margin=0, distance=distances.LpDistance(power=2))
    D = slow.adaptive_distances(e, w, e)[(LABELS[:, None] == LABELS) & ~torch.eye(12, dtype=torch.bool)]
    assert abs(NAMR(loss, metric_on='adaptive')(e, w, LABELS, e)['metric'].item() - D.mean().item()) < 1e-9


@pytest.mark.parametrize('metric_on', ['plain', 'adaptive'])
@pytest.mark.parametrize('kind, options', [
    (miners.MultiSimilarityMiner, {}), (miners.TripletMarginMiner, dict(margin=0.1, type_of_triplets='semihard')),
    (miners.BatchHardMiner, {})])
def test_a_miner_sees_the_distance_of_the_loss(kind, options, metric_on):
    e, w, loss, miner = unit(12, 6), weights(12, 6), losses.TripletMarginLoss(), kind(**options)
    value = NAMR(loss, metric_on=metric_on, miner=miner)(e, w, LABELS, e)['metric']
    if metric_on == 'plain': expected = loss(e, LABELS, miner(e, LABELS))
    else: # the same loss and miner, handed the matrix that the loops computed
        D = slow.adaptive_distances(e, w, e)
        cosine = miner.distance.is_inverted
        mine = kind(**options, distance=_Table(1 - D/2 if cosine else D.sqrt(), cosine))
        expected = losses.TripletMarginLoss(distance=_Table(D.sqrt(), False))(e, LABELS, mine(e, LABELS))
    assert value > 0 and abs(value.item() - expected.item()) < 1e-9


class _Table(distances.BaseDistance):
    "A distance object that knows its matrix."
    def __init__(self, matrix, is_inverted):
        super().__init__(is_inverted=is_inverted)
        self.matrix = matrix
    def compute_mat(self, query_emb, ref_emb): return self.matrix


def test_adaptive_distance_for_pytorch_metric_learning():
    e, w, rho = unit(5, 4), weights(5, 4), 3*unit(3, 4, 'rho')
    D, x = slow.adaptive_distances(e, w, e), torch.cat([e, w], 1)
    off = ~torch.eye(5, dtype=torch.bool)
    root, similarity = AdaptiveDistance(), AdaptiveDistance(similarity=True)
    assert (root(x) - D.sqrt()).abs().max() < 1e-7 and not root.is_inverted
    assert (similarity(x) - (1 - D/2)).abs().max() < 1e-12 and similarity.is_inverted
    assert (AdaptiveDistance(power=2)(x) - D)[off].abs().max() < 1e-12
    expected = slow.adaptive_distances(e, w, F.normalize(rho, dim=1))
    assert (root(x, rho) - expected.sqrt()).abs().max() < 1e-7 # proxies of any length, without structure
    for i in range(1, 5):
        rows, d = [f.pairwise_distance(x[:-i], x[i:]) for f in (root, similarity)], D.diagonal(i)
        assert (rows[0] - d.sqrt()).abs().max() < 1e-7 and (rows[1] - (1 - d/2)).abs().max() < 1e-12


def test_plm_as_the_metric_loss_gives_its_terms():
    z, t, w = (x.float() for x in (unit(12, 6), unit(12, 6, 't'), weights(12, 6)))
    z.requires_grad_(), w.requires_grad_()
    plm = PLMLoss(Proxies(n=5, dim=6))
    namr = NAMR(plm, weight=0.5)
    terms, own = namr(z, w, t, t), plm(z, t)
    assert set(terms) == {'point', 'proxy', 'neighborhood', 'rank'} and all(torch.equal(terms[k], own[k]) for k in own)
    assert set(map(id, namr.parameters())) == set(map(id, plm.parameters()))
    sum(terms.values()).backward()
    assert z.grad.any() and w.grad.any() and all(p.grad.any() for p in namr.parameters())


def test_any_callable_will_do():
    e, w = unit(12, 6), weights(12, 6)
    assert NAMR(lambda e, target: (e*target).sum())(e, w, e, e)['metric'].item() == pytest.approx(12)


def test_training_lowers_both_terms():
    labels, embedding, structure = torch.arange(30)//5, nn.Linear(8, 6), StructureHead(8, 6)
    centres, noise = (torch.randn(n, 8, generator=generator_at(a)) for n, a in ((6, 'centres'), (30, 'noise')))
    x = centres[labels] + 0.5*noise
    with torch.no_grad(): embedding.weight.copy_(torch.randn(6, 8, generator=generator_at('weight'))/3)
    namr = NAMR(losses.TripletMarginLoss(), metric_on='adaptive')
    opt, history = torch.optim.Adam([*embedding.parameters(), *structure.parameters()], lr=0.02), []
    for _ in range(40):
        terms = namr(F.normalize(embedding(x), dim=1), structure(x), labels, x)
        opt.zero_grad()
        sum(terms.values()).backward()
        opt.step()
        history.append([v.item() for v in terms.values()])
    assert history[-1][0] < history[0][0] and history[-1][1] < history[0][1] and (structure(x) - 1).abs().max() > 0.05


def test_single_precision_is_near_enough():
    e, w, reference = unit(60, 64), weights(60, 64), unit(60, 32, 'reference')
    labels = torch.arange(60)//5
    for metric_on in ('plain', 'adaptive'):
        for name, loss in pml(64, 12).items():
            namr = NAMR(loss, metric_on=metric_on)
            double, single = namr(e, w, labels, reference), namr(e.float(), w.float(), labels, reference.float())
            for term, value in double.items():
                assert single[term].dtype == torch.float32, (name, term)
                assert abs(value - single[term]) < 1e-4*(1 + value.abs()), (name, term)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_everything_runs_on_the_gpu():
    e, w, reference = unit(12, 6, dtype=torch.float32), weights(12, 6, dtype=torch.float32), unit(12, 3, 'reference')
    for metric_on in ('plain', 'adaptive'):
        for loss in pml().values():
            namr = NAMR(loss, metric_on=metric_on, miner=miners.MultiSimilarityMiner())
            batch = e, w, LABELS, reference
            here = namr(*batch)
            there = namr.cuda()(*(x.cuda() for x in batch))
            for k in here: assert there[k].is_cuda and abs(here[k] - there[k].cpu()) < 1e-4*(1 + here[k].abs())
    h = torch.randn(12, 5, generator=generator_at('h'))
    assert torch.equal(StructureHead(5, 6).cuda()(h.cuda()).cpu(), torch.ones(12, 6))
    index = faiss.IndexFlatIP(12)
    index.add(lift_items(e).numpy())
    D, found = adaptive_search(index, e.cuda(), w.cuda(), 5)
    assert D.is_cuda and found.is_cuda and torch.equal(found.cpu(), adaptive_search(index, e, w, 5)[1])


E, W, nan = unit(12, 6), weights(12, 6), torch.full((12, 6), float('nan')).double()
ORDER, FLAT = near_to_far(E), faiss.IndexFlatIP(12)
FLAT.add(lift_items(E).float().numpy())
zero = W.clone()
zero[0, 0] = 0
triplet = losses.TripletMarginLoss
@pytest.mark.parametrize('call, says', [
    (lambda: StructureHead(5, 6, band=0), 'band'),
    (lambda: StructureHead(5, 6, band=1.5), 'band'),
    (lambda: StructureHead(5, 1), 'at least 2'),
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
    (lambda: near_to_far(nan), 'reference have NaN'),
    (lambda: near_to_far(E[:1]), 'no neighbours'),
    (lambda: near_to_far(E[0]), 'shape'),
    (lambda: multi_cluster_ranking(E, W, ORDER, C=12), 'C = 12 clusters cannot be cut from the 11'),
    (lambda: multi_cluster_ranking(E[:3], W[:3], near_to_far(E[:3])), 'at least 5 points'),
    (lambda: multi_cluster_ranking(E, W, ORDER, C=1), 'C must be at least 2'),
    (lambda: multi_cluster_ranking(E, W, ORDER, margin=0), 'margin'),
    (lambda: multi_cluster_ranking(E, W, ORDER, C=5, margin=0.5), '= 0.5 for C = 5'),
    (lambda: multi_cluster_ranking(E, W, near_to_far(E[:9])), 'order must have shape'),
    (lambda: multi_cluster_ranking(E, zero, ORDER), 'positive'),
    (lambda: adaptive_search(faiss.IndexFlatL2(12), E, W, 3), 'make it for the inner product'),
    (lambda: adaptive_search(faiss.IndexHNSWFlat(12, 8), E, W, 3), 'METRIC_INNER_PRODUCT'),
    (lambda: adaptive_search(faiss.IndexFlatIP(6), E, W, 3), r'length 6 .* cannot hold .*IndexFlatIP\(12\)'),
    (lambda: adaptive_search(faiss.IndexFlatIP(12), E, W, 3), "in 1..0, the index's size"),
    (lambda: adaptive_search(FLAT, E, W, 13), 'in 1..12'),
    (lambda: adaptive_search(FLAT, E, W, 0), 'in 1..12'),
    (lambda: adaptive_search(FLAT, E, zero, 3), 'positive'),
    (lambda: NAMR(triplet(), C=1), 'C must'),
    (lambda: NAMR(triplet(), C=5, margin=0.5), 'margin'),
    (lambda: NAMR(triplet(), weight=-1), 'weight'),
    (lambda: NAMR(triplet(), weight=float('nan')), 'weight'),
    (lambda: NAMR(triplet(), metric_on='adaptiv'), "Did you mean 'adaptive'"),
    (lambda: NAMR(PLMLoss(), metric_on='adaptive'), 'distance of PLMLoss is missing'),
    (lambda: NAMR(triplet(distance=distances.LpDistance(p=1)), metric_on='adaptive'), "metric_on='plain'"),
    (lambda: NAMR(triplet(distance=distances.DotProductSimilarity()), metric_on='adaptive'),
     'TripletMarginLoss is DotProductSimilarity'),
    (lambda: NAMR(triplet(distance=distances.LpDistance(normalize_embeddings=False)), metric_on='adaptive'),
     'replaces'),
    (lambda: NAMR(triplet())(E, zero, LABELS, E), 'positive'),
    (lambda: NAMR(triplet())(E, W[:, :3], LABELS, E), 'same shape'),
    (lambda: NAMR(triplet())(E, W, LABELS, E[:5]), r'order must have shape \(B, B-1\) = \(12, 11\)'),
    (lambda: NAMR(triplet())(E, W, LABELS, nan), 'reference have NaN'),
    (lambda: NAMR(triplet())(E[:4], W[:4], LABELS[:4], E[:4]), 'at least 5 points'),
    (lambda: AdaptiveDistance()(torch.cat([E, W], 1), E[:, :4]), 'length d = 6 or 2d'),
    (lambda: AdaptiveDistance()(E[:, :5]), 'same shape')])
def test_wrong_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says): call()
