"""Similarities: against the double loop, their range, both directions, one of a reader's own, and the errors."""
import pytest, torch
from hypothesis import given, settings, strategies as st
from plm.core import generator_at
from plm.manifold import Pieces, PiecewiseLinearManifold
from plm.similarity import Binary, PiecewiseLinear, Similarity
import reference_similarity as reference


def make(n, d, m, *address):
    "n points with orthonormal bases in float64."
    g = generator_at(n, d, m, *address)
    return Pieces(torch.randn(n, d, generator=g, dtype=torch.float64),
                  torch.linalg.qr(torch.randn(n, d, m, generator=g, dtype=torch.float64)).Q)


def unit_batch(B=30, d=8, m=3, dtype=torch.float32):
    z = torch.nn.functional.normalize(torch.randn(B, d, generator=generator_at(2)), dim=1)
    return PiecewiseLinearManifold(m)(z.to(dtype))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(N=st.integers(1, 7), P=st.integers(1, 6), d=st.integers(1, 8), m=st.integers(1, 4), seed=st.integers(0, 10**6),
       n_beta=st.sampled_from([0, 0.5, 1]), excess=st.floats(0.1, 6), scale=st.sampled_from([1e-3, 1., 30.]))
def test_products_are_the_double_loop(N, P, d, m, n_beta, excess, scale, seed):
    a, b = make(P, d, min(m, d), seed, 'a'), make(N, d, min(m, d), seed, 'b')
    b.points[0] = a.points[0]
    a, b = Pieces(scale*a.points, a.basis), Pieces(scale*b.points, b.basis)
    constants = n_beta + excess, n_beta
    similarity, atol = PiecewiseLinear(*constants), 1e-6*max(scale, 1) # o is the root of a difference, rounded near 0
    def by_loop(x, y): return reference.similarity(x.points, x.basis, y.points, y.basis, *constants)
    s = similarity.directed(a, b)
    torch.testing.assert_close(s, reference.directed(b.points, a.points, a.basis, *constants), rtol=0, atol=atol)
    assert ((s > 0) & (s <= 1)).all()
    both = similarity(a, b)
    torch.testing.assert_close(both, by_loop(a, b), rtol=0, atol=atol)
    assert torch.equal(both, similarity(b, a).T)
    own = similarity(a)
    torch.testing.assert_close(own, by_loop(a, a), rtol=0, atol=atol)
    assert torch.equal(own, own.T) and (own.diagonal() == 1).all() and ((own > 0) & (own <= 1)).all()


def test_off_the_piece_costs_more_than_along_it():
    star = Pieces(torch.zeros(1, 2), torch.tensor([[[1.], [0.]]]))
    others = Pieces(torch.tensor([[1., 0.], [0., 1.], [0., 0.]]), torch.zeros(3, 2, 1))
    torch.testing.assert_close(PiecewiseLinear(4, 0.5).directed(star, others)[0], torch.tensor([2**-0.5, 1.5**-4, 1.]))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_float32_is_as_good_as_its_input(dtype):
    "Near points far from the origin, where a float32 difference of squares would keep nothing."
    a, b = make(7, 16, 3, 'a'), make(9, 16, 3, 'b')
    a, b = (Pieces((100 + 0.01*x.points).to(dtype), x.basis.to(dtype)) for x in (a, b))
    s = PiecewiseLinear(4, 0.5).directed(a, b)
    assert s.dtype == dtype
    torch.testing.assert_close(s.double(), reference.directed(b.points, a.points, a.basis, 4, 0.5), rtol=0,
                               atol=1e-3 if dtype == torch.float32 else 2e-6)


def test_the_pieces_of_a_batch():
    pieces = unit_batch()
    s = PiecewiseLinear(4, 0.5)(pieces)
    expected = reference.similarity(pieces.points, pieces.basis, pieces.points, pieces.basis, 4, 0.5)
    torch.testing.assert_close(s.double(), expected, rtol=0, atol=1e-3) # float32: see the notebook on o near 0


def test_binary_is_membership_in_the_batch_and_quality_elsewhere():
    pieces, proxies = unit_batch(dtype=torch.float64), make(4, 8, 3, 'proxies')
    similarity = Binary(0.5)
    s = similarity(pieces)
    for i in range(30):
        for j in range(30):
            if i != j: assert s[i, j] == (float(pieces.members[i, j]) + float(pieces.members[j, i]))/2
    s = similarity(pieces, proxies)
    def inside(x, point, basis): return float((basis.T @ (x - point)).square().sum() >= 0.5*(x - point).square().sum())
    for i in range(30):
        for j in range(4):
            assert s[i, j] == (inside(pieces.points[i], proxies.points[j], proxies.basis[j])
                               + inside(proxies.points[j], pieces.points[i], pieces.basis[i]))/2
    assert 0 < s.mean() < 1


@settings(max_examples=30, deadline=None, derandomize=True)
@given(A=st.integers(1, 7), B=st.integers(1, 6), d=st.integers(1, 8), n_alpha=st.floats(0.5, 8),
       seed=st.integers(0, 999))
def test_without_dimensions_distance_alone_decides(A, B, d, n_alpha, seed):
    "The control of docs/method.md, section 4, with the loop of pairs; of points with themselves, and with proxies."
    a, b = (make(n, d, 1, seed, name).points for n, name in ((A, 'a'), (B, 'b')))
    similarity, proxies = PiecewiseLinear(n_alpha, 0.5), Pieces(b, b.new_zeros(B, d, 0))
    batch = PiecewiseLinearManifold(0)(a)
    for s, others in ((similarity(batch), a), (similarity(batch, proxies), b), (similarity(proxies, batch).T, b)):
        expected = torch.tensor([[(1 + (x - y).norm().item()/2)**-n_alpha for y in others] for x in a]).double()
        torch.testing.assert_close(s, expected, rtol=0, atol=1e-6)


def test_a_similarity_of_ones_own_has_both_directions():
    class Rows(Similarity):
        def directed(self, pieces, others):
            return torch.arange(len(pieces.points))[:, None].expand(-1, len(others.points)).double()
    a, b = make(3, 4, 1, 'a'), make(2, 4, 1, 'b')
    assert Rows()(a, b).tolist() == [[0, 0.5], [0.5, 1], [1, 1.5]] # (i + j)/2
    assert Rows()(b).tolist() == [[1, 0.5], [0.5, 1]]
    with pytest.raises(NotImplementedError, match='Similarity must define directed'): Similarity()(a, b)


def test_nothing_is_trained_through_an_estimate():
    a = make(3, 4, 1, 'a')
    a.points.requires_grad_(), a.basis.requires_grad_()
    assert not PiecewiseLinear()(a).requires_grad


@pytest.mark.parametrize('n_alpha, n_beta', [(0.4, 0.5), (1, 2), (4, -0.1), (float('nan'), 0.5)])
def test_decay_constants_out_of_range(n_alpha, n_beta):
    with pytest.raises(ValueError, match='n_alpha >= n_beta >= 0'): PiecewiseLinear(n_alpha, n_beta)


@pytest.mark.parametrize('T', [None, 0, 1.1])
def test_binary_needs_a_threshold(T):
    with pytest.raises(ValueError, match='needs the T'): Binary(T)
