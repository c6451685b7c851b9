"""The slow twin of `plm.manifold`: section 3 of docs/method.md as it is told.

One point and one neighbour at a time, with an SVD for each question."""
import torch

TIE, SLACK, DUPLICATE, SAME_DISTANCE = 1e-9, 1e-7, 1e-5, 1e-12


def best_subspace(differences, m):
    "(d, m) top m principal directions of the rows, not centred; one that the rows do not determine is a zero column."
    n, d = differences.shape
    _, s, vh = torch.linalg.svd(differences, full_matrices=False)
    eigenvalues = torch.cat([s.square(), torch.zeros(m + 1)])
    basis = torch.zeros(d, m)
    for r in range(min(m, n, d)):
        if eigenvalues[r] - eigenvalues[m] > TIE*eigenvalues[0]: basis[:, r] = vh[r]
    return basis


def share_kept(difference, basis):
    "Quality of one member: the share of its squared length that the subspace keeps; a duplicate has nothing to lose."
    length2 = difference.square().sum()
    return 1. if length2 == 0 else float((basis.T @ difference).square().sum()/length2)


def neighbours(x, i, k, radius):
    "Indices of the k points nearest to x_i, from near to far, equal distances by index."
    def distance(j): return round(float((x[j] - x[i]).square().sum()/(SAME_DISTANCE*radius**2)))
    return sorted((j for j in range(len(x)) if j != i), key=lambda j: (distance(j), j))[:k]


def piece(x, i, m, T, max_neighbors, radius):
    "Basis (d, m) and members (without i) of the piece of point i."
    order = neighbours(x, i, max_neighbors, radius)
    delta = x - x[i]
    delta[delta.norm(dim=1) <= DUPLICATE*radius] = 0
    if T is None: return best_subspace(delta[order], m), order
    members = order[:m]
    for candidate in order[m:]:
        grown = members + [candidate]
        basis = best_subspace(delta[grown], m)
        if all(share_kept(delta[j], basis) >= T - SLACK for j in grown): members = grown
    return best_subspace(delta[members], m), members


def manifold(t, m=3, T=0.9, max_neighbors=20):
    "(basis (B, d, m), members (B, B) bool) of a whole batch, in float64."
    x = t.double()
    B = len(x)
    radius = max(float((x - x.mean(0)).norm(dim=1).max()), 1e-12*float(x.norm(dim=1).max()), 1e-150)
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try: pieces = [piece(x, i, m, T, max_neighbors, radius) for i in range(B)]
    finally: torch.set_default_dtype(old)
    members = torch.eye(B, dtype=torch.bool)
    for i, (_, js) in enumerate(pieces): members[i, js] = True
    return torch.stack([basis for basis, _ in pieces]), members
