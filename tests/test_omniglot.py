"Fetching, reading and splitting Omniglot. Nothing here needs a network or the real archives."
import hashlib, io, shutil, warnings, zipfile
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from plm import omniglot
from plm.omniglot import ARCHIVES, UPSTREAM, fetch_archives, omniglot_splits, read_archive, shrink, val_characters
from plm.transfer import md5_of
from reference_omniglot import read_slowly, shrink_slowly

ALPHABETS = [['Balinese', 'Early_Aramaic', 'Greek', 'Korean', 'Latin'], ['Greek', 'Japanese_(katakana)', 'Latin', 'Sanskrit', 'Tagalog']]
REAL = Path(__file__).parent.parent/'data'/'omniglot'


def png(seed, size=105):
    pixels = np.random.default_rng(seed).random((size, size)) > 0.1
    Image.fromarray(pixels).save(out := io.BytesIO(), 'PNG')
    return out.getvalue()


def write_zip(path, members):
    with zipfile.ZipFile(path, 'w') as z:
        for name, data in members: z.writestr(name, data)
    return path


@pytest.fixture(scope='module')
def mini(tmp_path_factory):
    "Both archives, four characters of two drawers; members stored in a jumbled order."
    folder, seed = tmp_path_factory.mktemp('omniglot'), 0
    for name, alphabets in zip(ARCHIVES, ALPHABETS):
        members = []
        for a in alphabets:
            for c in range(1, 5):
                for d in (1, 2):
                    members.append((f'{name[:-4]}/{a}/character{c:02d}/{seed:04d}_{d:02d}.png', png(seed := seed + 1)))
        write_zip(folder/name, members[::-1])
    return folder


def test_addresses_and_sums_are_the_official_ones():
    assert f'{UPSTREAM}/images_background_small1.zip' == \
        'https://raw.githubusercontent.com/brendenlake/omniglot/master/python/images_background_small1.zip'
    assert ARCHIVES == {'images_background_small1.zip': 'e704a628b5459e08445c13499850abc4',
                        'images_background_small2.zip': 'b75a71a51d3b13f821f212756fe481fd'}


def test_data_dvc_records_the_same_sums():
    "DVC names a folder by the sum of a listing of its files: recompute that listing from ARCHIVES."
    import json, yaml
    listing = json.dumps([{'md5': m, 'relpath': f'omniglot/{n}'} for n, m in sorted(ARCHIVES.items())])
    out, = yaml.safe_load((REAL.parent.parent/'data.dvc').read_text())['outs']
    assert out['md5'] == hashlib.md5(listing.encode()).hexdigest() + '.dir' and out['path'] == 'data' and out['nfiles'] == 2


# ---- fetch

@pytest.mark.parametrize('how', ['path', 'str/', 'file url', 'environment'])
def test_mirrors(mini, tmp_path, monkeypatch, how):
    monkeypatch.setattr(omniglot, 'ARCHIVES', {n: md5_of(mini/n) for n in ARCHIVES})
    monkeypatch.setenv('PLM_MIRROR', str(mini) if how == 'environment' else str(tmp_path/'not this one'))
    mirror = {'path': mini, 'str/': f'{mini}/', 'file url': mini.as_uri(), 'environment': None}[how]
    paths = fetch_archives(tmp_path/'data', mirror)
    assert paths == [tmp_path/'data'/n for n in ARCHIVES] and [p.read_bytes() for p in paths] == [(mini/n).read_bytes() for n in ARCHIVES]


def test_upstream_is_the_default(tmp_path, monkeypatch):
    asked = []
    monkeypatch.delenv('PLM_MIRROR', raising=False)
    monkeypatch.setattr(omniglot, 'download', lambda url, target, checksum, mirror, cure: asked.append((url, target, checksum, mirror)))
    fetch_archives(tmp_path)
    assert asked == [(f'{UPSTREAM}/{n}', tmp_path/n, f'md5:{m}', None) for n, m in ARCHIVES.items()]


def test_mirror_without_the_file(tmp_path):
    (tmp_path/'mirror').mkdir()
    with pytest.raises(FileNotFoundError, match='images_background_small1.zip does not exist.*PLM_MIRROR.*dvc pull data'): fetch_archives(tmp_path/'data', tmp_path/'mirror')
    assert not list((tmp_path/'data').iterdir())


def test_mirror_with_other_archives(mini, tmp_path):
    with pytest.raises(ValueError, match='e704a628b5459e08445c13499850abc4.*PLM_MIRROR.*dvc pull data'): fetch_archives(tmp_path/'data', mini)
    assert not list((tmp_path/'data').iterdir())


