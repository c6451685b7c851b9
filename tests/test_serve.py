"The page to search in: what the server answers and refuses, and the page in a real browser."
import io, os, re, shutil, signal, socket, subprocess, sys, threading, time, zlib
import anyio, httpx, numpy as np, pytest, uvicorn
from PIL import Image
from starlette.testclient import TestClient
from browser import browser
from plm.album import Album
from plm.search import PHOTOS_FILE, printable
from plm.serve import MAX_UPLOAD, _Current, make_app

ODD = ['<img src=x onerror="document.title=1">.png', 'a "quoted" & \'other\' name.png', '\u202egnp.evil.png',
       os.fsdecode(b'caf\xe9 \xff.png')]
HOME = 'http://localhost'


def picture(seed, size=(96, 72)):
    "Squares of a colour of its own: as many colours as pictures."
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)//2 + rng.integers(0, 128, 3).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def make_album(root, n=24):
    "n pictures in red/, blue/deep/ and beside them, a day each from 2024-03-01 on; and four of odd names."
    for i in range(n):
        file = root/'photos'/('red', 'blue/deep', '')[i % 3]/f'{i:02}.{("jpg", "png")[i % 2]}'
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(file)
        noon = time.mktime((2024, 3, 1 + i, 12, 0, 0, 0, 0, -1))
        os.utime(file, (noon, noon))
    for i, name in enumerate(ODD): picture(100 + i).save(root/'photos'/name, 'PNG')
    picture(200).save(root/'photos/scan.tif')
    album = Album(root/'album')
    album.place.mkdir()
    text = PHOTOS_FILE.read_text()
    for a, b in (('efficientnet_lite0', 'resnet18'), ('weights: imagenet', 'weights: none'), ('side: 256', 'side: 64'),
                 ('crop: 224', 'crop: 64'), ('dim: 512', 'dim: 32'), ('epochs: 10', 'epochs: 1')):
        assert a in text
        text = text.replace(a, b)
    (album.place/'photos.yaml').write_text(text)
    album.update(root/'photos')
    return album


@pytest.fixture(scope='module')
def album(tmp_path_factory):
    album = make_album(tmp_path_factory.mktemp('one'))
    album.train()
    return album


@pytest.fixture(scope='module')
def client(album): return TestClient(make_app(album), HOME)


@pytest.fixture
def own(tmp_path):
    "An album that a test may change."
    album = make_album(tmp_path, 9)
    return album, TestClient(make_app(album), HOME)


def bytes_of(im, kind='PNG'):
    file = io.BytesIO()
    im.save(file, kind)
    return file.getvalue()


def ids(client): return {p['name']: p['id'] for p in client.get('/api/photos?limit=500').json()['photos']}


def send(client, data, kind='image/png', **params):
    return client.post('/api/similar', content=data, headers={'Content-Type': kind}, params=params)


# ---- what it answers

def test_the_album_in_numbers(client, album):
    about = client.get('/api/album').json()
    assert about['photos'] == 29 and about['searches'] == ['before', 'after']
    assert about['folder'] == album.about('folder')
    assert about['folders'] == [['blue', 8], ['blue/deep', 8], ['red', 8]]
    assert about['first'] == '2024-03-01' and about['last'] >= '2026'
    assert {row['embedding'] for row in client.get('/api/recall').json()} == {'backbone', 'before', 'after'}


def test_browsing_goes_from_the_newest_to_the_oldest_in_parts(client):
    parts = [client.get(f'/api/photos?offset={i}&limit=10').json() for i in (0, 10, 20, 30)]
    assert [len(part['photos']) for part in parts] == [10, 10, 9, 0] and {part['total'] for part in parts} == {29}
    photos = [photo for part in parts for photo in part['photos']]
    taken = [photo['taken'] for photo in photos]
    assert taken == sorted(taken, reverse=True) and len({photo['id'] for photo in photos}) == 29
    assert photos[-1]['name'] == 'red/00.jpg' and (photos[-1]['width'], photos[-1]['height']) == (96, 72)


