"""The published sets and groceries in miniature: archives in exactly the official layouts, a few classes of tiny JPEGs.

`write_archives` returns the record that fits."""
import hashlib, io, tarfile, zipfile
from dataclasses import replace
from pathlib import Path
import numpy as np
from PIL import Image
from scipy.io import savemat
from plm.datasets import PUBLISHED


def jpeg(seed, mode='RGB'):
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8) if mode == 'L' else (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out := io.BytesIO(), 'JPEG')
    return out.getvalue()


def write_tgz(path, members):
    with tarfile.open(path, 'w:gz') as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if data is None: info.type = tarfile.DIRTYPE
            else: info.size = len(data)
            t.addfile(info, io.BytesIO(data or b''))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, 'w') as z:
        for name, data in members.items(): z.writestr(name, data or b'')
    return path


def text(*lines): return ('\n'.join(lines) + '\n').encode()


def cub200(classes=6, per_class=3):
    species = [f'{c:03d}.Species_{c:x}' for c in range(1, classes + 1)]
    images = [(f'{s}/{s[4:]}_{i:04d}_{7*c + i}.jpg', c) for c, s in enumerate(species, 1) for i in range(per_class)]
    return {'CUB_200_2011.tgz': {
        'attributes.txt': text('1 has_bill_shape::curved'), 'CUB_200_2011': None,
        'CUB_200_2011/classes.txt': text(*(f'{c} {s}' for c, s in enumerate(species, 1))),
        'CUB_200_2011/images.txt': text(*(f'{i} {f}' for i, (f, _) in enumerate(images, 1))),
        'CUB_200_2011/image_class_labels.txt': text(*(f'{i} {c}' for i, (_, c) in enumerate(images, 1))),
        # of classification; not to be used
        'CUB_200_2011/train_test_split.txt': text(*(f'{i} {i % 2}' for i in range(1, len(images) + 1))),
        **{f'CUB_200_2011/images/{f}': jpeg(n, 'L' if n == 4 else 'RGB') for n, (f, _) in enumerate(images)}}}


