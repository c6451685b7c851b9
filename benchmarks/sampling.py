"""What neighbourhood sampling costs from 10^4 to 10^6 points: every point searched exactly, only an epoch's queries
searched exactly, and these by the index of `NeighborSearch`.

A part of `benchmarks/bench.py`, which runs it. It also writes benchmarks/sampling.csv, with recall and memory, which
nbs/02_sampling.ipynb draws; a process for each size, so that its memory is its own. The points lie on a curved sheet of
16 dimensions in 128, in groups of 12, with noise off the sheet: harder for an index than separate clusters, easier than
noise alone. Exact search is timed on 4,096 queries and multiplied. 99 neighbours are asked, since a batch of 100 may
need them all. An epoch has a query for each 5 points.
"""
import csv, multiprocessing, resource, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import faiss, torch
from plm.core import generator_at, whole_file
from plm.sampling import NeighborSearch
from timing import against

d, k, group, sheet, sample = 128, 99, 5, 16, 4096
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
KINDS = {'IVF256,Flat': ('nprobe', (16, 32, 64, 128)), 'HNSW16,Flat': ('efSearch', (128, 256, 512)),
         'IVF256,PQ64x4fs,RFlat(k_factor=8)': ('nprobe', (16, 32, 64, 128))} # each searched until 95 % are found


def points(n):
    "(n, d) float32 unit vectors."
    g = generator_at('sampling', n)
    def normal(*shape): return torch.randn(*shape, generator=g)
    bend, spread, phase = 0.7*normal(sheet, 64), normal(64, d)/8, 2*torch.pi*torch.rand(64, generator=g)
    centres, z = normal(n//12 + 1, sheet), torch.empty(n, d)
    for part, rows in zip(z.split(2**14), torch.arange(n).split(2**14)):
        u = centres[rows % len(centres)] + 0.35*normal(len(rows), sheet)
        part.copy_(torch.nn.functional.normalize((u @ bend + phase).sin() @ spread + 0.15*normal(len(rows), d)))
    return z


def timed(work):
    "Processor seconds of a call, and its result."
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def share(found, true): return (found[:, :, None] == true[:, None]).any(1).double().mean().item()


def measure(n):
    "One line of the csv for each way, at this size."
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    z = points(n)
    asked = torch.randperm(n, generator=generator_at('asked', n))[:sample]
    build, search = timed(lambda: NeighborSearch(z, k, exact_up_to=0))
    each, found = timed(lambda: search(asked))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20 # GiB, with torch and the caller's points
    cells = search.cells
    del search
    flat, exact = timed(lambda: NeighborSearch(z, k, exact_up_to=n))
    each_exact, true = timed(lambda: exact(asked))
    each, each_exact, line = each/len(asked), each_exact/len(asked), dict(n=n, recall=1., cells='', GiB='')
    return [line | dict(way='exact, every point', seconds=flat + n*each_exact),
            line | dict(way='exact, queries only', seconds=flat + n/group*each_exact),
            line | dict(way='index, queries only', seconds=build + n/group*each, recall=share(found[:500], true[:500]),
                        cells='{} of {}'.format(*cells) if cells else 'all', GiB=memory)]


def compare(n):
    "One line for each kind of index, built and searched for an epoch's queries, at the first setting that finds 95 %."
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    x = points(n)
    x, asked = (x - x.mean(0)).numpy(), torch.randperm(n, generator=generator_at('asked', n))[:1000].numpy()
    flat = faiss.IndexFlatL2(d)
    flat.add(x)
    true, lines = torch.from_numpy(flat.search(x[asked], k + 1)[1]), []
    for kind, (knob, values) in KINDS.items():
        index = faiss.index_factory(d, kind.split('(')[0])
        if 'RFlat' in kind: index.k_factor = 8
        build, _ = timed(lambda: (index.train(x), index.add(x)))
        for value in values:
            faiss.ParameterSpace().set_index_parameter(index, knob, value)
            each, found = timed(lambda: torch.from_numpy(index.search(x[asked], k + 1)[1]))
            if (right := share(found, true)) >= 0.95: break
        seconds = build + n/group*each/len(asked)
        lines.append(dict(way=f'{kind} {knob}={value}', n=n, seconds=seconds, recall=right, cells='', GiB=''))
    return lines


def rows(device):
    "The rows of this part; the index is FAISS's on the processor, whatever the device. Writes benchmarks/sampling.csv."
    lines = []
    for work, n in [*((measure, n) for n in SIZES), (compare, 100_000)]:
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
            lines += process.submit(work, n).result()
    with whole_file(Path(__file__).with_suffix('.csv')) as tmp, open(tmp, 'w', newline='') as f:
        writer = csv.DictWriter(f, ('way', 'n', 'seconds', 'recall', 'cells', 'GiB'), lineterminator='\n')
        writer.writeheader()
        writer.writerows({name: f'{value:.4g}' if isinstance(value, float) else value for name, value in line.items()}
                         for line in lines)
    for n in SIZES:
        took = {line['way']: line['seconds'] for line in lines if line['n'] == n}
        for way in ('exact, queries only', 'index, queries only'):
            yield against(f'an epoch of neighbours, {way}', f'{n:,} x {d}', took, 'exact, every point', way)
