"The published benchmarks: records, splits, and all together. Nothing here needs a network or the real archives."
import hashlib, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from plm import published
from plm.published import PUBLISHED, draw_gallery, fetch_published, published_splits
from miniature_published import CONTENTS, write_archives, write_unpacked
from reference_published import draw_slowly, split_slowly

NAMES = list(PUBLISHED)


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch): monkeypatch.delenv('PLM_MIRROR', raising=False)


@pytest.fixture
def mini(tmp_path, monkeypatch):
    "A function that writes the miniature archives of a set to a mirror folder, makes their record the one in use, and returns the mirror."
    def make(name, contents=None):
        monkeypatch.setitem(PUBLISHED, name, write_archives(name, tmp_path/'mirror', contents))
        return tmp_path/'mirror'
    return make


def files_in(folder): return sorted(p.name for p in folder.iterdir())


# ---- records

def test_records_are_the_published_ones():
    assert NAMES == ['cub200', 'cars196', 'sop', 'inshop', 'vehicleid'] and {p.ks for p in PUBLISHED.values()} == {(1, 2, 4, 8), (1, 10, 100, 1000), (1, 10, 20, 30), (1, 5)}
    assert PUBLISHED['sop'].classes == (11318, 11316) and PUBLISHED['sop'].images == (59551, 60502) and sum(PUBLISHED['sop'].images) == 120053
    assert sum(PUBLISHED['cub200'].images) == 11788 and sum(PUBLISHED['cars196'].images) == 16185 and sum(PUBLISHED['inshop'].images) == 52712
    for p in PUBLISHED.values():
        for a in p.archives: assert a.checksum is None or len(a.checksum.split(':')[1]) == {'md5': 32, 'sha256': 64}[a.checksum.split(':')[0]]
    assert [n for n, p in PUBLISHED.items() if p.archives[0].url] == ['cub200', 'sop'] # the others ask for an agreement, or are gone


# ---- splits

@pytest.mark.parametrize('name', NAMES)
def test_splits_follow_the_official_lists(mini, tmp_path, name):
    root = fetch_published(name, tmp_path/'downloads', mini(name))
    record, splits = PUBLISHED[name], published_splits(name, root, val_every=3)
    slow = split_slowly(name, root, record.classes[0])
    got = {k: {(f, s.class_names[l]) for f, l in zip(s.files, s.labels)} for k, s in splits.items()}
    assert got['train'] | got['val'] == {r[:2] for r in slow['train']} and got['test'] == {r[:2] for r in slow['test']}
    assert len(splits['val'].class_names) == record.classes[0]//3 and not set(splits['val'].class_names) & set(splits['train'].class_names)
    for s in splits.values():
        assert s.labels.dtype == np.int64 and len(s.labels) == len(s.files) == len(set(s.files)) and np.array_equal(np.unique(s.labels), np.arange(len(s.class_names)))
        assert all(Path(f).is_file() for f in s.files)
    whole = published_splits(name, root, val_every=None)
    assert list(whole) == ['train', 'test'] and set(whole['train'].files) == {r[0] for r in slow['train']} and whole['test'].files == splits['test'].files
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
        listed = {f'{int(l.split()[0]):07d}.jpg' for l in open(root/f'VehicleID_V1.0/train_test_split/test_list_{number}.txt')}
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
    contents = CONTENTS['cub200'](classes=200, per_class=1) if name == 'cub200' else CONTENTS[name]() # its CUB has the number 100 built in
    record = write_archives('sop', tmp_path/'mirror') if name == 'sop' else replace(official, images=(100, 100))
    monkeypatch.setitem(PUBLISHED, name, record)
    splits = published_splits(name, write_unpacked(name, tmp_path/'in', contents), val_every=None)
    for side, split in splits.items():
        theirs = pml_pairs(getattr(datasets, reader), tmp_path/'in', side)
        assert [f for f, _ in theirs] == split.files
        number = {'cub200': lambda n: int(n[:3]), 'sop': lambda n: int(n.split('/')[1])}[name]
        assert [l for _, l in theirs] == [number(split.class_names[l]) for l in split.labels]


