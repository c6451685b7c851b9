"Data sets as files, what training may see, and views of images."
import json
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from hypothesis import given, settings, strategies as st
from plm import data
from plm.core import generator_at
from plm.encoder import as_input
from plm.data import DATASETS, PHOTOS, SPLITS, Augment, PhotoAugment, batches_on, load_images, load_labels, load_rounds, make_dataset, photo_splits, recall_ks, save_photos, save_splits
from plm.published import PUBLISHED, Split

NOTHING = Augment(*[0.]*7)


def small(seed=0):
    rng = np.random.default_rng(seed)
    return {name: (rng.integers(0, 256, (n, 6, 5), dtype=np.uint8), (np.arange(n) % 2).astype(np.int32), [f'{name}/é{i}' for i in range(2)])
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
            assert load_labels(tmp_path/'made', name).dtype == torch.int64 and load_labels(tmp_path/'made', name).tolist() == labels.tolist()
    assert json.loads((tmp_path/'made'/'classes.json').read_text()) == {name: chars for name, (*_, chars) in splits.items()}
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
    with pytest.raises(ValueError, match=f"{a} and {b} share 1 classes, for instance '{a}/é0'"): save_splits(splits, tmp_path)
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
    monkeypatch.setattr(data, 'omniglot_splits', lambda folder, size: asked.update(folder=folder, size=size) or {s: s for s in SPLITS[1:]})
    made = make_dataset('omniglot', 'somewhere')
    assert set(made) == set(SPLITS) and asked == dict(folder='somewhere', size=28) and set(DATASETS) - set(PHOTOS) == {'glyphs', 'omniglot'}
    assert len(made['source'][2]) == made['source'][1].max() + 1 > 500 # every printed character is source


def photos(folder, classes=6, per_class=3):
    "PNG files of one brightness per class: class c has 20 c + 10."
    for c in range(classes):
        (folder/f'kind{c}').mkdir(parents=True)
        for i in range(per_class): Image.fromarray(np.full((30 + i, 40, 3), 20*c + 10, np.uint8)).save(folder/f'kind{c}'/f'{i}.png')
    return folder


def by_name(folder, split):
    "(name of its class, brightness) of each stored image."
    names = json.loads((folder/'classes.json').read_text())[split]
    return [(names[label], int(image[0, 0, 0])) for label, image in zip(np.load(folder/f'{split}_labels.npy'), load_images(folder, split))]


@pytest.mark.parametrize('val_every', [None, 2])
def test_a_folder_becomes_a_benchmark(tmp_path, val_every):
    save_photos(photo_splits('folder', val_every, photos(tmp_path/'photos', 8, 5)), tmp_path/'data', 20, scratch=tmp_path/'scratch')
    stored = {split: by_name(tmp_path/'data', split) for split in SPLITS}
    kinds = {split: {name for name, _ in stored[split]} for split in SPLITS}
    held = {'kind1', 'kind3'} if val_every else set()
    assert kinds == {'source': set(), 'train': {f'kind{c}' for c in range(4)} - held, 'val': held, 'test': {f'kind{c}' for c in range(4, 8)}}
    for split in SPLITS:
        assert load_images(tmp_path/'data', split).shape == (len(stored[split]), 3, 20, 20)
        for name, brightness in stored[split]: assert brightness == 20*int(name[4:]) + 10 # images and labels belong together
    assert [name for name, _ in stored['train']] != sorted(name for name, _ in stored['train']) and load_rounds(tmp_path/'data') == {}


def test_a_folder_with_too_few_classes(tmp_path):
    photos(tmp_path/'photos', 5)
    with pytest.raises(ValueError, match='has 5 classes, which leaves fewer than two for val.*smaller folder.sizes.val_every'): photo_splits('folder', 2, tmp_path/'photos')
    with pytest.raises(ValueError, match='tells no classes.*CSV .folder.sizes.labels.*make photos'): photo_splits('folder', 2, tmp_path/'photos'/'kind0')
    with pytest.raises(ValueError, match='has 3 classes, which leaves fewer than two for test. Give it more classes.$'): photo_splits('folder', None, photos(tmp_path/'few', 3))


def test_a_folder_of_single_images(tmp_path):
    with pytest.raises(ValueError, match='every class of test has a single image'): photo_splits('folder', None, photos(tmp_path/'photos', 6, 1))


def test_images_without_a_label_are_in_no_split(tmp_path):
    photos(tmp_path/'photos', 4, 2)
    rows = [f'kind{c}/0.png,name{c}' for c in range(4)] + ['kind2/1.png,name2']
    (tmp_path/'labels.csv').write_text('\n'.join(['file,label', *rows]))
    splits = photo_splits('folder', None, tmp_path/'photos', tmp_path/'labels.csv')
    assert {name: [Path(f).parent.name for f in s.files] for name, s in splits.items()} == {'train': ['kind0', 'kind1'], 'test': ['kind2', 'kind2', 'kind3']}


def test_rounds_follow_the_rows(tmp_path):
    "A broken file is in no row, and in no query and gallery."
    files = sorted(str(f) for f in photos(tmp_path/'photos', 4, 2).rglob('*.png'))
    Path(files[2]).write_bytes(b'no picture')
    labels = np.arange(8)//2
    splits = {'train': Split(files[:2], labels[:2], ['a']), 'test': Split(files[2:], labels[2:] - 1, ['b', 'c', 'd'], {'one': [(np.array([0, 2, 4]), np.array([1, 3, 5])), (np.array([1]), np.array([0]))]})}
    save_photos(splits, tmp_path/'data', 20, scratch=tmp_path/'scratch')
    (first, second), = load_rounds(tmp_path/'data').values()
    bright = [int(im[0, 0, 0]) for im in load_images(tmp_path/'data', 'test')]
    assert [bright[i] for i in first[0]] == [50, 70] and [bright[i] for i in first[1]] == [30, 50, 70] and [bright[i] for i in second[0]] == [30] and not len(second[1])
    assert 'no picture' not in (tmp_path/'data'/'test_images_skipped.csv').read_text() and Path(files[2]).name in (tmp_path/'data'/'test_images_skipped.csv').read_text()


def test_photos_whose_classes_overlap_are_refused_before_anything_is_written(tmp_path):
    files = [str(f) for f in photos(tmp_path/'photos', 2, 1).rglob('*.png')]
    with pytest.raises(ValueError, match='train and test share 1 classes'): save_photos({name: Split(files, np.array([0, 1]), ['a', name]) for name in ('train', 'test')}, tmp_path/'data', 20)
    assert not (tmp_path/'data').exists()


def test_ks():
    assert {name: recall_ks(name) for name in DATASETS} == {'glyphs': (1, 2, 4, 8), 'omniglot': (1, 2, 4, 8), 'folder': (1, 2, 4, 8), 'cub200': (1, 2, 4, 8), 'cars196': (1, 2, 4, 8),
                                                            'sop': (1, 10, 100, 1000), 'inshop': (1, 10, 20, 30), 'vehicleid': (1, 5)} and set(PUBLISHED) < set(PHOTOS)
    with pytest.raises(ValueError, match="'sop'"): recall_ks('sopp')


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_batches_come_in_order_whatever_the_threads_do(device):
    images = picture(40)
    order = [torch.randperm(40, generator=generator_at(i))[:i].tolist() for i in range(1, 12)]
    got = list(batches_on(images, order, device, ahead=3))
    assert [tuple(x.shape) for _, x in got] == [(len(i), 1, 28, 28) for i in order]
    if device == 'cpu': assert all(index.tolist() == i and torch.equal(x, images[i]) for (index, x), i in zip(got, order))


def test_gathering_takes_only_a_few_batches_ahead_and_passes_errors_on():
    taken = []
    def order():
        for i in range(20): taken.append(i); yield [i if i < 8 else 999]
    batches = batches_on(picture(20), order(), 'meta', ahead=3)
    for i in range(4): next(batches)
    assert len(taken) <= 8
    with pytest.raises(IndexError): list(batches)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(16, 30), st.integers(4, 20), st.sampled_from([0.1, 0.2, 0.9, 1.]), st.sampled_from([1., 4/3, 2.]))
