"The published benchmarks, data sets as files, what training may see. No network, no real archives."
import hashlib, json, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from plm import datasets
from plm.core import Constants, read_constants
from plm.datasets import (DATASETS, PHOTOS, PUBLISHED, SPLITS, Split, draw_gallery, fetch_published, load_images,
                          load_labels, load_rounds, make_dataset, photo_splits, published_splits, recall_ks,
                          save_photos, save_splits)
from miniature_published import CONTENTS, write_archives, write_unpacked, write_zip
from reference_datasets import draw_slowly, split_slowly

NAMES = list(PUBLISHED)


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch): monkeypatch.delenv('PLM_MIRROR', raising=False)


@pytest.fixture
def mini(tmp_path, monkeypatch):
    "A function that writes the miniature of a set to a mirror folder, puts its record in use, and returns the mirror."
    def make(name, contents=None):
        monkeypatch.setitem(PUBLISHED, name, write_archives(name, tmp_path/'mirror', contents))
        return tmp_path/'mirror'
    return make


def files_in(folder): return sorted(p.name for p in folder.iterdir())


# ---- records

def test_records_are_the_published_ones():
    assert NAMES == ['cub200', 'cars196', 'sop', 'inshop', 'vehicleid', 'grocery']
    assert {p.ks for p in PUBLISHED.values()} == {(1, 2, 4, 8), (1, 10, 100, 1000), (1, 10, 20, 30), (1, 5)}
    assert PUBLISHED['sop'].classes == (11318, 11316) and PUBLISHED['sop'].images == (59551, 60502)
    assert sum(PUBLISHED['sop'].images) == 120053
    assert sum(PUBLISHED['cub200'].images) == 11788 and sum(PUBLISHED['cars196'].images) == 16185
    assert sum(PUBLISHED['inshop'].images) == 52712
    for p in PUBLISHED.values():
        for a in p.archives:
            kind, _, digits = (a.checksum or 'none:').partition(':')
            assert len(digits) == {'md5': 32, 'sha256': 64, 'none': 0}[kind]
    # the others ask for an agreement, or are gone
    assert [n for n, p in PUBLISHED.items() if p.archives[0].url] == ['cub200', 'sop', 'grocery']


# ---- splits

@pytest.mark.parametrize('name', NAMES)
def test_splits_follow_the_official_lists(mini, tmp_path, name):
    root = fetch_published(name, tmp_path/'downloads', mini(name))
    record, splits = PUBLISHED[name], published_splits(name, root, val_every=3)
    slow = split_slowly(name, root, record.classes[0])
    got = {k: {(f, s.class_names[l]) for f, l in zip(s.files, s.labels)} for k, s in splits.items()}
    assert got['train'] | got['val'] == {r[:2] for r in slow['train']} and got['test'] == {r[:2] for r in slow['test']}
    assert len(splits['val'].class_names) == record.classes[0]//3
    assert not set(splits['val'].class_names) & set(splits['train'].class_names)
    for s in splits.values():
        assert s.labels.dtype == np.int64 and len(s.labels) == len(s.files) == len(set(s.files))
        assert np.array_equal(np.unique(s.labels), np.arange(len(s.class_names)))
        assert all(Path(f).is_file() for f in s.files)
    whole = published_splits(name, root, val_every=None)
    assert list(whole) == ['train', 'test'] and set(whole['train'].files) == {r[0] for r in slow['train']}
    assert whole['test'].files == splits['test'].files
    assert not splits['train'].rounds and not splits['val'].rounds


@pytest.mark.parametrize('name', NAMES)
def test_val_is_every_so_many_th_class(mini, tmp_path, name):
    root = fetch_published(name, tmp_path/'downloads', mini(name))
    every = published_splits(name, root, val_every=None)['train'].class_names
    assert published_splits(name, root, val_every=2)['val'].class_names == every[1::2]
    for bad in (1, 0, -3):
        with pytest.raises(ValueError, match='val_every must be 2 or more'): published_splits(name, root, val_every=bad)
    with pytest.raises(ValueError, match="Did you mean 'cub200'"): published_splits('cub20', root)


def test_inshop_has_one_round(mini, tmp_path):
    test = published_splits('inshop', fetch_published('inshop', tmp_path/'downloads', mini('inshop')))['test']
    (query, gallery), = test.rounds['inshop']
    slow = {f: role for f, _, role in split_slowly('inshop', tmp_path/'downloads/inshop/unpacked', 4)['test']}
    assert {slow[test.files[i]] for i in query} == {'query'} and {slow[test.files[i]] for i in gallery} == {'gallery'}
    assert sorted([*query, *gallery]) == list(range(12)) and set(test.labels[query]) == set(test.labels[gallery])