def test_cars_of_pytorch_metric_learning_are_another_layout_but_the_same_halves(tmp_path, monkeypatch):
    "Its reader wants a re-packing into folders by class (from Kaggle), and cannot read the official files. The halves are equal."
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
        assert sorted({names[l - 1] for _, l in pml_pairs(Cars196, root, side)}) == sorted(split.class_names) and len(split.class_names) == 98


def test_where_the_reader_of_pytorch_metric_learning_is_wrong(tmp_path, monkeypatch):
    "It joins CUB's two lists line by line, and drops, without a word, each image whose lines do not meet; ours joins by number."
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
    assert published_splits(name, root)
    image = sorted(p for p in root.rglob('*') if p.suffix.lower() == '.jpg')[0]
    image.rename(tmp_path/'away')
    with pytest.raises(FileNotFoundError, match='and 0 other images.*listed but missing') as e: published_splits(name, root)
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
    with pytest.raises(ValueError, match=r'\d (classes|vehicles)\b.*\d'): published_splits(name, write_unpacked(name, tmp_path/'in'))


def edited(name, file, change):
    contents = CONTENTS[name]()
    for members in contents.values():
        if isinstance(members, dict) and file in members: members[file] = change(members[file])
    if file in contents: contents[file] = change(contents[file])
    return contents


