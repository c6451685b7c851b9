"The slow twin of `plm.similarity`: section 4 of docs/method.md, pair by pair. A row is a piece, a column a point."
import torch


def piecewise_linear(x, point, basis, n_alpha, n_beta):
    "s'(x, point of the piece) for one point and one piece."
    delta = x - point
    along = basis.T @ delta
    off = delta - basis @ along
    return (1 + off.norm()/2)**-n_alpha * (1 + along.norm())**-n_beta


def directed(x, points, basis, n_alpha, n_beta):
    "(P, N), in float64."
    x, points, basis = x.double(), points.double(), basis.double()
    rows = [[piecewise_linear(a, c, P, n_alpha, n_beta) for a in x] for c, P in zip(points, basis)]
    return torch.stack([torch.stack(row) for row in rows])


def similarity(a, a_basis, b, b_basis, n_alpha, n_beta):
    "(A, B): the mean of both directions, in float64."
    a, a_basis, b, b_basis = (x.double() for x in (a, a_basis, b, b_basis))
    s = torch.zeros(len(a), len(b), dtype=torch.float64)
    for i in range(len(a)):
        for j in range(len(b)):
            s[i, j] = (piecewise_linear(b[j], a[i], a_basis[i], n_alpha, n_beta)
                       + piecewise_linear(a[i], b[j], b_basis[j], n_alpha, n_beta))/2
    return s
