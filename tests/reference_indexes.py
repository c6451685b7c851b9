"Slow twins of plm.indexes: one query and one item at a time, in 64 bits."
import torch


def neighbors(e_q, w_q, e_x, k, own=None):
    "The rows of the k nearest items of each query, and all distances."
    found, distances = [], []
    for q in range(len(e_q)):
        D = [sum(float(w)*(float(a) - float(b))**2 for w, a, b in zip(w_q[q], e_q[q], e_x[i])) for i in range(len(e_x))]
        others = [i for i in range(len(e_x)) if own is None or i != int(own[q])]
        found.append(sorted(others, key=lambda i: D[i])[:k])
        distances.append(D)
    return torch.tensor(found), torch.tensor(distances, dtype=torch.float64)


def recall(found, true, own=None):
    "Share of the true that are found among the first k that are not the query itself."
    hits = total = 0
    for q in range(len(true)):
        k = len(true[q])
        near = [int(i) for i in found[q] if own is None or int(i) != int(own[q])][:k]
        hits += sum(int(t) in near for t in true[q])
        total += k
    return hits/total


def reranked(found, e_q, w_q, e_x, k, short, own=None):
    "The first k of each query's short list in the order of its own distance; what is equally far keeps its order."
    kept = []
    for q in range(len(found)):
        near = [int(i) for i in found[q] if own is None or int(i) != int(own[q])][:short]
        near = [i for i in near if i >= 0]
        D = {i: sum(float(w)*(float(a) - float(b))**2 for w, a, b in zip(w_q[q], e_q[q], e_x[i])) for i in near}
        near = sorted(near, key=lambda i: D[i])[:k]
        kept.append(near + [-1]*(k - len(near)))
    return torch.tensor(kept)
