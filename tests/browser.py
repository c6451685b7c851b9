"""A real headless Chromium for the tests, driven through chromedriver's WebDriver protocol by the standard library.

Its fixture `browser` is one for each file of tests that imports it."""
import base64, json, re, shutil, subprocess, threading, urllib.error, urllib.request
import pytest

CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
FLAGS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-sync',
         '--no-first-run')
KEYS = dict(Escape='\ue00c', Enter='\ue007', Left='\ue012', Up='\ue013', Right='\ue014', Down='\ue015', Tab='\ue004')
_ELEMENT = 'element-6066-11e4-a52e-4f735466cecf' # the key of an element's number, fixed by the WebDriver standard


class Browser:
    "A running Chromium; use it as a context manager."
    def __init__(self, folder): # of the profile
        self.folder = folder

    def __enter__(self):
        command, pipe = [DRIVER, '--port=0'], subprocess.PIPE
        self.driver = subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        try:
            started = (re.search(r'started successfully on port (\d+)', line) for line in self.driver.stdout)
            port = next(m.group(1) for m in started if m)
            threading.Thread(target=self.driver.stdout.read, daemon=True).start() # so that the pipe never fills
            self.url = f'http://127.0.0.1:{port}/session'
            flags = [*FLAGS, f'--user-data-dir={self.folder}']
            options = {'goog:chromeOptions': {'binary': CHROMIUM, 'args': flags},
                       'goog:loggingPrefs': {'browser': 'ALL', 'performance': 'ALL'}}
            self.url += '/' + self._call('POST', '', {'capabilities': {'alwaysMatch': options}})['sessionId']
        except BaseException:
            self.driver.kill()
            self.driver.wait()
            raise
        return self

    def __exit__(self, *_):
        try: self._call('DELETE', '')
        finally:
            self.driver.terminate()
            self.driver.wait(20)

    def _call(self, method, path, body=None):
        data, headers = None if body is None else json.dumps(body).encode(), {'Content-Type': 'application/json'}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer: return json.load(answer)['value']
        except urllib.error.HTTPError as e: raise RuntimeError(json.load(e)['value']['message']) from None

    def open(self, page): # a path or an address
        self._call('POST', '/url', {'url': page if isinstance(page, str) else page.as_uri()})

    def back(self): self._call('POST', '/back', {})

    def drop(self, file, x=400, y=300):
        "A file, dragged in from outside of the browser."
        data = {'items': [], 'files': [str(file)], 'dragOperationsMask': 1}
        for kind in ('dragEnter', 'dragOver', 'drop'):
            self.cdp('Input.dispatchDragEvent', type=kind, x=x, y=y, data=data)

    def js(self, code, *args):
        "What `return …` in the page gives; a promise is waited for."
        return self._call('POST', '/execute/sync', {'script': code, 'args': args})

    def cdp(self, command, **params): return self._call('POST', '/goog/cdp/execute', {'cmd': command, 'params': params})

    def element(self, css): return self._call('POST', '/element', {'using': 'css selector', 'value': css})

    def click(self, css): self._call('POST', f'/element/{self.element(css)[_ELEMENT]}/click', {})

    def pointer(self, *actions, kind='mouse'):
        "Pointer actions: ('move', x, y) in CSS pixels of the window, 'down', 'up'."
        def step(a):
            if isinstance(a, str): return {'type': f'pointer{a.title()}', 'button': 0}
            return {'type': 'pointerMove', 'duration': 0, 'x': round(a[1]), 'y': round(a[2])}
        source = {'type': 'pointer', 'id': kind, 'parameters': {'pointerType': kind}}
        self._call('POST', '/actions', {'actions': [source | {'actions': [step(a) for a in actions]}]})

    def wheel(self, x, y, dy):
        step = {'type': 'scroll', 'x': round(x), 'y': round(y), 'deltaX': 0, 'deltaY': dy, 'duration': 0}
        self._call('POST', '/actions', {'actions': [{'type': 'wheel', 'id': 'wheel', 'actions': [step]}]})

    def press(self, key):
        key = KEYS.get(key, key)
        steps = [{'type': kind, 'value': key} for kind in ('keyDown', 'keyUp')]
        self._call('POST', '/actions', {'actions': [{'type': 'key', 'id': 'keys', 'actions': steps}]})

    def window(self, width, height, phone=False):
        size = dict(width=width, height=height, deviceScaleFactor=2 if phone else 1)
        self.cdp('Emulation.setDeviceMetricsOverride', **size, mobile=phone)
        self.cdp('Emulation.setTouchEmulationEnabled', enabled=phone)

    def scheme(self, name):
        self.cdp('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': name}])

    def screenshot(self, path): path.write_bytes(base64.b64decode(self._call('GET', '/screenshot')))

    def console(self):
        "Everything that the page or the browser complained of since the last call."
        return [entry['message'] for entry in self._call('POST', '/se/log', {'type': 'browser'})]

    def requests(self):
        "Every address that was asked for since the last call."
        log = self._call('POST', '/se/log', {'type': 'performance'})
        events = [json.loads(entry['message'])['message'] for entry in log]
        return [e['params']['request']['url'] for e in events if e['method'] == 'Network.requestWillBeSent']


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed (Debian: apt install chromium chromium-driver): "
                    "the page was not opened in a browser")
    with Browser(tmp_path_factory.mktemp('profile')) as b: yield b
