"""The map of many photos: how long its page takes to write, what it weighs, and what it costs in a real browser.

    python benchmarks/map.py [--photos 50000]

Prints figures and writes nothing. The photos are crops of scikit-learn's two, in 300 heaps on a plane. The browser is a
headless Chromium without a GPU, so it paints on the processor (the tests' own driver, `tests/browser.py`). A repaint is
timed with all that it draws, to the last pixel.
"""
import argparse, os, resource, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from scipy.spatial import cKDTree
from sklearn.datasets import load_sample_images
from plm.map import write_map

sys.path.append(str(Path(__file__).parent.parent/'tests'))
from browser import Browser

PAN = """const times = [];
for (let n = 0; n < 21; n++) {
  const begun = performance.now();
  move(n % 2 ? 9 : -9, 3); paint(); pen.getImageData(0, 0, 1, 1);
  times.push(performance.now() - begun);
}
return [times.sort((a, b) => a - b)[10], times[20], ...look(side()).map(list => list.length), side()];"""


def made(n, path):
    "Write the page; what it took."
    rng, photos = np.random.default_rng(0), load_sample_images().images
    images = np.empty((n, 3, 48, 48), np.uint8)
    for i, (x, y) in enumerate(rng.integers(0, 370, (n, 2))):
        images[i] = photos[i % 2][y:y + 48, x:x + 48].transpose(2, 0, 1)
    heaps = rng.normal(size=(300, 2))
    xy = heaps[rng.integers(0, 300, n)] + rng.normal(0, 0.06, (n, 2))
    other = heaps[rng.integers(0, 300, n)] + rng.normal(0, 0.06, (n, 2))
    near = cKDTree(xy).query(xy, 10)[1][:, 1:]
    files = [f'{2015 + i % 9}/some holiday/IMG_{i:05}.jpg' for i in range(n)]
    labels, before = torch.arange(n) % 300, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter(), time.process_time()
    write_map(path, '', '', images, {'before': {'a': other, 'b': xy}, 'after': {'a': xy, 'b': other}},
              {'before': near, 'after': near}, labels, files=files, folder=path.parent)
    wall, processor = time.perf_counter() - began[0], time.process_time() - began[1]
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024
    print(f'{n:,} photos: {path.stat().st_size/1e6:.1f} MB, written in {wall:.1f} s ({processor:.1f} s of the '
          f'processor), {more:.0f} MiB of memory on top of the images')


def shown(browser, path):
    "Open it, move it, search in it."
    browser.window(1400, 900)
    began = time.perf_counter()
    browser.open(path)
    while not browser.js("return document.body.dataset.ready === 'yes'"): time.sleep(0.01)
    print(f'usable after {time.perf_counter() - began:.2f} s; '
          'the map is {} x {} pixels'.format(*browser.js('return [width, height]')))
    for k in (1, 2, 3, 4, 6, 8, 16, 40):
        began = time.perf_counter()
        browser.js('fit(); zoom(arguments[0], ...spot(7)); paint()', k)
        while browser.js('return loading'): time.sleep(0.01)
        waited, sheets = time.perf_counter() - began, browser.js('return sheets.filter(s => s.picture).length')
        median, most, _, dots, images, side = browser.js(PAN)
        print(f'zoom {k:2}: repaint {median:5.1f} ms (at most {most:5.1f}), {dots:6,} points, {images:5,} images of '
              f'{side:.0f} pixels; {sheets} sheets decoded, {waited:.2f} s for the new ones')
    for what, code in (('a search', "$('find').value = 'img_012'; $('find').oninput()"),
                       ('failures', "$('failures').click()"), ('what is under the pointer', 'nearestTo(300, 300, 14)')):
        took = browser.js(f'const begun = performance.now(); {code}; return performance.now() - begun')
        print(f'{what}: {took:.1f} ms')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--photos', type=int, default=50_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'map.html'
        made(parser.parse_args().photos, path)
        with Browser(folder) as browser: shown(browser, path)
    print(f'{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (others on the machine count)')


if __name__ == '__main__': main()
