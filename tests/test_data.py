"Data sets as files, what training may see, and views of images."
import json
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from plm import data
from plm.core import generator_at
from plm.encoder import as_input
from plm.data import DATASETS, SPLITS, Augment, load_images, load_labels, make_dataset, save_splits

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
    assert len(list((tmp_path/'made').iterdir())) == 2*4 + 1


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
    assert set(made) == set(SPLITS) and asked == dict(folder='somewhere', size=28) and set(DATASETS) == {'glyphs', 'omniglot'}
    assert len(made['source'][2]) == made['source'][1].max() + 1 > 500 # every printed character is source


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
