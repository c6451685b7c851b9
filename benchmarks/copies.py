"""Near duplicates: copies of which edits are found, and how many other photos are taken for copies.

    python benchmarks/copies.py GROCERY CARS [--copies 120]

GROCERY is the `dataset` folder of the Grocery Store Dataset, CARS a folder of Cars-196's training images. The kind of
hash and the thresholds were chosen on the first half of grocery's classes (`choice`). The other parts report: the
second half, cars, and `products`, grocery's pictures of its products on white. For each edit a library is made, of all
photos of a part and an edited copy of some of them. Writes results/copies.csv. What was decoded and embedded is kept in
scratch/copies; it takes half an hour of one core.
"""
import argparse, io, itertools, random
from pathlib import Path
import imagehash, numpy as np, torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from plm.copies import FEATURES, HASH, HEAD, near_duplicates
from plm.core import progress, whole_file, write_csv
from plm.encoder import embed
from plm.photos import decode_image
from plm.pretraining import Features, features_encoder, new_encoder
from plm.search import load_photos

ROOT = Path(__file__).parents[1]
MOST_FALSE = 1/200 # pairs of different photos that may be named copies, for each photo: what thresholds are chosen by


def scaled(im, factor): return im.resize([max(16, round(s*factor)) for s in im.size], Image.Resampling.LANCZOS)


def cut(im, share, rng):
    "So much of width and height is cut away, on the four sides at random."
    (w, h), (x, y) = im.size, rng.uniform(0, share, 2)
    return im.crop([round(v) for v in (x*w, y*h, (x + 1 - share)*w, (y + 1 - share)*h)])


def rotated(im, degrees):
    "And cut, so that no empty corner is left."
    (w, h), angle = im.size, np.deg2rad(degrees)
    s = 1/(np.cos(angle) + max(w/h, h/w)*np.sin(angle))
    box = [round(v) for v in (w*(1 - s)/2, h*(1 - s)/2, w*(1 + s)/2, h*(1 + s)/2)]
    return im.rotate(degrees, Image.Resampling.BICUBIC).crop(box)


def with_banner(im):
    im, (w, h) = im.copy(), im.size
    pen = ImageDraw.Draw(im)
    pen.rectangle((0, 0.86*h, w, h), fill='white')
    pen.text((0.05*w, 0.87*h), 'A happy new year!', 'black', font_size=0.08*h)
    return im


