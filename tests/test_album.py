"An album: what an update finds, what it does not do again, what a kill leaves, and what training may see."
import csv, io, os, shutil, signal, sqlite3, subprocess, sys, time
from contextlib import closing
from pathlib import Path
import numpy as np, pytest, torch, yaml
from PIL import Image
from plm import album as module
from plm.album import Album, Changes, photo_facts
from plm.encoder import embed
from plm.photos import decode_image
from plm.pretraining import Features
from plm.search import PHOTOS_FILE
from test_search import picture

NOTHING = dict(new=0, changed=0, moved=0, deleted=0, same=0, skipped=0)


def small(place, **change):
    "An album with a small network with random weights."
    p = yaml.safe_load(PHOTOS_FILE.read_text()) | dict(device='cpu', side=40)
    p['train'] |= dict(backbone='resnet18', weights='none', dim=8, crop=32, epochs=1, batch_size=12) | change
    p['plm'] |= dict(n_proxies=5, k=3)
    place.mkdir(parents=True, exist_ok=True)
    (place/'photos.yaml').write_text(yaml.safe_dump(p))
    return Album(place)


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        place = tmp_path/'photos'/'ab'[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place/f'{i:02}.png')
    return tmp_path/'photos'


@pytest.fixture
def seen(monkeypatch):
    "The files that are decoded."
    files, plain = [], module.decode_images
    def note(paths, *how): files.extend(Path(path).name for path in paths); return plain(paths, *how)
    monkeypatch.setattr(module, 'decode_images', note)
    return files


def test_the_bar_of_an_index_goes_to_its_end(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, '_BLOCK', 5)
    small(tmp_path/'album').update(folder)
    (bar,) = [part for part in capsys.readouterr().err.split('\n') if 'looking at photos' in part]
    assert bar.split('\r')[-1].startswith('looking at photos: 100%') and '| 12/12 [' in bar


def test_only_what_is_new_is_looked_at(folder, tmp_path, seen):
    album = small(tmp_path/'album')
    assert album.update(folder) == Changes(**NOTHING | dict(new=12)) and len(seen) == 12
    first = album.search()
    assert album.update() == Changes(**NOTHING | dict(same=12)) and len(seen) == 12
    os.utime(folder/'a/00.png', (1, 1)) # another time, the same content
    assert album.update() == Changes(**NOTHING | dict(same=12)) and len(seen) == 12
    (folder/'a/00.png').rename(folder/'b/moved.png')
    shutil.copy(folder/'a/02.png', folder/'copy.png')
    picture(50).save(folder/'a/new.png')
    picture(51).save(folder/'b/01.png')
    (folder/'b/03.png').unlink()
    assert album.update() == Changes(new=2, changed=1, moved=1, deleted=1, same=9, skipped=0)
    assert sorted(seen[12:]) == ['01.png', 'new.png']
    names = [photo.name for photo in album.photos()]
    assert len(names) == 12 and 'copy.png' not in names and 'b/moved.png' in names # a copy is the same photo
    again = album.search()
    kept = [name for name in first.files if name in again.files and name != 'b/01.png']
    for name in kept: assert torch.equal(first.z[first.files.index(name)], again.z[again.files.index(name)])
    with closing(album.connect()) as db:
        assert db.execute('select count(*) from photos').fetchone() == db.execute(
            'select count(*) from vectors').fetchone() == (12,) # nothing is kept of what is gone


def test_the_search_is_that_of_the_encoder(folder, tmp_path):
    album = small(tmp_path/'album')
    album.update(folder)
    s = album.search()
    pixels = torch.from_numpy(np.stack([decode_image(folder/name, 40).pixels for name in s.files]))
    torch.testing.assert_close(embed(s.encoder, pixels), s.z, atol=5e-3, rtol=0) # features are kept in 16 bits
    with closing(album.connect()) as db: f = module._vectors(db, 'backbone')[:, 0]
    torch.testing.assert_close(embed(Features(album._backbone()), pixels), f.float(), atol=2e-3, rtol=2e-3)
    assert s.find(folder/s.files[5], 1).paths == [str(folder/s.files[5])]
    with Image.open(io.BytesIO(album.thumb(album.photos()[0].sum))) as im: assert im.size == (40, 40)
    assert album.thumb(b'nothing') is None


