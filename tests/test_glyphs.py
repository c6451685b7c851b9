"The drawn data set: the same bytes everywhere, classes that differ, and distortion that does what it says."
import hashlib, unicodedata
import numpy as np, pytest, torch
from plm import glyphs
from plm.glyphs import CANVAS, Camera, clean_prints, coverage, distinct_characters, faces, glyph_splits, photographs, print_glyph

SIZES = dict(n_train=3, n_val=2, n_test=2, per_class=4, n_source=3)
STILL = Camera(rotate=0, shear=0, scale=(1, 1), shift=0, elastic=0, stroke=(0.4, 0.4), blur=(0, 0), noise=(0, 0))


def md5(array): return hashlib.md5(array.tobytes()).hexdigest()


@pytest.fixture(scope='module')
def splits(): return glyph_splits(**SIZES)


def test_the_bytes_are_frozen(splits):
    "If this fails after an update of matplotlib (fonts), Pillow (FreeType), numpy or scipy, the data set has changed: freeze anew and run all experiments again."
    assert {name: md5(images) for name, (images, _, _) in splits.items()} == {
        'test': 'ab5378e386227946e928d9659a1258ed', 'val': '2c14d2ffe3a3d1f442278ce3a84642ef',
        'train': '70d09efd9673579db121becc473b0074', 'source': 'ce531a9e44dcb58f431246a107fce6b5'}
    assert {name: ''.join(chars) for name, (_, _, chars) in splits.items()} == {'test': 'ɶջ', 'val': 'ԔԾ', 'train': 'ϺтႦ', 'source': 'aƅѬ'}


def test_shapes_and_labels(splits):
    for name, (images, labels, chars) in splits.items():
        assert images.dtype == np.uint8 and images.shape == (len(labels), 28, 28) and labels.dtype == np.int64
        counts = [len(coverage()[c]) for c in chars] if name == 'source' else [4]*len(chars)
        assert np.bincount(labels).tolist() == counts and (np.diff(labels) >= 0).all()
        assert (images.reshape(len(images), -1).max(1) > 100).all() # there is ink in each
        assert len({im.tobytes() for im in images}) > 0.9*len(images) # some faces share their glyphs
    assert set(splits) == {'source', 'train', 'val', 'test'}


def test_splits_are_disjoint_and_all_characters_can_be_used(monkeypatch):
    monkeypatch.setattr(glyphs, 'photographs', lambda chars, n: (np.zeros(1), np.zeros(1)))
    monkeypatch.setattr(glyphs, 'clean_prints', lambda chars: (np.zeros(1), np.zeros(1)))
    parts = [chars for *_, chars in glyph_splits().values()]
    assert sorted(c for p in parts for c in p) == sorted(distinct_characters()) # every character once
    assert [len(p) for p in parts[:3]] == [100, 50, 150] # test, val, train


def test_the_test_classes_do_not_depend_on_the_other_sizes(splits):
    more = glyph_splits(n_train=1, n_val=1, n_test=2, per_class=4, n_source=1)
    assert more['test'][2] == splits['test'][2] and md5(more['test'][0]) == md5(splits['test'][0])


@pytest.mark.parametrize('sizes, words', [
    (dict(n_train=10**4), 'ask for.*train 10000.*params.yaml'), (dict(n_val=0), 'val 0'), (dict(n_source=0), 'source 0'), (dict(n_test=-1), 'test -1')])
def test_sizes_that_cannot_be(sizes, words):
    with pytest.raises(ValueError, match=words): glyph_splits(**SIZES | sizes)


def test_characters_are_letters_and_digits_that_many_faces_have():
    for c, names in coverage().items():
        assert unicodedata.category(c)[0] in 'LN' and not unicodedata.decomposition(c)
        assert len(names) >= 8 and set(names) <= set(faces())