def test_inshop_as_the_official_folders_have_it(tmp_path, monkeypatch):
    root = write_unpacked('inshop', tmp_path/'in')
    monkeypatch.setitem(PUBLISHED, 'inshop', write_archives('inshop', tmp_path/'mirror'))
    flat = published_splits('inshop', root)
    for sub, what in (('Img', 'img'), ('Eval', 'list_eval_partition.txt')):
        (root/sub).mkdir()
        (root/what).rename(root/sub/what)
    assert [f.replace('/Img/', '/') for f in published_splits('inshop', root)['test'].files] == flat['test'].files


def test_vehicleid_has_ten_rounds_for_each_size(mini, tmp_path):
    root = fetch_published('vehicleid', tmp_path/'downloads', mini('vehicleid'))
    test = published_splits('vehicleid', root)['test']
    assert {k: len(v) for k, v in test.rounds.items()} == {'small': 10, 'medium': 10, 'large': 10}
    for size, number in (('small', 800), ('medium', 1600), ('large', 2400)):
        listed = {f'{int(l.split()[0]):07d}.jpg'
                  for l in open(root/f'VehicleID_V1.0/train_test_split/test_list_{number}.txt')}
        vehicles = {l.split()[1] for l in open(root/f'VehicleID_V1.0/train_test_split/test_list_{number}.txt')}
        for query, gallery in test.rounds[size]:
            assert {Path(test.files[i]).name for i in [*query, *gallery]} == listed and not set(query) & set(gallery)
            assert sorted(test.class_names[l] for l in test.labels[gallery]) == sorted(vehicles)
        assert len({tuple(g) for _, g in test.rounds[size]}) > 1
    again = published_splits('vehicleid', root)['test']
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(again.rounds['large'], test.rounds['large']))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 6), max_size=25), st.integers(0, 5))
def test_draw_against_the_slow_twin(labels, seed):
    query, gallery = draw_gallery(np.array(labels, int), seed)
    assert (query.tolist(), gallery.tolist()) == draw_slowly(labels, seed)


def test_every_image_has_its_chance():
    drawn = np.bincount([draw_gallery(np.zeros(5, int), seed)[1][0] for seed in range(500)], minlength=5)
    assert (70 < drawn).all() and (drawn < 130).all() # 100 each; 3.4 standard deviations


# ---- against pytorch-metric-learning's readers

def pml_pairs(reader, root, split):
    data = reader(root=str(root), split=split)
    return list(zip(data.paths, data.labels))


@pytest.mark.parametrize('name, reader', [('cub200', 'CUB'), ('sop', 'StanfordOnlineProducts')])
def test_same_files_and_labels_as_pytorch_metric_learning(tmp_path, monkeypatch, name, reader):
    from pytorch_metric_learning import datasets
    official = PUBLISHED[name]
    # its CUB has the number 100 built in
    contents = CONTENTS['cub200'](classes=200, per_class=1) if name == 'cub200' else CONTENTS[name]()
    record = write_archives('sop', tmp_path/'mirror') if name == 'sop' else replace(official, images=(100, 100))
    monkeypatch.setitem(PUBLISHED, name, record)
    splits = published_splits(name, write_unpacked(name, tmp_path/'in', contents), val_every=None)
    for side, split in splits.items():
        theirs = pml_pairs(getattr(datasets, reader), tmp_path/'in', side)
        assert [f for f, _ in theirs] == split.files
        number = {'cub200': lambda n: int(n[:3]), 'sop': lambda n: int(n.split('/')[1])}[name]
        assert [l for _, l in theirs] == [number(split.class_names[l]) for l in split.labels]


def test_cars_of_pytorch_metric_learning_are_another_layout_but_the_same_halves(tmp_path, monkeypatch):
    "Its reader wants a re-packing into folders by class (Kaggle), not the official files. The halves are equal."
    from pytorch_metric_learning.datasets import Cars196
    contents = CONTENTS['cars196'](classes=196, per_class=1)
    monkeypatch.setitem(PUBLISHED, 'cars196', replace(PUBLISHED['cars196'], images=(98, 98)))
    root = write_unpacked('cars196', tmp_path/'in', contents)
    splits = published_splits('cars196', root, val_every=None)
    with pytest.raises(FileNotFoundError): Cars196(root=str(root), split='train')
    names = [n for s in splits.values() for n in s.class_names]
    (root/'names.csv').write_text('\n'.join(names))
    (root/'anno_train.csv').write_text(''.join(f'{c:05d}.jpg,1,2,7,8,{c}\n' for c in range(1, 197)))
    (root/'anno_test.csv').write_text(''.join(f'{c:05d}.jpg,1,2,7,8,{c}\n' for c in range(1, 197)))
    for side, split in splits.items():
        assert sorted({names[l - 1] for _, l in pml_pairs(Cars196, root, side)}) == sorted(split.class_names)
        assert len(split.class_names) == 98