def test_a_different_file_is_never_overwritten(mini, tmp_path):
    mine = tmp_path/'images_background_small1.zip'
    mine.write_bytes(b'mine')
    with pytest.raises(ValueError) as e: fetch_archives(tmp_path, mini)
    for word in (str(mine), hashlib.md5(b'mine').hexdigest(), ARCHIVES[mine.name], 'delete', 'dvc pull --force data'): assert word in str(e.value)
    assert mine.read_bytes() == b'mine' and [p.name for p in tmp_path.iterdir()] == [mine.name]


# ---- read

def test_read_agrees_with_the_slow_twin(mini):
    for name in ARCHIVES:
        got, slow = read_archive(mini/name), read_slowly(mini/name)
        assert len(got.images) == len(slow) == 40
        for (member, rows), image, label, drawer in zip(sorted(slow.items()), got.images, got.labels, got.drawers):
            assert np.array_equal(rows, image)
            assert member.split('/', 1)[1].rsplit('/', 1)[0] == got.names[label] and member.endswith(f'_{drawer:02d}.png')
        assert got.names == sorted(set(got.names)) and got.labels.dtype == got.drawers.dtype == np.int64


def test_order_does_not_depend_on_the_zip(mini, tmp_path):
    name = next(iter(ARCHIVES))
    with zipfile.ZipFile(mini/name) as z: members = [(n, z.read(n)) for n in sorted(z.namelist())]
    write_zip(tmp_path/name, [('images_background_small1/', b''), *members]) # sorted, and with a folder entry as in the real ones
    for a, b in zip(read_archive(mini/name), read_archive(tmp_path/name)): assert np.array_equal(a, b)


GOOD = 'set/Greek/character01/0001_01.png'
@pytest.mark.parametrize('members, message', [
    ([], 'no drawings'),
    ([(GOOD, b'not a picture')], GOOD),
    ([(GOOD, png(0)[:-60])], GOOD),
    ([(GOOD, png(0)[:20])], GOOD),
    ([(GOOD, b'')], GOOD),
    ([(GOOD, png(0, 28))], '28x28'),
    ([(GOOD, png(0)), ('../../../etc/evil.png', png(1))], 'evil.png'),
    ([(GOOD, png(0)), ('set/Greek/0001_01.png', png(1))], 'set/Greek/0001_01.png'),
    ([(GOOD, png(0)), ('set/Greek/character01/notes.txt', b'x')], 'notes.txt')])
def test_unusable_archives_are_named(tmp_path, members, message):
    with pytest.raises(ValueError) as e: read_archive(write_zip(tmp_path/'a.zip', members))
    assert str(tmp_path/'a.zip') in str(e.value) and message in str(e.value) and 'dvc pull' in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ['a.zip'] # nothing was unpacked


@pytest.mark.parametrize('offset, flip', [(8, 1), (9, 8)]) # flags in the table of contents: "encrypted"; "names are UTF-8"
def test_damaged_flags(tmp_path, offset, flip):
    path = write_zip(tmp_path/'a.zip', [(GOOD.replace('Greek', 'Gr' + chr(0xe9)), png(0))])
    raw = bytearray(path.read_bytes().replace(chr(0xe9).encode(), b'ee'))
    entry = raw.index(b'PK\1\2')
    raw[entry + 9] &= ~8 # names are plain now
    if flip == 8: raw[entry + 46 + GOOD.index('Greek') + 2] = 0xff # no UTF-8 has this byte
    raw[entry + offset] ^= flip
    path.write_bytes(raw)
    with pytest.raises(ValueError, match='a.zip cannot be used'): read_archive(path)


def test_archive_missing(tmp_path):
    for read in (lambda: read_archive(tmp_path/'no'/'a.zip'), lambda: omniglot_splits(tmp_path/'no')):
        with pytest.raises(FileNotFoundError, match='dvc pull.*fetch_archives'): read()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_never_escape_as_another_error(mini, data):
    "Cut or change the archive anywhere: either it still reads the same, or a ValueError names it."
    import tempfile
    raw = bytearray((mini/next(iter(ARCHIVES))).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))): raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    raw = raw[:data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]
    with tempfile.TemporaryDirectory() as d, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        (Path(d)/'a.zip').write_bytes(raw)
        try: got = read_archive(Path(d)/'a.zip')
        except ValueError as e: assert 'a.zip cannot be used' in str(e)
        else: assert np.array_equal(got.images, read_archive(mini/next(iter(ARCHIVES))).images)


