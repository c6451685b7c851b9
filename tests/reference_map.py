"Slow twins of plm.map: each formula as it is written down."
import math
import numpy as np


def pca(z):
    """The two eigenvectors of the covariance with the largest eigenvalues: distances of the projected points, and the
    share of variance of each."""
    z = z - z.mean(0)
    values, vectors = np.linalg.eigh(z.T @ z)
    return distances(z @ vectors[:, :-3:-1]), values[:-3:-1]/values.sum()


def distances(x):
    return np.array([[math.dist(a, b) for b in x] for a in x])


def trustworthiness(z, xy, k):
    """1 − 2/(n k (2n − 3k − 1)) Σ_i Σ over the k neighbours j on the map of max(0, rank of j in truth − k)
    (Venna and Kaski 2001)."""
    n, total = len(z), 0
    true, shown = distances(z), distances(xy)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        rank = {j: r + 1 for r, j in enumerate(sorted(others, key=lambda j: true[i, j]))}
        total += sum(max(0, rank[j] - k) for j in sorted(others, key=lambda j: shown[i, j])[:k])
    return 1 - 2*total/(n*k*(2*n - 3*k - 1))


def nearest_is_right(xy, labels):
    d = distances(xy) + np.diag([math.inf]*len(xy))
    return sum(labels[i] == labels[d[i].argmin()] for i in range(len(xy)))/len(xy)


def best_turn(xy, to, steps=3600):
    "The least sum of squares over all turns, mirrored or not, of two centred maps."
    least = math.inf
    for mirror in (1, -1):
        for angle in np.arange(steps)*2*math.pi/steps:
            c, s = math.cos(angle), math.sin(angle)
            least = min(least, ((xy*[1, mirror] @ np.array([[c, s], [-s, c]]) - to)**2).sum())
    return least