@pytest.mark.parametrize('wish, names', [
    (dict(folder='blue'), [f'blue/deep/{i:02}' for i in (22, 19, 16, 13, 10, 7, 4, 1)]),
    (dict(folder='blu'), []),
    ({'folder': 'red', 'from': '2024-03-04', 'to': '2024-03-10'}, ['red/09', 'red/06', 'red/03']),
    (dict(to='2024-03-01'), ['red/00']),
    (dict(name='RED/0', to='2025-01-01'), ['red/09', 'red/06', 'red/03', 'red/00']),
    ({'from': '2024-03-09', 'to': '2024-03-08'}, [])])
def test_filters(client, wish, names):
    photos = client.get('/api/photos', params=wish).json()['photos']
    assert [photo['name'][:-4] for photo in photos] == names


@pytest.mark.parametrize('which', ['before', 'after'])
def test_the_nearest_are_exact_and_filters_come_before_the_cut(client, album, which):
    z, names, id_of = album.search(which).z.numpy(), album.search(which).files, ids(client)
    query = names.index('red/03.png')
    d = np.linalg.norm(z - z[query], axis=1)
    def near(**wish):
        wish |= dict(id=id_of['red/03.png'], which=which)
        photos = client.get('/api/similar', params=wish).json()['photos']
        return [p['name'] for p in photos], [p['distance'] for p in photos]
    order = [i for i in d.argsort() if i != query]
    found, distances = near(k=7)
    shown = {name: os.fsencode(name).decode('utf-8', 'backslashreplace') for name in names}
    assert found == [shown[names[i]] for i in order[:7]] and distances == pytest.approx(d[order[:7]], abs=1e-4)
    blue = [i for i in order if names[i].startswith('blue/')]
    assert near(folder='blue', k=5)[0] == [names[i] for i in blue[:5]]
    assert not set(blue[:5]) <= set(order[:5]) # else a cut before the filter would pass
    far = (d[order[3]] + d[order[4]])/2
    assert len(near(far=far)[0]) == 4 and len(near()[0]) == 28


def test_without_a_word_the_trained_search_answers(client):
    id = next(iter(ids(client).values()))
    answers = [client.get('/api/similar', params=dict(id=id) | more).json()['photos']
               for more in ({}, dict(which='after'), dict(which='before'))]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize('name', ['red/03.png', 'red/06.jpg'])
def test_a_picture_finds_itself(client, album, name):
    data = open(os.path.join(album.about('folder'), name), 'rb').read()
    found = send(client, data, k=3).json()['photos']
    assert len(found) == 3 and found[0]['name'] == name and found[0]['distance'] < 0.02
    assert all(p['name'].startswith('blue/') for p in send(client, data, folder='blue').json()['photos'])


def test_photos_and_thumbnails(client, album):
    folder = album.about('folder')
    for name, id in ids(client).items():
        thumb, whole = client.get('/thumb/' + id), client.get('/photo/' + id)
        assert Image.open(io.BytesIO(thumb.content)).size == (64, 64) and 'immutable' in thumb.headers['cache-control']
        assert Image.open(io.BytesIO(whole.content)).size == (96, 72), name
        if name.endswith(('.jpg', '.png')) and name.isascii() and '\\x' not in name:
            assert whole.content == open(os.path.join(folder, name), 'rb').read()
        kind = 'image/jpeg' if name.endswith(('.jpg', '.tif')) else 'image/png'
        assert whole.headers['content-type'] == kind # of a TIFF, which browsers do not show, a JPEG is made


def test_a_tiff_is_shown_upright(own):
    album, client = own
    im, exif = picture(7, (80, 40)), Image.Exif()
    exif[0x112] = 6
    im.save(os.path.join(album.about('folder'), 'turned.tif'), exif=exif)
    album.update()
    whole = client.get('/photo/' + ids(client)['turned.tif'])
    assert Image.open(io.BytesIO(whole.content)).size == (40, 80)


# ---- what it refuses

