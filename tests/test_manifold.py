"Pieces of a batch: the batched fit against the plain loop, lengths and quality against the definition, the errors."
import pytest, torch
from hypothesis import given, settings, strategies as st
from plm.manifold import Pieces, PiecewiseLinearManifold, grow_piece
from plm.core import generator_at
import reference_manifold as reference


def unit(z): return torch.nn.functional.normalize(z, dim=1)

def make(kind, B, d, seed):
    "A batch of float64 points of a named shape."
    g = generator_at(seed, kind)
    def normal(*shape): return torch.randn(*shape, generator=g, dtype=torch.float64)
    if kind == 'noise': return normal(B, d)
    if kind == 'sphere': return unit(normal(B, d))
    if kind == 'clusters': return unit(unit(normal(B, d))[torch.arange(B)//5] + 0.3*normal(B, d)/d**0.5)
    if kind == 'thin clusters': return unit(normal(B, d))[torch.arange(B)//5] + 1e-2*normal(B, d)
    if kind == 'low rank': return normal(B, 2) @ normal(2, d)
    if kind == 'low rank + noise': return normal(B, 3) @ normal(3, d) + 0.1*normal(B, d)
    if kind == 'arc':
        u = 3*torch.rand(B, 1, generator=g, dtype=torch.float64)
        return torch.cat([u.sin(), u.cos(), 0.3*u], 1) @ normal(3, d) + 0.02*normal(B, d)
    if kind == 'spectrum': return unit((normal(B, d)[torch.arange(B)//5] + 0.6*normal(B, d))/torch.arange(1, d+1)**0.5)
    if kind == 'collinear': return normal(B, 1) @ normal(1, d) + normal(1, d)
    if kind == 'duplicates': return normal(B, d)[torch.arange(B)//2]
    if kind == 'all the same': return normal(1, d).expand(B, d)
    if kind == 'grid': return torch.randint(-2, 3, (B, d), generator=g).double()
    raise KeyError(kind)

KINDS = ['noise', 'sphere', 'clusters', 'thin clusters', 'low rank', 'low rank + noise', 'arc', 'spectrum', 'collinear',
         'duplicates', 'all the same', 'grid']

def assert_same(pieces, t, m, T, k, tolerance=1e-8):
    basis, members = reference.manifold(t, m, T, k)
    assert torch.equal(pieces.members, members)
    found = pieces.basis.double()
    torch.testing.assert_close(found @ found.mT, basis @ basis.mT, rtol=0, atol=tolerance)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), B=st.integers(2, 22), d=st.integers(1, 9), m=st.integers(1, 4),
       T=st.sampled_from([None, 0.3, 0.5, 0.8, 0.9, 0.97, 1.0]), share=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_batched_fit_is_the_plain_loop(kind, B, d, m, T, share, seed):
    B = max(B, m+1)
    t = make(kind, B, d, seed)
    k = m + round(share*(B-1-m)) # from the smallest to all
    assert_same(PiecewiseLinearManifold(m, T, k)(t), t, m, T, k)


@pytest.mark.parametrize('kind', ['clusters', 'low rank + noise', 'arc', 'spectrum'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_larger_batches(kind, dtype):
    "Pieces that grow to dozens of points; in float32 the answer is that of float64 arithmetic on the rounded points."
    t = make(kind, 40, 24, 1).to(dtype)
    pieces = PiecewiseLinearManifold(3, 0.9, 39)(t)
    assert pieces.basis.dtype == dtype and pieces.points is t
    assert_same(pieces, t, 3, 0.9, 39, 1e-8 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize('kind', ['clusters', 'low rank + noise', 'arc', 'sphere'])
def test_the_loop_to_read_gives_the_same_members(kind):
    "The ten lines of the notebook, where no tie and no duplicate asks for more."
    t = make(kind, 30, 12, 5)
    members = PiecewiseLinearManifold(2, 0.9, 15)(t).members
    for i in range(30):
        by_distance = sorted(members[i].nonzero()[:, 0].tolist(), key=lambda j: (t[j] - t[i]).norm().item())
        assert grow_piece(t, i, 2, 0.9, 15) == by_distance[1:] # without i


def test_pieces_grow_along_the_data_and_not_across():
    "Two straight lines that cross: a piece at an end takes its own line whole, and of the other only the crossing."
    u = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    t = torch.cat([u*torch.tensor([1., 0.2]), u*torch.tensor([1., -0.2]) + torch.tensor([0., 0.003])])
    pieces = PiecewiseLinearManifold(m=1, T=0.999, max_neighbors=39)(t)
    line = torch.arange(40) // 20
    own = line[:, None] == line
    ends = [0, 19, 20, 39]
    assert (pieces.members & own)[ends].sum(1).tolist() == [20]*4
    assert (pieces.members & ~own)[ends].sum(1).max() <= 2
    assert PiecewiseLinearManifold(m=1, T=None, max_neighbors=39)(t).members.all()


def test_every_member_is_explained_and_the_start_is_the_nearest():
    t = make('low rank + noise', 60, 16, 2)
    pieces = PiecewiseLinearManifold(3, 0.85)(t)
    assert pieces.quality()[pieces.members].min() >= 0.85 - 2e-7
    nearest = torch.cdist(t, t).argsort(1)[:, :4]
    assert pieces.members.gather(1, nearest).all()
    assert pieces.members.sum(1).max() > 8 # the question was not trivial


def test_quality_is_the_share_of_squared_distance():
    t = make('spectrum', 15, 6, 3)
    t[4] = t[3]
    pieces = PiecewiseLinearManifold(2)(t)
    q = pieces.quality()
    for i in range(15):
        for j in range(15):
            assert abs(q[i, j] - reference.share_kept(t[j] - t[i], pieces.basis[i])) < 1e-9
    assert q[3, 4] == q[4, 3] == 1 and (q.diagonal() == 1).all()


def test_missing_directions_are_zero_columns():
    t = make('collinear', 8, 5, 0)
    pieces = PiecewiseLinearManifold(3)(t)
    assert pieces.members.all()
    assert (pieces.basis[:, :, 1:] == 0).all()
    torch.testing.assert_close(pieces.basis[:, :, 0].norm(dim=1), torch.ones(8, dtype=torch.float64))
    assert (PiecewiseLinearManifold(3)(torch.ones(6, 4)).basis == 0).all()


def test_tied_directions_are_not_chosen_at_random():
    "A cross of four points around the fifth: no direction is the best one."
    t = torch.tensor([[0., 0.], [1., 0.], [-1., 0.], [0., 1.], [0., -1.]], dtype=torch.float64)
    pieces = PiecewiseLinearManifold(m=1, T=None)(t)
    assert (pieces.basis[0] == 0).all()
    turned = t @ torch.linalg.qr(make('noise', 2, 2, 0)).Q
    assert (PiecewiseLinearManifold(m=1, T=None)(turned).basis[0] == 0).all()


def test_shift_scale_rotation_and_order_change_nothing():
    t = make('spectrum', 30, 10, 4)
    a = PiecewiseLinearManifold(2)(t)
    turn = torch.linalg.qr(make('noise', 10, 10, 1)).Q
    b = PiecewiseLinearManifold(2)(3*t @ turn + 5)
    assert torch.equal(a.members, b.members)
    torch.testing.assert_close(turn @ (b.basis @ b.basis.mT) @ turn.T, a.basis @ a.basis.mT, rtol=0, atol=1e-9)
    p = torch.randperm(30, generator=generator_at(0))
    assert torch.equal(PiecewiseLinearManifold(2)(t[p]).members, a.members[p][:, p])


def test_the_encoder_gets_no_gradient():
    assert not PiecewiseLinearManifold(2)(make('noise', 6, 4, 0).requires_grad_()).basis.requires_grad


@pytest.mark.parametrize('arguments, words', [
    (dict(m=-1), 'm=-1'), (dict(m=3, max_neighbors=2), 'max_neighbors=2'),
    (dict(T=0.), 'T=0.0'), (dict(T=1.1), 'T=None'), (dict(T=float('nan')), 'T=nan')])
def test_constants_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words): PiecewiseLinearManifold(**arguments)


@pytest.mark.parametrize('B', [1, 2, 9])
def test_a_piece_of_no_dimension_is_its_point(B):
    t = make('noise', B, 4, 0)
    pieces = PiecewiseLinearManifold(0)(t)
    assert pieces.basis.shape == (B, 4, 0) and torch.equal(pieces.members, torch.eye(B, dtype=torch.bool))
    along2, total2 = pieces.squared_lengths(t)
    assert along2.shape == (B, B) and not along2.any()
    torch.testing.assert_close(total2, torch.cdist(t, t).square(), rtol=0, atol=1e-9)
    assert torch.equal(pieces.quality(), torch.eye(B, dtype=t.dtype))


def test_a_small_batch_has_fewer_neighbours():
    t = make('noise', 6, 4, 0)
    assert torch.equal(PiecewiseLinearManifold(2, 0.8, 50)(t).members, PiecewiseLinearManifold(2, 0.8, 5)(t).members)
    assert (PiecewiseLinearManifold(2, None, 4)(t).members.sum(1) == 5).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    "The members are those of the rounded points, whatever autocast would do to the products."
    t = make('clusters', 40, 16, 2).to(dtype)
    with torch.autocast('cpu', torch.bfloat16): pieces = PiecewiseLinearManifold(3, 0.9)(t)
    exact = PiecewiseLinearManifold(3, 0.9)(t.double())
    assert torch.equal(pieces.members, exact.members) and pieces.basis.dtype == torch.float32
    torch.testing.assert_close(pieces.basis.double(), exact.basis, rtol=0, atol=torch.finfo(dtype).eps)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(N=st.integers(1, 7), P=st.integers(1, 6), d=st.integers(1, 8), m=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_squared_lengths_are_those_of_the_definition(N, P, d, m, seed):
    x, points = make('noise', N, d, seed), make('noise', P, d, seed + 1)
    x[0] = points[0]
    basis = torch.linalg.qr(make('noise', P*d, min(m, d), seed).view(P, d, -1)).Q
    along2, total2 = Pieces(points, basis).squared_lengths(x)
    delta = x - points[:, None]
    torch.testing.assert_close(along2, (delta @ basis).square().sum(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(total2, delta.square().sum(2), rtol=0, atol=1e-12)
    assert total2.min() >= 0


@pytest.mark.parametrize('x, points', [((3, 5), (2, 4)), ((3, 4), (3, 4)), ((4,), (2, 4))])
def test_shapes_that_do_not_fit(x, points):
    with pytest.raises(ValueError, match='shapes do not fit|points must have shape'):
        Pieces(torch.zeros(points), torch.zeros(2, 4, 1)).squared_lengths(torch.zeros(x))


@pytest.mark.parametrize('t, words', [
    (torch.ones(3, 5), 'B=3 points.*m=3.*at least 4'), (torch.full((5, 5), float('nan')), 'NaN'),
    (torch.ones(5), r'\(B, d\)')])
def test_batches_that_cannot_be_fitted(t, words):
    with pytest.raises(ValueError, match=words): PiecewiseLinearManifold(3, 0.9)(t)


@pytest.mark.parametrize('max_neighbors', [30, 99])
@pytest.mark.parametrize('seed', range(3))
def test_few_members_among_many_candidates(max_neighbors, seed):
    "Two arcs in three dimensions: matrices that are empty but for a few rows, on which LAPACK once did not converge."
    g = generator_at(seed, 'arcs')
    u = torch.linspace(0.4, 3, 50)[:, None]
    two = torch.cat([torch.cat([u.cos(), u.sin()], 1), torch.cat([u.cos() - 0.05, 2.16 - u.sin()], 1)])
    flat = 0.6*two - torch.tensor([0., 0.64])
    arcs = torch.cat([flat, (1 - flat.square().sum(1, keepdim=True)).clamp(min=0).sqrt()], 1)
    t = unit(arcs + 0.012*torch.randn(arcs.shape, generator=g))
    assert_same(PiecewiseLinearManifold(1, 0.9, max_neighbors)(t), t, 1, 0.9, max_neighbors, 1e-6)
