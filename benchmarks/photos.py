"""Decoding photos: a plain loop against threads and processes, in one run on the same files.

    python benchmarks/photos.py [--files 1000] [--workers 2] [--repeats 3]

Prints a table (median of the repeats, all kinds timed in turn) and writes nothing: the ratios depend on how many cores
are free. Files are crops of scikit-learn's two photos: 1,000 of 120 x 100 pixels, and a quarter as many of 500 x 375.
"""
import argparse, os, statistics, tempfile, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from PIL import Image
import sklearn.datasets
from plm.photos import decode_image, write_photos


def make(folder, n, size):
    sources = [Image.open(p) for p in sorted((Path(sklearn.datasets.__file__).parent/'images').glob('*.jpg'))]
    files = [folder/f'{size[0]}-{i}.jpg' for i in range(n)]
    for i, file in enumerate(files):
        sources[i % 2].crop((x := i % 97, y := i//97 % 50, x + size[0], y + size[1])).save(file, quality=90)
    return files


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('files', 1000), ('workers', 2), ('repeats', 3)):
        args.add_argument(f'--{name}', type=int, default=default)
    args = args.parse_args()
    with (tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as threads,
          ProcessPoolExecutor(args.workers) as processes):
        list(processes.map(str, range(args.workers))) # begun before the clock
        for n, size in ((args.files, (120, 100)), (args.files//4, (500, 375))):
            files = make(Path(folder), n, size)
            out = Path(folder)/'o.npy'
            kinds = {'loop': lambda: [decode_image(f) for f in files],
                     f'{args.workers} threads': lambda: list(threads.map(decode_image, files)),
                     f'{args.workers} processes': lambda: list(processes.map(decode_image, files, chunksize=8)),
                     f'write_photos, {args.workers} threads': lambda: write_photos(files, out, workers=args.workers)}
            seconds = {kind: [] for kind in kinds}
            for _ in range(args.repeats):
                for kind, work in kinds.items(): seconds[kind].append(timed(work))
            loop = statistics.median(seconds['loop'])
            for kind, s in seconds.items():
                middle = statistics.median(s)
                print(f'{n} files of {size[0]} x {size[1]}: {kind:26} {n/middle:6.0f} photos/s, '
                      f'{loop/middle:.2f} of the loop')
    print(f'{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (others on the machine count)')


if __name__ == '__main__': main()