def test_where_the_reader_of_pytorch_metric_learning_is_wrong(tmp_path, monkeypatch):
    "It joins CUB's two lists line by line, and drops, without a word, each image whose lines do not meet."
    from pytorch_metric_learning.datasets import CUB
    contents = CONTENTS['cub200'](classes=200, per_class=1)
    lists = contents['CUB_200_2011.tgz']
    lines = lists['CUB_200_2011/images.txt'].split(b'\n')
    lists['CUB_200_2011/images.txt'] = b'\n'.join([lines[1], lines[0], *lines[2:]]) # the same list, two lines exchanged
    monkeypatch.setitem(PUBLISHED, 'cub200', replace(PUBLISHED['cub200'], images=(100, 100)))
    root = write_unpacked('cub200', tmp_path/'in', contents)
    assert len(CUB(root=str(root), split='train')) == 98
    split = published_splits('cub200', root, val_every=None)['train']
    assert len(split.files) == 100 and [split.class_names[l][:3] for l in split.labels[:3]] == ['002', '001', '003']


def test_what_pytorch_metric_learning_fetches_is_not_checked(tmp_path, monkeypatch):
    "Whatever arrives is unpacked, and any folder that is not empty passes for the whole set."
    from pytorch_metric_learning.datasets import CUB, cub
    mirror = write_archives('cub200', tmp_path/'mirror') and tmp_path/'mirror' # another archive than the official one
    monkeypatch.setattr(cub, '_urlretrieve', lambda url, filename: shutil.copyfile(mirror/'CUB_200_2011.tgz', filename))
    assert len(CUB(root=str(tmp_path/'new'), split='train', download=True)) == 18
    (tmp_path/'begun'/'CUB_200_2011').mkdir(parents=True)
    with pytest.raises(FileNotFoundError): CUB(root=str(tmp_path/'begun'), split='train', download=True)
    assert files_in(tmp_path/'begun') == ['CUB_200_2011'] # nothing was fetched


# ---- sets that are not whole, or not the right ones

@pytest.mark.parametrize('name', NAMES)
def test_a_missing_list_or_image_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(PUBLISHED, name, write_archives(name, tmp_path/'mirror'))
    root = write_unpacked(name, tmp_path/'in')
    image = Path(min(f for s in published_splits(name, root).values() for f in s.files))
    image.rename(tmp_path/'away')
    with pytest.raises(FileNotFoundError, match='and 0 other images.*listed but missing') as e:
        published_splits(name, root)
    assert str(image) in str(e.value)
    (tmp_path/'away').rename(image)
    unused = {'train_test_split.txt', 'attributes.txt', '._Ebay_train.txt'}
    for l in [p for p in root.rglob('*') if p.suffix in ('.txt', '.mat') and p.name not in unused]:
        l.rename(tmp_path/'away')
        with pytest.raises(FileNotFoundError, match=l.name): published_splits(name, root)
        (tmp_path/'away').rename(l)
    with pytest.raises(FileNotFoundError): published_splits(name, tmp_path/'nowhere')


@pytest.mark.parametrize('name', NAMES)
def test_too_few_classes(tmp_path, name):
    "The miniature against the official numbers."
    with pytest.raises(ValueError, match=r'\d (classes|vehicles)\b.*\d'):
        published_splits(name, write_unpacked(name, tmp_path/'in'))


def edited(name, file, change):
    contents = CONTENTS[name]()
    for members in contents.values():
        if isinstance(members, dict) and file in members: members[file] = change(members[file])
    if file in contents: contents[file] = change(contents[file])
    return contents


@pytest.mark.parametrize('name, file, change, message', [
    ('cub200', 'CUB_200_2011/images.txt', lambda b: b + b'19 too many words\n',
     'images.txt, line 19: expected 2 words'),
    ('cub200', 'CUB_200_2011/image_class_labels.txt', lambda b: b.replace(b'5 2', b'5 two'),
     "image_class_labels.txt: expected a number, got 'two'"),
    ('cub200', 'CUB_200_2011/image_class_labels.txt', lambda b: b.replace(b'18 6\n', b''), 'lacks 1 images'),
    ('cub200', 'CUB_200_2011/classes.txt', lambda b: b.split(b'\n')[0], 'class 2 has images but no name'),
    ('cub200', 'CUB_200_2011/classes.txt', lambda b: b'', 'class 1 has images but no name'),
    ('cub200', 'CUB_200_2011/images.txt', lambda b: b + b.split(b'\n')[0] + b'\n',
     '1 images are listed more than once'),
    ('cub200', 'CUB_200_2011/images.txt', lambda b: b'\n'.join(b.split(b'\n')[1:]),
     '8 images on the training side, official are 9'),
    ('cub200', 'CUB_200_2011/images.txt', lambda b: b'', ': 0 classes on the training side'),
    ('cars196', 'cars_annos.mat', lambda b: b[:200], 'cars_annos.mat is damaged or not the official file'),
    ('cars196', 'cars_annos.mat', lambda b: b'<html>', 'cars_annos.mat is damaged or not the official file'),
    ('sop', 'Stanford_Online_Products/Ebay_test.txt', lambda b: b.replace(b' 7 1 ', b' 4 1 '),
     '1 classes are on both sides, for instance bicycle/4'),
    ('sop', 'Stanford_Online_Products/Ebay_test.txt', lambda b: b.replace(b' bicycle_final/', b' ../../bicycle_final/'),
     'leads out of its folder'),
    ('inshop', 'list_eval_partition.txt', lambda b: b.replace(b'query', b'probe'),
     "'probe' is neither train nor query nor gallery"),
    ('inshop', 'list_eval_partition.txt', lambda b: b.replace(b'id_00000007 query', b'id_00000001 query'),
     '1 classes are on both sides, for instance id_00000001'),
    ('vehicleid', 'VehicleID_V1.0/train_test_split/test_list_1600.txt', lambda b: b.split(b'\n')[0],
     'test_list_1600.txt lists 1 vehicles, expected 3'),
    ('vehicleid', 'VehicleID_V1.0/train_test_split/test_list_800.txt', lambda b: b.replace(b'0009000 9', b'0009000 21'),
     'listed more than once'),
])
def test_wrong_lists_are_named(tmp_path, monkeypatch, name, file, change, message):
    monkeypatch.setitem(PUBLISHED, name, write_archives(name, tmp_path/'mirror'))
    contents = edited(name, file, change)
    assert contents != CONTENTS[name]()
    with pytest.raises(ValueError, match=message): published_splits(name, write_unpacked(name, tmp_path/'in', contents))


