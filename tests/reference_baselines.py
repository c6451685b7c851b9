"The slow twin of `plm.baselines`: STML and SimCLR by plain loops, straight from the formulas, in float64."
import math, torch

def distance(a, b): return math.sqrt(sum((x - y)**2 for x, y in zip(a, b)))

def unit(a):
    length = math.sqrt(sum(x*x for x in a))
    return [x/length for x in a]

def contextual_similarity(t, index, sigma=3, k=10):
    t, index, n = [unit(row) for row in t.double().tolist()], index.tolist(), len(t)
    def place(i, j): # the row itself, the views of its image, then the others by distance; equal ones by number
        return (j != i, j) if index[j] == index[i] else (2, distance(t[i], t[j]), j)
    nearest = [sorted(range(n), key=lambda j: place(i, j))[:k] for i in range(n)]
    mutual = [{j for j in nearest[i] if i in nearest[j]} for i in range(n)]
    tilde = [[len(mutual[i] & mutual[j])/len(mutual[i]) if j in mutual[i] else 0 for j in range(n)] for i in range(n)]
    half = max(1, k//2)
    context = [[sum(tilde[l][j] for l in nearest[i][:half])/half for j in range(n)] for i in range(n)]
    w = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            w_p = math.exp(-distance(t[i], t[j])**2/sigma)
            w_c = (context[i][j] + context[j][i])/2
            w[i, j] = (w_p + w_c)/2
    return w

def relative_distances(z):
    z, n = z.double().tolist(), len(z)
    d = [[distance(z[i], z[j]) for j in range(n)] for i in range(n)]
    return [[x/(sum(row)/n) if sum(row) > 0 else 0. for x in row] for row in d]

def relaxed_contrastive(z, w, delta=1):
    d, w, n, total = relative_distances(z), w.tolist(), len(z), 0.
    for i in range(n):
        for j in range(n):
            if i != j: total += w[i][j]*d[i][j]**2 + (1 - w[i][j])*max(0, delta - d[i][j])**2
    return total/(n*(n - 1))

def self_distillation(z, z_wide):
    n, total = len(z), 0.
    for row, wide in zip(relative_distances(z), relative_distances(z_wide)):
        q, p = ([math.exp(-x)/sum(math.exp(-y) for y in r) for x in r] for r in (row, wide))
        total += sum(pj*math.log(pj/qj) for pj, qj in zip(p, q))
    return total/n

def stml(z, z_wide, t, index, sigma=3, delta=1, k=5):
    w = contextual_similarity(t, index, sigma, 2*k)
    return {'contrastive': relaxed_contrastive(z, w, delta)/2,
            'contrastive_wide': relaxed_contrastive(z_wide, w, delta)/2,
            'distillation': self_distillation(z, z_wide)}

def nt_xent(z1, z2, temperature=0.1):
    z, b = [unit(row) for row in torch.cat([z1, z2]).double().tolist()], len(z1)
    def weight(i, j): return math.exp(sum(x*y for x, y in zip(z[i], z[j]))/temperature)
    total = 0.
    for i in range(2*b):
        partner = (i + b) % (2*b)
        total -= math.log(weight(i, partner)/sum(weight(i, j) for j in range(2*b) if j != i))
    return total/(2*b)
