"""Searching one's own photos: how fast they are indexed, how fast an update is, how soon `plm search` answers.

    python benchmarks/search.py [--photos 300] [--many 20000] [--vectors 100000]

Prints a table, and writes nothing. Photos are crops of scikit-learn's two, 1,600 x 1,200 pixels. The bound of indexing
is what it cannot do without: decoding alone, and the network alone. Of `--many` photos the vectors are made up, since
only the bookkeeping around them is timed; the files are real, and so are the fifty new ones. Wall-clock seconds.
"""
import argparse, os, resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, sklearn.datasets, torch
from PIL import Image
from plm import album as module
from plm.album import Album
from plm.encoder import embed
from plm.photos import decode_images
from plm.pretraining import Features
from plm.search import Search


def make(folder, n, size, first=0):
    "Photos that all differ."
    folder.mkdir(parents=True, exist_ok=True)
    sources = [Image.open(p) for p in sorted((Path(sklearn.datasets.__file__).parent/'images').glob('*.jpg'))]
    for i in range(first, first + n):
        crop = sources[i % 2].crop((x := i % 97, y := i//97 % 50, x + 400, y + 300)).resize(size)
        crop.putpixel((0, 0), (i % 256, i//256 % 256, i//65536))
        crop.save(folder/f'{i:06}.jpg', quality=90)


def timed(work):
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def say(what, seconds, n=None):
    print(f"{what:62} {seconds:9.3f} s" + (f'  {n/seconds:9.1f} a second' if n else ''), flush=True)


def indexing(top, n):
    make(top/'photos', n, (1600, 1200))
    album = Album(top/'album')
    took, _ = timed(lambda: album.update(top/'photos'))
    say(f'plm index, {n} photos of 1,600 x 1,200', took, n)
    eye, files = Features(album._backbone()), sorted((top/'photos').iterdir())
    decoding, decoded = timed(lambda: [pixels for pixels, *_ in decode_images(files)])
    say('  bound: decoding alone', decoding, n)
    images = torch.from_numpy(np.stack(decoded))
    network, _ = timed(lambda: embed(eye, images, block=32))
    say('  bound: the network alone', network, n)
    print(f'  plm index took {took/(decoding + network):.2f} times both bounds after each other')
    say('  again, when nothing has changed', timed(album.update)[0])
    command = [sys.executable, '-m', 'timeit', '-n1', '-r1']
    for what, code in (('start of Python with torch', 'import torch'),
                       ('plm search PHOTO, from the start to the answer', 'from plm.command import main; '
                        f'main(["search", {str(files[3])!r}, "-k", "3", "--at", {str(album.place)!r}])')):
        times = [timed(lambda: subprocess.run([sys.executable, '-c', code], capture_output=True, check=True))[0]
                 for _ in range(4)]
        say(what, statistics.median(times[1:]))


def updating(top, n):
    make(top/'many', 1, (320, 240))
    seed = (top/'many/000000.jpg').read_bytes()
    for i in range(n): (top/f'many/{i:06}.jpg').write_bytes(seed + str(i).encode()) # what comes behind is no pixel
    album, plain = Album(top/'album of many'), (module.decode_images, module.embed)
    def grey(paths, side): return ((np.zeros((3, side, side), np.uint8), '', str(i)) for i in range(len(paths)))
    module.decode_images = grey
    module.embed = lambda eye, images: torch.randn(len(images), 1280)
    say(f'{n:,} photos whose vectors are made up', timed(lambda: album.update(top/'many'))[0], n)
    module.decode_images, module.embed = plain
    say('  again, when nothing has changed', timed(album.update)[0])
    make(top/'many', 50, (1600, 1200), n)
    took, changes = timed(album.update)
    say(f'  with fifty more ({changes})', took)
    say('  plm duplicates', timed(album.duplicates)[0])
    print(f"  the album has {sum(f.stat().st_size for f in album.place.rglob('*') if f.is_file())/2**20:.0f} MiB")


def querying(top, n):
    z = torch.nn.functional.normalize(torch.randn(n, 512), dim=1)
    small, names = Search.load(top/'album/before', 'cpu'), [str(i) for i in range(n)]
    search = Search(small.encoder, small.train, small.side, names, names, z)
    took = [timed(lambda: search.neighbours(i, 20))[0] for i in range(0, 200)]
    say(f'a query among {n:,} photos: median of 200', statistics.median(took), 1)
    say('  the slowest of them', max(took))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('photos', 300), ('many', 20_000), ('vectors', 100_000)):
        args.add_argument(f'--{name}', type=int, default=default)
    args = args.parse_args()
    with tempfile.TemporaryDirectory() as top:
        indexing(Path(top), args.photos)
        updating(Path(top), args.many)
        querying(Path(top), args.vectors)
    print(f'{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (others on the machine count); '
          f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.1f} GiB of memory at most')


if __name__ == '__main__': main()