def screenshot(im):
    "The photo across a telephone, black above and below."
    page = Image.new('RGB', (360, 780), 'black')
    pen, small = ImageDraw.Draw(page), ImageOps.contain(im, (360, 700))
    pen.text((16, 8), '10:42', 'white', font_size=16)
    pen.rectangle((130, 768, 230, 772), fill='white')
    page.paste(small, ((360 - small.width)//2, (780 - small.height)//2))
    return page


EDITS = { # name -> what is done, of which a JPEG of quality 90 is made
    'half size': lambda im, rng: scaled(im, 0.5), 'quarter size': lambda im, rng: scaled(im, 0.25),
    '200 pixels': lambda im, rng: scaled(im, 200/max(im.size)),
    **{name: lambda im, rng: im for name in ('JPEG 90', 'JPEG 70', 'JPEG 40', 'JPEG 20', 'PNG', 'WebP 80')},
    'crop 2 %': lambda im, rng: cut(im, 0.02, rng), 'crop 5 %': lambda im, rng: cut(im, 0.05, rng),
    'crop 10 %': lambda im, rng: cut(im, 0.1, rng),
    'central square': lambda im, rng: ImageOps.fit(im, (min(im.size),)*2),
    'brighter': lambda im, rng: ImageEnhance.Brightness(im).enhance(1.3),
    'darker': lambda im, rng: ImageEnhance.Brightness(im).enhance(0.7),
    'contrast': lambda im, rng: ImageEnhance.Contrast(im).enhance(1.3),
    'grey': lambda im, rng: ImageOps.grayscale(im),
    'blur': lambda im, rng: im.filter(ImageFilter.GaussianBlur(min(im.size)/150)),
    'rotate 1°': lambda im, rng: rotated(im, 1), 'rotate 3°': lambda im, rng: rotated(im, 3),
    'mirror': lambda im, rng: ImageOps.mirror(im),
    'border 5 %': lambda im, rng: ImageOps.expand(im, round(min(im.size)/20), 'white'),
    'banner': lambda im, rng: with_banner(im), 'screenshot': lambda im, rng: screenshot(im)}


def edited(im, name, rng):
    "The bytes of the copy."
    kind, quality = name.split() if name.startswith(('JPEG', 'WebP')) else ('PNG' if name == 'PNG' else 'JPEG', 90)
    file = io.BytesIO()
    EDITS[name](im, rng).save(file, kind, quality=int(quality))
    return file


def parts(grocery, cars):
    "Name of a part -> its photos."
    lines = [line.split(',') for split in ('train', 'val', 'test') for line in (grocery/f'{split}.txt').open()]
    found = {'grocery 0-40': [], 'grocery 41-80': []}
    for file, label, _ in lines: found['grocery 0-40' if int(label) <= 40 else 'grocery 41-80'].append(grocery/file)
    found['cars'] = random.Random(0).sample(sorted(cars.rglob('*.jpg')), 2000)
    found['products'] = sorted((grocery/'iconic-images-and-descriptions').rglob('*.jpg'))
    return found


HASHES = {'dhash': (imagehash.dhash, False), 'phash': (imagehash.phash, False),
          'dhash of the whole': (imagehash.dhash, True), 'phash of the whole': (imagehash.phash, True)}


def hashes_of(im):
    "The 64 bits of each kind of hash. The first is `photo_hash`."
    squares = {squeeze: Image.fromarray(decode_image(im, squeeze=squeeze).pixels.transpose(1, 2, 0))
               for squeeze in (False, True)}
    return [np.packbits(kind(squares[squeeze]).hash) for kind, squeeze in HASHES.values()]


def prepared(name, files, copies, net):
    """Hashes (N, 4, 8), features (N, F) and sizes (N, 3) of all photos, then of the copies, edit by edit, and which
    photos were copied."""
    file = ROOT/f'scratch/copies/{name}-{copies}.npz'
    if not file.exists():
        pick = sorted(random.Random(0).sample(range(len(files)), min(copies, len(files))))
        def images():
            for f in files: yield Image.open(f), f.stat().st_size
            for edit, i in itertools.product(EDITS, pick):
                copy = edited(Image.open(files[i]).convert('RGB'), edit, np.random.default_rng(i))
                yield Image.open(copy), copy.getbuffer().nbytes
        hashes, features, sizes, todo = [], [], [], iter(images())
        total = len(files) + len(EDITS)*len(pick)
        for some in progress(iter(lambda: list(itertools.islice(todo, 64)), []), name, -(-total//64)):
            sizes += [(*im.size, size) for im, size in some]
            hashes += [hashes_of(im) for im, _ in some]
            pixels = np.stack([decode_image(im).pixels for im, _ in some])
            features.append(embed(net, torch.from_numpy(pixels)).half().numpy())
        with whole_file(file) as tmp, open(tmp, 'wb') as f:
            np.savez(f, H=np.stack(hashes), Z=np.concatenate(features), S=np.array(sizes), pick=pick)
    found = np.load(file)
    return found['H'], torch.from_numpy(found['Z']), found['S'], found['pick']


def embedded(z, n):
    "The features at unit length, and behind a head that has seen the n photos."
    found = {'features': F.normalize(z.float(), dim=1)}
    if n > 600: # more than the head's outputs
        head = features_encoder(z[:n, None], dim=512, kind='neighbors')
        found['head'] = F.normalize(embed(head, z[:, None]), dim=1)
    return found


def pairs(H, z, pick, n):
    "Bits and distances of all pairs of different photos, and of copies and their photos (edits, copies)."
    a, b = np.triu_indices(n, 1)
    codes = np.ascontiguousarray(H).view(np.uint64)[:, 0]
    z = z.numpy()
    distances = np.sqrt((2 - 2*z[:n] @ z[:n].T).clip(0))
    copy_bits = np.bitwise_count(codes[n:].reshape(-1, len(pick)) ^ codes[pick])
    copy_distances = np.linalg.norm(z[n:].reshape(-1, len(pick), z.shape[1]) - z[pick], axis=2)
    return np.bitwise_count(codes[a] ^ codes[b]), distances[a, b], copy_bits, copy_distances


def choice(H, z, pick, n):
    "Of a list of thresholds those that find most copies, with so few false pairs: kind -> (false, found, values)."
    def best(tries, rule, *given):
        bits, d, copy_bits, copy_d = given
        found = [(rule(bits, d, *t).sum().item(), rule(copy_bits, copy_d, *t).sum().item(), t) for t in tries]
        return max((f for f in found if f[0] <= MOST_FALSE*n), key=lambda f: f[1])
    chosen = {kind: best([(t,) for t in range(17)], lambda bits, d, t: bits <= t,
                         *pairs(H[:, k], z['features'], pick, n)) for k, kind in enumerate(HASHES)}
    grid = list(itertools.product((4, 6), (12, 16, 20), (0.3, 0.4, 0.5, 0.6)))
    for kind, x in z.items():
        chosen[kind] = best(grid, lambda bits, d, alone, most, copy: (bits <= alone) | (bits <= most) & (d <= copy),
                            *pairs(H[:, 0], x, pick, n))
    return chosen


def found_in(groups, n, pick):
    "Of n photos and a copy of each in `pick`: copies found as copies, as scenes; members of either that are others."
    of, scene, false = np.arange(n + len(pick)), np.arange(n + len(pick)), dict.fromkeys(('copy', 'same scene'), 0)
    photo = np.concatenate([np.arange(n), pick])
    for g in groups:
        (of if g.kind == 'copy' else scene)[g.rows] = g.rows[0]
        false[g.kind] += (photo[g.rows] != photo[g.rows[0]]).sum().item()
    copies = np.arange(n, n + len(pick))
    as_copy = of[copies] == of[pick]
    as_scene = ~as_copy & (scene[of[copies]] == scene[of[pick]])
    return dict(copies=len(pick), copy=as_copy.sum().item(), scene=as_scene.sum().item(), false_copies=false['copy'],
                false_scenes=false['same scene'])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for folder in ('grocery', 'cars'): parser.add_argument(folder, type=Path)
    parser.add_argument('--copies', type=int, default=120)
    args, rows = parser.parse_args(), []
    torch.set_num_threads(1)
    net = Features(new_encoder(load_photos(ROOT/'pipelines/photos/params.yaml').train, begin=True))
    for part, files in parts(args.grocery, args.cars).items():
        n = len(files)
        H, z, sizes, pick = prepared(part, files, args.copies, net)
        z = embedded(z, n)
        if part == 'grocery 0-40':
            for kind, (false, found, values) in choice(H, z, pick, n).items():
                rows.append(dict(part=part, way=kind, edit='all', photos=n, copies=len(EDITS)*len(pick), copy=found,
                                 false_copies=false, values=' '.join(map(str, values))))
        ways = {'hash': (None, HASH), 'features': (z['features'], FEATURES),
                'both': (z['features'], FEATURES._replace(alone=-1))}
        if 'head' in z: ways['head'] = z['head'], HEAD
        for (way, (x, reach)), (e, edit) in itertools.product(ways.items(), enumerate(EDITS)):
            own = np.r_[:n, n + e*len(pick):n + (e + 1)*len(pick)]
            groups = near_duplicates(H[own, 0], None if x is None else x[own], sizes[own], reach)
            rows.append(dict(part=part, way=way, edit=edit, photos=n, **found_in(groups, n, pick)))
    write_csv(rows, ROOT/'results/copies.csv')


if __name__ == '__main__': main()
