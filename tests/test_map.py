"Maps of the embedding: the planes and what they lose, the static picture, and the page, in a real browser."
import base64, hashlib, os, re, subprocess, sys, time
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
import reference_map as slow
from browser import browser
from plm.evaluation import ranking
from plm.map import align, map_quality, pca_map, plot_maps, tsne_map, two_maps, write_map
from reference_map import cells, content, numbers


def points(n, d, seed=0): return torch.tensor(np.random.default_rng(seed).normal(size=(n, d))*np.linspace(2, 0.5, d))


# ---- planes

@given(st.integers(3, 30), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pca_is_the_eigenvectors_of_the_covariance(n, d, seed):
    z = points(n, d, seed)
    xy, kept = pca_map(z)
    if d == 1: assert np.allclose(xy[:, 1], 0) and kept == pytest.approx([1, 0]); return
    true, shares = slow.pca(z.numpy())
    assert kept == pytest.approx(shares)
    length = np.sqrt(((z - z.mean(0))**2).sum(1).mean().item())
    assert np.allclose(slow.distances(xy)*length, true, atol=1e-6)


@pytest.mark.parametrize('n, d', [(3, 1), (4, 2), (5, 128), (60, 3)])
def test_tsne_of_few_points(n, d):
    xy = tsne_map(points(n, d))
    assert xy.shape == (n, 2) and np.isfinite(xy).all()
    assert (xy == tsne_map(points(n, d))).all()


def test_tsne_ignores_position_and_scale_and_finds_clusters():
    z = torch.cat([points(20, 5, s) + 12*s for s in range(3)])
    labels = torch.arange(3).repeat_interleave(20)
    for moved in (z, 1e-3*z + 7): assert map_quality(z, tsne_map(moved), labels)['recall_at_1'] == 1


def test_tsne_is_the_same_with_more_threads(tmp_path):
    "In a process that may use two, since scikit-learn's threads are counted when it is loaded."
    points(120, 6).numpy().tofile(tmp_path/'z')
    code = f"""import numpy as np, torch
from plm.map import tsne_map
z = torch.from_numpy(np.fromfile({str(tmp_path/'z')!r}).reshape(120, -1))
tsne_map(z).tofile({str(tmp_path/'xy')!r})"""
    subprocess.run([sys.executable, '-c', code], env=os.environ | {'OMP_NUM_THREADS': '2'}, check=True)
    one = np.asarray(tsne_map(points(120, 6)))
    assert (np.fromfile(tmp_path/'xy', one.dtype).reshape(one.shape) == one).all()


def test_t_sne_of_many_moves_some_and_lays_the_others_beside_them():
    z = torch.cat([points(40, 5, s) + 12*s for s in range(3)])
    some = two_maps(z, most=60)
    assert list(some) == ['t-SNE of 60', 'PCA'] and list(two_maps(z)) == ['t-SNE', 'PCA']
    xy = next(iter(some.values()))
    assert map_quality(z, xy, torch.arange(3).repeat_interleave(40))['recall_at_1'] == 1
    assert (xy == next(iter(two_maps(z, most=60).values()))).all()


@pytest.mark.parametrize('make', [tsne_map, lambda z: pca_map(z)[0], lambda z: two_maps(z, most=3)['PCA']])
def test_planes_of_what_cannot_be_mapped(make):
    assert (make(torch.full((6, 4), 0.3)) == 0).all() # collapsed
    with pytest.raises(ValueError, match='at least 3 points, got 2'): make(points(2, 4))
    broken = points(6, 4)
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match='row 2'): make(broken)
    with pytest.raises(ValueError, match='shape'): make(points(6, 4)[0])


