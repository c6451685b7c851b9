"""The slow twin of `plm.losses`: section 6 of docs/method.md pair by pair, in float64.

The pieces come from `reference_manifold`, the similarities from `reference_similarity`."""
import math
import torch
import reference_manifold, reference_similarity


def distance(a, b): return math.sqrt(sum((float(x) - float(y))**2 for x, y in zip(a, b)))


def point_term(z, s, delta):
    "Mean over the ordered pairs of different points: rows i, i + B, ... are views of image i, and wholly alike."
    n, B, total = len(z), len(s), 0.
    for i in range(n):
        for j in range(n):
            alike = 1. if i % B == j % B else float(s[i % B, j % B])
            if i != j: total += (delta*(1 - alike) - distance(z[i], z[j]))**2
    return total/(n*(n - 1))


def proxy_term(z, rho, s, delta):
    "Mean over the pairs of a point and a proxy."
    total = 0.
    for i in range(len(z)):
        for j in range(len(rho)): total += (delta*(1 - float(s[i % len(s), j])) - distance(z[i], rho[j]))**2
    return total/(len(z)*len(rho))


def neighborhood_term(t, rho, basis, s, n_near=5):
    "For each proxy the mean, weighted by similarity, of the share of squared distance that its neighbourhood misses."
    t, rho, basis = t.double(), rho.double(), basis.double()
    total = 0.
    for j in range(len(rho)):
        near = sorted(range(len(t)), key=lambda i: -float(s[i, j]))[:n_near]
        missed = weight = 0.
        for i in near:
            delta = t[i] - rho[j]
            length2 = float(delta @ delta)
            along = basis[j].T @ delta
            missed += float(s[i, j])*(1 - float(along @ along)/length2 if length2 > 1e-10 else 1.)
            weight += float(s[i, j])
        total += missed/weight
    return total/len(rho)


def binary(x, points, basis, T):
    "(P, N): 1 where the piece keeps at least T of the squared distance of the point."
    s = torch.zeros(len(points), len(x), dtype=torch.float64)
    for i in range(len(points)):
        for j in range(len(x)):
            delta = x[j].double() - points[i].double()
            along = basis[i].double().T @ delta
            s[i, j] = float(along @ along >= T*(delta @ delta))
    return s


def binary_plm_loss(z, t, rho, rho_basis, m, T, delta):
    "Both terms that move the encoder, with the binary similarity of the paper's ablation."
    z, t = z.double(), t.double()
    basis, members = reference_manifold.manifold(t, m, T)
    s = (binary(rho, t, basis, T) + binary(t, rho, rho_basis, T).T)/2
    return {'point': point_term(z, (members.double() + members.T)/2, delta), 'proxy': proxy_term(z, rho, s, delta)}


def plm_loss(z, t, rho, rho_basis, m, T, n_alpha, n_beta, delta):
    "All terms; `rho` None: no proxies."
    z, t = z.double(), t.double()
    basis, _ = reference_manifold.manifold(t, m, T)
    terms = {'point': point_term(z, reference_similarity.similarity(t, basis, t, basis, n_alpha, n_beta), delta)}
    if rho is not None:
        s = reference_similarity.similarity(t, basis, rho, rho_basis, n_alpha, n_beta)
        terms['proxy'] = proxy_term(z, rho, s, delta)
        terms['neighborhood'] = neighborhood_term(t, rho, rho_basis, s)
    return terms