def test_a_photo_view_is_that_of_the_plain_loop(n, c, side, crop, smallest, aspect):
    "Boxes as torchvision draws them (area uniform, aspect uniform in its logarithm, place uniform), pixel by pixel between four neighbours."
    images = picture(n, c, side, side)
    views = PhotoAugment(crop, smallest, aspect)(images, generator_at(n, side))
    area, ratio, x, y, flip = torch.rand(5, n, generator=generator_at(n, side)).double().tolist()
    assert views.shape == (n, c, crop, crop)
    for b in range(n):
        share, tall = smallest + area[b]*(1 - smallest), aspect**(2*ratio[b] - 1)
        w, h = min(1, (share*tall)**0.5)*side, min(1, (share/tall)**0.5)*side
        left, top = x[b]*(side - w), y[b]*(side - h)
        for i in range(crop):
            for j in range(crop):
                v, u = top + (i + 0.5)/crop*h - 0.5, left + (((crop - 1 - j) if flip[b] < 0.5 else j) + 0.5)/crop*w - 0.5
                v, u = min(max(v, 0), side - 1), min(max(u, 0), side - 1)
                i0, j0 = min(int(v), side - 2), min(int(u), side - 2)
                a, e = v - i0, u - j0
                p = images[b, :, i0:i0 + 2, j0:j0 + 2].double()/255
                want = (1 - a)*(1 - e)*p[:, 0, 0] + (1 - a)*e*p[:, 0, 1] + a*(1 - e)*p[:, 1, 0] + a*e*p[:, 1, 1]
                assert (views[b, :, i, j] - want).abs().max() < 1e-3