@pytest.mark.parametrize('name, file, change, message', [
    ('cub200', 'CUB_200_2011/images.txt', lambda b: b + b'19 too many words\n', 'images.txt, line 19: expected 2 words'),
    ('cub200', 'CUB_200_2011/image_class_labels.txt', lambda b: b.replace(b'5 2', b'5 two'), "image_class_labels.txt: expected a number, got 'two'"),
    ('cub200', 'CUB_200_2011/image_class_labels.txt', lambda b: b.replace(b'18 6\n', b''), 'lacks 1 images'),
    ('cub200', 'CUB_200_2011/classes.txt', lambda b: b.split(b'\n')[0], 'class 2 has images but no name'),
    ('cub200', 'CUB_200_2011/classes.txt', lambda b: b'', 'class 1 has images but no name'),
    ('cub200', 'CUB_200_2011/images.txt', lambda b: b + b.split(b'\n')[0] + b'\n', '1 images are listed more than once'),
    ('cub200', 'CUB_200_2011/images.txt', lambda b: b'\n'.join(b.split(b'\n')[1:]), '8 images on the training side, official are 9'),
    ('cub200', 'CUB_200_2011/images.txt', lambda b: b'', 'has 0 classes on the training side'),
    ('cars196', 'cars_annos.mat', lambda b: b[:200], 'cars_annos.mat is damaged or not the official file'),
    ('cars196', 'cars_annos.mat', lambda b: b'<html>', 'cars_annos.mat is damaged or not the official file'),
    ('sop', 'Stanford_Online_Products/Ebay_test.txt', lambda b: b.replace(b' 7 1 ', b' 4 1 '), '1 classes are on both sides, for instance bicycle/4'),
    ('sop', 'Stanford_Online_Products/Ebay_test.txt', lambda b: b.replace(b' bicycle_final/', b' ../../bicycle_final/'), 'leads out of its folder'),
    ('inshop', 'list_eval_partition.txt', lambda b: b.replace(b'query', b'probe'), "'probe' is neither train nor query nor gallery"),
    ('inshop', 'list_eval_partition.txt', lambda b: b.replace(b'id_00000007 query', b'id_00000001 query'), '1 classes are on both sides, for instance id_00000001'),
    ('vehicleid', 'VehicleID_V1.0/train_test_split/test_list_1600.txt', lambda b: b.split(b'\n')[0], 'test_list_1600.txt lists 1 vehicles, expected 3'),
    ('vehicleid', 'VehicleID_V1.0/train_test_split/test_list_800.txt', lambda b: b.replace(b'0009000 9', b'0009000 21'), 'listed more than once'),
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
    assert files_in(home) == sorted([a.name for a in archives] + [f'{a.name}.sha256' for a in archives if a.checksum is None] + ['unpacked'])
    shutil.rmtree(mirror)
    for a in archives: (home/a.name).unlink() # to save space; the set is there
    assert fetch_published(name, tmp_path/'downloads') == root


def test_fetch_over_http_from_the_official_address(mini, server, tmp_path, monkeypatch):
    mirror = mini('cub200')
    a, = PUBLISHED['cub200'].archives
    server.body = (mirror/a.name).read_bytes()
    monkeypatch.setitem(PUBLISHED, 'cub200', replace(PUBLISHED['cub200'], archives=(replace(a, url=server.url),)))
    server.cut = 1000
    with pytest.raises(ConnectionError, match='1000 bytes are kept.*About CUB-200-2011: CaltechDATA'): fetch_published('cub200', tmp_path/'downloads')
    server.cut = None
    assert published_splits('cub200', fetch_published('cub200', tmp_path/'downloads')) and server.ranges_asked()[-1] == 'bytes=1000-'
    with pytest.raises(FileNotFoundError, match='CUB_200_2011.tgz does not exist'): fetch_published('cub200', tmp_path/'other', tmp_path/'empty mirror')


@pytest.mark.parametrize('name', ['cars196', 'inshop', 'vehicleid'])
def test_what_a_person_has_to_fetch_is_explained(tmp_path, name):
    with pytest.raises(FileNotFoundError) as e: fetch_published(name, tmp_path)
    for word in (PUBLISHED[name].title, PUBLISHED[name].by_hand, str(tmp_path/name), 'PLM_MIRROR', *(a.name for a in PUBLISHED[name].archives)): assert word in str(e.value)


def test_nothing_is_left_of_a_set_that_is_not_whole(mini, tmp_path):
    contents = CONTENTS['sop']()
    contents['Stanford_Online_Products.zip'].popitem() # __MACOSX: no loss
    contents['Stanford_Online_Products.zip'].popitem() # an image
    mirror = mini('sop', contents)
    with pytest.raises(FileNotFoundError, match='listed but missing'): fetch_published('sop', tmp_path/'downloads', mirror)
    assert files_in(tmp_path/'downloads'/'sop') == ['Stanford_Online_Products.zip']


def test_a_killed_run_is_cleared_away(mini, tmp_path, monkeypatch):
    class Killed(BaseException): pass
    def killed(*args, **kwargs): raise Killed
    mirror, home = mini('cars196'), tmp_path/'downloads'/'cars196'
    with monkeypatch.context() as m:
        m.setattr(published, 'published_splits', killed)
        m.setattr(published.shutil, 'rmtree', lambda *a, **k: None) # a kill leaves no time for that
        with pytest.raises(Killed): fetch_published('cars196', tmp_path/'downloads', mirror)
    assert files_in(home) == ['.unpacked.part', 'car_ims.tgz', 'cars_annos.mat']
    (home/'.unpacked.part'/'rubbish').write_text('half of something')
    assert files_in(fetch_published('cars196', tmp_path/'downloads', mirror)) == ['car_ims', 'cars_annos.mat'] and '.unpacked.part' not in files_in(home)


def test_trust_on_first_use(mini, tmp_path):
    "Without a published sum the first sound copy is noted, and a later one is held to it."
    mirror, home = mini('inshop'), tmp_path/'downloads'/'inshop'
    fetch_published('inshop', tmp_path/'downloads', mirror)
    note = (home/'img.zip.sha256').read_text()
    assert note == f"{hashlib.sha256((home/'img.zip').read_bytes()).hexdigest()}  img.zip\n"
    shutil.rmtree(home/'unpacked')
    (home/'img.zip').unlink()
    (mirror/'img.zip').write_bytes((mirror/'img.zip').read_bytes() + b'!')
    with pytest.raises(ValueError, match='noted of the first copy, in .*img.zip.sha256'): fetch_published('inshop', tmp_path/'downloads', mirror)
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
    with pytest.raises(ValueError, match='sent something else than CUB_200_2011.tgz.*MD5'): fetch_published('cub200', tmp_path/'downloads', mirror)
    assert files_in(tmp_path/'downloads'/'cub200') == []