@pytest.mark.parametrize('headers, status', [
    ({'Host': 'evil.example'}, 400), ({'Host': 'localhost.evil.example'}, 400), ({'Host': ''}, 400),
    ({'Host': '10.0.0.1:8000'}, 400), ({'Origin': 'http://evil.example'}, 403), ({'Origin': 'null'}, 403),
    ({'Origin': 'http://localhost:81'}, 403), ({'Origin': 'https://localhost'}, 403),
    ({'Sec-Fetch-Site': 'cross-site'}, 403), ({'Sec-Fetch-Site': 'same-site'}, 403),
    ({}, 200), ({'Origin': HOME, 'Sec-Fetch-Site': 'same-origin'}, 200), ({'Host': '127.0.0.1:8000'}, 200)])
@pytest.mark.parametrize('path', ['/', '/api/photos', '/thumb/ID', '/photo/ID', '/api/similar'])
def test_only_our_own_page_may_ask(client, headers, status, path):
    path = path.replace('ID', next(iter(ids(client).values())))
    if path == '/api/similar': answer = client.post(path, content=bytes_of(picture(1)),
                                                    headers=headers | {'Content-Type': 'image/png'})
    else: answer = client.get(path, headers=headers)
    assert answer.status_code == status
    assert answer.headers['cross-origin-resource-policy'] == 'same-origin'
    assert answer.headers['x-content-type-options'] == 'nosniff' and answer.headers['referrer-policy'] == 'no-referrer'
    assert "default-src 'none'" in answer.headers['content-security-policy']
    assert "frame-ancestors 'none'" in answer.headers['content-security-policy']
    if status != 200: assert set(answer.json()) == {'error'}


def test_the_page_runs_its_own_script_only(client):
    policy = client.get('/').headers['content-security-policy']
    assert re.search(r"script-src 'sha256-[\w+/=]+';", policy) and policy.count('script-src') == 1


@pytest.mark.parametrize('path', ['/thumb/', '/photo/', '/api/similar?id='])
@pytest.mark.parametrize('id', ['0', '%2e%2e', '%2e%2e%2f%2e%2e%2fetc%2fpasswd', 'red/03.png', '0'*64, '%00', 'A'*5000])
def test_an_address_leads_to_no_other_file(client, path, id):
    answer = client.get(path + id)
    assert answer.status_code == 404 and 'error' in answer.json()


def test_what_has_become_something_else_is_not_shown(own, tmp_path):
    album, client = own
    photos, secret, id_of = tmp_path/'photos', tmp_path/'secret', ids(client)
    secret.mkdir()
    for name in ('01.png', '04.jpg', '07.png'): picture(50).save(secret/name)
    def asked(name, status):
        answer = client.get('/photo/' + id_of[name])
        assert answer.status_code == status and name in answer.json()['error'], answer.json()
        assert str(tmp_path) not in answer.json()['error']
    shutil.rmtree(photos/'blue/deep') # a folder above the photo
    (photos/'blue/deep').symlink_to(secret)
    for name in ('01.png', '04.jpg', '07.png'): asked('blue/deep/' + name, 403)
    for name, become, status in (('red/00.jpg', lambda file: file.symlink_to(secret/'01.png'), 403),
                                 ('red/03.png', os.mkfifo, 403), ('red/06.jpg', os.mkdir, 404),
                                 ('02.jpg', lambda file: file.symlink_to(secret/'none'), 404),
                                 ('05.png', lambda file: None, 404),
                                 ('scan.tif', lambda file: file.write_bytes(b'II*\0'), 404)):
        (photos/name).unlink()
        become(photos/name)
        asked(name, status)


def test_a_folder_that_is_itself_reached_by_a_link_is_fine(tmp_path):
    (tmp_path/'disk').mkdir()
    (tmp_path/'photos').symlink_to(tmp_path/'disk')
    client = TestClient(make_app(make_album(tmp_path, 6)), HOME)
    assert client.get('/photo/' + ids(client)['red/03.png']).status_code == 200


