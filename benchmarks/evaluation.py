"""R@1, 10, 100, 1000 and MAP@R at the size of Stanford Online Products: `places` against pytorch-metric-learning's AccuracyCalculator (on FAISS), and against the lines of `ranking`, in one run, at equal values.

    python benchmarks/evaluation.py [--full]

Writes benchmarks/evaluation.csv. One thread, processor seconds, opponents in turn, medians of 3 (of 1 above 10,000 images). On all 60,502 images the calculator's seconds are those of 20,000 times the square of the
sizes' ratio; with --full it is really run on them (minutes). `bound` is the matrix product of all pairs alone, of which `places` needs one half.
"""
import argparse, csv, statistics, time
from pathlib import Path
import faiss, torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from plm.core import generator_at, whole_file
from plm.evaluation import map_at_r, places, ranking, recall_at_k, retrieval_metrics
import plm.evaluation

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
    found = Calculator(include=(*(f'recall_at_{k}' for k in ks), 'mean_average_precision_at_r'), k=max(ks), device=torch.device('cpu')).get_accuracy(z, labels)
    return {**{f'recall_at_{k}': found[f'recall_at_{k}'] for k in ks}, 'map_at_r': found['mean_average_precision_at_r']}


def bound(z, labels):
    for part in z.split(1024): part @ z.T


def rows(quick=False, full=False):
    "Ours against both opponents and against the bound, for results/bench.csv."
    torch.set_num_threads(1); faiss.omp_set_num_threads(1)
    plm.evaluation.nmi = lambda *_: 0. # k-means is another matter, the same for all
    lines, last = [], {}
    for n in (2000, 5000) if quick else (5000, 10_000, 20_000, SOP):
        z, labels = embeddings(n)
        runs = {'ours': ours, 'library': library if n < SOP or full else None, 'lines': by_lines if n <= 5000 else None, 'bound': bound}
        took, values = {name: [] for name in runs}, {}
        for _ in range(3 if n <= 10_000 else 1):
            for name, run in runs.items():
                if run is None: continue
                start = time.process_time()
                values[name] = run(z, labels)
                took[name].append(time.process_time() - start)
        for name in ('library', 'lines'):
            if name in values and any(abs(values[name][m] - v) > 2e-5 for m, v in values['ours'].items()): raise AssertionError(f"{n} images: {values}")
        if 'lines' in values and values['lines'] != values['ours']: raise AssertionError(f"{n} images: places and lines differ, {values}")
        seconds = statistics.median(took['ours'])
        for name, whom in (('library', "pytorch-metric-learning's calculator"), ('lines', 'lines of ranking'), ('bound', 'bound: product of all pairs')):
            scaled = not took[name]
            if scaled and name == 'lines': continue
            if not scaled: last[name] = n, statistics.median(took[name])
            at, theirs = last[name]
            theirs *= (n/at)**2
            lines.append(dict(name='evaluation: R@1..1000, MAP@R', setting=f"{n:,} x {d}, against {whom}{f', scaled from {at:,}'*scaled}", ratio=theirs/seconds, seconds=seconds, baseline_seconds=theirs))
            print(f"{lines[-1]['setting']:90} ours {seconds:7.2f} s, theirs {theirs:7.2f} s, ratio {theirs/seconds:.2f}", flush=True)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--full', action='store_true', help='run the library on all 60,502 images')
    lines = rows(full=parser.parse_args().full)
    with whole_file(Path(__file__).with_suffix('.csv')) as tmp, open(tmp, 'w', newline='') as f:
        writer = csv.DictWriter(f, list(lines[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows({name: f'{value:.4g}' if isinstance(value, float) else value for name, value in line.items()} for line in lines)


if __name__ == '__main__': main()
