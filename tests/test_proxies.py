"Locations and neighbourhoods of the proxies: orthonormal always, and differentiable."
import pytest, torch
from hypothesis import given, settings, strategies as st
from plm.core import generator_at
from plm.proxies import Proxies


def free(n, d, m, seed):
    "Proxies in float64 whose free parameters are nowhere near unit or orthonormal."
    proxies = Proxies(n, d, m).double()
    g = generator_at(seed)
    with torch.no_grad():
        for p in proxies.parameters(): p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) + 0.3)
    return proxies


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 6), d=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_bases_are_orthonormal_and_span_the_free_parameters(n, d, share, seed):
    m = 1 + round(share*(d - 1))
    proxies = free(n, d, m, seed)
    pieces = proxies()
    assert pieces.points.shape == (n, d) and pieces.basis.shape == (n, d, m) and pieces.members is None
    torch.testing.assert_close(pieces.points.norm(dim=1), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(pieces.points*proxies.location.norm(dim=1, keepdim=True), proxies.location)
    identity = torch.eye(m, dtype=torch.float64).expand(n, m, m)
    torch.testing.assert_close(pieces.basis.mT @ pieces.basis, identity, rtol=0, atol=1e-12)
    kept = pieces.basis @ (pieces.basis.mT @ proxies.free_basis)
    torch.testing.assert_close(kept, proxies.free_basis, rtol=0, atol=1e-12)


def both(pieces): return pieces.points, pieces.basis


def test_orthonormal_after_many_steps():
    "The free parameters leave the manifold of orthonormal bases; what comes out does not."
    proxies = Proxies(20, 8, 3)
    opt = torch.optim.Adam(proxies.parameters(), lr=0.05)
    target = torch.randn(20, 8, generator=generator_at(1))
    start = [p.detach().clone() for p in proxies.parameters()]
    for _ in range(60):
        location, basis = both(proxies())
        loss = (location - target).square().sum() - (target[:, None] @ basis).square().sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert all((p - s).norm() > 1 for p, s in zip(proxies.parameters(), start))
    location, basis = both(proxies())
    torch.testing.assert_close(basis.mT @ basis, torch.eye(3).expand(20, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(location.norm(dim=1), torch.ones(20))
    free = proxies.free_basis
    assert (free.mT @ free - torch.eye(3)).abs().max() > 1e-2
    kept = (target[:, None] @ basis).square().sum((1, 2))/target.square().sum(1)
    assert kept.min() > 0.95 # and it turned to where it was told


def test_gradients_are_those_of_the_formula():
    proxies = free(3, 5, 2, 0)
    def outputs(location, free_basis):
        pieces = torch.func.functional_call(proxies, dict(location=location, free_basis=free_basis))
        return pieces.points, pieces.basis @ pieces.basis.mT # the signs of a basis mean nothing
    inputs = [p.detach().clone().requires_grad_() for p in proxies.parameters()]
    assert torch.autograd.gradcheck(outputs, inputs)


def test_beginnings_have_an_address():
    a, again, b = Proxies(4, 6, 2), Proxies(4, 6, 2), Proxies(4, 6, 2, (1,))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), again.parameters()))
    assert not torch.equal(a.location, b.location) and not torch.equal(a.free_basis, b.free_basis)
    assert {n for n, _ in a.named_parameters()} == {'location', 'free_basis'}
    torch.testing.assert_close(a().basis @ a().basis.mT, a.free_basis @ a.free_basis.mT, rtol=0, atol=1e-5)


@pytest.mark.parametrize('n_points', [1, 3, 200])
def test_proxies_are_placed_on_the_data(n_points):
    z = torch.nn.functional.normalize(torch.randn(n_points, 6, generator=generator_at(2)), dim=1)
    proxies = Proxies(10, 6, 2)
    basis = proxies.free_basis.clone()
    proxies.place(z, generator_at(3))
    assert (proxies.location[:, None] == z).all(2).any(1).all() and torch.equal(proxies.free_basis, basis)
    assert proxies.location.requires_grad and proxies.location.is_leaf
    if n_points == 200: assert len(proxies.location.unique(dim=0)) >= 7
    other = Proxies(10, 6, 2)
    other.place(z, generator_at(3))
    assert torch.equal(other.location, proxies.location)


def test_proxies_of_no_dimension_are_points():
    proxies = Proxies(4, 6, 0)
    pieces = proxies()
    assert pieces.basis.shape == (4, 6, 0) and pieces.points.shape == (4, 6)
    (pieces.points.sum() + pieces.basis.sum()).backward()
    torch.optim.AdamW(proxies.parameters(), lr=0.1).step() # a parameter without a number is none to stumble over
    assert proxies.location.grad.any()


def test_place_on_broken_embeddings():
    z = torch.tensor([[1., 0, 0], [float('nan'), 0, 0]])
    with pytest.raises(ValueError, match='row 1'): Proxies(2, 3, 1).place(z, generator_at(0))


@pytest.mark.parametrize('arguments, words', [
    (dict(n=0), 'n must be at least 1.*proxies=None'), (dict(m=-1), 'between 0 and dim = 8, got -1'),
    (dict(m=9), 'got 9')])
def test_constants_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words): Proxies(**dict(n=4, dim=8, m=2) | arguments)
