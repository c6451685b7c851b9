"The documentation site: a part of it is built, and its links, formulas, API pages and search are tried from the disk."
from __future__ import annotations
import ast, json, re, sys, time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pydantic import Field
from myst_parser.slugs import github_slugify
from plm.core import Constants
from browser import CHROMIUM, DRIVER, Browser

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'docs/site'))
from api import fields_of, parameters_of, prose, table
from make_site import DOCUMENTS, NOTEBOOKS, STAGES, build
pytestmark = pytest.mark.filterwarnings('ignore::PendingDeprecationWarning') # of Sphinx, for MyST's authors
PAGES = [ROOT/'README.md', *DOCUMENTS, *NOTEBOOKS, *STAGES]

MARKDOWN = MarkdownIt().enable('table').use(dollarmath_plugin, allow_space=False)


def markdown(page):
    "What a person wrote on a page, without code."
    text = page.read_text()
    if page.suffix == '.ipynb':
        text = '\n\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
    return re.sub(r'```.*?```|`[^`\n]*`', 'code', text, flags=re.S)


def anchors(page): return {github_slugify(h) for h in re.findall(r'^#+ (.*)$', markdown(page), re.M)}


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r'\]\(([^):#]*)(?:#([^)]*))?\)', markdown(page)):
        file = page.parent/target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f'{target}#{anchor}'


def formulas(text):
    "Formulas as they are written, and as Markdown sees them: one that it takes for something else is missing or cut."
    bare = re.sub(r'```.*?```|`[^`\n]*`', 'code', text, flags=re.S)
    written = re.findall(r'\$\$.+?\$\$|\$[^$]+\$', bare, re.S)
    tokens = [t for block in MARKDOWN.parse(text) for t in (block, *(block.children or []))]
    return sorted(w.strip('$ \n') for w in written), sorted(t.content.strip() for t in tokens if t.type[:4] == 'math')


@pytest.mark.parametrize('bad', ['it looks back $1/(1\n- g) = 9$ steps', 'over $1\n+ 2$', '| a |\n|---|\n| $|x|$ |',
                                 'over $a\n* b$', 'of $a\n1. b$', '$ _x_ $ and $y_i$'])
def test_formulas_that_markdown_takes_for_something_else_are_found(bad):
    written, seen = formulas(f'A text.\n\n{bad}')
    assert written != seen


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_formulas_are_formulas(page):
    texts = [page.read_text()]
    if page.suffix == '.ipynb': texts = [''.join(c['source']) for c in json.loads(texts[0])['cells']
                                         if c['cell_type'] == 'markdown']
    for text in texts:
        written, seen = formulas(text)
        assert written == seen


class Page(HTMLParser):
    "The links of a page, what it loads, its ids, and its text."
    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids, self.text = [], [], set(), ''
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        if tag == 'a' and 'href' in a: self.links.append(a['href'])
        elif 'href' in a or 'src' in a: self.loads.append(a.get('src') or a['href'])

    def handle_data(self, data): self.text += data


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The documents, the first eight notebooks with their API, and one stage; what Sphinx warns of fails the build."
    to = tmp_path_factory.mktemp('site')
    assert build(to, NOTEBOOKS[:8], [p for p in STAGES if p.stem == 'toy']) == 0
    return {p: Page(p) for p in (to/'html').rglob('*.html')}, to/'html'


def test_pages_link_to_what_is_there(site):
    pages, to = site
    assert {'index.html', 'search.html', 'nbs/04_manifold.html', 'api/losses.html', 'docs/method.html',
            'nbs/pipeline/toy.html'} <= {str(p.relative_to(to)) for p in pages}
    broken = []
    for path, page in pages.items():
        for link in map(urlsplit, page.links + page.loads):
            if link.scheme: continue
            target = (path.parent/unquote(link.path)).resolve() if link.path else path
            fine = target.is_file() and (not link.fragment or target not in pages or
                                         unquote(link.fragment) in pages[target].ids)
            if not fine: broken.append((path.name, link.geturl()))
    assert not broken
    assert sum(len(p.links) for p in pages.values()) > 1000


