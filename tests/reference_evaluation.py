"The metrics of plm.evaluation as plain loops in float64, one query at a time, in the words of their definitions."
import numpy as np


def ranking(z, k):
    "Nearest k others of every point; among equals, the lower number first."
    z = np.asarray(z, dtype=np.float64)
    result = []
    for i in range(len(z)):
        others = [(((z[i] - z[j])**2).sum(), j) for j in range(len(z)) if j != i]
        result.append([j for _, j in sorted(others)[:k]])
    return np.array(result)


def gallery_ranking(queries, gallery, k):
    "Nearest k of the gallery for every query; among equals, the lower number first."
    queries, gallery = np.asarray(queries, dtype=np.float64), np.asarray(gallery, dtype=np.float64)
    return np.array([[j for _, j in sorted((((q - gallery[j])**2).sum(), j) for j in range(len(gallery)))[:k]]
                     for q in queries])


def gallery_recall(z, labels, queries, gallery, k):
    """Share of queries with their class among the nearest k of the gallery, of those whose class it holds; `queries`
    and `gallery` are numbers of images."""
    hits = []
    for q, near in zip(queries, gallery_ranking(z[queries], z[gallery], k)):
        if any(labels[g] == labels[q] for g in gallery): hits.append(any(labels[gallery[j]] == labels[q] for j in near))
    return sum(hits)/len(hits)


def gallery_map_at_r(z, labels, queries, gallery):
    "MAP@R where the right answers are those that the gallery holds."
    average_precisions = []
    for q, near in zip(queries, gallery_ranking(z[queries], z[gallery], len(gallery))):
        right = [labels[gallery[j]] == labels[q] for j in near]
        r = sum(right)
        if r: average_precisions.append(sum(sum(right[:i])/i for i in range(1, r+1) if right[i-1])/r)
    return sum(average_precisions)/len(average_precisions)


def queries_with_an_answer(labels):
    return [i for i in range(len(labels)) if sum(labels[j] == labels[i] for j in range(len(labels))) > 1]


def recall_at_k(neighbours, labels, k):
    asked = queries_with_an_answer(labels)
    answered = [q for q in asked if any(labels[j] == labels[q] for j in neighbours[q][:k])]
    return len(answered)/len(asked)


def map_at_r(neighbours, labels):
    "Musgrave et al. 2020, equations for MAP@R."
    average_precisions = []
    for q in queries_with_an_answer(labels):
        r = sum(labels[j] == labels[q] for j in range(len(labels))) - 1
        total = 0.
        for i in range(1, r+1):
            if labels[neighbours[q][i-1]] == labels[q]:
                total += sum(labels[j] == labels[q] for j in neighbours[q][:i])/i
        average_precisions.append(total/r)
    return sum(average_precisions)/len(average_precisions)


def nmi(a, b):
    "Mutual information of two partitions over the arithmetic mean of their entropies."
    a, b = np.asarray(a), np.asarray(b)
    def entropy(p): return -sum(x*np.log(x) for x in p if x > 0)
    joint = [np.mean((a == i) & (b == j)) for i in set(a.tolist()) for j in set(b.tolist())]
    ha = entropy([np.mean(a == i) for i in set(a.tolist())])
    hb = entropy([np.mean(b == j) for j in set(b.tolist())])
    return (ha + hb - entropy(joint))/((ha + hb)/2)


def label_purity(batches):
    """`batches`: pairs of (groups as lists of lists, labels). Over all points with somebody else inside, the mean share
    of their own label."""
    shares = []
    for groups, labels in batches:
        for i in range(len(labels)):
            others = [j for j in range(len(labels)) if j != i and groups[i][j]]
            if others: shares.append(sum(labels[j] == labels[i] for j in others)/len(others))
    return sum(shares)/len(shares)


def pairs(batches):
    "`batches`: pairs of (similarity, labels). Similarity, and 1 for same class or 0, of each pair i < j in a batch."
    found = [(s[i][j], float(labels[i] == labels[j])) for s, labels in batches for i in range(len(labels))
             for j in range(i+1, len(labels))]
    return [x for x, _ in found], [y for _, y in found]


def correlation(batches):
    "Pearson's coefficient by its definition."
    x, y = pairs(batches)
    mx, my = sum(x)/len(x), sum(y)/len(y)
    covariance = sum((a - mx)*(b - my) for a, b in zip(x, y))
    return covariance/np.sqrt(sum((a - mx)**2 for a in x)*sum((b - my)**2 for b in y))
