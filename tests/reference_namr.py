"""NAMR by plain loops, straight from the formulas (float64): what the fast versions in plm.namr must agree with."""
import math, torch


def structure(h, weight, bias, band):
    rows = []
    for x in h.double().tolist():
        length = math.sqrt(sum(v*v for v in x))
        x = [v/max(length, 1e-12) for v in x]
        lines = zip(weight.double().tolist(), bias.double().tolist())
        a = [math.tanh(sum(m*v for m, v in zip(line, x)) + c) for line, c in lines]
        mean = sum(a)/len(a)
        rows.append([1 + band/2*(v - mean) for v in a])
    return torch.tensor(rows, dtype=torch.float64)


def adaptive_distance(e_q, w_q, e_x): return sum(w*(a - b)**2 for w, a, b in zip(w_q, e_q, e_x))


def adaptive_distances(e_q, w_q, e_x):
    e_q, w_q, e_x = (x.double().tolist() for x in (e_q, w_q, e_x))
    return torch.tensor([[adaptive_distance(q, w, x) for x in e_x] for q, w in zip(e_q, w_q)], dtype=torch.float64)


def near_to_far(reference):
    x = reference.double().tolist()
    def around(i): return sorted({*range(len(x))} - {i}, key=lambda j: (math.dist(x[i], x[j]), j))
    return torch.tensor([around(i) for i in range(len(x))])


def clusters(others, C):
    "Cut a list into C parts whose lengths differ by at most one: the member of rank r is in cluster floor(r C / n)."
    parts = [[] for _ in range(C)]
    for rank, j in enumerate(others): parts[rank*C//len(others)].append(j)
    return parts


def multi_cluster_ranking(e, w, order, C, margin):
    D, total = adaptive_distances(e, w, e).tolist(), 0.
    for i, others in enumerate(order.tolist()):
        scale = sum(D[i][j] for j in others)/len(others)
        means = [sum(D[i][j]/scale if scale > 0 else 0. for j in part)/len(part) for part in clusters(others, C)]
        pairs = [(a, b) for a in range(C) for b in range(a + 1, C)]
        total += sum(max(0., means[a] - means[b] + margin*(b - a)) for a, b in pairs)/len(pairs)
    return total/len(e)


def triplet(e, w, labels, margin):
    "Triplet loss over all triplets that violate it, in the root of the anchor's adaptive distance."
    D, y, losses = adaptive_distances(e, w, e).tolist(), labels.tolist(), []
    for a in range(len(y)):
        for p in range(len(y)):
            for n in range(len(y)):
                if a == p or y[a] != y[p] or y[a] == y[n]: continue
                losses.append(max(0., math.sqrt(D[a][p]) - math.sqrt(D[a][n]) + margin))
    losses = [x for x in losses if x > 0]
    return sum(losses)/max(1, len(losses))


def contrastive(e, w, labels, pos_margin, neg_margin):
    D, y = adaptive_distances(e, w, e).tolist(), labels.tolist()
    pairs = [(i, j) for i in range(len(y)) for j in range(len(y)) if i != j]
    pos = [x for i, j in pairs if y[i] == y[j] and (x := math.sqrt(D[i][j]) - pos_margin) > 0]
    neg = [x for i, j in pairs if y[i] != y[j] and (x := neg_margin - math.sqrt(D[i][j])) > 0]
    return sum(pos)/max(1, len(pos)) + sum(neg)/max(1, len(neg))


def multi_similarity(e, w, labels, alpha, beta, base):
    D, y, total = adaptive_distances(e, w, e).tolist(), labels.tolist(), 0.
    s = [[1 - x/2 for x in row] for row in D]
    for i in range(len(y)):
        pos = [math.exp(-alpha*(s[i][j] - base)) for j in range(len(y)) if j != i and y[j] == y[i]]
        neg = [math.exp(beta*(s[i][j] - base)) for j in range(len(y)) if y[j] != y[i]]
        total += math.log(1 + sum(pos))/alpha + math.log(1 + sum(neg))/beta
    return total/len(y)


def proxy_anchor(e, w, labels, proxies, alpha, margin):
    unit = [[v/math.hypot(*p) for v in p] for p in proxies.double().tolist()]
    D, y = adaptive_distances(e, w, torch.tensor(unit, dtype=torch.float64)).tolist(), labels.tolist()
    s = [[1 - x/2 for x in row] for row in D]
    pos = neg = 0.
    for c in range(len(unit)):
        pos += math.log(1 + sum(math.exp(-alpha*(s[i][c] - margin)) for i in range(len(y)) if y[i] == c))
        neg += math.log(1 + sum(math.exp(alpha*(s[i][c] + margin)) for i in range(len(y)) if y[i] != c))
    return pos/len(set(y)) + neg/len(unit)