def test_the_head_stays_until_the_album_has_doubled(folder, tmp_path):
    album = small(tmp_path/'album')
    album.update(folder)
    head = album.search().encoder.head.weight.clone()
    for i in range(11): picture(100 + i).save(folder/f'{i}.png')
    album.update()
    assert torch.equal(album.search().encoder.head.weight, head)
    picture(111).save(folder/'last.png')
    album.update()
    assert not torch.equal(album.search().encoder.head.weight, head) and len(album.search().files) == 24


def test_edited_constants_look_again(folder, tmp_path, seen):
    album = small(tmp_path/'album')
    album.update(folder)
    small(tmp_path/'album', crop=36)
    assert album.update() == Changes(**NOTHING | dict(same=12))
    assert len(seen) == 24 and album.search().train.crop == 36


def test_an_edited_head_is_made_anew_and_nothing_is_decoded(folder, tmp_path, seen):
    album = small(tmp_path/'album')
    album.update(folder)
    album.train()
    small(tmp_path/'album', dim=6, head='components')
    with pytest.raises(ValueError, match='photos.yaml was edited. Run plm index'): album.train()
    assert album.update() == Changes(**NOTHING | dict(same=12))
    assert len(seen) == 12 and album.search().z.shape == (12, 6) and album._trained() is None
    album.train()
    assert album.search('after').z.shape == (12, 6)


@pytest.mark.parametrize('n, dim', [(1, 8), (3, 8), (7, 8)])
def test_few_photos(tmp_path, n, dim):
    (tmp_path/'photos').mkdir()
    for i in range(n): picture(i).save(tmp_path/'photos'/f'{i}.png')
    album = small(tmp_path/'album')
    album.update(tmp_path/'photos')
    assert len(album.search().find(tmp_path/'photos/0.png').paths) == n
    with pytest.raises(ValueError, match='too few to train on: 12 are needed'): album.train(whole=True) # two views each
    if n < 7:
        with pytest.raises(ValueError, match='too few to train on: 6 are needed'): album.train()


def test_photos_that_are_all_the_same(tmp_path):
    (tmp_path/'photos').mkdir()
    for i in range(8): Image.new('RGB', (50, 50)).save(tmp_path/f'photos/{i}.png', compress_level=i)
    album = small(tmp_path/'album')
    album.update(tmp_path/'photos')
    assert all(d < 1e-3 for d in album.search().find(tmp_path/'photos/0.png').distances)


def test_what_is_skipped_is_named_and_tried_again_with_another_reader(folder, tmp_path, seen, monkeypatch):
    (folder/'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 and nothing more')
    (folder/'telephone.hif').write_bytes(b'\0\0\0\x18ftypheix' + bytes(99))
    (folder/'link.png').symlink_to(folder/'a/00.png')
    album = small(tmp_path/'album')
    assert album.update(folder).skipped == 3 and len(seen) == 14
    skipped = album.skipped()
    assert skipped['broken.jpg'].startswith('broken: ') and skipped['telephone.hif'].startswith('no reader: ')
    assert skipped['link.png'].startswith('passed over: ')
    album.update()
    assert len(seen) == 14
    monkeypatch.setattr(module.PIL, '__version__', '99')
    album.update()
    assert sorted(seen[14:]) == ['broken.jpg', 'telephone.hif']


def test_names_that_are_not_text(tmp_path):
    names = [os.fsdecode(b'caf\xe9, "1".png'), 'new\nline.png', "it's.png", "'; drop table files; --.png"]
    (tmp_path/'photos').mkdir()
    for i, name in enumerate(names):
        picture(i).save(tmp_path/'plain.png')
        os.rename(tmp_path/'plain.png', tmp_path/'photos'/name)
    album = small(tmp_path/'album')
    album.update(tmp_path/'photos')
    assert sorted(photo.name for photo in album.photos()) == sorted(names) == sorted(album.search().files)
    assert album.update() == Changes(**NOTHING | dict(same=4))
    assert os.path.exists(album.search().neighbours(names[0]).paths[0])
    album.map()
    album.duplicates()