def test_photo_views_cover_the_photo_and_are_mirrored_half_the_time():
    images = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    images[..., :32] = 255 # left half white
    views = PhotoAugment(32, smallest=1, aspect=1)(images.expand(400, -1, -1, -1), generator_at(5))
    left = views[:, 0, :, :8].mean((1, 2)) > 0.5
    assert 0.4 < left.float().mean() < 0.6 and torch.equal(PhotoAugment(32)(images, generator_at(1)), PhotoAugment(32)(images, generator_at(1)))
    area = (PhotoAugment(32)((torch.arange(64.)[None, None, None, :]*4).to(torch.uint8).expand(400, 1, 64, 64), generator_at(6))[:, 0].amax((1, 2))) # the right end of a ramp
    assert area.min() < 0.6 and area.max() > 0.95


def picture(n=6, c=1, h=28, w=28): return torch.randint(0, 256, (n, c, h, w), generator=generator_at(n, c, h, w), dtype=torch.uint8)


def test_views_repeat_with_their_generator():
    a, again, b = (Augment()(picture(), generator_at('view', e)) for e in (0, 0, 1))
    assert torch.equal(a, again) and not torch.equal(a, b)
    assert a.dtype == torch.float32 and a.shape == (6, 1, 28, 28) and a.min() > -0.5 and a.max() < 1.6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 20), st.integers(2, 20))
def test_strength_zero_is_the_image(n, c, h, w):
    images = picture(n, c, h, w)
    torch.testing.assert_close(NOTHING(images, generator_at(0)), as_input(images), rtol=0, atol=1e-5)
    assert Augment()(images, generator_at(0)).shape == images.shape


def test_as_input():
    x = as_input(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([[[[0., 1., 0.2]]]]))


def test_each_image_is_seen_in_its_own_way():
    same = picture(1).expand(8, 1, 28, 28)
    views = Augment()(same, generator_at(1)).flatten(1)
    gaps = torch.cdist(views, views) + 1e9*torch.eye(8)
    assert gaps.min() > 1


@pytest.mark.parametrize('knob', vars(Augment()))
def test_each_knob_does_something_on_its_own(knob):
    images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 6:18, 8:24] = 200
    views = Augment(**{**vars(NOTHING), knob: vars(Augment())[knob]})(images, generator_at(0))
    assert (views - as_input(images)).abs().mean(dim=(1, 2, 3)).max() > 5e-3


@pytest.mark.parametrize('knob, moved', [('shift', True), ('contrast', False), ('noise', False)])
def test_what_moves_ink_and_what_does_not(knob, moved):
    images = torch.zeros(1, 1, 29, 29, dtype=torch.uint8)
    images[..., 14, 14] = 255
    seen = Augment(**{**vars(NOTHING), knob: vars(Augment())[knob]})(images, generator_at(3))
    assert (seen.flatten().argmax().item() != 14*29 + 14) == moved


def test_the_images_are_left_alone():
    images = picture()
    before = images.clone()
    Augment()(images, generator_at(0))
    assert torch.equal(images, before)