@pytest.mark.parametrize('query', ['/api/photos?limit=501', '/api/photos?limit=0', '/api/photos?offset=-1',
                                   '/api/photos?from=yesterday', '/api/photos?colour=red', '/api/similar?id=ID&k=0',
                                   '/api/similar?id=ID&k=501', '/api/similar?id=ID&far=nan',
                                   '/api/similar?id=ID&which=x'])
def test_wrong_parameters_are_named(client, query):
    answer = client.get(query.replace('ID', next(iter(ids(client).values()))))
    assert answer.status_code == 400 and re.search('limit|offset|from|colour|k|far|which', answer.json()['error'])


def bomb():
    "A PNG of 200 million pixels in a few bytes."
    head = bytearray(bytes_of(Image.new('1', (8, 8))))
    head[16:24] = (20000).to_bytes(4, 'big') + (10000).to_bytes(4, 'big')
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, 'big')
    return bytes(head)


HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(200)


@pytest.mark.parametrize('data, kind, status, why', [
    (bomb(), 'image/png', 422, 'too large: over'), (b'', 'image/png', 422, 'empty'),
    (bytes_of(picture(1))[:300], 'image/png', 422, 'broken'), (b'hello', 'image/jpeg', 415, 'not an image'),
    (bytes_of(picture(1, (8, 8))), 'image/png', 422, 'too small'), (HEIC, 'image/jpeg', 415, 'no reader'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'image/eps', 415, 'not an image'), (b'{}', 'application/json', 415, 'Content-Type'),
    (bytes_of(picture(1)), 'image/../../x', 200, None)])
def test_pictures_that_cannot_be_searched_for(client, data, kind, status, why):
    answer = send(client, data, kind)
    assert answer.status_code == status
    if why: assert re.fullmatch(f'[^\n]*{why}[^\n]*', answer.json()['error']) and '/' not in answer.json()['error'][:20]


def test_an_upload_is_counted_while_it_comes(client):
    assert send(client, b'x'*(MAX_UPLOAD + 1)).status_code == 413 # it says its length
    taken, said = [], [] # this one does not; no client of ours stops early, so the application is asked itself
    async def receive():
        taken.append(2**20)
        return {'type': 'http.request', 'body': bytes(2**20), 'more_body': True}
    async def reply(message): said.append(message)
    scope = dict(type='http', method='POST', path='/api/similar', raw_path=b'/api/similar', query_string=b'',
                 root_path='', scheme='http', http_version='1.1', server=('localhost', 80), client=('127.0.0.1', 1),
                 headers=[(b'host', b'localhost'), (b'content-type', b'image/png')])
    anyio.run(client.app, scope, receive, reply)
    assert said[0]['status'] == 413 and MAX_UPLOAD < sum(taken) <= MAX_UPLOAD + 2**20


# ---- what changes meanwhile

def test_an_update_is_noticed(own):
    album, client = own
    folder, before = album.about('folder'), ids(client)
    version = client.get('/api/album').json()['version']
    os.remove(f'{folder}/red/00.jpg')
    os.rename(f'{folder}/red/03.png', f'{folder}/blue/moved.png')
    picture(77).save(f'{folder}/new.png')
    album.update()
    after = ids(client)
    assert after.keys() ^ before.keys() == {'red/00.jpg', 'red/03.png', 'blue/moved.png', 'new.png'}
    assert client.get('/photo/' + before['red/00.jpg']).status_code == 404
    assert after['blue/moved.png'] == before['red/03.png'] # what it shows is the same, and so is its address
    assert client.get('/photo/' + after['blue/moved.png']).content == open(f'{folder}/blue/moved.png', 'rb').read()
    assert client.get('/api/album').json()['version'] != version
    album.train()
    assert client.get('/api/album').json()['searches'] == ['before', 'after']