def test_duplicates_are_named_with_files_of_the_same_bytes(folder, tmp_path):
    album = small(tmp_path/'album')
    picture(3, (600, 500)).save(folder/'large <b>.png')
    shutil.copy(folder/'a/04.png', folder/'z copy.png')
    def content(): return {file: file.read_bytes() for file in folder.rglob('*') if file.is_file()}
    before = content()
    album.update(folder)
    found = album.duplicates()
    with open(album.place/'duplicates.csv', newline='') as f: rows = list(csv.DictReader(f))
    groups = [{row['file'] for row in rows if (row['group'], row['kind']) == (n, 'copy')}
              for n in {row['group'] for row in rows}]
    assert {'large <b>.png', 'b/03.png'} in groups and {'a/04.png', 'z copy.png'} in groups
    assert found['copy'] == len([group for group in groups if group])
    large, = (row for row in rows if row['file'] == 'large <b>.png')
    assert (large['suggested'], large['width'], large['height']) == ('yes', '600', '500')
    page = (album.place/'duplicates.html').read_text()
    assert '<b>.png' not in page and 'large &lt;b&gt;.png' in page and '://' not in page
    assert content() == before # nothing is deleted, nor changed


def test_the_facts_of_a_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = '2021:03:04 05:06:07'
    picture(0, (70, 40)).save(tmp_path/'a.jpg', exif=exif)
    assert photo_facts(tmp_path/'a.jpg') == (40, 70, '2021-03-04 05:06:07')
    exif.get_ifd(0x8769)[0x9003] = '0000:00:00 00:00:00' # of a camera whose clock was never set
    picture(0, (70, 40)).save(tmp_path/'b.jpg', exif=exif)
    os.utime(tmp_path/'b.jpg', (1e9, 1e9))
    w, h, taken = photo_facts(tmp_path/'b.jpg')
    assert (w, h) == (40, 70) and taken.startswith('2001-09-')