# ---- all together

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('how', ['mirror', 'environment', 'by hand'])
def test_fetch(mini, tmp_path, monkeypatch, name, how):
    mirror, home = mini(name), tmp_path/'downloads'/name
    if how == 'environment': monkeypatch.setenv('PLM_MIRROR', str(mirror))
    if how == 'by hand': shutil.copytree(mirror, home)
    root = fetch_published(name, tmp_path/'downloads', mirror if how == 'mirror' else None)
    archives = PUBLISHED[name].archives
    assert root == home/'unpacked' and published_splits(name, root)
    notes = [f'{a.name}.sha256' for a in archives if not (a.checksum or PUBLISHED[name].sums)]
    assert files_in(home) == sorted([*(a.name for a in archives), *notes, 'unpacked'])
    shutil.rmtree(mirror)
    for a in archives: (home/a.name).unlink() # to save space; the set is there
    assert fetch_published(name, tmp_path/'downloads') == root


def test_fetch_over_http_from_the_official_address(mini, server, tmp_path, monkeypatch):
    mirror = mini('cub200')
    a, = PUBLISHED['cub200'].archives
    server.body = (mirror/a.name).read_bytes()
    monkeypatch.setitem(PUBLISHED, 'cub200', replace(PUBLISHED['cub200'], archives=(replace(a, url=server.url),)))
    server.cut = 1000
    with pytest.raises(ConnectionError, match='1000 bytes are kept.*About CUB-200-2011: CaltechDATA'):
        fetch_published('cub200', tmp_path/'downloads')
    server.cut = None
    assert published_splits('cub200', fetch_published('cub200', tmp_path/'downloads'))
    assert server.ranges_asked()[-1] == 'bytes=1000-'
    with pytest.raises(FileNotFoundError, match='CUB_200_2011.tgz does not exist'):
        fetch_published('cub200', tmp_path/'other', tmp_path/'empty mirror')


@pytest.mark.parametrize('name', ['cars196', 'inshop', 'vehicleid'])
def test_what_a_person_has_to_fetch_is_explained(tmp_path, name):
    with pytest.raises(FileNotFoundError) as e: fetch_published(name, tmp_path)
    for word in (PUBLISHED[name].title, PUBLISHED[name].by_hand, str(tmp_path/name), 'PLM_MIRROR',
                 *(a.name for a in PUBLISHED[name].archives)):
        assert word in str(e.value)


def test_nothing_is_left_of_a_set_that_is_not_whole(mini, tmp_path):
    contents = CONTENTS['sop']()
    contents['Stanford_Online_Products.zip'].popitem() # __MACOSX: no loss
    contents['Stanford_Online_Products.zip'].popitem() # an image
    mirror = mini('sop', contents)
    with pytest.raises(FileNotFoundError, match='listed but missing'):
        fetch_published('sop', tmp_path/'downloads', mirror)
    assert files_in(tmp_path/'downloads'/'sop') == ['Stanford_Online_Products.zip']


def test_a_killed_run_is_cleared_away(mini, tmp_path, monkeypatch):
    class Killed(BaseException): pass
    def killed(*args, **kwargs): raise Killed
    mirror, home = mini('cars196'), tmp_path/'downloads'/'cars196'
    with monkeypatch.context() as m:
        m.setattr(datasets, 'published_splits', killed)
        m.setattr(datasets.shutil, 'rmtree', lambda *a, **k: None) # a kill leaves no time for that
        with pytest.raises(Killed): fetch_published('cars196', tmp_path/'downloads', mirror)
    assert files_in(home) == ['.unpacked.part', 'car_ims.tgz', 'cars_annos.mat']
    (home/'.unpacked.part'/'rubbish').write_text('half of something')
    assert files_in(fetch_published('cars196', tmp_path/'downloads', mirror)) == ['car_ims', 'cars_annos.mat']
    assert '.unpacked.part' not in files_in(home)


