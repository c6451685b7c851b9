"""NAMR by plain loops, straight from the formulas (float64): what the fast versions in plm.namr must agree with."""
import math, torch


def structure(h, head):
    "Linear, batch normalisation, linear, batch normalisation (of the batch, as in training), logistic, to 0.5 .. 1.5."
    first, norm, second, last = head.net
    def linear(rows, layer):
        lines = list(zip(layer.weight.double().tolist(), layer.bias.double().tolist()))
        return [[sum(m*v for m, v in zip(line, x)) + c for line, c in lines] for x in rows]
    def normalise(rows, layer):
        columns = []
        for column, scale, shift in zip(zip(*rows), layer.weight.tolist(), layer.bias.tolist()):
            mean = sum(column)/len(column)
            variance = sum((v - mean)**2 for v in column)/len(column)
            columns.append([scale*(v - mean)/math.sqrt(variance + layer.eps) + shift for v in column])
        return list(zip(*columns))
    a = normalise(linear(normalise(linear(h.double().tolist(), first), norm), second), last)
    return torch.tensor([[1 + 0.5*(2/(1 + math.exp(-v)) - 1) for v in row] for row in a], dtype=torch.float64)


def adaptive_distance(e_q, w_q, e_x): return sum(w*(a - b)**2 for w, a, b in zip(w_q, e_q, e_x))


def adaptive_distances(e_q, w_q, e_x):
    e_q, w_q, e_x = (x.double().tolist() for x in (e_q, w_q, e_x))
    return torch.tensor([[adaptive_distance(q, w, x) for x in e_x] for q, w in zip(e_q, w_q)], dtype=torch.float64)


def in_mean_distances(e):
    rows = e.double().tolist()
    pairs = [math.dist(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    return e.double()/(sum(pairs)/len(pairs))


def ranking_centres(e, C, t):
    rows = e.double().tolist()
    d = [math.dist(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    far = sum(d)/len(d)
    near = max(0.2*far, far - t*math.sqrt(sum((x - far)**2 for x in d)/len(d)))
    return [near + (far - near)*c/(C - 1) for c in range(C)]


def multi_cluster_ranking(e, w, C=2, alpha=10., t=3.):
    "From the page: each adaptive distance, an ordered pair after the other, and its soft share of each centre."
    e = in_mean_distances(e)
    centres, D, total = ranking_centres(e, C, t), adaptive_distances(e, w, e).tolist(), 0.
    for i in range(len(e)):
        for j in range(len(e)):
            if i == j: continue
            off = [abs(math.sqrt(D[i][j]) - centre) for centre in centres]
            share = [math.exp(-alpha*a) for a in off]
            total += sum(p/sum(share)*a for p, a in zip(share, off))
    return total/(len(e)*(len(e) - 1))


def rerank(e_q, w_q, e_x, short):
    return torch.tensor([sorted(row, key=lambda j: math.inf if j < 0 else adaptive_distance(q, w, e_x[j].tolist()))
                         for q, w, row in zip(e_q.tolist(), w_q.tolist(), short.tolist())])