@pytest.mark.parametrize('clock', [10**21, 2**63 - 1, 0, -10**19]) # nanoseconds: the years 33658, 2262, 1970, 1653
def test_a_clock_that_runs_wild(folder, tmp_path, clock, monkeypatch):
    album, plain = small(tmp_path/'album'), os.stat
    def stat(path, *how, **more): # not every file system keeps such times
        info = plain(path, *how, **more)
        if not str(path).endswith('/00.png'): return info
        return os.stat_result(tuple(info)[:7] + (0, clock//10**9, 0), dict(st_mtime=clock/1e9, st_mtime_ns=clock))
    monkeypatch.setattr(os, 'stat', stat)
    assert album.update(folder).new == 12 and album.update().same == 12
    assert album.photos()[0].taken[:4] == {10**21: '', 2**63 - 1: '2262', 0: '1970', -10**19: '1653'}[clock]


def refuse(monkeypatch, owner, name, within, error):
    plain = getattr(owner, name)
    def call(path, *how, **more):
        if str(within) in str(path): raise error
        return plain(path, *how, **more)
    monkeypatch.setattr(owner, name, call)

def disk_gone(folder, monkeypatch): # a broken network: the folder is there, but cannot be listed
    for name in ('listdir', 'scandir'): refuse(monkeypatch, os, name, folder/'a', OSError(107, 'not connected'))

def disk_not_mounted(folder, monkeypatch):
    (folder/'a').rename(folder.parent/'disk')
    (folder/'a').mkdir()
    (folder/'a/.not-mounted').touch()

def disk_stale(folder, monkeypatch): # it is listed, and nothing more
    for name in ('stat', 'lstat'): refuse(monkeypatch, os, name, f'{folder}/a/', OSError(116, 'Stale file handle'))

def disk_broken(folder, monkeypatch): # files that seem to have changed cannot be read
    for file in (folder/'a').iterdir(): os.utime(file, (1, 1))
    refuse(monkeypatch, module, 'file_digest', f'{folder}/a/', OSError(5, 'Input/output error'))

@pytest.mark.parametrize('trouble', [disk_gone, disk_not_mounted, disk_stale, disk_broken])
def test_a_disk_that_is_away_is_not_forgotten(folder, tmp_path, seen, monkeypatch, trouble):
    album = small(tmp_path/'album')
    album.update(folder)
    picture(60).save(folder/'b/new.png')
    (folder/'b/01.png').unlink()
    with monkeypatch.context() as patch:
        trouble(folder, patch)
        changes = album.update()
        assert changes._replace(skipped=0) == Changes(**NOTHING | dict(new=1, deleted=1, same=5, away=6))
        assert len(album.photos()) == len(album.search().files) == 12
    if (folder.parent/'disk').exists():
        shutil.rmtree(folder/'a')
        (folder.parent/'disk').rename(folder/'a')
    assert album.update() == Changes(**NOTHING | dict(same=12)) and len(seen) == 13
    shutil.rmtree(folder/'a') # now they are deleted
    assert album.update() == Changes(**NOTHING | dict(same=6, deleted=6))


def test_an_emptied_folder_whose_photos_lie_elsewhere_is_not_away(folder, tmp_path):
    album = small(tmp_path/'album')
    album.update(folder)
    for file in (folder/'a').iterdir(): file.rename(folder/'b'/file.name)
    assert album.update() == Changes(**NOTHING | dict(moved=6, same=6))


def test_an_empty_disk_changes_nothing(folder, tmp_path):
    album = small(tmp_path/'album')
    album.update(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match='no image was found .*Is its disk mounted'): album.update()
    assert len(album.photos()) == 12


def test_the_folder_may_be_moved(folder, tmp_path, seen):
    album = small(tmp_path/'album')
    album.update(folder)
    shutil.copytree(folder, tmp_path/'copy')
    refused = 'is of .*photos. For .*(copy|other) choose another place'
    with pytest.raises(ValueError, match=refused): album.update(tmp_path/'copy')
    folder.rename(tmp_path/'elsewhere')
    (tmp_path/'other').mkdir()
    picture(99).save(tmp_path/'other/1.png')
    with pytest.raises(ValueError, match=refused): album.update(tmp_path/'other')
    assert album.update(tmp_path/'elsewhere') == Changes(**NOTHING | dict(same=12)) and len(seen) == 12
    assert all(os.path.exists(path) for path in album.search().find(tmp_path/'elsewhere/a/00.png').paths)


def test_what_could_not_be_decoded_for_a_while_is_tried_again(folder, tmp_path, monkeypatch):
    plain, album = module.decode_images, small(tmp_path/'album')
    def breaks(paths, side):
        for i, (path, decoded) in enumerate(zip(paths, plain(paths, side))):
            if i == 3: os.rename(path, tmp_path/'gone.png') # decoded, but gone before it was looked at
            yield decoded if i < 6 else (None, 'unreadable: Input/output error', None) if i % 2 else (
                None, 'too large: memory was not enough', None)
    monkeypatch.setattr(module, 'decode_images', breaks)
    assert album.update(folder) == Changes(**NOTHING | dict(new=12, skipped=7))
    assert set(why.partition(':')[0] for why in album.skipped().values()) == {'unreadable', 'too large'}
    monkeypatch.undo()
    os.rename(tmp_path/'gone.png', folder/'a/06.png')
    assert album.update() == Changes(**NOTHING | dict(same=12)) and len(album.search().files) == 12


def test_a_kill_while_a_search_is_saved_or_one_that_is_damaged(folder, tmp_path, monkeypatch):
    album = small(tmp_path/'album')
    album.update(folder)
    album.train()
    trained = album.search('after').z
    picture(60).save(folder/'new.png')
    for name in ('serialize_index', 'rename'): # while it is written; between the two renames
        def die(*given):
            if name == 'serialize_index' or str(given[1]).endswith('/after'): raise KeyboardInterrupt
            plain(*given)
        owner, plain = (os, os.rename) if name == 'rename' else (sys.modules['plm.search'].faiss, None)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, die)
            album.update()
    assert not (album.place/'after').exists()
    album.update()
    assert len(album.search().files) == len(album.search('after').files) == 13
    again = album.search('after')
    torch.testing.assert_close(again.z[[again.files.index('a/00.png')]], trained[:1])
    (album.place/'before/embeddings.npy').write_bytes(b'rotten')
    album.update()
    assert len(album.search().files) == 13
    (album.place/'after/embeddings.npy').write_bytes(b'rotten')
    with pytest.raises(ValueError, match='after, and run plm train'): album.update()
    assert {file.name for file in album.place.iterdir()} == {'album.sqlite', 'photos.yaml', 'before', 'after'}


def test_two_begin_an_album_at_once(folder, tmp_path):
    album = small(tmp_path/'album')
    code = f"""
import fcntl, os, sys
from plm.album import Album, list_images
from plm import album
def listed(*given):
    found = list_images(*given)
    print('listed', flush=True)
    input()
    return found
album.list_images = listed
print(Album({str(album.place)!r}).update({str(folder)!r}))
"""
    runs = [subprocess.Popen([sys.executable, '-c', code], text=True, stdin=-1, stdout=-1, stderr=-1) for _ in range(2)]
    for run in runs: assert run.stdout.readline() == 'listed\n' # both have found no album
    said = [run.communicate('\n', timeout=90) for run in runs]
    assert sorted(out for out, _ in said) == ['12 new\n', '12 same\n'], said
    assert [file.name for file in sorted(album.place.glob('*'))] == ['album.sqlite', 'before', 'photos.yaml']


def test_training_takes_the_photos_that_are_there_when_it_begins(folder, tmp_path, monkeypatch):
    album = small(tmp_path/'album')
    album.update(folder)
    picture(60).save(folder/'new.png')
    plain = module.alone_in
    def late(place): # somebody else brings the album up to date meanwhile
        monkeypatch.setattr(module, 'alone_in', plain)
        album.update()
        return plain(place)
    monkeypatch.setattr(module, 'alone_in', late)
    album.train()
    assert len(album.search('after').files) == 13


def test_what_sqlite_says_is_put_into_words(folder, tmp_path, monkeypatch):
    album = small(tmp_path/'album')
    album.update(folder)
    plain, file = sqlite3.connect, album.place/'album.sqlite'
    def told(*pragmas, **how):
        def connect(file, **given):
            db = plain(file, **given | how)
            for pragma in pragmas: sqlite3.Connection.execute(db, f'pragma {pragma}')
            return db
        monkeypatch.setattr(module.sqlite3, 'connect', connect)
    with closing(plain(file)) as other:
        other.execute('begin exclusive')
        told(timeout=0.1)
        with pytest.raises(OSError, match='is in use, or lies on a disk that does not lock files: wait'): album.photos()
    picture(60).save(folder/'new.png')
    told('query_only=1')
    assert len(album.photos()) == 12 # reading needs no right to write
    with pytest.raises(OSError, match='album.sqlite may not be written: .* choose another place'): album.update()
    told('max_page_count=1')
    with pytest.raises(OSError, match='album.sqlite could not be written: the disk is full.*Make room') as e:
        album.update()
    assert e.value.errno == 28
    monkeypatch.undo()
    assert album.update() == Changes(**NOTHING | dict(same=13)) or len(album.photos()) == 13
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + bytes(len(whole) - 4096)) # the first page is whole
    with pytest.raises(ValueError, match='is damaged .*Delete .*run plm index again'): album.photos()