def test_while_an_update_is_being_written_only_what_is_certain_is_shown(own):
    album, _ = own
    shutil.copytree(album.place/'before', album.place/'kept')
    os.remove(os.path.join(album.about('folder'), 'red/00.jpg'))
    picture(77).save(os.path.join(album.about('folder'), 'new.png'))
    current = _Current(album)
    album.update()
    shutil.rmtree(album.place/'before')
    (album.place/'kept').rename(album.place/'before') # the database is ahead of the search
    os.utime(album.place/'before'/'search.json')
    now = current()
    assert len(now.photos) == 13 and 'red/00.jpg' not in now.names and 'new.png' not in now.names
    assert len(now.z['before']) == 13
    (album.place/'before'/'embeddings.npy').write_bytes(b'half')
    os.utime(album.place/'before'/'search.json')
    assert current() is now # what was loaded still holds


def test_an_album_that_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match='plm index'): make_app(Album(tmp_path))


def test_serve_prints_its_address_and_ends_on_an_interrupt(album):
    code = f'from plm.album import Album; from plm.serve import serve; serve(Album({str(album.place)!r}), port=0)'
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = re.search(r'http://127\.0\.0\.1:\d+', line)[0]
        assert len(httpx.get(address + '/api/photos', trust_env=False).json()['photos']) == 29
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ('', '') and process.returncode == 0
    finally: process.kill()


# ---- in a real browser