# ---- shrink

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9).flatmap(lambda side: st.tuples(arrays(np.uint8, (2, side, side)), st.integers(1, side))))
def test_shrink_agrees_with_the_slow_twin(case):
    images, size = case
    assert shrink(images, size).tolist() == [shrink_slowly(i.tolist(), size) for i in images]


def test_shrink_in_pieces_and_of_nothing():
    images = np.random.default_rng(0).integers(0, 256, (300, 11, 11), np.uint8) # more than one piece of 256
    assert np.array_equal(shrink(images, 4), np.concatenate([shrink(i[None], 4) for i in images]))
    assert shrink(images[:0], 4).shape == (0, 4, 4)
    assert np.array_equal(shrink(images, 11), images)


@pytest.mark.parametrize('images, size', [(np.zeros((1, 4, 4), np.uint8), 0), (np.zeros((1, 4, 4), np.uint8), 5),
    (np.zeros((4, 4), np.uint8), 2), (np.zeros((1, 4, 5), np.uint8), 2), (np.zeros((1, 4, 4)), 2)])
def test_shrink_refuses(images, size):
    with pytest.raises(ValueError, match='size|uint8'): shrink(images, size)


# ---- splits

def test_splits_of_the_miniature(mini):
    s, first = omniglot_splits(mini, size=28), read_archive(mini/'images_background_small1.zip')
    assert {k: (v[0].shape, len(v[2])) for k, v in s.items()} == \
        {'train': ((30, 28, 28), 15), 'val': ((10, 28, 28), 5), 'test': ((24, 28, 28), 12)}
    names = [n for v in s.values() for n in v[2]]
    assert len(set(names)) == len(names)
    assert sorted(s['train'][2] + s['val'][2]) == first.names
    assert {n.split('/')[0] for n in s['test'][2]} == {'Japanese_(katakana)', 'Sanskrit', 'Tagalog'}
    # each image is under its own name: compare with the archive, class by class
    for k in ('train', 'val'):
        images, labels, names = s[k]
        for i, name in enumerate(names):
            assert np.array_equal(images[labels == i], shrink(first.images[first.labels == first.names.index(name)], 28))


def test_splits_want_the_test_alphabets(mini, tmp_path):
    first, second = ARCHIVES
    shutil.copy(mini/first, tmp_path/first)
    shutil.copy(mini/first, tmp_path/second) # the wrong archive under the second name
    with pytest.raises(ValueError, match='Sanskrit'): omniglot_splits(tmp_path)


FROZEN = {'Balinese': [5, 13, 14, 16, 18, 19], 'Early_Aramaic': [7, 9, 14, 15, 20], 'Greek': [8, 13, 14, 17, 19, 22],
          'Korean': [2, 4, 5, 14, 17, 22, 27, 37, 38, 40], 'Latin': [5, 9, 10, 16, 17, 23]}

def test_val_characters_are_frozen():
    "Constants were chosen on these classes: a change here makes every figure incomparable. The sizes are the real ones."
    sizes = {'Balinese': 24, 'Early_Aramaic': 22, 'Greek': 24, 'Korean': 40, 'Latin': 26}
    held = val_characters([f'{a}/character{c:02d}' for a, n in sizes.items() for c in range(1, n + 1)])
    assert {a: [int(h[-2:]) for h in held if h.startswith(a)] for a in sizes} == FROZEN
    alone = val_characters([f'Greek/character{c:02d}' for c in range(24, 0, -1)])
    assert alone == [h for h in held if h.startswith('Greek')] # order and other alphabets do not matter


@pytest.mark.skipif(not all((REAL/n).exists() for n in ARCHIVES), reason='the real archives are not here: dvc pull')
def test_the_real_archives():
    assert [p.name for p in fetch_archives(REAL, mirror='nowhere://')] == list(ARCHIVES) # right sums: nothing is fetched
    for name, classes in zip(ARCHIVES, (136, 156)):
        got = read_archive(REAL/name)
        assert got.images.shape == (classes*20, 105, 105) and len(got.names) == classes
        assert set(np.unique(got.images)) == {0, 255} and got.images.mean() < 40
        assert np.array_equal(got.drawers.reshape(classes, 20), np.tile(np.arange(1, 21), (classes, 1)))
    s = omniglot_splits(REAL)
    assert {k: (len(v[2]), len(v[0])) for k, v in s.items()} == {'train': (103, 2060), 'val': (33, 660), 'test': (106, 2120)}
    seen = [i.tobytes() for v in s.values() for i in v[0]]
    assert len(set(seen)) == len(seen) # no drawing occurs twice, within a split or across
