"""Similarity along and across pieces: against the double loop, its range, its gradients, and the errors."""
import pytest, torch
from hypothesis import given, settings, strategies as st
from plm.core import generator_at
from plm.manifold import PiecewiseLinearManifold
from plm.similarity import directed_similarity, piecewise_linear_similarity
import reference_similarity as reference


def make(N, P, d, m, seed, on_a_centre=True):
    "Points, centres and orthonormal bases in float64; the first point lies on the first centre."
    g = generator_at(seed)
    x, centers, w = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((N, d), (P, d), (P, d, m)))
    if on_a_centre: x[0] = centers[0]
    return x, centers, torch.linalg.qr(w).Q


@settings(max_examples=60, deadline=None, derandomize=True)
@given(N=st.integers(1, 7), P=st.integers(1, 6), d=st.integers(1, 8), m=st.integers(1, 4), n_beta=st.sampled_from([0, 0.5, 1]),
       excess=st.floats(0.1, 6), scale=st.sampled_from([1e-3, 1., 30.]), seed=st.integers(0, 10**6))
def test_products_are_the_double_loop(N, P, d, m, n_beta, excess, scale, seed):
    x, centers, basis = make(N, P, d, min(m, d), seed)
    x, centers = scale*x, scale*centers
    n_alpha = n_beta + excess
    s = directed_similarity(x, centers, basis, n_alpha, n_beta)
    slow = reference.directed_similarity(x, centers, basis, n_alpha, n_beta)
    # o comes from a difference of squares: near 0 its error is the root of the rounding error
    torch.testing.assert_close(s, slow, rtol=0, atol=1e-6*max(scale, 1))
    assert ((s > 0) & (s <= 1)).all()
    both = piecewise_linear_similarity(centers, basis, n_alpha, n_beta)
    torch.testing.assert_close(both, reference.piecewise_linear_similarity(centers, basis, n_alpha, n_beta), rtol=0, atol=1e-6*max(scale, 1))
    assert torch.equal(both, both.T) and (both.diagonal() == 1).all() and ((both > 0) & (both <= 1)).all()


def test_off_the_piece_costs_more_than_along_it():
    x = torch.tensor([[1., 0.], [0., 1.], [0., 0.]])
    s = directed_similarity(x, torch.zeros(1, 2), torch.tensor([[[1.], [0.]]]), 4, 0.5)[:, 0]
    torch.testing.assert_close(s, torch.tensor([2**-0.5, 1.5**-4, 1.]))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_float32_is_as_good_as_its_input(dtype):
    "Near points far from the origin, where a float32 difference of squares would keep nothing."
    x, centers, basis = make(9, 7, 16, 3, 0)
    x, centers, basis = ((100 + 0.01*x).to(dtype), (100 + 0.01*centers).to(dtype), basis.to(dtype))
    s = directed_similarity(x, centers, basis)
    assert s.dtype == dtype
    torch.testing.assert_close(s.double(), reference.directed_similarity(x, centers, basis, 4, 0.5), rtol=0, atol=1e-3 if dtype == torch.float32 else 2e-6)


def test_gradients_are_those_of_the_formula():
    inputs = [a.requires_grad_() for a in make(4, 3, 5, 2, 1, on_a_centre=False)]
    assert torch.autograd.gradcheck(directed_similarity, inputs)


def test_gradients_are_finite_where_the_roots_vanish():
    "A point on a centre (o = p = 0), on a piece (o = 0), straight above a centre (p = 0), and a piece without directions."
    basis = torch.zeros(2, 3, 2)
    basis[0, 0, 0] = basis[0, 1, 1] = 1
    x = torch.tensor([[0., 0., 0.], [1., 2., 0.], [0., 0., 1.]], requires_grad=True)
    centers, basis = torch.zeros(2, 3, requires_grad=True), basis.requires_grad_()
    directed_similarity(x, centers, basis).sum().backward()
    assert all(torch.isfinite(a.grad).all() for a in (x, centers, basis))
    assert x.grad[1:].abs().sum() > 0


def test_the_pieces_of_a_batch():
    t = torch.nn.functional.normalize(torch.randn(30, 8, generator=generator_at(2)), dim=1)
    basis = PiecewiseLinearManifold(3)(t).basis
    s = piecewise_linear_similarity(t, basis, 4, 0.5)
    torch.testing.assert_close(s.double(), reference.piecewise_linear_similarity(t, basis, 4, 0.5), rtol=0, atol=1e-3) # float32: see the notebook on o near 0
    assert (s.diagonal() == 1).all()


@pytest.mark.parametrize('n_alpha, n_beta', [(0.4, 0.5), (1, 2), (4, -0.1), (float('nan'), 0.5)])
def test_decay_constants_out_of_range(n_alpha, n_beta):
    x, centers, basis = make(3, 2, 4, 1, 0)
    with pytest.raises(ValueError, match='n_alpha >= n_beta >= 0'): directed_similarity(x, centers, basis, n_alpha, n_beta)
    with pytest.raises(ValueError, match='n_alpha >= n_beta >= 0'): piecewise_linear_similarity(centers, basis, n_alpha, n_beta)


@pytest.mark.parametrize('x, centers', [((3, 5), (2, 4)), ((3, 4), (3, 4)), ((4,), (2, 4))])
def test_shapes_that_do_not_fit(x, centers):
    with pytest.raises(ValueError, match='shapes do not fit'): directed_similarity(torch.zeros(x), torch.zeros(centers), torch.zeros(2, 4, 1))