def test_trust_on_first_use(mini, tmp_path):
    "Without a published sum the first sound copy is noted, and a later one is held to it."
    mirror, home = mini('inshop'), tmp_path/'downloads'/'inshop'
    fetch_published('inshop', tmp_path/'downloads', mirror)
    note = (home/'img.zip.sha256').read_text()
    assert note == f"{hashlib.sha256((home/'img.zip').read_bytes()).hexdigest()}  img.zip\n"
    shutil.rmtree(home/'unpacked')
    (home/'img.zip').unlink()
    (mirror/'img.zip').write_bytes((mirror/'img.zip').read_bytes() + b'!')
    with pytest.raises(ValueError, match='noted of the first copy, in .*img.zip.sha256'):
        fetch_published('inshop', tmp_path/'downloads', mirror)
    (home/'img.zip.sha256').unlink()
    assert fetch_published('inshop', tmp_path/'downloads', mirror)
    assert (home/'img.zip.sha256').read_text() != note


def test_a_first_copy_that_is_not_sound_is_not_noted(mini, tmp_path):
    mirror = mini('vehicleid')
    (mirror/'VehicleID_V1.0.zip').write_bytes((mirror/'VehicleID_V1.0.zip').read_bytes()[:3000])
    with pytest.raises(ValueError, match='was not unpacked'): fetch_published('vehicleid', tmp_path/'downloads', mirror)
    assert files_in(tmp_path/'downloads'/'vehicleid') == ['VehicleID_V1.0.zip']


def test_a_wrong_checksum(mini, tmp_path):
    mirror = mini('cub200')
    good = (mirror/'CUB_200_2011.tgz').read_bytes()
    (mirror/'CUB_200_2011.tgz').write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match='sent something else than CUB_200_2011.tgz.*MD5'):
        fetch_published('cub200', tmp_path/'downloads', mirror)
    assert files_in(tmp_path/'downloads'/'cub200') == []


# ---- groceries: the sums are of files, and a mirror may hold those

ZIP, TOP = 'GroceryStoreDataset-master.zip', 'GroceryStoreDataset-master'
REAL = Path(__file__).parent.parent.parent/'shared'/'mirror'/'grocery'


def test_groceries_are_split_by_class_and_only_what_is_listed_is_kept(mini, tmp_path):
    root = fetch_published('grocery', tmp_path/'downloads', mini('grocery'))
    splits = published_splits('grocery', root, val_every=2)
    names = {k: s.class_names for k, s in splits.items()}
    assert names == {'train': ['Sort-0', 'Sort-4'], 'val': ['Sort-2'], 'test': ['Sort-1', 'Sort-3', 'Sort-5']}
    listed = {Path(f) for s in splits.values() for f in s.files}
    assert len(listed) == 29 and {f.relative_to(root).parts[1] for f in listed} == {'train', 'val', 'test'}
    lists = {root/'LICENSE', *(root/'dataset'/f for f in ('classes.csv', 'train.txt', 'val.txt', 'test.txt'))}
    assert {f for f in root.rglob('*') if f.is_file()} == listed | lists


@pytest.mark.parametrize('where', ['', 'grocery', TOP])
@pytest.mark.parametrize('how', ['argument', 'environment'])
def test_a_mirror_may_hold_the_files(mini, tmp_path, monkeypatch, where, how):
    mini('grocery')
    mirror = tmp_path/'usb-stick'
    write_unpacked('grocery', mirror/where)
    if how == 'environment': monkeypatch.setenv('PLM_MIRROR', str(mirror))
    splits = photo_splits('grocery', None, downloads=tmp_path/'downloads') if how == 'environment' else \
        published_splits('grocery', fetch_published('grocery', tmp_path/'downloads', mirror), None)
    assert [len(s.files) for s in splits.values()] == [15, 14]
    assert files_in(tmp_path/'downloads'/'grocery') == ['unpacked']


def test_a_mirror_without_them_says_what_it_may_hold(mini, tmp_path):
    mini('grocery')
    with pytest.raises(FileNotFoundError, match=f'{ZIP} does not exist.*comes from https://github.com/.*LICENSE and'):
        fetch_published('grocery', tmp_path/'downloads', tmp_path)


MILK = 'dataset/train/Packages/Sort-4/Sort-4_002.jpg'


@pytest.mark.parametrize('file, change, message', [
    (MILK, lambda b: b[:-1] + b'?', 'dataset/train/Packages/Sort-4/ in .* is not the official one: its sum is'),
    (MILK, None, f'{MILK} is missing in'),
    ('dataset/val.txt', lambda b: b.replace(b'1, 0', b'0, 0'), 'dataset/val.txt in .* is not the official one'),
    ('dataset/val.txt', lambda b: b + b'../../owned.jpg, 0, 0\n', 'dataset/val.txt in .* is not the official one'),
    ('dataset/classes.csv', None, 'dataset/classes.csv is missing in'),
    ('LICENSE', None, 'LICENSE is missing in')])