def test_nothing_comes_from_a_network(site):
    pages, to = site
    loads = {urlsplit(u) for page in pages.values() for u in page.loads}
    assert loads and [u.geturl() for u in loads if u.netloc or u.scheme not in ('', 'data')] == []
    styles = ''.join(p.read_text() for p in to.rglob('*.css'))
    assert 'furo' in styles and not re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//', styles)


def test_formulas_are_drawn_without_a_script(site):
    pages, to = site
    for notebook in NOTEBOOKS[:8]:
        written = re.findall(r'\$\$.+?\$\$|\$[^$]+\$', markdown(notebook), re.S)
        text = (to/f'nbs/{notebook.stem}.html').read_text()
        main = text[text.index('<article'):text.index('</article>')]
        assert main.count('<math') == len(written), notebook.name


def test_api_pages_are_docments(site):
    pages, to = site
    page = pages[to/'api/losses.html']
    assert {f'plm.losses.{n}' for n in ('TERMS', 'distances', 'PLMLoss', 'PLMLoss.forward')} <= page.ids
    tree = ast.parse((ROOT/'plm/losses.py').read_text())
    names = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != '_'}
    assert {f'plm.losses.{n}' for n in names} <= page.ids
    comments = re.findall(r'^        ?\w+: .*?# ([^`\n]+)$', (ROOT/'plm/losses.py').read_text(), re.M)
    flat = re.sub(r'\s+', ' ', page.text)
    assert len(comments) >= 5 and [c for c in comments if c not in flat] == []
    assert '../nbs/07_losses.html#point-and-proxy-loss' in page.links


def reads(a: int, # first | of two
          *rest, # others
          b: float = 0.5, # a share
) -> str: # words
    "Doc."


def on_one_line(x: int) -> str: # of x
    "Doc."


class Fields(Constants):
    "Doc."
    a: int # behind
    b: float = Field(ge=0) # in a range


def test_comments_are_read():
    rows, returns, note = parameters_of(reads)
    assert rows == [('a', 'int', '', 'first | of two'), ('*rest', '', '', 'others'), ('b', 'float', '0.5', 'a share')]
    assert (returns, note) == (('str', 'words'), '') and parameters_of(on_one_line)[1:] == (('str', ''), 'of x')
    assert list(fields_of(Fields)) == [('a', 'int', '', 'behind'), ('b', 'float', '', 'in a range; `ge=0`')]
    assert table(rows[:1]) == '| name | type | meaning |\n| --- | --- | --- |\n| `a` | `int` | first \\| of two |'
    assert table([('a', 'int', '', '')]) == '' and prose('f_θ `f_θ` *') == r'f\_θ `f_θ` \*'


def test_search_works_from_the_disk(site, tmp_path):
    pages, to = site
    if not (CHROMIUM and DRIVER): pytest.skip("chromium and chromedriver are not installed: nothing was searched")
    with Browser(tmp_path) as b:
        b.window(1400, 900)
        b.requests() # what the browser's own first page asked for
        b.open(to/'index.html')
        b.js("document.querySelector('.sidebar-search').value = 'PLMLoss';"
             "document.querySelector('.sidebar-search').form.submit()")
        end = time.monotonic() + 10
        while not (found := b.js("return [...document.querySelectorAll('#search-results li a')].map(a => a.href)")):
            assert time.monotonic() < end, 'nothing was found'
            time.sleep(0.1)
        assert (to/'api/losses.html').as_uri() + '#plm.losses.PLMLoss' in found
        for page in ('nbs/04_manifold.html', 'api/losses.html'):
            b.open(to/page)
            for width in (420, 900, 1400):
                b.window(width, 900, phone=width == 420)
                assert b.js('return document.documentElement.scrollWidth') <= width
        assert b.console() == []
        assert [u for u in b.requests() if not u.startswith(('file:', 'data:', 'chrome:'))] == []
