"""R@1, 10, 100, 1000 and MAP@R at the size of Stanford Online Products: `places` against pytorch-metric-learning's AccuracyCalculator (on FAISS), and against the lines of `ranking`, in one run, at equal values.

Of the matrix product of all pairs `places` needs one half. A part of `benchmarks/bench.py`, which runs it.
"""
from functools import partial
import faiss, torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from plm.core import generator_at
from plm.evaluation import map_at_r, ranking, recall_at_k, retrieval_metrics
import plm.evaluation
from timing import against, interleaved

d, ks, SOP = 512, (1, 10, 100, 1000), 60_502


def embeddings(n):
    "(n, 512) float32 unit vectors and their classes, 2 to 12 of each, 5.3 on average as in SOP: a curved sheet of 32 dimensions and noise off it."
    g = generator_at('evaluation', n)
    def normal(*shape): return torch.randn(*shape, generator=g)
    size = torch.tensor([2, 3, 4, 5, 6, 12])[torch.randint(6, (n,), generator=g)]
    labels = torch.arange(n).repeat_interleave(size)[:n]
    u = normal(n, 32)[labels] + 0.45*normal(n, 32)
    return torch.nn.functional.normalize((0.5*u @ normal(32, 256)).sin() @ normal(256, d)/16 + 0.3*normal(n, d)), labels


def ours(z, labels):
    found = retrieval_metrics(z, labels, ks)
    return {name: found[name] for name in (*(f'recall_at_{k}' for k in ks), 'map_at_r')}


def by_lines(z, labels):
    near = ranking(z, max(ks))
    return {**{f'recall_at_{k}': recall_at_k(near, labels, k) for k in ks}, 'map_at_r': map_at_r(near, labels)}


class Calculator(AccuracyCalculator):
    "The library's calculator with R@K, in the way in which it is to be extended."
    def requires_knn(self): return super().requires_knn() + [f'recall_at_{k}' for k in ks]
for k in ks: setattr(Calculator, f'calculate_recall_at_{k}', lambda self, knn_labels, query_labels, k=k, **_: (knn_labels[:, :k] == query_labels[:, None]).any(1).double().mean().item())


def library(z, labels):
    found = Calculator(include=(*(f'recall_at_{k}' for k in ks), 'mean_average_precision_at_r'), k=max(ks), device=torch.device('cpu')).get_accuracy(z.cpu(), labels.cpu()) # FAISS of faiss-cpu
    return {**{f'recall_at_{k}': found[f'recall_at_{k}'] for k in ks}, 'map_at_r': found['mean_average_precision_at_r']}


def bound(z, labels):
    for part in z.split(1024): part @ z.T


def rows(device):
    "The rows of this part."
    faiss.omp_set_num_threads(1)
    plm.evaluation.nmi = lambda *_: 0. # k-means is another matter, the same for all
    for n in (5000, 20_000, SOP):
        z, labels = (x.to(device) for x in embeddings(n))
        ways = {'ours': ours, "pytorch-metric-learning's calculator": library, 'lines of ranking': by_lines, 'the product of all pairs': bound}
        if n > 5000: del ways['lines of ranking'] # which hold 1000 neighbours of each image
        values = {}
        def keep(name, way): values[name] = way(z, labels)
        took = interleaved({name: partial(keep, name, way) for name, way in ways.items()}, 5, device)
        for name in ways:
            if values[name] and any(abs(values[name][m] - v) > 2e-5 for m, v in values['ours'].items()): raise AssertionError(f'{n} images: {values}')
            if name != 'ours': yield against('R@1..1000, MAP@R', f'{n:,} x {d}', took, name)