@pytest.mark.parametrize('how', ['archive', 'files'])
def test_a_wrong_or_missing_grocery_is_named_with_its_cure(mini, tmp_path, file, change, message, how):
    contents = CONTENTS['grocery']()
    members = contents[ZIP]
    old = members.pop(f'{TOP}/{file}')
    if change: members[f'{TOP}/{file}'] = change(old)
    mirror = mini('grocery', contents)
    if how == 'files': mirror = write_unpacked('grocery', tmp_path/'in', contents)
    with pytest.raises(FileNotFoundError if change is None else ValueError, match=message) as e:
        fetch_published('grocery', tmp_path/'downloads', mirror)
    home = tmp_path/'downloads'/'grocery'
    origin, cure = (home/ZIP, 'Delete this archive and run again.') if how == 'archive' else (mirror, 'Get it anew.')
    assert f'in {origin}' in str(e.value) and cure in str(e.value) and '.part' not in str(e.value)
    assert not home.exists() or files_in(home) == [ZIP]*(how == 'archive')


def test_an_archive_of_groceries_that_is_something_else(mini, tmp_path):
    mirror = mini('grocery', {ZIP: {'README.md': b'moved'}})
    with pytest.raises(FileNotFoundError, match='LICENSE is missing in .*Delete this archive and run again'):
        fetch_published('grocery', tmp_path/'downloads', mirror)


def test_groceries_from_their_own_address(mini, server, tmp_path, monkeypatch):
    "The host packs anew: other bytes of the same files are as good. A break is continued."
    mirror = mini('grocery')
    a, = PUBLISHED['grocery'].archives
    monkeypatch.setitem(PUBLISHED, 'grocery', replace(PUBLISHED['grocery'], archives=(replace(a, url=server.url),)))
    server.body = (mirror/ZIP).read_bytes()
    server.cut = 1000
    with pytest.raises(ConnectionError, match='1000 bytes are kept'): fetch_published('grocery', tmp_path/'downloads')
    server.cut = None
    assert fetch_published('grocery', tmp_path/'downloads') and server.ranges_asked()[-1] == 'bytes=1000-'
    contents, = CONTENTS['grocery']().values()
    other = write_zip(tmp_path/'other.zip', dict(reversed(contents.items())))
    server.body, old = other.read_bytes(), server.body
    assert server.body != old and fetch_published('grocery', tmp_path/'elsewhere')


@pytest.mark.skipif(not REAL.exists(), reason='no copy of the real set beside the checkout')
def test_the_real_groceries(tmp_path):
    splits = published_splits('grocery', fetch_published('grocery', tmp_path/'downloads', REAL), 4)
    assert {k: (len(s.class_names), len(s.files)) for k, s in splits.items()} == {
        'train': (31, 2079), 'val': (10, 702), 'test': (40, 2640)}
    assert len({f for s in splits.values() for f in s.files}) == 5421
    assert len({n for s in splits.values() for n in s.class_names}) == 81
    for s in splits.values(): assert min(Image.open(s.files[0]).size) > 200


# ---- data sets as files

def small(seed=0):
    rng = np.random.default_rng(seed)
    return {name: (rng.integers(0, 256, (n, 6, 5), dtype=np.uint8), (np.arange(n) % 2).astype(np.int32),
                   [f'{name}/é{i}' for i in range(2)])
            for name, n in zip(SPLITS, (7, 5, 4, 3))}


def test_round_trip(tmp_path):
    splits = small()
    save_splits(splits, tmp_path/'made')
    for name, (images, labels, _) in splits.items():
        back = load_images(str(tmp_path/'made'), name)
        assert back.dtype == torch.uint8 and back.shape == (len(images), 1, 6, 5)
        if name == 'train': # in an order of its own, which says nothing of the classes
            order = [next(i for i, im in enumerate(images) if (im == b).all()) for b in back[:, 0].numpy()]
            assert sorted(order) == list(range(len(images))) != order
            assert np.load(tmp_path/'made'/'train_labels.npy').tolist() == labels[order].tolist()
        else:
            assert (back[:, 0].numpy() == images).all()
            assert load_labels(tmp_path/'made', name).dtype == torch.int64
            assert load_labels(tmp_path/'made', name).tolist() == labels.tolist()
    classes = json.loads((tmp_path/'made'/'classes.json').read_text())
    assert classes == {name: chars for name, (*_, chars) in splits.items()}
    assert len(list((tmp_path/'made').iterdir())) == 2*4 + 2


def test_equal_data_gives_equal_files(tmp_path):
    for folder in 'ab': save_splits(small(), tmp_path/folder)
    for file in (tmp_path/'a').iterdir(): assert file.read_bytes() == (tmp_path/'b'/file.name).read_bytes()