def cars196(classes=6, per_class=3):
    images = [(f'car_ims/{n + 1:06d}.jpg', n//per_class + 1) for n in range(classes*per_class)]
    fields = ('relative_im_path', 'bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class', 'test')
    annotations = np.zeros((1, len(images)), [(k, object) for k in fields])
    for n, (f, c) in enumerate(images): annotations[0, n] = (f, *(np.array([[v]]) for v in (1, 2, 7, 8, c, n % 2)))
    names = np.array([[f'AM Model {c}/X 20{c:02d}' for c in range(1, classes + 1)]], dtype=object)
    savemat(mat := io.BytesIO(), {'annotations': annotations, 'class_names': names})
    return {'car_ims.tgz': {'car_ims': None, **{f: jpeg(100 + n) for n, (f, _) in enumerate(images)}},
            'cars_annos.mat': mat.getvalue()}


def sop(classes=7, train=4):
    kinds = ['bicycle', 'chair', 'toaster']
    files, lists = {}, {'train': [], 'test': []}
    for c in range(1, classes + 1):
        kind = (c - 1) % 3
        for i in range(2 + c % 2):
            f = f'{kinds[kind]}_final/1110{c:04d}_{i}.JPG'
            files[f'Stanford_Online_Products/{f}'] = jpeg(200 + len(files))
            lists['train' if c <= train else 'test'].append(f'{len(files)} {c} {kind + 1} {f}')
    header = 'image_id class_id super_class_id path'
    return {'Stanford_Online_Products.zip': {'Stanford_Online_Products/': None,
                                             **{f'Stanford_Online_Products/Ebay_{k}.txt': text(header, *v)
                                                for k, v in lists.items()}, **files,
                                             '__MACOSX/Stanford_Online_Products/._Ebay_train.txt': b'\0\5\26\7'}}


def inshop(classes=7, train=4):
    rows, files = [], {}
    for c in range(1, classes + 1):
        for i in range(4):
            f = f'img/{"MEN" if c % 2 else "WOMEN"}/Denim/id_{c:08d}/{i + 1:02d}_{i + 1}_front.jpg'
            files[f] = jpeg(300 + len(files))
            rows.append(f'{f:<80} id_{c:08d} {"train" if c <= train else "gallery" if i % 2 else "query"}')
    return {'img.zip': files,
            'list_eval_partition.txt': text(str(len(rows)), 'image_name item_id evaluation_status', *rows)}


def vehicleid():
    images = {v: [f'{1000*v + i:07d}' for i in range(2 + v % 3)] for v in (7, 3, 12, 9, 21, 15, 30, 28)}
    def listed(*vehicles): return text(*(f'{i} {v}' for v in vehicles for i in images[v]))
    lists = {'train_list': listed(12, 7, 3), 'test_list_800': listed(9, 21), 'test_list_1600': listed(21, 9, 15),
             'test_list_2400': listed(30, 9, 21, 15, 28)}
    return {'VehicleID_V1.0.zip': {**{f'VehicleID_V1.0/train_test_split/{k}.txt': v for k, v in lists.items()},
                                   **{f'VehicleID_V1.0/image/{i}.jpg': jpeg(int(i)) for v in images
                                      for i in images[v]}}}


def grocery(classes=6):
    names = [f'Sort-{c:x}' for c in range(classes)]
    pairs = {part: [(f'{part}/{"Fruit" if c < 3 else "Packages"}/{name}/{name}_{i:03d}.jpg', c)
                    for c, name in enumerate(names) for i in range(1, n + 1) if part != 'val' or c != 5]
             for part, n in (('train', 2), ('val', 1), ('test', 2))} # in the real val.txt classes are missing, too
    files = [f for part in pairs.values() for f, _ in part]
    header = 'Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Icon,Description'
    rows = [header, *(f'{name},{c},Sort,{c//3},/i.jpg,/d.txt' for c, name in enumerate(names))]
    of = {'LICENSE': b'MIT License',
          'dataset/classes.csv': '\r\n'.join(rows).encode(),
          **{f'dataset/{part}.txt': text(*(f'{f}, {c}, {c//3}' for f, c in listed)) for part, listed in pairs.items()},
          **{f'dataset/{f}': jpeg(400 + n) for n, f in enumerate(files)}}
    others = {'README.md': b'# Grocery', 'dataset/iconic-images-and-descriptions/i.jpg': jpeg(399),
              f'dataset/{Path(files[0]).parent}/not-listed.jpg': jpeg(398)}
    return {'GroceryStoreDataset-master.zip': {f'GroceryStoreDataset-master/{f}': b for f, b in (of | others).items()}}


def sums_of_grocery(contents):
    "What plm/web/grocery.sha256 says of the real set: a line for each list, and one for each folder of listed images."
    members, = contents.values()
    files = {f.partition('/')[2]: data for f, data in members.items()}
    def sha256(data): return hashlib.sha256(data).hexdigest()
    listed = [f'dataset/{line.split(b",")[0].decode()}' for part in ('train', 'val', 'test')
              for line in files[f'dataset/{part}.txt'].splitlines()]
    lines = [f'{sha256(files[f])}  {f}' for f in ('LICENSE', 'dataset/classes.csv', 'dataset/train.txt',
                                                  'dataset/val.txt', 'dataset/test.txt')]
    for folder in sorted({str(Path(f).parent) for f in listed}):
        own = sorted(f for f in listed if str(Path(f).parent) == folder)
        lines.append(f"{sha256(text(*(f'{sha256(files[f])}  {Path(f).name}' for f in own)))}  {folder}/")
    return '\n'.join(lines) + '\n'


CONTENTS = {'cub200': cub200, 'cars196': cars196, 'sop': sop, 'inshop': inshop, 'vehicleid': vehicleid,
            'grocery': grocery}
EXPECTED = {'cub200': dict(classes=(3, 3), images=(9, 9)), 'cars196': dict(classes=(3, 3), images=(9, 9)),
            'sop': dict(classes=(4, 3), images=(10, 8)),
            'inshop': dict(classes=(4, 3), images=(16, 12)),
            'vehicleid': dict(classes=(3, None),
                              galleries={'small': ('test_list_800.txt', 2), 'medium': ('test_list_1600.txt', 3),
                                         'large': ('test_list_2400.txt', 5)}),
            'grocery': dict(classes=(3, 3), images=(15, 14))}


def write_archives(name, folder, contents=None):
    """Write the archives of a set into `folder`; return its record with the numbers of the miniature.

    Where the official sums are known, it has its own. Those of the files of `grocery` are the right ones, whatever the
    contents."""
    contents, folder = contents or CONTENTS[name](), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    archives = []
    for a in PUBLISHED[name].archives:
        path, what = folder/a.name, contents[a.name]
        if isinstance(what, bytes): path.write_bytes(what)
        else: (write_tgz if path.suffix == '.tgz' else write_zip)(path, what)
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        archives.append(replace(a, size=a.size and path.stat().st_size, checksum=a.checksum and f'md5:{md5}'))
    more = EXPECTED[name]
    if PUBLISHED[name].sums:
        sums = folder.parent/f'{name}.sha256'
        sums.write_text(sums_of_grocery(CONTENTS[name]()))
        more = more | {'sums': sums}
    return replace(PUBLISHED[name], archives=tuple(archives), **more)


def write_unpacked(name, folder, contents=None):
    "The same, as it lies on disk after unpacking (`grocery` without the folder around it, and with files of no use)."
    for archive, what in (contents or CONTENTS[name]()).items():
        for member, data in (what.items() if isinstance(what, dict) else [(archive, what)]):
            path = Path(folder)/(member.partition('/')[2] if name == 'grocery' else member)
            (path if data is None else path.parent).mkdir(parents=True, exist_ok=True)
            if data is not None: path.write_bytes(data)
    return Path(folder)
