"Pixels, random views of images, and batches that are fetched ahead."
import pytest, torch
from hypothesis import given, settings, strategies as st
from plm.core import generator_at
from plm.images import Augment, PhotoAugment, StoredViews, as_input, load_batches, to_device_if_small

NOTHING = Augment(*[0.]*7)


def picture(n=6, c=1, h=28, w=28):
    return torch.randint(0, 256, (n, c, h, w), generator=generator_at(n, c, h, w), dtype=torch.uint8)


def test_as_input():
    x = as_input(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([[[[0., 1., 0.2]]]]))


# ---- views of characters

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


# ---- views of photos

def plain_view(image, crop, smallest, aspect, area, ratio, x, y, flip):
    "One view of one square photo, pixel by pixel, between four neighbours."
    side = image.shape[-1]
    share, tall = smallest + area*(1 - smallest), aspect**(2*ratio - 1)
    w, h = min(1, (share*tall)**0.5)*side, min(1, (share/tall)**0.5)*side
    left, top = x*(side - w), y*(side - h)
    view = torch.zeros(len(image), crop, crop, dtype=torch.float64)
    for i in range(crop):
        for j in range(crop):
            v = top + (i + 0.5)/crop*h - 0.5
            u = left + (((crop - 1 - j) if flip < 0.5 else j) + 0.5)/crop*w - 0.5
            v, u = min(max(v, 0), side - 1), min(max(u, 0), side - 1)
            i0, j0 = min(int(v), side - 2), min(int(u), side - 2)
            a, e = v - i0, u - j0
            p = image[:, i0:i0 + 2, j0:j0 + 2].double()/255
            view[:, i, j] = (1 - a)*((1 - e)*p[:, 0, 0] + e*p[:, 0, 1]) + a*((1 - e)*p[:, 1, 0] + e*p[:, 1, 1])
    return view


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(16, 30), st.integers(4, 20),
       st.sampled_from([0.1, 0.2, 0.9, 1.]), st.sampled_from([1., 4/3, 2.]))
def test_a_photo_view_is_that_of_the_plain_loop(n, c, side, crop, smallest, aspect):
    "Boxes as torchvision draws them: area uniform, aspect uniform in its logarithm, place uniform."
    images = picture(n, c, side, side)
    views = PhotoAugment(crop, smallest, aspect)(images, generator_at(n, side))
    drawn = torch.rand(5, n, generator=generator_at(n, side)).double().T.tolist()
    assert views.shape == (n, c, crop, crop)
    for image, view, numbers in zip(images, views, drawn):
        assert (view - plain_view(image, crop, smallest, aspect, *numbers)).abs().max() < 1e-3


def test_photo_views_cover_the_photo_and_are_mirrored_half_the_time():
    images = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    images[..., :32] = 255 # left half white
    views = PhotoAugment(32, smallest=1, aspect=1)(images.expand(400, -1, -1, -1), generator_at(5))
    left = views[:, 0, :, :8].mean((1, 2)) > 0.5
    assert 0.4 < left.float().mean() < 0.6
    assert torch.equal(PhotoAugment(32)(images, generator_at(1)), PhotoAugment(32)(images, generator_at(1)))
    ramp = (torch.arange(64.)[None, None, None, :]*4).to(torch.uint8).expand(400, 1, 64, 64)
    right_end = PhotoAugment(32)(ramp, generator_at(6))[:, 0].amax((1, 2))
    assert right_end.min() < 0.6 and right_end.max() > 0.95


# ---- stored features

def stored(n, views, F=5): return torch.randn(n, 1 + views, F, generator=generator_at('stored', n, views)).half()


def test_the_plain_row_stands_for_the_image():
    x = stored(6, 2)
    assert torch.equal(as_input(x), x[:, 0].float()) and as_input(x).dtype == torch.float32
    assert torch.equal(as_input(x.double()), as_input(x))


@pytest.mark.parametrize('views', [1, 2, 5])
def test_stored_views_are_drawn_one_by_one(views):
    "By the definition: for each image in turn one of its views, and each about as often as the others."
    x = stored(600, views)
    seen, g = StoredViews()(x, generator_at(4)), generator_at(4)
    drawn = torch.randint(1, views + 1, (600,), generator=g).tolist()
    for image, view, v in zip(x, drawn, seen): assert torch.equal(image[view].float(), v)
    counts = [drawn.count(v) for v in range(1, views + 1)]
    assert min(counts) > 0.7*600/views and sum(counts) == 600
    assert not torch.equal(StoredViews()(x, generator_at(5)), seen) or views == 1


def test_no_view_is_stored():
    with pytest.raises(ValueError, match='only the plain image is stored.*store some'):
        StoredViews()(stored(3, 0), generator_at(0))


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_batches_of_stored_features(device):
    x, order = stored(9, 2), [[3, 1], [8], [2, 2, 0]]
    for (index, batch), rows in zip(load_batches(x, order, device), order, strict=True):
        assert batch.shape == (len(rows), 3, 5) and batch.dtype == torch.float16
        if device == 'cpu': assert torch.equal(batch, x[rows])


# ---- batches

def test_small_images_move_and_large_ones_stay():
    images = picture()
    assert to_device_if_small(images, 'meta', images.nbytes).device.type == 'meta'
    assert to_device_if_small(images, 'meta', images.nbytes - 1) is images


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_batches_come_in_order_whatever_the_threads_do(device):
    images = picture(40)
    order = [torch.randperm(40, generator=generator_at(i))[:i].tolist() for i in range(1, 12)]
    got = list(load_batches(images, order, device, ahead=3))
    assert [tuple(x.shape) for _, x in got] == [(len(i), 1, 28, 28) for i in order]
    if device == 'cpu':
        assert all(index.tolist() == i and torch.equal(x, images[i]) for (index, x), i in zip(got, order))


def test_reading_takes_only_a_few_batches_ahead_and_passes_errors_on():
    taken = []
    def order():
        for i in range(20):
            taken.append(i)
            yield [i if i < 8 else 999]
    batches = load_batches(picture(20), order(), 'meta', ahead=3)
    for i in range(4): next(batches)
    assert len(taken) <= 8
    with pytest.raises(IndexError): list(batches)


@pytest.mark.parametrize('V', [2, 3, 5])
def test_two_draws_of_a_batch_differ_and_all_views_are_drawn_alike(V):
    stored = torch.arange(1 + V).float()[None, :, None].expand(3000, -1, 1)
    views, g = StoredViews(), generator_at('two draws', V)
    first, second = views(stored, g)[:, 0], views(stored, g)[:, 0]
    assert (first != second).all() and (views(stored[:100], g)[:, 0] == first[:100]).any() # another batch: any view
    for drawn in (first, second):
        counts = drawn.long().bincount(minlength=1 + V)
        assert counts[0] == 0 and (counts[1:]/3000 - 1/V).abs().max() < 0.05
