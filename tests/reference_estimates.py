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
