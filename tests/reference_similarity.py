"""The slow twin of `plm.similarity`: METHOD A4 pair by pair, in float64."""
import torch


def directed(x, center, basis, n_alpha, n_beta):
    "s'(x, center) for one point and one piece."
    delta = x - center
    along = basis.T @ delta
    off = delta - basis @ along
    alpha = (1 + off.norm() / 2) ** -n_alpha
    beta = (1 + along.norm()) ** -n_beta
    return alpha * beta


def directed_similarity(x, centers, basis, n_alpha, n_beta):
    x, centers, basis = x.double(), centers.double(), basis.double()
    return torch.stack([torch.stack([directed(a, c, P, n_alpha, n_beta) for c, P in zip(centers, basis)]) for a in x])


def piecewise_linear_similarity(t, basis, n_alpha, n_beta):
    t, basis, B = t.double(), basis.double(), len(t)
    s = torch.zeros(B, B, dtype=torch.float64)
    for i in range(B):
        for j in range(B):
            s[i, j] = (directed(t[i], t[j], basis[j], n_alpha, n_beta) + directed(t[j], t[i], basis[i], n_alpha, n_beta)) / 2
    return s
