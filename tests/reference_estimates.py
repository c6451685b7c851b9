"The estimates of plm.estimates in plain loops and float64, in the words of their definitions."
import math
import numpy as np


def nearest_others(z, i, k):
    "The k nearest others of point i; among equals, the lower number first."
    z = np.asarray(z, dtype=np.float64)
    return [j for _, j in sorted((((z[i] - z[j])**2).sum(), j) for j in range(len(z)) if j != i)[:k]]


def nearest_groups(t, sizes):
    return [[j == i or j in nearest_others(t, i, int(sizes[i])) for j in range(len(t))] for i in range(len(t))]


def random_walk(z, k, alpha, steps=2000):
    "The sum of alpha^t S^t, S the adjacency over the roots of both degrees; then the diagonal is scaled to 1."
    n = len(z)
    joined = np.zeros((n, n))
    for i in range(n):
        for j in nearest_others(z, i, k): joined[i, j] = joined[j, i] = 1
    degree = joined.sum(1)
    s = np.array([[joined[i, j]/math.sqrt(degree[i]*degree[j]) for j in range(n)] for i in range(n)])
    power, total = np.eye(n), np.eye(n)
    for _ in range(steps):
        power = alpha*power@s
        total += power
    return np.array([[total[i, j]/math.sqrt(total[i, i]*total[j, j]) for j in range(n)] for i in range(n)])


def simulated_walk(z, k, alpha, start, walks, rng):
    "Where walkers from `start` are when they stop: the share of walks that end at each point, by simulation."
    neighbours = {i: set(nearest_others(z, i, k)) for i in range(len(z))}
    joined = {i: sorted(j for j in range(len(z)) if j in neighbours[i] or i in neighbours[j]) for i in range(len(z))}
    ends = np.zeros(len(z))
    for _ in range(walks):
        here = start
        while rng.random() < alpha: here = joined[here][rng.integers(len(joined[here]))]
        ends[here] += 1
    return ends/walks, np.array([len(joined[i]) for i in range(len(z))])


def piece_worth(z, labels, k, m, last, bins, centred, n_alpha, n_beta):
    "Purity of the k nearest, and the three areas by counting pairs of a same-class neighbour and another one."
    z, rows, purity = np.asarray(z, dtype=np.float64), [], []
    for i in range(len(z)):
        near = nearest_others(z, i, last)
        purity += [labels[j] == labels[i] for j in near[:k]]
        base = np.mean([z[j] for j in [*near[:k], i]], axis=0) if centred else z[i]
        basis = np.linalg.svd(np.stack([z[j] - base for j in near[:k]]))[2][:m]
        for j in near[k:]:
            delta = z[j] - z[i]
            p, d = np.linalg.norm(basis@delta), np.linalg.norm(delta)
            s = (1 + math.sqrt(max(d*d - p*p, 0))/2)**-n_alpha*(1 + p)**-n_beta
            rows.append((-d, s, (p/d)**2, labels[j] == labels[i]))
    def area(of, column): # share of pairs in the right order
        yes, no = ([r[column] for r in of if r[3] == kind] for kind in (True, False))
        return sum((a > b) + (a == b)/2 for a in yes for b in no), len(yes)*len(no)
    found = {name: np.divide(*area(rows, c)) for c, name in enumerate(('distance', 'similarity'))}
    order = np.argsort([r[0] for r in rows], kind='stable')
    parts = [area([rows[j] for j in part], 2) for part in np.array_split(order, bins)]
    return found | dict(share=sum(a for a, _ in parts)/sum(n for _, n in parts), purity=np.mean(purity))
