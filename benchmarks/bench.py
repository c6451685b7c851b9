"""All benchmarks, or some: writes results/bench.csv and docs/images/bench.png.

    python benchmarks/bench.py [PART ...] [--device auto]

A part is a file beside this one with a function `rows(device)` that yields rows (see `timing.against`); `PARTS` names
them. Each runs in a process of its own, with one thread. When only some parts are named, the rows of the others stay.
"""
import argparse, csv, importlib, multiprocessing, os, re, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'benchmarks')]
PARTS = ['estimation', 'step', 'sampling', 'evaluation', 'startup'] # module names, in the order of the table
# the name begins with the part; the ratio says how many times as fast as the baseline
COLUMNS = ['name', 'setting', 'ratio', 'seconds', 'baseline_seconds']
# before torch is imported, in each part's own process; memory as nbs/pipeline/start.py sets it
ENVIRONMENT = {'OMP_NUM_THREADS': '1', 'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(2**40)}


def device_name(device):
    "What the figures were measured on."
    import torch
    if device.type == 'cuda': return torch.cuda.get_device_name(device)
    file = Path('/proc/cpuinfo')
    model = re.search(r'model name\s*: (.*)', file.read_text()) if file.exists() else None
    return f"one thread of {model[1] if model else 'an unnamed processor'}"


def measure(part, device):
    "The rows of one part, as dicts, and the device's name."
    import torch
    from plm.core import pick_device
    torch.set_num_threads(1)
    device, found = pick_device(device), []
    for name, setting, *figures in importlib.import_module(part).rows(device):
        ratio, seconds, baseline = figures
        print(f'{name:24} {setting:52} {seconds*1e3:11.2f} ms {baseline*1e3:11.2f} ms {ratio:8.2f}x', flush=True)
        found.append(dict(zip(COLUMNS, (f'{part}: {name}', setting, *(f'{x:.3g}' for x in figures)))))
    return found, device_name(device)


def part_of(row): return row['name'].split(':')[0]


def draw(rows, device, path):
    "Each row a point: how many times as fast as its opponent."
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    names = {}
    for r in rows: names.setdefault((r['name'], r['setting'].rsplit(', against ', 1)[1]), []).append(float(r['ratio']))
    fig, ax = plt.subplots(figsize=(8, 1 + 0.3*len(names)), dpi=75, layout='constrained')
    for y, ratios in enumerate(names.values()):
        ax.plot(ratios, [y]*len(ratios), 'o', ms=5, alpha=0.5, color='tab:green' if min(ratios) > 1 else 'tab:blue')
    ax.axvline(1, color='0.6', lw=1)
    ax.set(xscale='log', xlabel='times as fast as the opponent (one point for each setting)',
           title=f'Ours against its opponents ({device})')
    ax.set_yticks(range(len(names)), [f'{name}\nagainst {opponent}' for name, opponent in names], fontsize=7)
    ax.invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('parts', nargs='*', help=f"which; all if none is named: {', '.join(PARTS)}")
    parser.add_argument('--device', default='auto')
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}. There are {', '.join(PARTS)}.")
    os.environ |= ENVIRONMENT
    from plm.core import write_csv
    table = ROOT/'results/bench.csv'
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    for part in args.parts or PARTS:
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
            new, device = process.submit(measure, part, args.device).result()
        kept = [r for r in rows if part_of(r) in PARTS and part_of(r) != part]
        rows = sorted(kept + new, key=lambda r: PARTS.index(part_of(r)))
        write_csv(rows, table)
    draw(rows, device, ROOT/'docs/images/bench.png')


if __name__ == '__main__': main()