def test_look_alikes_are_one_class():
    kept = set(distinct_characters())
    assert list(distinct_characters()) == sorted(kept) and kept <= set(coverage())
    for group in ('AΑА', 'BΒВ', 'oοо', 'HΗН', 'cс'): # Latin, Greek and Cyrillic, equal on paper
        assert set(group) <= set(coverage()), group
        assert len(kept & set(group)) <= 1, group
    assert {'a', 'b', 'g', 'k'} <= kept # the first of a group stands for it
    assert len(distinct_characters(0.6)) < len(kept) < len(coverage())


def test_too_few_fonts(monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs.matplotlib, 'get_data_path', lambda: str(tmp_path))
    with pytest.raises(RuntimeError, match='ships 0 DejaVu.*requirements.lock'): faces.__wrapped__()


@pytest.mark.parametrize('char', ['a', 'W', '0', max(coverage(), key=lambda c: print_glyph(c, coverage()[c][0]).sum())])
def test_prints_are_centred_and_not_cut(char):
    page = print_glyph(char, coverage()[char][0])
    assert page.shape == (CANVAS, CANVAS) and page.min() == 0 and page.max() == 1
    ys, xs = np.nonzero(page > 0.5)
    assert min(ys.min(), xs.min()) > 0 and max(ys.max(), xs.max()) < CANVAS - 1
    assert abs(ys.min() + ys.max() - (CANVAS - 1)) <= 4 and abs(xs.min() + xs.max() - (CANVAS - 1)) <= 4


def test_prints_of_the_source():
    images, labels = clean_prints('ab')
    assert len(images) == len(coverage()['a']) + len(coverage()['b']) and set(labels) == {0, 1}
    page = print_glyph('a', coverage()['a'][0])
    assert images[0, 10, 12] == round(page[20:22, 24:26].mean()*255)


def test_a_class_does_not_depend_on_the_others():
    alone, labels = photographs('b', 3)
    among, _ = photographs('abc', 3)
    assert np.array_equal(alone, among[3:6]) and labels.tolist() == [0, 0, 0]
    assert not np.array_equal(alone, photographs('b', 3, address=(1,))[0])


def test_camera_repeats_itself_and_varies():
    page, rng = print_glyph('R', 'DejaVuSans'), np.random.default_rng
    a, again, b = (Camera()(page, rng(s)) for s in (1, 1, 2))
    assert np.array_equal(a, again) and not np.array_equal(a, b)
    assert a.shape == (28, 28) and a.dtype == np.uint8


def test_a_camera_held_still_shows_the_print():
    page = print_glyph('R', 'DejaVuSans')
    seen = STILL(page, np.random.default_rng(0)).astype(float)
    small = page.reshape(28, 2, 28, 2).mean((1, 3))
    assert np.corrcoef(seen.ravel(), small.ravel())[0, 1] > 0.97


def test_each_knob_of_the_camera_does_something():
    page = print_glyph('R', 'DejaVuSans')
    still = STILL(page, np.random.default_rng(0)).astype(float)
    for knob, value in dict(rotate=30, shear=0.5, scale=(0.6, 0.6), shift=6, elastic=4, stroke=(0.7, 0.7), blur=(3, 3), noise=(0.2, 0.2)).items():
        seen = Camera(**{**vars(STILL), knob: value})(page, np.random.default_rng(0))
        assert np.abs(seen - still).mean() > 3, knob
    ink = lambda **k: Camera(**{**vars(STILL), **k})(page, np.random.default_rng(0)).astype(float).sum()
    assert ink(stroke=(0.2, 0.2)) > 1.2*ink(stroke=(0.6, 0.6)) # low is a broad pen
    assert ink(scale=(0.7, 0.7)) < ink(scale=(1, 1)) < ink(scale=(1.2, 1.2))


def test_the_global_generators_are_left_alone():
    np.random.seed(0); torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(1).item()
    np.random.seed(0); torch.manual_seed(0)
    photographs('b', 2)
    assert (np.random.rand(), torch.rand(1).item()) == expected