@given(st.integers(5, 24), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_quality_follows_the_formulas(n, k, seed):
    z, xy = points(n, 4, seed), points(n, 2, seed + 1).numpy()
    labels = torch.arange(n) % 2
    found = map_quality(z, xy, labels, k)
    assert found['trustworthiness'] == pytest.approx(slow.trustworthiness(z.numpy(), xy, min(k, (n - 1)//2)))
    assert found['recall_at_1'] == pytest.approx(slow.nearest_is_right(xy, labels.tolist()))


def test_quality_wants_a_place_for_each_embedding():
    with pytest.raises(ValueError, match=r'\(6, 2\).*\(5, 2\)'):
        map_quality(points(6, 4), points(5, 2).numpy(), torch.arange(6) % 2)


@given(st.integers(3, 20), st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_align_is_the_best_turn_and_keeps_distances(n, seed):
    xy, target = points(n, 2, seed).numpy() + 3, points(n, 2, seed + 1).numpy()
    found = align(xy, target)
    assert np.allclose(slow.distances(found), slow.distances(xy))
    target = target - target.mean(0)
    assert ((found - target)**2).sum() <= slow.best_turn(xy - xy.mean(0), target, 360) + 1e-9


# ---- the static picture

@pytest.mark.parametrize('classes, n', [(2, 4), (30, 90)])
def test_the_picture_shows_every_point_once(classes, n):
    labels = torch.arange(n) % classes
    xy = points(n, 2).numpy()
    images = torch.randint(0, 256, (n, 1, 9, 7), dtype=torch.uint8)
    notes, axis_labels = {'a': {'p': 'note p', 'q': 'note q'}}, {'a': {'p': 'xy', 'q': 'uv'}}
    fig = plot_maps({'a': {'p': xy, 'q': -xy}}, notes, axis_labels, images, labels, 'the title')
    shown = min(12, classes)
    assert len(fig.axes) == 2 + shown
    for ax, sign in zip(fig.axes[:2], (1, -1)):
        drawn = np.concatenate([c.get_offsets() for c in ax.collections])
        assert np.allclose(sorted(map(tuple, drawn)), sorted(map(tuple, sign*xy)))
    assert 'note q' in fig.axes[1].get_title() and fig.axes[1].get_xlabel() == 'u'
    assert fig.get_suptitle() == 'the title'
    thumbnails = [ax.images[0].get_array() for ax in fig.axes[2:]]
    assert all(any((t == i[0].numpy()).all() for i in images) for t in thumbnails)


# ---- the page

N, CLASSES, K = 48, 4, 5
NAMES = ['plain', '<b>bold</b>', '</script><script>alert(1)</script>', 'ƅ "&amp;\u2028']


def toy(colour=False):
    "Points on two grids, far enough apart to be hit one by one; each image has one bright row and its own number."
    labels = torch.arange(N) % CLASSES
    grid = np.stack([np.arange(N) % 8, np.arange(N)//8], 1).astype(float)
    shuffled = grid[np.random.default_rng(1).permutation(N)]
    images = torch.zeros(N, 3 if colour else 1, 8, 8, dtype=torch.uint8)
    images[torch.arange(N), :, labels] = 255
    images[:, :, 7] = (5*torch.arange(N, dtype=torch.uint8))[:, None, None]
    maps = {'before <i>': {'t-SNE': grid, 'PCA': grid[:, ::-1]}, 'after': {'t-SNE': shuffled, 'PCA': shuffled**2}}
    near = {name: ranking(points(N, 6, seed) + 1.5*labels[:, None], K) # some right, some wrong
            for seed, name in enumerate(maps)}
    return dict(title='Map & <title>', text='Toy, seed 0 <u>', images=images, labels=labels, maps=maps, neighbors=near,
                names=NAMES)


@pytest.mark.parametrize('colour', [False, True])
def test_the_page_holds_what_it_was_given(tmp_path, colour):
    given_, page = toy(colour), tmp_path/'sub'/'map.html'
    write_map(page, **given_)
    data = content(page)
    assert numbers(data['labels']).tolist() == given_['labels'].tolist() and data['names'] == NAMES
    assert data['planes'] == ['t-SNE', 'PCA'] and data['files'] is None
    assert data['ink'] == (None if colour else 'light')
    for space, (name, near) in zip(data['spaces'], given_['neighbors'].items()):
        assert space['name'] == name and numbers(space['neighbors']).tolist() == near.flatten().tolist()
        for plane, xy in given_['maps'][name].items():
            places = numbers(space['maps'][plane]).reshape(N, 2).astype(int)
            assert np.abs(places).max() == data['unit'] == 32767
            d, true = slow.distances(places), slow.distances(xy)
            assert np.allclose(d/d.max(), true/true.max(), atol=1e-3)
    kind, found = cells(page)
    assert kind == ('jpeg' if colour else 'png')
    for cell, image in zip(found, given_['images'], strict=True):
        image = image.permute(1, 2, 0).numpy() if colour else image[0].numpy()
        assert np.abs(cell.astype(int) - image).max() <= (20 if colour else 0) # JPEG's loss


@given(st.integers(2, 400), st.booleans(), st.integers(0, 9))
@settings(max_examples=6, deadline=None)
def test_images_are_found_again_in_many_sheets(tmp_path_factory, n, colour, seed):
    "Each image has a shade of its own, and none bleeds into the next, but for a pixel at its edge, which is not drawn."
    page = tmp_path_factory.mktemp('page')/'map.html'
    shade = torch.tensor(np.random.default_rng(seed).integers(0, 256, (n, 3 if colour else 1, 1, 1)), dtype=torch.uint8)
    near, xy = (np.arange(n)[:, None] + 1) % n, points(n, 2, seed).numpy()
    write_map(page, '', '', shade.expand(-1, -1, 50, 64), {'a': {'p': xy}}, {'a': near})
    data, shade = content(page), shade.flatten(1).numpy().astype(int)
    assert data['sheet']['size'] == [64, 50] and data['labels'] is None and 'id="scores"' not in page.read_text('utf-8')
    for cell, c in zip(cells(page)[1], shade, strict=True):
        cell = cell[1:-1, 1:-1] if colour else cell[..., None]
        assert np.abs(cell.astype(int) - c).max() <= 5*colour
    assert (numbers(data['colours']).reshape(n, 3) == shade).all()


def test_images_are_the_smaller_the_more_there_are(tmp_path):
    for n, side in ((3, 64), (12_501, 48), (22_223, 32)):
        near, xy = (np.arange(n)[:, None] + 1) % n, points(n, 2).numpy()
        images = torch.tensor(7, dtype=torch.uint8).expand(n, 65, 65)
        write_map(tmp_path/'map.html', '', '', images, {'a': {'p': xy}}, {'a': near})
        assert content(tmp_path/'map.html')['sheet']['size'] == [side, side]


@given(st.integers(5, 40), st.integers(2, 4), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_recall_is_that_of_the_images_with_a_label(tmp_path_factory, n, classes, seed):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(n) < 0.3, -1, rng.integers(0, classes, n))
    labels[:3] = [0, 0, 1]
    xy, page = rng.normal(size=(n, 2)), tmp_path_factory.mktemp('page')/'map.html'
    write_map(page, '', '', torch.zeros(n, 2, 2, dtype=torch.uint8), {'a': {'p': xy}},
              {'a': ranking(torch.tensor(xy), n - 1)}, labels)
    known, true = labels >= 0, labels[labels >= 0].tolist()
    right = slow.nearest_is_right(xy[known], true)*len(true)/sum(true.count(c) > 1 for c in true)
    space = content(page)['spaces'][0]
    assert space['full'] == space['recall']['p'] == f'{100*right:.1f} %'


@pytest.mark.parametrize('home, target', [('pages', '../photos%20%231'), ('photos #1', '.'), ('.', 'photos%20%231')])
def test_links_are_relative_to_the_page(tmp_path, home, target):
    own = toy() | dict(files=[f'a/{i}' for i in range(N)], folder=tmp_path/'photos #1')
    write_map(tmp_path/home/'map.html', **own)
    files = content(tmp_path/home/'map.html')['files']
    assert files['root'] == target and files['folders'] == ['a'] and files['names'] == list(map(str, range(N)))


def test_the_page_is_closed_to_the_network_and_to_markup(tmp_path):
    write_map(tmp_path/'a.html', **toy())
    write_map(tmp_path/'b.html', **toy())
    html = (tmp_path/'a.html').read_text(encoding='utf-8')
    assert (tmp_path/'a.html').read_bytes() == (tmp_path/'b.html').read_bytes()
    for text in ('<i>', '<u>', '<b>bold', 'alert(1)</script>', '<title> '): assert text not in html
    assert 'Map &amp; &lt;title&gt;' in html and '://' not in html
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html).group(1)
    scripts = re.findall(r'<script>(.*?)</script>', html, re.S)
    assert len(scripts) == 1 and policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()}'" in policy


def test_two_thousand_images_stay_below_3_megabytes(tmp_path):
    n = 2000
    images = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8) # noise: nothing that PNG could save
    near, xy = torch.arange(n)[:, None] - torch.arange(1, 10), points(n, 2).numpy()
    maps, neighbors = {s: {'t-SNE': xy, 'PCA': xy} for s in 'ab'}, {s: near % n for s in 'ab'}
    write_map(tmp_path/'map.html', '', '', images, maps, neighbors, torch.arange(n) % 100)
    assert (tmp_path/'map.html').stat().st_size < 3e6


@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([None, 1, 3]),
       st.booleans())
@settings(max_examples=20, deadline=None)
def test_pages_of_any_shape(tmp_path_factory, n, k, h, w, channels, collapsed):
    k = min(k, n - 1)
    shape = (n, h, w) if channels is None else (n, channels, h, w)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels, xy = torch.arange(n) % 2, np.zeros((n, 2)) if collapsed else points(n, 2).numpy()
    page = tmp_path_factory.mktemp('page')/'map.html'
    given_ = (page, '', '', images, {'a': {'p': xy}}, {'a': ranking(points(n, 3), k)}, labels)
    if n == 2: # no two images of a class: nothing to retrieve
        with pytest.raises(ValueError): write_map(*given_)
        given_ = given_[:-1]
    write_map(*given_)
    assert content(page)['sheet']['size'] == [w, h] and content(page)['names'] is None


def swap(d, **changes): return {**d, **changes}
def pca(t, xy): return swap(t['maps'], after=swap(t['maps']['after'], PCA=xy))


@pytest.mark.parametrize('change, message', [
    (lambda t: dict(images=t['images'][:5]), r'labels must have shape \(5,\)'),
    (lambda t: dict(images=t['images'].float()), 'uint8'),
    (lambda t: dict(images=t['images'][:, :, None]), r'\(N, 3, H, W\), got'),
    (lambda t: dict(images=t['images'].expand(-1, 2, -1, -1)), r'\(N, 3, H, W\), got'),
    (lambda t: dict(labels=t['labels']*0), 'one class only'),
    (lambda t: dict(labels=t['labels'] - 2), '0 or more'),
    (lambda t: dict(labels=t['labels']*0 - 1), 'one class only'),
    (lambda t: dict(labels=None), '4 class names, but there are no labels'),
    (lambda t: dict(files=['a']), '1 names of files for 48 images'),
    (lambda t: dict(folder='f'), 'give files'),
    (lambda t: dict(names=NAMES[:3]), '3 class names, but a label is 3'),
    (lambda t: dict(maps={}), 'give both'),
    (lambda t: dict(maps={'after': t['maps']['after']}), 'give both for each embedding'),
    (lambda t: dict(maps=swap(t['maps'], after={'PCA': t['maps']['after']['PCA']})), "has the maps \\['PCA'\\]"),
    (lambda t: dict(maps=pca(t, np.zeros((N, 3)))), r'after, PCA must have shape \(48, 2\).*\(48, 3\)'),
    (lambda t: dict(maps=pca(t, np.full((N, 2), np.nan))), 'NaN'),
    (lambda t: dict(neighbors=swap(t['neighbors'], after=t['neighbors']['after'][:, :2])),
     r"'after' have shape \(48, 2\), expected \(48, 5\)"),
    (lambda t: dict(neighbors=swap(t['neighbors'], after=t['neighbors']['after'] + 30)), 'other images, 0 to 47'),
    (lambda t: dict(neighbors=swap(t['neighbors'], after=torch.arange(N)[:, None].expand(-1, K))), 'other images'),
])
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, change, message):
    given_ = toy()
    with pytest.raises(ValueError, match=message): write_map(tmp_path/'map.html', **swap(given_, **change(given_)))
    assert not list(tmp_path.iterdir())


# ---- in a real browser

@pytest.fixture
def page(browser, tmp_path):
    "The toy page, freshly opened in a window of 1200 × 800."
    write_map(tmp_path/'map.html', **toy())
    browser.window(1200, 800)
    browser.scheme('light')
    browser.console(), browser.requests()
    browser.open(tmp_path/'map.html')
    browser.path = tmp_path/'map.html'
    wait(browser, READY)
    yield browser
    complaints = [m for m in browser.console() if 'willReadFrequently' not in m] # the tests do
    assert complaints == []
    asked = [u for u in browser.requests() if not u.startswith(('chrome:', 'data:'))]
    assert set(asked) == {(tmp_path/'map.html').as_uri()}


READY = "document.body.dataset.ready === 'yes' && !painting && !loading"


def wait(b, condition, seconds=10):
    end = time.monotonic() + seconds
    while not b.js(f'return {condition}'):
        assert time.monotonic() < end, f'{condition} did not come true'
        time.sleep(0.02)


def where(b, i):
    return b.js("""const r = canvas.getBoundingClientRect(), [x, y] = spot(arguments[0]);
        return [r.left + x, r.top + y]""", i)


def shown(b, css):
    return b.js("""const e = document.querySelector(arguments[0]);
        return !e || e.offsetParent === null ? null : e.innerText""", css)


def strokes(b):
    "How many pixels of the map are not empty."
    return b.js("""return pen.getImageData(0, 0, canvas.width, canvas.height).data
        .reduce((n, v, j) => n + (j % 4 === 3 && v > 0), 0)""")


def answers(b):
    return b.js("""return [...document.querySelectorAll("#near button")]
        .map(e => [+e.dataset.image, e.className, e.textContent])""")


def expected(space, i):
    t = toy()
    near = t['neighbors'][list(t['maps'])[space]][i].tolist()
    kinds = [('right', '✓') if j % CLASSES == i % CLASSES else ('wrong', '✗') for j in near]
    return [[j, kind, f'{sign} class {broken(NAMES[j % CLASSES])}'] for j, (kind, sign) in zip(near, kinds)]


# the colours on the straight way from one point to others, from the middle of the one to the frame of the other,
# and one pixel beside it
LINES = """const {data, width} = pen.getImageData(0, 0, canvas.width, canvas.height);
const [i, others] = arguments, [a, b] = spot(i);
return others.map(j => { const [c, d] = spot(j), found = [];
  for (let t = 0; t <= 1; t += 0.005) for (const side of [-1, 0, 1]) {
    const o = 4*(Math.round(b + (d - b)*t + side)*width + Math.round(a + (c - a)*t + side));
    found.push([...data.slice(o, o + 4)]);
  }
  return found; })"""


def broken(name): return re.sub('([_/])', '\\1\u200b', name)


def test_pointing_at_an_image_shows_it_and_its_class(page):
    assert strokes(page) > 1000 and shown(page, '#tip') is None
    for i in (5, 6, 19, 47): # a name of each kind
        page.pointer(('move', *where(page, i)))
        wait(page, f'hovered === {i} && !painting')
        text = re.split(r'\n+', shown(page, '#tip').replace('\u2028', ' '))
        assert text == [f'class {broken(NAMES[i % CLASSES])}'.replace('\u2028', ' '), f'image {i}']
        pixels = page.js("""const c = document.querySelector('#tip canvas');
            const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            return Array.from({length: 8}, (_, y) => p[4*((y*4 + 2)*c.width + 2)])""")
        assert pixels == toy()['images'][i, 0, :, 0].tolist()
    page.pointer(('move', 1190, 790))
    wait(page, 'hovered === -1 && !painting')
    assert shown(page, '#tip') is None


def test_photographs_are_shown_in_their_colours(page, tmp_path):
    own = toy(colour=True)
    own['images'] = torch.zeros(N, 3, 8, 8, dtype=torch.uint8)
    own['images'][torch.arange(N), torch.arange(N) % 3] = 200 # red, green, blue
    write_map(tmp_path/'map.html', **own)
    page.requests() # of the grey page
    page.open(tmp_path/'map.html')
    wait(page, READY)
    for i in (5, 19, 33):
        page.pointer(('move', *where(page, i)), 'down', 'up')
        wait(page, f'chosen === {i} && !painting')
        for css in ('#tip', '#query'):
            pixel = page.js("""const c = document.querySelector(arguments[0] + ' canvas');
                return [...c.getContext('2d').getImageData(c.width/2, c.height/2, 1, 1).data]""", css)
            assert np.abs(np.subtract(pixel[:3], own['images'][i, :, 4, 4])).max() < 12, pixel
    middle = page.js("""const [x, y] = spot(33), r = devicePixelRatio;
        return [...pen.getImageData(Math.round(x*r), Math.round(y*r), 1, 1).data]""")
    assert np.argmax(middle[:3]) == 33 % 3 and np.ptp(middle[:3]) > 120
    assert answers(page) == expected(1, 33)


def test_a_click_asks_for_neighbours_and_escape_clears(page):
    page.pointer(('move', *where(page, 18)), 'down', 'up')
    wait(page, 'chosen === 18 && !painting')
    assert answers(page) == expected(1, 18)
    right = sum(kind == 'right' for _, kind, _ in expected(1, 18))
    assert 0 < right < K and f'{right} of the {K} nearest' in shown(page, '#query')
    lines = page.js(LINES, 18, [j for j, *_ in expected(1, 18)])
    for (j, kind, _), colours in zip(expected(1, 18), lines):
        wanted = (21, 128, 61) if kind == 'right' else (220, 38, 38)
        assert any(np.abs(np.subtract(c[:3], wanted)).max() < 25 and c[3] > 128 for c in colours), j
    page.click('input[name=space][value="0"]')
    wait(page, '!flight')
    assert answers(page) == expected(0, 18) # the same image, its neighbours in the other embedding
    page.click('#near li:nth-child(2) button')
    other = expected(0, 18)[1][0]
    assert page.js('return chosen') == other and answers(page) == expected(0, other)
    page.press('Escape')
    wait(page, '!painting')
    assert page.js('return [chosen, hovered]') == [-1, -1] and shown(page, '#answer') is None and shown(page, '#help')


def test_switching_moves_the_points_through_the_places_between(page):
    def at(): return page.js('return Array.from({length: N}, (_, i) => spot(i))')
    start, before = np.array(at()), shown(page, '#now')
    page.click('input[name=space][value="0"]')
    way = []
    while page.js('return flight'): way.append(np.array(at()))
    end = np.array(at())
    assert np.abs(end - start).max() > 50 and shown(page, '#now') != before
    assert any(np.abs(w - start).max() > 1 and np.abs(w - end).max() > 1 for w in way)
    page.click('input[name=space][value="1"]')
    page.click('input[name=plane][value="1"]')
    wait(page, '!flight')
    assert np.abs(np.array(at()) - start).max() > 20
    page.click('input[name=plane][value="0"]')
    wait(page, '!flight')
    assert np.allclose(at(), start, atol=1e-3)


def test_wheel_zooms_at_the_pointer_and_dragging_moves(page):
    x, y = where(page, 12)
    page.wheel(x, y, -400)
    wait(page, 'view.k > 1.5')
    assert np.allclose(where(page, 12), (x, y), atol=1.5)
    page.pointer(('move', x, y), 'down', ('move', x + 40, y + 30), ('move', x + 60, y + 25), 'up')
    assert np.allclose(where(page, 12), (x + 60, y + 25), atol=1.5)
    assert page.js('return chosen') == -1 # a drag is no click
    page.click('#fit')
    assert np.allclose(where(page, 12), (x, y), atol=1.5)
    page.click('#in')
    assert page.js('return view.k') == 1.5


def test_everything_can_be_reached_by_keys(page):
    page.press('Tab')
    page.press('Left') # the first choice: embedding
    wait(page, 'space === 0 && !flight')
    for _ in range(9):
        if page.js("return document.activeElement.id") == 'map': break
        page.press('Tab')
    assert page.js("return document.activeElement.id") == 'map'
    page.press('Up')
    first = page.js('return hovered')
    wait(page, '!painting')
    assert first >= 0 and f'image {first}' in shown(page, '#tip')
    before = where(page, first)
    page.press('Right')
    second = page.js('return hovered')
    assert second != first and where(page, second)[0] > before[0]
    page.press('Enter')
    assert page.js('return chosen') == second and answers(page) == expected(0, second)
    page.press('+')
    assert page.js('return view.k') == 1.5
    page.press('0')
    page.press('Escape')
    assert page.js('return [chosen, hovered, view.k]') == [-1, -1, 1]


@pytest.mark.parametrize('width, scheme', [(1600, 'light'), (1600, 'dark'), (400, 'light'), (400, 'dark')])
def test_it_fits_the_window_and_the_eye(page, tmp_path, width, scheme):
    page.scheme(scheme)
    page.window(width, 900, phone=width == 400)
    wait(page, 'canvas.width === Math.round(canvas.clientWidth*devicePixelRatio) && !painting')
    assert page.js('return document.documentElement.scrollWidth') <= width
    page.pointer(('move', *where(page, 21)), 'down', 'up', kind='touch' if width == 400 else 'mouse')
    wait(page, 'chosen === 21 && !painting')
    assert 'image 21' in shown(page, '#tip') and 'image 21' in shown(page, '#query')
    box = page.js("""const t = $('tip').getBoundingClientRect(), s = canvas.getBoundingClientRect();
        return [t.left - s.left, t.top - s.top, s.right - t.right, s.bottom - t.bottom]""")
    assert min(box) >= 0
    page.screenshot(tmp_path/'page.png')
    picture = np.asarray(Image.open(tmp_path/'page.png').convert('L'))
    assert picture.std() > 10 and (picture.mean() < 80 if scheme == 'dark' else picture.mean() > 170)


def opened(b, path, **given_):
    write_map(path, **given_)
    b.console(), b.requests()
    b.open(path)
    wait(b, READY)
    return b


def sought(b): return b.js('return Array.from(lit.keys()).filter(i => lit[i])')


def test_failures_are_those_that_the_recall_counts(page):
    "With and without a label for each image, in both embeddings."
    for own in (toy(), toy() | dict(labels=torch.where(torch.arange(N) % 5 == 0, -1, torch.arange(N) % CLASSES))):
        opened(page, page.path, **own)
        page.click('#failures')
        for space, (name, near) in enumerate(own['neighbors'].items()):
            page.click(f'input[name=space][value="{space}"]')
            labels = own['labels'].numpy()
            first = [next((j for j in row if labels[j] >= 0), None) for row in near.tolist()]
            asked = [i for i in range(N) if labels[i] >= 0 and first[i] is not None]
            fails = [i for i in asked if labels[first[i]] != labels[i]]
            assert sought(page) == fails and shown(page, '#count').startswith(f'{len(fails)} of {N} images')
            assert content(page.path)['spaces'][space]['full'] == f'{100*(1 - len(fails)/len(asked)):.1f} %'
        wait(page, '!flight && !painting')
        away = next(i for i in range(N) if i not in fails)
        page.pointer(('move', *where(page, away)))
        assert page.js('return hovered') != away # a pale one is passed over
        page.press('Escape')
        page.press('Escape')
        assert len(sought(page)) == N and not page.js("return $('failures').checked")


def test_names_are_searched_and_folders_are_colours(page):
    files = [f'{"ab"[i % 2]}/{"sub/"*(i % 3 == 0)}P_{i:03d} #ü.jpg' for i in range(N)]
    files[7] = 'top\udcff.jpg'
    own = toy(colour=True) | dict(labels=None, names=None, files=files, folder=page.path.parent/'my photos')
    opened(page, page.path, **own)
    assert shown(page, '#failures') is None and shown(page, '#scores') is None
    page.click('#find')
    for key in 'p_01': page.press(key)
    assert sought(page) == list(range(10, 20)) and shown(page, '#count') == f'10 of {N} images:'
    assert page.js('return document.querySelectorAll("#found button").length') == 10
    page.press('Enter') # the first one
    assert page.js('return chosen') == 10 and shown(page, '#query').startswith(broken(files[10]))
    link = page.js('return document.querySelector("#query a").href')
    assert link == (page.path.parent/'my photos'/files[10]).as_uri()
    assert answers(page) == [[j, '', broken(files[j])] for j in own['neighbors']['after'][10].tolist()]
    page.js('choose(7)')
    assert page.js('return document.querySelector("#query a").href').endswith('/my%20photos/top%ff.jpg')
    page.press('Escape'), page.press('Escape')
    assert len(sought(page)) == N and shown(page, '#groups') is None
    page.js("$('tint').value = 1; $('tint').onchange()")
    rows = page.js('return [...document.querySelectorAll("#legend button")].map(b => b.innerText.split("\\n"))')
    folders = [f.rpartition('/')[0] for f in files]
    sizes = {broken(f) or '(not in a folder)': str(folders.count(f)) for f in set(folders)}
    assert dict(rows) == sizes and [int(n) for _, n in rows] == sorted(map(int, sizes.values()), reverse=True)
    page.click('#legend button')
    group = page.js('return data.files.folders[only]')
    assert sought(page) == [i for i in range(N) if folders[i] == group]
    page.click('#all')
    assert len(sought(page)) == N


def many(n=5000, colour=True):
    "More images than are drawn at once, alternately cyan and red; or, without colour, two blank ones and one all ink."
    g = np.random.default_rng(0)
    xy = np.stack([np.arange(n) % 71, np.arange(n)//71], 1) + g.uniform(-0.3, 0.3, (n, 2))
    red = 255*(torch.arange(n) % 2)
    images = torch.stack([red, 255 - red, 255 - red], 1).to(torch.uint8)[..., None, None].expand(-1, 3, 60, 60)
    if not colour: images = (255*(torch.arange(n) % 3 == 2)).to(torch.uint8)[:, None, None].expand(-1, 28, 28)
    near = (np.arange(n)[:, None] + np.arange(1, 6)) % n
    return dict(title='', text='', images=images, maps={'a': {'p': xy}}, neighbors={'a': near})


def test_of_many_the_points_come_first_and_only_what_is_seen_is_decoded(page):
    opened(page, page.path, **many())
    def decoded(): return page.js('return sheets.filter(s => s.picture).length')
    def seen(): return page.js('return look(side()).map(list => list.length)')
    assert page.js('return sheets.length') == 20 and decoded() == 0 and seen() == [0, 5000, 0]
    assert strokes(page) > 5000
    page.pointer(('move', *where(page, 2500)), 'down', 'up')
    wait(page, 'chosen === 2500 && !painting && !loading')
    assert [j for j, *_ in answers(page)] == [2501, 2502, 2503, 2504, 2505]
    assert shown(page, '#query') == 'image 2500' and 1 <= decoded() <= 6
    page.press('Escape')
    page.js('zoom(8, ...spot(1000))')
    wait(page, '!painting && !loading')
    assert seen()[2] > 20 and sum(seen()) < 400 and 1 <= decoded() < 20


@pytest.mark.parametrize('colour', [True, False])
def test_no_line_at_the_edge_of_an_image(page, colour):
    "Beside cyan ones a red image stays red to its edge, beside ink a blank one stays blank, at every size."
    opened(page, page.path, **many(colour=colour))
    for k in (8, 13, 30):
        page.js(f'fit(); zoom({k}, ...spot(1000)); hover(-1)')
        wait(page, '!painting && !loading')
        found = page.js("""const s = side(), w = canvas.width, pixels = pen.getImageData(0, 0, w, canvas.height).data;
            const inside = i => spotX(i) > s && spotY(i) > s && spotX(i) < width - s && spotY(i) < height - s;
            const channel = data.ink ? 3 : 0; // opacity, red
            const apart = (i, j) => Math.max(Math.abs(spotX(i) - spotX(j)), Math.abs(spotY(i) - spotY(j)));
            const alone = [...look(s)[2]].filter((i, _, all) => inside(i) &&
                all.every(j => i === j || apart(i, j) > s + 2));
            return alone.map(i => {
              const values = [], x = spotX(i), y = spotY(i);
              for (let b = Math.ceil(y - s/2); b + 1 <= y + s/2; b++)
                for (let a = Math.ceil(x - s/2); a + 1 <= x + s/2; a++) values.push(pixels[4*(b*w + a) + channel]);
              return [data.ink ? i % 3 === 2 : i % 2 === 1, Math.min(...values), Math.max(...values)]; })""")
        assert len(found) > 3
        for full, least, most in found:
            if not full: assert most < 20, (k, most)
            elif colour: assert least > 235, (k, least) # ink fades into the ground


SLY = ['"><img src=x onerror="ran=1">.jpg', "'-(ran=1)-'.jpg", '</script><script>ran=1</script>', 'abc\u202egpj.exe',
       '\u2067x" onload="ran=1', '{{ 7*7 }} &lt;b&gt; &amp;']


def test_sly_names_are_shown_as_text_on_the_map(browser, tmp_path):
    labels = torch.arange(12) % 6
    xy = {'t-SNE': np.random.default_rng(0).random((12, 2))}
    write_map(tmp_path/'m.html', SLY[0], SLY[1], torch.randint(0, 256, (12, 1, 9, 9), dtype=torch.uint8),
              {SLY[2]: xy}, {SLY[2]: ranking(torch.rand(12, 3), 4)}, labels, SLY)
    browser.console(), browser.requests()
    browser.open(tmp_path/'m.html')
    wait(browser, "document.body.dataset.ready === 'yes' && !painting")
    assert browser.js("return [document.title, document.querySelector('h1').textContent]") == [SLY[0]]*2
    for i in range(6):
        browser.js('choose(arguments[0])', i)
        shown = browser.js("return document.querySelector('#query strong').textContent")
        assert shown.replace('\u200b', '') == f'class {SLY[i]}'
        assert len(browser.js("return [...document.querySelectorAll('#near span')].map(s => s.textContent)")) == 4
    assert browser.js('return typeof ran') == 'undefined' and browser.console() == []
    assert [u for u in browser.requests() if not u.startswith(('chrome:', 'data:'))] == [(tmp_path/'m.html').as_uri()]