def test_train_labels_are_refused_whether_or_not_they_are_there(tmp_path):
    with pytest.raises(ValueError, match="labels of 'train'.*unsupervised.*'val'"): load_labels(tmp_path, 'train')
    save_splits(small(), tmp_path)
    with pytest.raises(ValueError, match="labels of 'train'"): load_labels(tmp_path, 'train')


def test_train_labels_are_given_to_those_who_say_that_they_train_with_labels(tmp_path):
    save_splits(small(), tmp_path)
    assert load_labels(tmp_path, 'train', supervised=True).tolist() == np.load(tmp_path/'train_labels.npy').tolist()


@pytest.mark.parametrize('a, b', [('train', 'val'), ('train', 'test'), ('val', 'test')])
def test_classes_that_overlap_are_refused_before_anything_is_written(tmp_path, a, b):
    splits = small()
    splits[b][2][1] = splits[a][2][0]
    with pytest.raises(ValueError, match=f"{a} and {b} share 1 classes, for instance '{a}/é0'"):
        save_splits(splits, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('load', [load_images, load_labels])
def test_missing_and_misspelt(tmp_path, load):
    with pytest.raises(FileNotFoundError, match='val_.*is missing.*dvc repro'): load(tmp_path, 'val')
    with pytest.raises(ValueError, match="unknown split 'tset'.*'test'"): load(tmp_path, 'tset')


def test_make_dataset(monkeypatch):
    with pytest.raises(ValueError, match="'glyphs'"): make_dataset('glyph')
    made = make_dataset('glyphs', n_train=1, n_val=1, n_test=1, per_class=2, n_source=1)
    assert set(made) == set(SPLITS) and len(made['train'][0]) == 2
    asked = {}
    monkeypatch.setattr(datasets, 'omniglot_splits', lambda folder, size: asked.update(folder=folder, size=size)
                        or {s: s for s in SPLITS[1:]})
    made = make_dataset('omniglot', 'somewhere')
    assert set(made) == set(SPLITS) and asked == dict(folder='somewhere', size=28)
    assert set(DATASETS) - set(PHOTOS) == {'glyphs', 'omniglot'}
    assert len(made['source'][2]) == made['source'][1].max() + 1 > 500 # every printed character is source


def photos(folder, classes=6, per_class=3):
    "PNG files of one brightness per class: class c has 20 c + 10."
    for c in range(classes):
        (folder/f'kind{c}').mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(np.full((30 + i, 40, 3), 20*c + 10, np.uint8)).save(folder/f'kind{c}'/f'{i}.png')
    return folder


def by_name(folder, split):
    "(name of its class, brightness) of each stored image."
    names = json.loads((folder/'classes.json').read_text())[split]
    return [(names[label], int(image[0, 0, 0]))
            for label, image in zip(np.load(folder/f'{split}_labels.npy'), load_images(folder, split))]


@pytest.mark.parametrize('val_every', [None, 2])
def test_a_folder_becomes_a_benchmark(tmp_path, val_every):
    save_photos(photo_splits('folder', val_every, photos(tmp_path/'photos', 8, 5)), tmp_path/'data', 20,
                scratch=tmp_path/'scratch')
    stored = {split: by_name(tmp_path/'data', split) for split in SPLITS}
    kinds = {split: {name for name, _ in stored[split]} for split in SPLITS}
    held = {'kind1', 'kind3'} if val_every else set()
    assert kinds == {'source': set(), 'train': {f'kind{c}' for c in range(4)} - held, 'val': held,
                     'test': {f'kind{c}' for c in range(4, 8)}}
    for split in SPLITS:
        assert load_images(tmp_path/'data', split).shape == (len(stored[split]), 3, 20, 20)
        # images and labels belong together
        for name, brightness in stored[split]: assert brightness == 20*int(name[4:]) + 10
    assert [name for name, _ in stored['train']] != sorted(name for name, _ in stored['train'])
    assert load_rounds(tmp_path/'data') == {}


def test_a_folder_with_too_few_classes(tmp_path):
    photos(tmp_path/'photos', 5)
    with pytest.raises(ValueError,
                       match='has 5 classes, which leaves fewer than two for val.*smaller folder.sizes.val_every'):
        photo_splits('folder', 2, tmp_path/'photos')
    with pytest.raises(ValueError, match='tells no classes.*CSV .folder.sizes.labels.*make photos'):
        photo_splits('folder', 2, tmp_path/'photos'/'kind0')
    with pytest.raises(ValueError, match='has 3 classes, which leaves fewer than two for test. Give it more classes.$'):
        photo_splits('folder', None, photos(tmp_path/'few', 3))


def test_a_folder_of_single_images(tmp_path):
    with pytest.raises(ValueError, match='every class of test has a single image'):
        photo_splits('folder', None, photos(tmp_path/'photos', 6, 1))


def test_images_without_a_label_are_in_no_split(tmp_path):
    photos(tmp_path/'photos', 4, 2)
    rows = [f'kind{c}/0.png,name{c}' for c in range(4)] + ['kind2/1.png,name2']
    (tmp_path/'labels.csv').write_text('\n'.join(['file,label', *rows]))
    splits = photo_splits('folder', None, tmp_path/'photos', tmp_path/'labels.csv')
    found = {name: [Path(f).parent.name for f in s.files] for name, s in splits.items()}
    assert found == {'train': ['kind0', 'kind1'], 'test': ['kind2', 'kind2', 'kind3']}


def test_rounds_follow_the_rows(tmp_path):
    "A broken file is in no row, and in no query and gallery."
    files = sorted(str(f) for f in photos(tmp_path/'photos', 4, 2).rglob('*.png'))
    Path(files[2]).write_bytes(b'no picture')
    labels = np.arange(8)//2
    rounds = {'one': [(np.array([0, 2, 4]), np.array([1, 3, 5])), (np.array([1]), np.array([0]))]}
    splits = {'train': Split(files[:2], labels[:2], ['a']),
              'test': Split(files[2:], labels[2:] - 1, ['b', 'c', 'd'], rounds)}
    save_photos(splits, tmp_path/'data', 20, scratch=tmp_path/'scratch')
    (first, second), = load_rounds(tmp_path/'data').values()
    bright = [int(im[0, 0, 0]) for im in load_images(tmp_path/'data', 'test')]
    assert [bright[i] for i in first[0]] == [50, 70] and [bright[i] for i in first[1]] == [30, 50, 70]
    assert [bright[i] for i in second[0]] == [30] and not len(second[1])
    assert 'no picture' not in (tmp_path/'data'/'test_images_skipped.csv').read_text()
    assert Path(files[2]).name in (tmp_path/'data'/'test_images_skipped.csv').read_text()


def test_photos_whose_classes_overlap_are_refused_before_anything_is_written(tmp_path):
    files = [str(f) for f in photos(tmp_path/'photos', 2, 1).rglob('*.png')]
    with pytest.raises(ValueError, match='train and test share 1 classes'):
        both = {name: Split(files, np.array([0, 1]), ['a', name]) for name in ('train', 'test')}
        save_photos(both, tmp_path/'data', 20)
    assert not (tmp_path/'data').exists()


def test_ks():
    usual = ('glyphs', 'omniglot', 'folder', 'cub200', 'cars196', 'grocery')
    assert {name: recall_ks(name) for name in DATASETS} == dict.fromkeys(usual, (1, 2, 4, 8)) | {
        'sop': (1, 10, 100, 1000), 'inshop': (1, 10, 20, 30), 'vehicleid': (1, 5)}
    with pytest.raises(ValueError, match="'sop'"): recall_ks('sopp')


# ---- the sizes of each data set

GOOD = {'glyphs': dict(n_train=150, n_val=50, n_test=100, n_source=None, per_class=20), 'omniglot': {},
        'folder': dict(path='photos', labels=None, side=256, val_every=10), 'sop': dict(side=256, val_every=None)}


@pytest.mark.parametrize('name', GOOD)
def test_sizes_are_read(name):
    assert issubclass(DATASETS[name], Constants)
    assert read_constants(DATASETS[name], GOOD[name], f'{name}.sizes').model_dump() == GOOD[name]


@pytest.mark.parametrize('name, field, least', [
    ('glyphs', 'n_train', 1), ('glyphs', 'n_val', 2), ('glyphs', 'n_test', 2), ('glyphs', 'n_source', 1),
    ('glyphs', 'per_class', 2), ('folder', 'side', 16), ('folder', 'val_every', 2), ('sop', 'side', 16),
    ('sop', 'val_every', 2)])
def test_sizes_have_ranges(name, field, least):
    def read(value): return getattr(read_constants(DATASETS[name], GOOD[name] | {field: value}, f'{name}.sizes'), field)
    assert read(least) == least
    for wrong in (least - 1, str(least), least + 0.5, True):
        with pytest.raises(ValueError, match=rf'{name}\.sizes\.{field}: .*got {wrong!r}'): read(wrong)


@pytest.mark.parametrize('field, good, bad', [('path', ['a', ' b'], ['', ' ', None]),
                                              ('labels', [None, 'x.csv'], ['x.txt', '', 'csv'])])
def test_a_folder_has_a_path_and_perhaps_labels(field, good, bad):
    def read(value):
        return getattr(read_constants(DATASETS['folder'], GOOD['folder'] | {field: value}, 'folder.sizes'), field)
    assert [read(value) for value in good] == good
    for value in bad:
        with pytest.raises(ValueError, match=rf'folder\.sizes\.{field}: '): read(value)


def test_each_data_set_is_named_once():
    assert list(DATASETS) == ['glyphs', 'omniglot', 'folder', *PUBLISHED] and PHOTOS == ('folder', *PUBLISHED)
