"""R@K and MAP@R by `retrieval_metrics` against pytorch-metric-learning's AccuracyCalculator (FAISS), at equal values.

The shapes: many small classes as in Stanford Online Products, without and with R@1000; few large classes; one huge
class among many. A part of `benchmarks/bench.py`, which runs it. `python benchmarks/evaluation.py 20000` prints seconds
and memory at another size.
"""
import multiprocessing, resource, sys, time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
import faiss, torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from plm.core import generator_at
import plm.evaluation
from plm.evaluation import retrieval_metrics
from timing import against, interleaved

d, sizes = 128, (2000, 8000)
SHAPES = {'classes of 5': (1, 10), 'classes of 5, R@1000': (1, 10, 100, 1000), '10 classes': (1, 10),
          'a quarter in one class': (1, 10)}


def embeddings(shape, n):
    "(n, d) float32 unit vectors, and their classes: a center for each class, and noise."
    i = torch.arange(n)
    labels = {'10 classes': i % 10, 'a quarter in one class': torch.where(i < n//4, 0, i)//5}.get(shape, i//5)
    g = generator_at('evaluation', shape, n)
    z = torch.randn(n//5 + 1, d, generator=g)[labels] + 1.5*torch.randn(n, d, generator=g)
    return torch.nn.functional.normalize(z), labels


def ours(z, labels, ks):
    found = retrieval_metrics(z, labels, ks)
    return {name: found[name] for name in (*(f'recall_at_{k}' for k in ks), 'map_at_r')}


def library(z, labels, ks):
    "The library's calculator with R@K, in the way in which it is to be extended."
    names = [f'recall_at_{k}' for k in ks]
    class Calculator(AccuracyCalculator):
        def requires_knn(self): return super().requires_knn() + names
    for k, name in zip(ks, names):
        def recall(self, knn_labels, query_labels, k=k, **_):
            return (knn_labels[:, :k] == query_labels[:, None]).any(1).double().mean().item()
        setattr(Calculator, f'calculate_{name}', recall)
    most = max(*ks, labels.bincount().max().item()) # as k='max_bin_count', but enough for R@K
    judge = Calculator(include=(*names, 'mean_average_precision_at_r'), k=most, device=torch.device('cpu'))
    found = judge.get_accuracy(z.cpu(), labels.cpu()) # FAISS of faiss-cpu
    return {name: found[name] for name in names} | {'map_at_r': found['mean_average_precision_at_r']}


def product(z, labels, ks):
    "What any exact search needs: the product of all pairs."
    for part in z.split(1024): part @ z.T


def prepare():
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    plm.evaluation.nmi = lambda *_: 0. # k-means is another matter, the same for all


def rows(device):
    "The rows of this part."
    prepare()
    for n in sizes:
        for shape, ks in SHAPES.items():
            z, labels = (x.to(device) for x in embeddings(shape, n))
            values = {}
            def keep(name, way): values[name] = way(z, labels, ks)
            ways = {'ours': ours, "pytorch-metric-learning's calculator": library, 'the product of all pairs': product}
            took = interleaved({name: partial(keep, name, way) for name, way in ways.items()}, 3, device, 4)
            for name in list(ways)[1:]:
                if values[name] and any(abs(values[name][m] - v) > 2e-5 for m, v in values['ours'].items()):
                    raise AssertionError(f'{shape}, {n} images: {values}')
                yield against('R@K and MAP@R', f'{shape}, {n:,} x {d}', took, name)


def once(way, shape, n):
    "Processor seconds and the growth of the greatest memory in GiB, in a process of its own."
    prepare()
    z, labels = embeddings(shape, n)
    for first in (ours, library): first(*embeddings('classes of 5', 400), (1,)) # imports what is imported late
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    way(z, labels, SHAPES[shape])
    return time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/2**20


if __name__ == '__main__':
    for shape in SHAPES:
        found = []
        for way in (ours, library):
            with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
                found.append(process.submit(once, way, shape, int(sys.argv[1])).result())
        (t, m), (their_t, their_m) = found
        print(f'{shape:24} {t:6.2f} s, {m:.2f} GiB against {their_t:6.2f} s, {their_m:.2f} GiB: {their_t/t:.2f}x')