def test_mistakes_are_one_sentence(folder, tmp_path):
    album = small(tmp_path/'album')
    for ask in (album.search, album.photos, album.update, album.skipped):
        with pytest.raises(FileNotFoundError, match='there is no album in .* plm index'): ask()
    with pytest.raises(FileNotFoundError, match='nowhere does not exist'): album.update(folder/'nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='no image was found'): album.update(tmp_path/'empty')
    assert not (tmp_path/'album/album.sqlite').exists() # a mistake leaves nothing behind
    with pytest.raises(ValueError, match='would lie among the photos'): Album(folder/'album').update(folder)
    small(folder/'.hidden').update(folder) # is passed over, so it does no harm
    album.update(folder)
    with pytest.raises(ValueError, match='is of .*photos. For .* choose another place'): album.update(folder/'a')
    with pytest.raises(FileNotFoundError, match='nothing has been trained .* plm train'): album.search('after')
    with closing(sqlite3.connect(album.place/'album.sqlite')) as db:
        db.execute("update about set value = '99' where key = 'format'")
        db.commit()
    with pytest.raises(ValueError, match='is of another version of plm. Delete'): album.photos()
    (album.place/'album.sqlite').write_bytes(b'no database' + bytes(5000))
    with pytest.raises(ValueError, match='is damaged .*Delete'): album.photos()
    (tmp_path/'bad').mkdir()
    (tmp_path/'bad/a.jpg').write_bytes(b'\xff\xd8\xff\xe0 cut off')
    with pytest.raises(ValueError, match='no photo of .* can be used; the first: a.jpg: broken'):
        small(tmp_path/'other').update(tmp_path/'bad')


def test_labels_are_for_figures_only(folder, tmp_path):
    "Training gives the same bytes whatever the labels."
    logs, states = [], []
    for i, labels in enumerate(('', 'x', None)):
        album = small(tmp_path/f'album {i}')
        table = tmp_path/f'{i}.csv'
        names = [f"{'ab'[n % 2]}/{n:02}.png" for n in range(12)]
        table.write_text('file,label\n' + ''.join(f'{name},{labels}{n % 3}\n' for n, name in enumerate(names)))
        album.update(folder, labels_csv=table if labels is not None else None)
        logs.append(album.train())
        states.append((album.place/'after/encoder.pt').read_bytes())
        rows = album.recall()
        assert [row['embedding'] for row in rows] == ['backbone', 'before', 'after'] and 0 <= rows[0]['R@1'] <= 1
        assert not (album.place/'training').exists()
    assert logs[0] == logs[1] == logs[2] and states[0] == states[1] == states[2]
    assert {photo.label for photo in album.photos()} == {'a', 'b'}
    table.write_text('file,label\na/00.png,x\n')
    album.update(labels_csv=table)
    assert [photo.label for photo in album.photos()][:2] == ['x', None] and album.recall() == []


def test_the_whole_network_is_trained_and_sees_what_is_new(folder, tmp_path, seen):
    album = small(tmp_path/'album')
    album.update(folder)
    before = album.search().z
    album.train(whole=True)
    s, n = album.search('after'), len(seen)
    pixels = torch.from_numpy(np.stack([decode_image(folder/name, 40).pixels for name in s.files]))
    torch.testing.assert_close(embed(s.encoder, pixels), s.z, atol=2e-3, rtol=0)
    assert torch.equal(album.search().z, before)
    picture(50).save(folder/'new.png')
    album.update()
    assert seen[n:] == ['new.png', 'new.png'] # once for each network
    again = album.search('after')
    assert len(again.files) == 13 and again.find(folder/'new.png', 1).paths == [str(folder/'new.png')]
    old, new = (x.z[x.files.index('a/00.png')] for x in (s, again))
    torch.testing.assert_close(new, old, atol=1e-3, rtol=0)
    (folder/'a/00.png').write_bytes(b'')
    with pytest.raises(ValueError, match='1 photos cannot be read any more. Run plm index'): album.train(whole=True)
    album.train()
    assert album._trained() == 'head' and len(album.search('after').z) == 13


def test_a_kill_loses_little(tmp_path):
    (tmp_path/'photos').mkdir()
    for i in range(40): picture(i).save(tmp_path/f'photos/{i:02}.png')
    album = small(tmp_path/'album')
    code = f"""
import time, torch
torch.set_num_threads(1)
from plm import album
album._BLOCK, see = 4, album._see
def slowly(*given): see(*given); time.sleep(0.3)
album._see = slowly
album.Album({str(album.place)!r}).update({str(tmp_path/'photos')!r})
"""
    run = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    def done():
        try:
            with closing(sqlite3.connect(f'file:{album.place}/album.sqlite?mode=ro', uri=True)) as db:
                return db.execute('select count(*) from vectors').fetchone()[0]
        except sqlite3.OperationalError: return 0
    deadline = time.monotonic() + 90
    while done() < 12: assert time.monotonic() < deadline and run.poll() is None; time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    kept, looked, plain = done(), [], module.decode_images
    assert 12 <= kept < 40 and not (album.place/'before').exists()
    def note(paths, *how): looked.extend(paths); return plain(paths, *how)
    module.decode_images = note
    try: album.update()
    finally: module.decode_images = plain
    assert len(looked) == 40 - kept
    fresh = small(tmp_path/'fresh')
    fresh.update(tmp_path/'photos')
    torch.testing.assert_close(album.search().z, fresh.search().z, atol=1e-3, rtol=0)
