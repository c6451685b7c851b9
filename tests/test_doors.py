"What the losses and estimates of the method let in: one rule for types, one for what is no embedding."
import copy, itertools
import numpy as np, pytest, torch
from sklearn.cluster import KMeans
from torch.nn import functional as F
from plm.baselines import SimCLRLoss, STMLLoss, contextual_similarity, relaxed_contrastive
from plm.core import as_labels, check_embeddings, generator_at
from plm.evaluation import (check_labels, correlation, label_purity, nmi, ranking, recall_at_k, retrieval_metrics,
                            some_classes)
from plm.estimates import random_walk_similarity, same_cluster
from plm.losses import PLMLoss, distance_regression, distances, neighborhood_loss
from plm.manifold import Pieces, PiecewiseLinearManifold
from plm.map import map_quality
from plm.proxies import Proxies
from plm.sampling import NeighborhoodBatches, nearest_neighbors
from plm.similarity import Binary, PiecewiseLinear

N, D = 20, 8
INDEX, LABELS = torch.arange(N//2).repeat(2), torch.arange(N) % 4
SHARES = torch.rand(N, N, generator=generator_at('shares'))
SHARES = (SHARES + SHARES.T)/2


def points(*address, n=N):
    return F.normalize(torch.randn(n, D, generator=generator_at('doors', n, *address)), dim=1)


def proxies(): return Proxies(5, D, 2)


def total(terms): return sum(terms.values())


def pieces(z): return PiecewiseLinearManifold()(z)


DOORS = { # what takes embeddings, gives a number that can be trained or a matrix
    'plm': lambda z, p: total(PLMLoss(p)(z, z.detach())),
    'plm, point': lambda z, p: total(PLMLoss()(z, z.detach())),
    'plm, binary': lambda z, p: total(PLMLoss(p, similarity=Binary())(z, z.detach())),
    'distances': lambda z, p: distances(z, p().points),
    'regression': lambda z, p: distance_regression(z, None, SHARES, 1.4),
    'regression to proxies': lambda z, p: distance_regression(z, p().points, SHARES[:, :5], 1.4),
    'neighborhood': lambda z, p: neighborhood_loss(z, p(), SHARES[:, :5]),
    # N_α = 3: a steeper decay enlarges what 32 bits leave of a distance off the piece
    'similarity': lambda z, p: PiecewiseLinear(3)(pieces(z)),
    'similarity to proxies': lambda z, p: PiecewiseLinear(3)(pieces(z), p()),
    'binary': lambda z, p: Binary()(pieces(z), p()),
    'lengths': lambda z, p: p().squared_lengths(z)[0],
    'quality': lambda z, p: p().quality(z),
    'simclr': lambda z, p: total(SimCLRLoss()(z[:10], z[10:])),
    'stml': lambda z, p: total(STMLLoss()(z, z, z.detach(), INDEX)),
    'context': lambda z, p: contextual_similarity(z, INDEX),
    'relaxed': lambda z, p: relaxed_contrastive(z, SHARES)}
TYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize('door', DOORS)
def test_all_compute_in_the_widest_type_and_at_least_32_bits(door):
    for of_z, of_proxies, autocast in itertools.product(TYPES, TYPES, (None, torch.bfloat16, torch.float16)):
        z, p = points('z').to(of_z).requires_grad_(), proxies().to(of_proxies)
        with torch.autocast('cpu', autocast or torch.bfloat16, enabled=autocast is not None): found = DOORS[door](z, p)
        exact = DOORS[door](z.detach().double(), copy.deepcopy(p).double())
        case = f'{of_z}, proxies of {of_proxies}, autocast {autocast}'
        assert found.dtype in (torch.float32, torch.float64), case
        torch.testing.assert_close(found.double(), exact.double(), rtol=2e-4, atol=2e-5, msg=lambda m: f'{case}: {m}')
        if not found.requires_grad: continue
        found.sum().backward()
        grads = {t.dtype: t.grad for t in (z, *p.parameters()) if t.grad is not None}
        assert grads and all(g.dtype == kind and g.isfinite().all() for kind, g in grads.items()), case


def test_proxies_do_not_stand_still_in_16_bits():
    p = torch.nn.ModuleList([proxies()]).half()[0]
    start = p.location.detach().clone()
    assert p.location.dtype == torch.float32
    opt = torch.optim.SGD(p.parameters(), lr=1.)
    for _ in range(1000):
        opt.zero_grad()
        (1e-5*p.location).sum().backward()
        opt.step()
    torch.testing.assert_close(start - p.location, torch.full_like(start, 1e-2), rtol=1e-3, atol=1e-5)


Z = points('z')
WRONG = {
    'floating type, got list': Z.tolist(), 'floating type, got numpy.ndarray': Z.numpy(),
    'floating type, got torch.int64': Z.long(), 'floating type, got torch.bool': Z > 0,
    'floating type, got torch.complex64': Z.to(torch.complex64), 'torch.sparse_coo': Z.to_sparse(),
    'on meta, without values': Z.to('meta'), r'shape \(B, d\), got \(\)': Z[0, 0], r'shape \(B, d\), got \(8,\)': Z[0],
    r'shape \(B, d\), got \(1, 20, 8\)': Z[None], 'NaN or infinite values in 20': Z*torch.nan,
    'infinite values in 20': Z/0, r'values up to \de\+': Z*1e19}
IN = {**{name: lambda z, door=door: DOORS[door](z, proxies()) for name, door in zip(DOORS, DOORS)},
      'plm': lambda z: PLMLoss(proxies())(Z, z), 'plm, z': lambda z: PLMLoss()(z, Z),
      'simclr': lambda z: SimCLRLoss()(z, Z), 'stml': lambda z: STMLLoss()(Z, Z, z, INDEX),
      'stml, wide': lambda z: STMLLoss()(Z, z, Z, INDEX), 'pieces': pieces,
      'place': lambda z: proxies().place(z, generator_at(0)),
      'ranking': lambda z: ranking(z, 1), 'gallery': lambda z: ranking(Z, 1, z), 'nmi': lambda z: nmi(z, LABELS),
      'metrics': lambda z: retrieval_metrics(z, LABELS), 'search': lambda z: nearest_neighbors(z, 1),
      'batches': lambda z: NeighborhoodBatches(N, 10).refresh(z)}
del IN['plm, point'], IN['plm, binary'] # they slice or detach first


@pytest.mark.parametrize('door', IN)
def test_what_is_no_embedding_is_refused_in_one_sentence(door):
    for words, z in WRONG.items():
        with pytest.raises(ValueError, match=words): IN[door](z)


@pytest.mark.parametrize('scale', [1e-20, 1e-5, 1e15, 1e17])
def test_what_is_let_in_has_finite_similarities(scale):
    z = Z/Z.abs().max()*scale
    assert torch.isfinite(PiecewiseLinear()(pieces(z))).all() and torch.isfinite(distances(z, z)).all()


@pytest.mark.parametrize('call', [
    as_labels, lambda y: check_labels(y, N), lambda y: retrieval_metrics(Z, y),
    lambda y: recall_at_k(ranking(Z, 1), y, 1),
    lambda y: recall_at_k(ranking(Z, 1), LABELS, 1, y), lambda y: label_purity(SHARES > 0.5, y), lambda y: nmi(Z, y),
    lambda y: correlation(SHARES, y), lambda y: some_classes(y, 5)])
def test_names_are_no_labels(call):
    for wrong in ([f'class {i}' for i in LABELS], np.array([f'class {i}' for i in LABELS]), [None]*N, LABELS + 0.5,
                  torch.full((N,), torch.nan)):
        with pytest.raises(ValueError, match='must be whole numbers, one for each image.*numpy.unique'): call(wrong)
    call(LABELS.numpy()), call(LABELS.tolist()), call(LABELS.float())


def test_what_is_no_pieces_is_refused():
    for a, b in ((Z, None), (pieces(Z), Z), (None, pieces(Z))):
        with pytest.raises(ValueError, match='a similarity compares pieces'): PiecewiseLinear()(a, b)


@pytest.mark.parametrize('call, words', [
    (lambda: distances(Z, Z[:, :3]), r'as many dimensions.*\(20, 8\), \(20, 3\)'),
    (lambda: distance_regression(Z, None, SHARES[:3], 1.4), r'similarity for each pair.*\(3, 20\) for \(20, 20\)'),
    (lambda: distance_regression(Z[:1], None, SHARES[:1, :1], 1.4), 'two points at least'),
    (lambda: distance_regression(Z, None, SHARES*torch.nan, 1.4), 'similarities have NaN'),
    (lambda: neighborhood_loss(Z, proxies()(), SHARES), r'they should be \(B, d\), \(P, d\) and \(B, P\)'),
    (lambda: contextual_similarity(Z, [f'{i}' for i in range(N)]), 'index must be whole numbers'),
    (lambda: relaxed_contrastive(Z, SHARES.tolist()), 'similarities must be a dense tensor')])
def test_matrices_that_do_not_fit(call, words):
    with pytest.raises(ValueError, match=words): call()


@pytest.mark.parametrize('call', [
    pieces, lambda z: distances(z, z), lambda z: distance_regression(z, None, SHARES, 1.4), lambda z: PLMLoss()(z, z),
    lambda z: contextual_similarity(z, torch.arange(len(z))), lambda z: SimCLRLoss()(z, z),
    lambda z: same_cluster(z, KMeans(2)),
    lambda z: random_walk_similarity(z, 2), lambda z: map_quality(z, np.zeros((len(z), 2)), torch.arange(len(z)) % 2)])
def test_what_grows_with_the_square_is_bounded(call):
    with pytest.raises(ValueError, match='pairs need a table of .* GiB.*some_classes'): call(torch.rand(40_000, 2))


def test_good_embeddings_pass_whatever_their_strides():
    assert check_embeddings(Z.T) is not None and check_embeddings(Z[::2]) is not None
    assert isinstance(pieces(Z.requires_grad_(False)), Pieces)
