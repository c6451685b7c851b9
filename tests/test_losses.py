"The three terms against double loops; where gradients go, and where they must not; points in one place."
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from plm.core import generator_at
from plm.losses import PLMLoss, distance_regression, distances, neighborhood_loss
from plm.manifold import Pieces, PiecewiseLinearManifold
from plm.proxies import Proxies
from plm.similarity import Binary, PiecewiseLinear
import reference_losses as reference


def unit(n, d, *address, copies=False, dtype=torch.float64):
    z = F.normalize(torch.randn(n, d, generator=generator_at('unit', n, d, *address), dtype=torch.float64), dim=1)
    return (z[torch.arange(n)//2] if copies else z).to(dtype)


shapes = dict(n=st.integers(2, 9), p=st.integers(1, 7), d=st.integers(2, 8), seed=st.integers(0, 10**6),
              copies=st.booleans())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(**shapes)
def test_distances_and_regression_are_the_double_loop(n, p, d, seed, copies):
    a, b = unit(n, d, seed, copies=copies), unit(p, d, seed, 'b')
    b[0] = a[0]
    g = distances(a, b)
    for i in range(n):
        for j in range(p): assert abs(g[i, j].item() - reference.distance(a[i], b[j])) < 1e-6
    assert g[0, 0] == 0 and (distances(a, a).diagonal() == 0).all()
    s = torch.rand(n, n, generator=generator_at(seed), dtype=torch.float64)
    s = (s + s.T)/2
    assert abs(distance_regression(a, None, s, 1.7).item() - reference.point_term(a, s, 1.7)) < 1e-6
    s = torch.rand(n, p, generator=generator_at(seed), dtype=torch.float64)
    assert abs(distance_regression(a, b, s, 2.).item() - reference.proxy_term(a, b, s, 2.)) < 1e-6
    pairs = [(i, j) for i in range(n) for j in range(p)]
    delta = sum(reference.distance(a[i], b[j]) for i, j in pairs)/sum(1 - s[i, j].item() for i, j in pairs)
    assert abs(distance_regression(a, b, s, None).item() - reference.proxy_term(a, b, s, delta)) < 1e-6
    s = torch.rand(n, n, generator=generator_at(seed), dtype=torch.float64)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    delta = sum(reference.distance(a[i], a[j]) for i, j in pairs)/sum(1 - s[i, j].item() for i, j in pairs)
    assert abs(distance_regression(a, None, s, None).item() - reference.point_term(a, s, delta)) < 1e-6


def test_regression_of_one_pair():
    at = lambda *x: torch.tensor(x)[:, None]
    assert distance_regression(at(0.), at(0.5), torch.tensor([[0.25]]), 2.).item() == 1.
    s = torch.tensor([[0., 0.5, 1.]]) # similarity 0 asks for δ, 1 for no distance
    assert distance_regression(at(0.), at(2., 1., 0.), s, 2.) == 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gradients_are_finite_where_points_coincide(dtype):
    "The root has an infinite slope at 0; several copies, copies that differ by rounding, and all in one place."
    z = unit(8, 5, dtype=dtype)
    for z in (unit(8, 5, copies=True, dtype=dtype), z[:1].expand(6, 5), torch.cat([z, z*(1 + 1e-7)])):
        for z in (z, z.flip(0)):
            z = z.clone().requires_grad_()
            d = distances(z, z)
            zero = torch.zeros_like(d.detach())
            (distance_regression(z, None, zero, 2.) + distance_regression(z, z.detach(), zero, 2.) + d.sum()).backward()
            assert torch.isfinite(d).all() and torch.isfinite(z.grad).all()
            same = (z[:, None] == z).all(2)
            assert (d[same] == 0).all() and d.min() >= 0


def test_gradients_are_finite_at_the_origin():
    z = torch.zeros(4, 5, requires_grad=True)
    distances(z, z).sum().backward()
    assert torch.isfinite(z.grad).all()


def test_gradient_of_distances_is_that_of_the_formula():
    a, b = unit(4, 3, 'a').requires_grad_(), unit(3, 3, 'b').requires_grad_()
    assert torch.autograd.gradcheck(distances, (a, b))


def near_loss(t, rho, basis, s, *n_near): return neighborhood_loss(t, Pieces(rho, basis), s, *n_near)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(m=st.integers(1, 3), n_near=st.integers(1, 12), **shapes)
def test_neighborhood_loss_is_the_double_loop(n, p, d, m, n_near, seed, copies):
    m = min(m, d)
    t, rho = unit(n, d, seed, copies=copies), unit(p, d, seed, 'rho')
    if copies: rho[0] = t[0] # a point on the proxy counts as missed
    basis = torch.linalg.qr(torch.randn(p, d, m, generator=generator_at(seed), dtype=torch.float64)).Q
    s = torch.rand(n, p, generator=generator_at(seed, 's'), dtype=torch.float64) + 1e-3
    loss = near_loss(t, rho, basis, s, n_near)
    assert loss.shape == () and -1e-9 <= loss <= 1 + 1e-9
    assert abs(loss.item() - reference.neighborhood_term(t, rho, basis, s, n_near)) < 1e-8


def test_neighborhood_loss_knows_its_extremes():
    t = torch.tensor([[1., 0., 0.], [-1., 0., 0.]])
    rho, s = torch.zeros(1, 3), torch.ones(2, 1)
    e = torch.eye(3)
    assert near_loss(t, rho, e[None, :, :1], s) == 0
    assert near_loss(t, rho, e[None, :, 1:], s) == 1
    assert near_loss(torch.zeros(2, 3), rho, e[None, :, :1], s) == 1


def make(n_proxies, d, m, seed, T=0.9, dtype=torch.float64, **options):
    proxies = Proxies(n_proxies, d, m, (seed,)).to(dtype) if n_proxies else None
    return PLMLoss(proxies, PiecewiseLinearManifold(m, T), **options)


def placed(proxies): return proxies().points.detach(), proxies().basis.detach()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(B=st.integers(2, 10), n_proxies=st.integers(0, 5), d=st.integers(2, 7), m=st.integers(1, 3),
       T=st.sampled_from([None, 0.5, 0.9, 1.]), n_alpha=st.floats(1, 6), n_beta=st.sampled_from([0.25, 0.5]),
       delta=st.floats(0.5, 3), copies=st.booleans(), views=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_the_whole_loss_is_the_double_loop(B, n_proxies, d, m, T, n_alpha, n_beta, delta, copies, views, seed):
    m = min(m, d)
    B = max(B, m + 1)
    z, t = unit(views*B, d, seed, copies=copies).requires_grad_(), unit(B, d, seed, 't', copies=copies)
    loss = make(n_proxies, d, m, seed, T, similarity=PiecewiseLinear(n_alpha, n_beta), delta=delta)
    if copies and n_proxies: loss.proxies.place(t, generator_at(seed)) # proxies on points
    terms = loss(z, t)
    rho, basis = placed(loss.proxies) if n_proxies else (None, None)
    expected = reference.plm_loss(z.detach(), t, rho, basis, m, T, n_alpha, n_beta, delta)
    assert list(terms) == list(expected)
    for name in terms: assert abs(terms[name].item() - expected[name]) < 1e-5, name
    sum(terms.values()).backward()
    assert all(torch.isfinite(x.grad).all() for x in (z, *loss.parameters()))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(B=st.integers(4, 10), n_proxies=st.integers(1, 5), d=st.integers(2, 7), m=st.integers(1, 3),
       T=st.sampled_from([0.3, 0.6, 0.9]), seed=st.integers(0, 10**6))
def test_the_binary_loss_is_the_double_loop(B, n_proxies, d, m, T, seed):
    m = min(m, d)
    z, t = unit(B, d, seed), unit(B, d, seed, 't')
    loss = make(n_proxies, d, m, seed, T, similarity=Binary(T), delta=1.3)
    terms, expected = loss(z, t), reference.binary_plm_loss(z, t, *placed(loss.proxies), m, T, 1.3)
    assert list(terms) == [*expected, 'neighborhood'] and torch.isfinite(terms['neighborhood'])
    for name in expected: assert abs(terms[name].item() - expected[name]) < 1e-5, name


def test_only_the_wanted_terms_are_computed(monkeypatch):
    z, t = unit(12, 6, 'z'), unit(12, 6, 't')
    full = make(4, 6, 2, 0)(z, t)
    for terms in (['point'], ['proxy'], ['neighborhood', 'point'], ['proxy', 'neighborhood']):
        found = make(4, 6, 2, 0, terms=terms)(z, t)
        assert list(found) == [name for name in full if name in terms]
        for name in found: assert torch.equal(found[name], full[name])
    only = make(4, 6, 2, 0, terms=['point'])
    monkeypatch.setattr(only.proxies, 'forward', None) # a call would be an error
    only(z, t)


@pytest.mark.parametrize('n_proxies, terms, words', [
    (0, ['proxy'], 'would not train the encoder without proxies'), (4, ['neighborhood'], 'would not train the encoder'),
    (4, [], 'would not train'), (4, ['points'], "unknown term 'points'.*'point'")])
def test_terms_that_are_refused(n_proxies, terms, words):
    with pytest.raises(ValueError, match=words): make(n_proxies, 6, 2, 0, terms=terms)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_count_as_float32(dtype):
    z, t = unit(20, 16, 'z', dtype=dtype).requires_grad_(), unit(20, 16, 't', dtype=dtype)
    loss = make(6, 16, 3, 0, dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16): terms = loss(z, t)
    expected = loss(z.float(), t.float())
    for name in expected: assert terms[name].dtype == torch.float32 and torch.equal(terms[name], expected[name])
    sum(terms.values()).backward()
    assert z.grad.dtype == dtype and torch.isfinite(z.grad).all()


@pytest.mark.parametrize('scale', ['one place', 'two places', 'nearly one place'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_collapsed_batch_has_a_finite_loss_and_gradient(scale, dtype):
    z = unit(1, 6).expand(10, 6).clone()
    if scale == 'two places': z[5:] = unit(1, 6, 'other')
    if scale == 'nearly one place': z = F.normalize(z + 1e-6*unit(10, 6, 'noise'), dim=1)
    z = z.to(dtype).requires_grad_()
    loss = make(4, 6, 3, 0, dtype=dtype)
    loss.proxies.place(z.detach(), generator_at(0))
    total = sum(loss(z, z).values())
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(x.grad).all() for x in (z, *loss.parameters()))


def grads(term, *tensors): return torch.autograd.grad(term, tensors, allow_unused=True, retain_graph=True)


def reached(term, *tensors): return [g is not None and bool(g.abs().max() > 1e-9) for g in grads(term, *tensors)]


def test_where_the_gradients_go():
    z, t = unit(12, 6, 'z').requires_grad_(), unit(12, 6, 't').requires_grad_()
    loss = make(4, 6, 2, 0)
    p = loss.proxies
    terms = loss(z, t)
    ends = z, t, p.location, p.free_basis
    assert reached(terms['point'], *ends) == [True, False, False, False]
    assert reached(terms['proxy'], *ends) == [True, False, True, False]
    assert reached(terms['neighborhood'], *ends) == [False, False, False, True]
    assert grads(sum(terms.values()), t) == (None,) # nothing at all, not just zeros


def test_gradient_of_the_point_term_is_that_of_the_formula():
    "The similarities stay: they are a function of t alone."
    t, loss = unit(6, 4, 't'), make(2, 4, 2, 0)
    assert torch.autograd.gradcheck(lambda z: sum(loss(z, t).values()), unit(6, 4, 'z').requires_grad_())


def test_training_on_the_loss_lowers_it_and_turns_the_proxies():
    t, loss = unit(20, 6, 't', dtype=torch.float32), make(5, 6, 2, 0, dtype=torch.float32)
    z = unit(20, 6, 'z', dtype=torch.float32).requires_grad_()
    opt = torch.optim.Adam([z, *loss.parameters()], lr=0.02)
    assert len(list(loss.parameters())) == 2
    first = last = None
    for _ in range(60):
        last = loss(F.normalize(z, dim=1), t)
        first = first or {k: v.item() for k, v in last.items()}
        opt.zero_grad()
        sum(last.values()).backward()
        opt.step()
    assert all(last[k] < 0.9*first[k] for k in first), (first, last)


def test_float32_and_float64_agree():
    z, t = unit(30, 16, 'z'), unit(30, 16, 't')
    fine, coarse = make(8, 16, 3, 0), make(8, 16, 3, 0, dtype=torch.float32)
    with torch.no_grad(): # the same proxies, to the digit
        for p, q in zip(fine.parameters(), coarse.parameters()): p.copy_(q)
    a, b = fine(z.float().double(), t.float().double()), coarse(z.float(), t.float())
    for name in a:
        assert b[name].dtype == torch.float32
        torch.testing.assert_close(b[name].double(), a[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('z, t, words', [
    (torch.full((5, 3), float('nan')), torch.ones(5, 3), 'NaN'),
    (torch.ones(5, 3), torch.full((5, 3), float('nan')), 'NaN'),
    (torch.ones(5, 3), torch.ones(4, 3), r'once or several times over, got \(5, 3\) and \(4, 3\)'),
    (torch.ones(5), torch.ones(5), r'\(B, d\)'),
    (torch.ones(2, 3), torch.ones(2, 3), 'B=2.*m=2')])
def test_batches_that_are_refused(z, t, words):
    with pytest.raises(ValueError, match=words): PLMLoss(manifold=PiecewiseLinearManifold(2))(z, t)


@pytest.mark.parametrize('delta', [0, -1, float('nan')])
def test_delta_out_of_range(delta):
    with pytest.raises(ValueError, match='delta must be above 0.*2 apart'): PLMLoss(delta=delta)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
def test_the_same_on_a_gpu():
    z, t = unit(30, 16, 'z'), unit(30, 16, 't')
    here, there = make(8, 16, 3, 0), make(8, 16, 3, 0).cuda()
    for name, term in there(z.cuda(), t.cuda()).items():
        assert term.is_cuda
        torch.testing.assert_close(term.cpu(), here(z, t)[name], rtol=1e-6, atol=1e-6)