@pytest.fixture(scope='module')
def site(client):
    "The application behind a real server."
    line = socket.create_server(('127.0.0.1', 0))
    server = uvicorn.Server(uvicorn.Config(client.app, log_level='warning'))
    thread = threading.Thread(target=server.run, args=([line],), daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{line.getsockname()[1]}'
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def page(browser, site):
    "The page, freshly opened in a window of 1200 x 800."
    browser.window(1200, 800)
    browser.scheme('light')
    browser.console(), browser.requests()
    browser.open(site + '/')
    browser.site = site
    wait(browser, READY)
    yield browser
    assert [m for m in browser.console() if '/api/' not in m] == [] # what is refused, the tests ask for
    assert all(u.startswith((site, 'blob:' + site, 'data:', 'chrome:')) for u in browser.requests())


READY = "document.body.dataset.shown && !document.body.classList.contains('busy')"


def wait(b, condition, seconds=10):
    end = time.monotonic() + seconds
    while not b.js(f'return {condition}'):
        assert time.monotonic() < end, f'{condition} did not come true: {b.js("return document.body.innerText")}'
        time.sleep(0.02)


def title(b): return b.js("return $('query').hidden ? null : $('title').textContent")


def names(b): return b.js("return [...grid.querySelectorAll('li')].map(li => li.photo.name)")


def go_to(b, act, name):
    act()
    wait(b, f"{READY} && $('title').textContent === {name!r} && !$('query').hidden")


def test_dropping_clicking_and_going_back(page, client, tmp_path):
    picture(3).save(tmp_path/'mine.png') # red/03.png is this one, too
    go_to(page, lambda: page.drop(tmp_path/'mine.png'), 'mine.png')
    assert page.js("return $('drop').hidden") and names(page)[0] == 'red/03.png'
    assert page.js("return grid.querySelector('b').textContent") == '0.00'
    seen = ['mine.png']
    for place in (2, 3, 1): # from result to result
        name = names(page)[place - 1]
        go_to(page, lambda: page.click(f'#grid li:nth-child({place}) a'), name)
        id = ids(client)[name]
        assert page.js('return location.search') == f'?photo={id}'
        found = client.get('/api/similar', params=dict(id=id, k=500)).json()['photos']
        assert page.js('return list.items.map(p => p.name)') == [p['name'] for p in found]
        seen.append(name)
    for name in seen[-2:-4:-1]: go_to(page, page.back, name)
    go_to(page, page.back, 'mine.png') # the page lives, so the picture is known
    page.js('return $("asked").decode()')
    assert page.js('return $("asked").naturalWidth') == 96 and names(page)[0] == 'red/03.png'
    page.back()
    wait(page, f"{READY} && $('query').hidden && list.total === 29")


def test_an_address_leads_to_its_state(page, client):
    id, query = ids(client)['red/03.png'], '&which=before&folder=blue&to=2024-03-20&far=1.3'
    page.open(f'{page.site}/?photo={id}{query}')
    wait(page, READY)
    found = client.get(f'/api/similar?k=500&id={id}{query}').json()['photos']
    assert names(page) == [p['name'] for p in found] and 0 < len(found) < 7
    values = page.js("return ['folder', 'to', 'far'].map(id => $(id).value)")
    assert values == ['blue', '2024-03-20', '1.3']
    assert page.js("return $('which').querySelector(':checked').value") == 'before'


def test_from_the_page_to_the_map_and_back(page, client, album):
    assert page.js("return $('map').hidden") and client.get('/map').json()['error'].startswith('There is no map yet')
    drawn = album.map()
    try:
        page.open(page.site + '/')
        wait(page, f"{READY} && !$('map').hidden")
        page.click('#map')
        wait(page, "document.querySelector('canvas')")
        for name in ('blue/deep/01.png', *ODD):
            page.open(page.site + '/map')
            wait(page, "document.querySelector('canvas') && !painting")
            page.js('choose(arguments[0])', [photo.name for photo in album.photos()].index(name))
            assert page.js("return document.querySelector('#query a').textContent") == 'search from here'
            page.click('#query a')
            wait(page, f"{READY} && !$('query').hidden")
            assert page.js('return location.search') == f'?photo={ids(client)[printable(name)]}'
        assert 'not in the album' in client.get('/named/red/99.png').json()['error']
    finally: drawn.unlink()


def test_filters_and_the_slider(page, client):
    page.js("$('folder').value = 'red'; $('folder').onchange()")
    wait(page, f'{READY} && list.total === 8')
    assert all(name.startswith('red/') for name in names(page))
    assert '8 photos' in page.js("return $('count').textContent")
    page.press('/')
    for letter in '03': page.press(letter)
    wait(page, f'{READY} && list.total === 1')
    page.press('Escape')
    page.press('Escape')
    wait(page, f'{READY} && list.total === 29')
    go_to(page, lambda: page.click('#grid li:first-child a'), names(page)[0])
    distances = page.js('return list.items.map(p => p.distance)')
    page.js("$('far').value = arguments[0]; $('far').oninput(); $('far').onchange()", round(distances[4] + 0.006, 2))
    wait(page, '!painting')
    n = sum(d <= float(page.js("return $('far').value")) for d in distances)
    assert len(names(page)) == n < 28 and f'{n} photos within' in page.js("return $('count').textContent")
    assert page.js('return location.search').endswith(page.js("return 'far=' + $('far').value"))


def test_all_by_keyboard(page):
    page.press('Right')
    page.press('Right')
    page.press('Down')
    across = page.js('return columns()')
    assert page.js('return at') == 1 + across
    name = names(page)[1 + across]
    assert page.js('return document.activeElement.closest("li").photo.name') == name
    page.press('f')
    wait(page, 'viewer.open')
    assert page.js("return $('caption').textContent") == name
    page.press('Right')
    wait(page, f"$('caption').textContent !== {name!r}")
    other = page.js("return $('caption').textContent")
    page.js("return $('whole').decode()")
    page.press('Escape')
    wait(page, '!viewer.open && document.activeElement.closest("li")')
    assert page.js('return document.activeElement.closest("li").photo.name') == other == names(page)[2 + across]
    go_to(page, lambda: page.press('Enter'), other)
    wait(page, 'document.activeElement.closest("li")')
    page.press('Escape')
    wait(page, f"{READY} && $('query').hidden")


def test_the_back_button_closes_the_full_size(page):
    page.click('#grid li:nth-child(3) a')
    wait(page, f"{READY} && !$('query').hidden")
    page.click('#large')
    wait(page, 'viewer.open')
    page.back()
    wait(page, "!viewer.open && !$('query').hidden")


def test_nothing_runs_from_a_name(page, client):
    shown = [name for name in ids(client) if not re.fullmatch(r'([\w/]+/)?\w+\.\w+', name)]
    assert len(shown) == len(ODD)
    for name in shown:
        page.js("go({photo: arguments[0]})", ids(client)[name])
        wait(page, f"{READY} && list.query?.id === state.photo")
        assert title(page) == name
        page.js("go({view: state.photo})")
        wait(page, "viewer.open && $('whole').complete")
        assert page.js("return [$('caption').textContent, $('whole').naturalWidth]") == [name, 96]
        page.press('Escape')
        wait(page, '!viewer.open')
    assert page.js("return [document.title === '1', document.querySelectorAll('img[onerror]').length]") == [False, 0]


def test_what_goes_wrong_is_one_sentence(page, tmp_path):
    (tmp_path/'broken.jpg').write_bytes(b'no picture')
    page.drop(tmp_path/'broken.jpg')
    wait(page, "!$('error').hidden")
    assert 'not an image' in page.js("return $('error').textContent") and page.js('return list.total') == 29
    with open(tmp_path/'large.png', 'wb') as f: f.truncate(MAX_UPLOAD + 1)
    page.drop(tmp_path/'large.png')
    wait(page, "$('error').textContent.includes('larger than 30 MB')")
    page.open(page.site + '/?photo=123')
    wait(page, "document.body.dataset.shown && $('error').textContent.includes('not in the album')")
    page.open(page.site + '/?upload=abc')
    wait(page, "document.body.dataset.shown && $('error').textContent.includes('drop it again')")


def test_a_picture_is_pasted(page):
    page.js("""return fetch('/photo/' + list.items[28].id).then(r => r.blob()).then(blob => {
        const data = new DataTransfer();
        data.items.add(new File([blob], 'pasted.jpg', {type: blob.type}));
        document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}));
    })""")
    wait(page, f"{READY} && $('title').textContent === 'pasted.jpg'")
    assert names(page)[0] == 'red/00.jpg'


@pytest.mark.parametrize('width', [360, 420, 900])
def test_no_width_scrolls_sideways(page, client, width):
    page.window(width, 800, phone=width < 800)
    for path in ('/', '/?photo=' + ids(client)['red/03.png'], '/?view=' + ids(client)['red/03.png']):
        page.open(page.site + path)
        wait(page, READY)
        assert page.js('return document.documentElement.scrollWidth <= innerWidth')
        assert page.js('return [...document.querySelectorAll("button, a, input, select")].every(e => '
                       'e.getBoundingClientRect().right <= innerWidth + 1)')


def test_dark_mode(page):
    light = page.js("return getComputedStyle(document.body).backgroundColor")
    page.scheme('dark')
    dark = page.js("return [getComputedStyle(document.body).backgroundColor, getComputedStyle(viewer).backgroundColor]")
    assert np.mean([int(v) for v in re.findall(r'\d+', light)]) > 200
    assert all(np.mean([int(v) for v in re.findall(r'\d+', colour)[:3]]) < 60 for colour in dark)


def test_only_what_is_in_sight_is_in_the_page(page):
    "20,000 photos: 29 real ones, again and again."
    page.js("""const items = list.items;
        list = {...list, total: 20000, items: Array.from({length: 20000}, (_, i) => items[i % 29]), pages: undefined};
        clearGrid(); paint();""")
    for y in (0, 50_000, 123_456, 1e9):
        page.js('scrollTo(0, arguments[0])', y)
        wait(page, '!painting')
        page.js('return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')
        n, above, below = page.js("""const boxes = [...grid.children].map(li => li.getBoundingClientRect());
            return [boxes.length, Math.min(...boxes.map(b => b.top)), Math.max(...boxes.map(b => b.bottom))]""")
        assert n < 150 and above <= page.js('return Math.max(0, grid.getBoundingClientRect().top)')
        assert below > min(800, page.js('return grid.getBoundingClientRect().bottom')) - 1
    assert page.js('return Math.max(...tiles.keys())') == 19_999
