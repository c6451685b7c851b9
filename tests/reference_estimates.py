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


def area(same, score):
    "Of all pairs of one that is the same and one that is not: how often the first scores higher; a tie is a half."
    ours, theirs = [s for y, s in zip(same, score) if y], [s for y, s in zip(same, score) if not y]
    return sum((a > b) + (a == b)/2 for a in ours for b in theirs)/(len(ours)*len(theirs))


def piece_gain(z, labels, k, m, band, bins, n_alpha=4, n_beta=0.5, centred=False):
    "Each point's piece by an SVD of the differences to its k nearest; it judges those of rank k + 1 to band."
    z, pure, pairs = np.asarray(z, dtype=np.float64), [], []
    for i in range(len(z)):
        near = nearest_others(z, i, band)
        pure += [labels[j] == labels[i] for j in near[:k]]
        around = z[[i, *near[:k]]]
        basis = np.linalg.svd(around - (around.mean(0) if centred else z[i]), full_matrices=False)[2][:m]
        for j in near[k:]:
            delta = z[j] - z[i]
            d, p = math.sqrt(delta @ delta), math.sqrt(((basis @ delta)**2).sum())
            o = math.sqrt(max(d**2 - p**2, 0))
            pairs.append((d, (1 + o/2)**-n_alpha*(1 + p)**-n_beta, round((p/d)**2, 9), labels[i] == labels[j]))
    distance, grade, share, same = zip(*sorted(pairs, key=lambda pair: pair[0])) # equal ones stay in their order
    areas = []
    for part in np.array_split(np.arange(len(pairs)), bins):
        kinds = [same[i] for i in part]
        if any(kinds) and not all(kinds): areas.append(area(kinds, [share[i] for i in part]))
    return dict(purity=np.mean(pure), area_distance=area(same, [-d for d in distance]),
                area_similarity=area(same, grade), area_share=np.mean(areas))
