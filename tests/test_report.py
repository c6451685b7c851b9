"plm.plots and plm.report: what the pictures and the page say is what the rows say. And the files of plm/web."
import base64, hashlib, io, json, math, re, shutil, subprocess, sys, warnings, zipfile
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from jinja2 import UndefinedError
from matplotlib import pyplot as plt
from PIL import Image
from plm.core import format_bytes, format_seconds, gain_and_interval, markdown_table, mean_and_std, text_table
from plm.evaluation import summary
from plm.plots import channels_last, plot_batch, plot_curves, plot_diagnostics, plot_recall, plot_retrieved, thumbnails
from plm.report import (compare_with_published, data_url, published_rows, render, retrieval_markdown, retrieval_tables,
                        retrieval_text, versions, write_page, write_report)

ROOT = Path(__file__).parents[1]

METRICS = ['recall_at_1', 'recall_at_2', 'recall_at_4', 'recall_at_8', 'map_at_r', 'nmi']


def make_rows(seeds=3, methods=('start', 'simclr', 'stml', 'plm'), dataset='omniglot', seed=0):
    rng = np.random.default_rng(seed)
    return [dict(dataset=dataset, method=m, seed=str(s), metric=k, value=repr(rng.random()))
            for m in methods for s in range(seeds) for k in METRICS]


class Page(HTMLParser):
    "Tables as lists of rows of texts, everything loaded, alt texts; fails on a tag that is not closed."
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.loads, self.alts, self.text, self.ids, self.jumps = [], [], [], [], [], []
        self.tables, self.best = {}, {}
        self.feed(text)
        self.close()
        assert not self.tags and len(set(self.ids)) == len(self.ids) and set(self.jumps) <= set(self.ids)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        loading = ('src', 'href', 'srcset', 'action', 'data', 'poster', 'background')
        self.loads += [attrs[a] for a in loading if a in attrs and not attrs[a].startswith('#')]
        if 'id' in attrs: self.ids.append(attrs['id'])
        if attrs.get('href', '').startswith('#'): self.jumps.append(attrs['href'][1:])
        self.jumps += attrs.get('aria-describedby', '').split()
        if tag == 'img': self.alts.append(attrs.get('alt'))
        if tag == 'table':
            self.table = self.tables[attrs['id']] = []
            self.marked = self.best[attrs['id']] = []
        if tag == 'tr': self.table.append([])
        if tag in ('td', 'th'): self.table[-1].append('')
        if tag == 'b' and self.tags[-1] == 'td': self.marked.append((len(self.table) - 1, len(self.table[-1]) - 1))
        if tag not in ('meta', 'img', 'input', 'br'): self.tags.append(tag)

    def handle_endtag(self, tag): assert self.tags.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {'td', 'th'} & set(self.tags): self.table[-1][-1] += data


def report(tmp_path, rows, blocks=(), **changed):
    path = tmp_path/'new folder'/'report.html'
    given = dict(path=path, dataset='omniglot', rows=rows, sections=[('Pictures', 'What there is to see.', blocks)],
                 params={'batch': 100})
    write_report(**{**given, **changed})
    return path.read_text(encoding='utf-8')


def words(text): return ' '.join(''.join(Page(text).text).split())


def expected(rows, method, metric):
    values = [100*float(r['value']) for r in rows if r['method'] == method and r['metric'] == metric]
    return (f'{np.mean(values):.1f}' + (f' ± {np.std(values, ddof=1):.1f}' if len(values) > 1 else '')), np.mean(values)


# ---- numbers and tables in words

@pytest.mark.parametrize('values, text', [([0.607], '60.7'), ([0.5, 0.6], '55.0 ± 7.1'), ([1, 1, 1], '100.0 ± 0.0')])
def test_mean_and_deviation(values, text):
    rows = [dict(dataset='', method='', metric='', seed=s, value=v) for s, v in enumerate(values)]
    assert mean_and_std(summary(rows)['']['']['']) == text


def test_gains_have_a_sign_and_an_interval():
    assert gain_and_interval(0.0333, 0.0109) == '+3.3 ± 1.1' and gain_and_interval(-2, 0.5, scale=1) == '-2.0 ± 0.5'
    assert gain_and_interval(0.01, math.inf) == '+1.0 (one seed)'


@given(st.integers(0, 10**15))
def test_sizes_are_right_to_a_digit(n):
    number, unit = format_bytes(n).split()
    size = {'B': 1, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30, 'TiB': 2**40}[unit]
    assert abs(float(number)*size - n) <= 0.0500001*size and (float(number) <= 1024 or unit == 'TiB')


@given(st.floats(1e-6, 1e8))
def test_times_are_right_to_a_digit(seconds):
    number, unit = format_seconds(seconds).split()
    length = {'s': 1, 'min': 60, 'h': 3600, 'days': 86400}[unit]
    assert float(number)*length == pytest.approx(seconds, rel=0.03) and (float(number) >= 2 or unit == 's')


@given(st.lists(st.lists(st.text('ab ±', min_size=1).map(str.strip).filter(bool), min_size=2, max_size=2)))
def test_tables_hold_their_cells(lines):
    header = ['one', 'two']
    shown = text_table(header, lines).splitlines()
    start = shown[0].index('two')
    assert [[line[:start].strip(), line[start:].strip()] for line in shown[:1] + shown[2:]] == [header, *lines]
    rows = [[c.strip() for c in line.strip('|').split('|')] for line in markdown_table(header, lines).splitlines()]
    assert rows == [header, ['---', '---:'], *lines]


# ---- the table

@pytest.mark.parametrize('seeds', [1, 3])
def test_every_number_of_the_page_is_the_mean_of_its_rows(tmp_path, seeds):
    rows = make_rows(seeds)
    other = make_rows(2, dataset='glyphs', seed=1) # must not leak into the page of omniglot
    page = Page(report(tmp_path, rows + other))
    table = page.tables['results']
    assert table[0] == ['method', 'seeds', 'R@1', 'R@2', 'R@4', 'R@8', 'MAP@R', 'NMI']
    methods = ['start', 'simclr', 'stml', 'plm']
    assert [line[:2] for line in table[1:]] == [[m, str(seeds)] for m in methods]
    for column, metric in enumerate(METRICS, 2):
        assert [line[column] for line in table[1:]] == [expected(rows, m, metric)[0] for m in methods]
        best = max(range(4), key=lambda i: expected(rows, methods[i], metric)[1])
        assert (best+1, column) in page.best['results']
    assert len(page.best['results']) == len(METRICS)


def test_text_and_markdown_hold_the_same_cells():
    rows = make_rows()
    _, plain = retrieval_tables(rows)['omniglot']
    shown = retrieval_text(rows).splitlines()
    cells = [re.split(r'\s{2,}', line) for line in shown[3:]]
    assert [[c.rstrip('*') for c in line] for line in cells] == plain
    assert sum(c.endswith('*') for line in cells for c in line) == len(METRICS)
    starts = [[m.start() for m in re.finditer(r'(?<=\s\s)\S', line)] for line in shown[1:]]
    assert all(s == starts[0] for s in starts) # columns stand under each other
    piped = [[c.strip() for c in line.strip('|').split('|')] for line in retrieval_markdown(rows).splitlines()[4:]]
    assert piped == [[f'**{c[:-1]}**' if c.endswith('*') else c for c in line] for line in cells]


def test_equal_means_share_the_mark_and_several_data_sets_get_a_table_each():
    values = {'x': 0.50001, 'y': 0.50002, 'z': 0.09}
    rows = [dict(dataset=d, method=m, seed=0, metric='nmi', value=v) for d in 'ab' for m, v in values.items()]
    for d in 'ab': assert [line[2] for line in retrieval_tables(rows, '{}*')[d][1]] == ['50.0*', '50.0*', '9.0']
    assert retrieval_text(rows).count('method') == 2


def test_a_method_without_a_metric_has_an_empty_cell():
    rows = make_rows(2)[:-12] + [dict(dataset='omniglot', method='plm', seed=0, metric='nmi', value=0.2)]
    assert retrieval_tables(rows)['omniglot'][1][-1] == ['plm', '1', '', '', '', '', '', '20.0']


def test_a_perfect_score_beats_all_others():
    values = {'x': 0.999, 'y': 1.0, 'z': 0.0}
    rows = [dict(dataset='a', method=m, seed=0, metric='nmi', value=v) for m, v in values.items()]
    assert [line[2] for line in retrieval_tables(rows, '{}*')['a'][1]] == ['99.9', '100.0*', '0.0']


def test_no_rows_is_an_error():
    for table in (retrieval_text, retrieval_markdown):
        with pytest.raises(ValueError, match='no retrieval rows'): table([])


def test_several_tests_of_a_data_set_stand_side_by_side():
    rows = [dict(dataset='v', method='plm', seed=0, metric=f'{test}/{m}', value=v)
            for test, v in (('small', 0.8), ('large', 0.6)) for m in ('recall_at_1', 'map_at_r')]
    header = ['method', 'seeds', 'small R@1', 'small MAP@R', 'large R@1', 'large MAP@R']
    assert retrieval_tables(rows)['v'] == (header, [['plm', '1', '80.0', '80.0', '60.0', '60.0']])


# ---- beside the paper

RENAMED = {'cub200': 'CUB-200-2011', 'cars196': 'Cars-196', 'sop': 'SOP'}

@pytest.mark.parametrize('dataset', RENAMED)
@pytest.mark.parametrize('d', [128, 512])
def test_the_papers_own_row_stands_under_ours(dataset, d):
    ks = (1, 10, 100, 1000) if dataset == 'sop' else (1, 2, 4, 8)
    rows = [dict(dataset=dataset, method=m, seed=s, metric=f'recall_at_{k}', value=0.1*i + 0.01*s)
            for m in ('pretrained', 'simclr', 'stml', 'plm') for s in (0, 1) for i, k in enumerate(ks, 1)]
    rows += [dict(dataset='glyphs', method='plm', seed=0, metric='recall_at_1', value=1)]
    rows += [dict(dataset=dataset, method='plm', seed=0, metric='nmi', value=1)]
    header, lines = compare_with_published(rows, dataset, d)
    assert header == ['method', 'figures', *(f'R@{k}' for k in ks)]
    assert [' '.join(line[:2]) for line in lines] == ['pretrained here', 'simclr here', 'stml here', 'stml paper',
                                                      'plm here', 'plm paper']
    assert lines[0][2] == '10.5 ± 0.7'
    for name, line in (('STML', lines[3]), ('PLM', lines[5])):
        printed = {r['k']: r['value'] for r in published_rows()
                   if (r['d'], r['method'], r['dataset']) == (d, name, RENAMED[dataset])}
        assert [cell.replace(' ', '') for cell in line[2:]] == [printed.get(k, '') for k in ks] and line[2]


@pytest.mark.parametrize('dataset, d', [('glyphs', 128), ('inshop', 512), ('cub200', 64)])
def test_where_the_paper_has_no_table_there_is_none(dataset, d):
    assert compare_with_published(make_rows(dataset=dataset), dataset, d) is None


def test_the_page_says_whose_the_published_columns_are(tmp_path):
    here, elsewhere = (words(report(tmp_path, make_rows(dataset=d), dataset=d)) for d in ('cars196', 'omniglot'))
    assert 'Cars-196 is the data set of this page' in here and 'Published figures (%), Cars-196 and two' in here
    assert 'other data sets and another network' not in here
    assert 'other data sets and another network' in elsewhere
    assert 'Published figures (%), on other data sets: GoogLeNet' in elsewhere
    assert 'is the data set of this page' not in elsewhere


def test_the_page_explains_the_metrics_that_there_are(tmp_path):
    rows = [r for r in make_rows() if r['metric'] in ('recall_at_1', 'recall_at_2')]
    page = words(report(tmp_path, rows, protocol='queries <look> in a gallery'))
    assert 'R@K: share' in page and 'MAP@R:' not in page and 'NMI:' not in page
    assert 'queries <look> in a gallery.' in page and 'among all the others' not in page
    page = words(report(tmp_path, make_rows()))
    assert not re.search(r'[a-z]\.[A-Z]', page) # a sentence that sticks to the one before
    for text in ('R@K: share', 'MAP@R:', 'NMI:', 'each test image looks for its own kind among all the others.'):
        assert text in page


# ---- the page

def test_thumbnails_are_means_of_blocks():
    images = torch.randint(0, 256, (250, 3, 24, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = np.arange(240).reshape(12, 20)[:, ::-1].copy() # more than are taken at a time
    blocks = images.double().view(250, 3, 8, 3, 4, 3).mean((3, 5))
    found = thumbnails(images, index, 8)
    assert found.shape == (12, 20, 3, 8, 4) and found.dtype == torch.uint8
    assert (found.double() - blocks[index]).abs().max() <= 0.501
    assert torch.equal(thumbnails(images.numpy(), index, 8), found)
    assert torch.equal(thumbnails(images.numpy(), [3], 8), thumbnails(images, [3], 8)) # one is a block, too
    assert torch.equal(thumbnails(images, index, 24), images[index])
    assert thumbnails(images, [0], 1).shape == (1, 3, 1, 1)
    assert thumbnails(images[:, :1], 3, 8).shape == (1, 8, 4)


def test_thumbnails_read_what_they_show_and_no_more(tmp_path):
    "Of a file larger than the memory one would spend: a sparse one of 40 GB, mapped as the data sets are."
    file = tmp_path/'images.npy'
    mapped = np.lib.format.open_memmap(file, 'w+', np.uint8, (200_000, 3, 256, 256))
    mapped[199_999] = 77
    with warnings.catch_warnings(action='ignore'): # torch warns of whoever writes to it: nobody does
        images = torch.from_numpy(np.load(file, 'r'))
    assert thumbnails(images, [0, 199_999], 48).float().mean((1, 2, 3)).tolist() == [0, 77]


def test_tests_of_a_data_set_have_a_panel_each():
    rows = [dict(dataset='v', method=m, seed=s, metric=f'{test}/recall_at_{k}', value=base + k/100 + s/1000)
            for test, base in (('small', 0.5), ('large', 0.3)) for m in 'ab' for s in (0, 1) for k in (1, 5)]
    small, large = plot_recall(rows).axes
    assert small.get_title() == 'Recall at K: v, small' and large.get_title() == 'Recall at K: v, large'
    assert np.allclose(large.lines[0].get_ydata(), [31.05, 35.05])


def test_page_loads_nothing_and_says_so_to_the_browser(tmp_path):
    rows = make_rows()
    text = report(tmp_path, rows, [('Recall', plot_recall(rows), 'What is seen')])
    page = Page(text)
    assert len(page.loads) == 1 and page.loads[0].startswith('data:image/svg+xml;base64,')
    drawn = base64.b64decode(page.loads[0].split(',')[1])
    assert ElementTree.fromstring(drawn).tag.endswith('svg') and b'<dc:date>' not in drawn
    page = Page(report(tmp_path, rows, [('Images', plot_batch(torch.rand(3, 8, 8)), '')]))
    assert page.loads[0].startswith('data:image/png;base64,')
    Image.open(io.BytesIO(base64.b64decode(page.loads[0].split(',')[1]))).verify()
    page = Page(text)
    assert page.alts == ['Recall. What is seen']
    for loading in ('<script', '<link', '@import', 'url(', 'http:', 'https:'): assert loading not in text
    for wanted in ("default-src 'none'", 'prefers-color-scheme: dark', '@media print', 'name="viewport"'):
        assert wanted in text


def test_everything_from_outside_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>&\''
    rows = make_rows(1, methods=(evil,), dataset=evil)
    blocks = [(evil, plot_recall(make_rows()), evil)]
    text = report(tmp_path, rows, blocks, dataset=evil, params={evil: evil}, protocol=evil)
    assert '<script' not in text
    page = Page(text)
    assert page.tables['results'][1][0] == evil and page.alts == [f'{evil}. {evil}']


def test_page_is_the_same_bytes_for_the_same_results(tmp_path):
    rows = make_rows()
    pages = [report(tmp_path, rows, [('Recall', plot_recall(rows), '')]) for _ in range(2)]
    assert pages[0] == pages[1]


def test_pictures_may_be_png_files(tmp_path):
    plot_batch(torch.rand(3, 8, 8)).savefig(tmp_path/'a.png')
    page = Page(report(tmp_path, make_rows(), [('A', tmp_path/'a.png', 'b')]))
    assert base64.b64decode(page.loads[0].split(',')[1]) == (tmp_path/'a.png').read_bytes()
    (tmp_path/'a.png').write_text('no picture')
    with pytest.raises(ValueError, match="the picture 'A' .*a.png.* is no PNG"):
        report(tmp_path, make_rows(), [('A', tmp_path/'a.png', 'b')])


def test_sections_hold_tables_animations_and_links(tmp_path):
    frames = [Image.new('P', (4, 4), i) for i in range(3)]
    frames[0].save(tmp_path/'a.gif', save_all=True, append_images=frames[1:])
    (tmp_path/'map.html').write_text('')
    table = (['step', 'value & unit'], [['one', '1'], ['two', '<2>']])
    blocks = [('Steps <1>', table, 'as told'), ('Watch', tmp_path/'a.gif', 'b'), ('Map', tmp_path/'map.html', 'c')]
    page = Page(report(tmp_path, make_rows(), blocks))
    assert page.tables['steps-1'] == [['step', 'value & unit'], ['one', '1'], ['two', '<2>']]
    still, picture, link = page.loads
    assert picture.startswith('data:image/gif;base64,') and link == '../map.html' # from the folder of the page
    last = Image.open(io.BytesIO(base64.b64decode(still.split(',')[1])))
    assert np.array_equal(np.asarray(last), np.asarray(frames[2].convert('RGB'))) # what stands when it is stopped
    headings = [jump for jump in page.jumps if jump.startswith('h-')]
    assert headings == ['h-results', 'h-pictures', 'h-the-paper-s-results-for-orientation', 'h-how-it-was-made']
    for missing in ('nowhere.html', 'nowhere.png'):
        with pytest.raises(ValueError, match=f"'Map' .*{missing}.* is not there"):
            report(tmp_path, make_rows(), [('Map', tmp_path/missing, 'c')])


def test_the_answer_stands_first_and_the_caveat_under_the_table(tmp_path):
    frames = [Image.new('P', (4, 4), i) for i in range(3)]
    frames[0].save(tmp_path/'a.gif', save_all=True, append_images=frames[1:])
    text = report(tmp_path, make_rows(), answer=['PLM <wins>.'], caveat='By & by.',
                  animation=('', tmp_path/'a.gif', 'A'))
    parts = '<h1>', 'PLM &lt;wins&gt;.', 'data:image/gif', '<dl>', '</table>', 'By &amp; by.'
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    for name in ('PLM', 'STML', 'SimCLR', 'piece', 'Proxies', 'view'): assert name in words(text)


def test_long_tables_fold(tmp_path):
    tables = [(f'T{n}', (['a', 'b'], [[str(i), '1'] for i in range(n)]), '') for n in (12, 13)]
    text = report(tmp_path, make_rows(), tables)
    assert 'T13 (13 lines)</summary>' in text and 'T12 (' not in text and '<h3>T12</h3>' in text


def test_what_is_asked_to_folds(tmp_path):
    Image.new('L', (4, 4)).save(tmp_path/'a.png')
    blocks = [(f'{kind} {folded}', shown, 'note', folded) for kind, shown in (('T', (['a'], [['1']])),
              ('P', tmp_path/'a.png')) for folded in (True, False)]
    text = report(tmp_path, make_rows(), blocks)
    for kind, lines in (('T', ' (1 lines)'), ('P', '')):
        assert f'<details><summary>{kind} True{lines}</summary>' in text and f'<h3>{kind} False</h3>' in text
        assert f'<h3>{kind} True' not in text and f'<summary>{kind} False' not in text


def test_a_page_of_its_own(tmp_path):
    write_page(tmp_path/'p.html', 'A <b>', 'Words.', [('Part', 'More.', [('T', (['a'], [['1']]), 'note')])])
    page = Page((tmp_path/'p.html').read_text())
    assert page.tables['t'] == [['a'], ['1']] and 'A <b>' in ''.join(page.text)


def test_failure_leaves_the_old_page(tmp_path):
    before = report(tmp_path, make_rows())
    with pytest.raises(ValueError, match="mean 'omniglot'"): report(tmp_path, make_rows(), dataset='omnigolt')
    assert (tmp_path/'new folder'/'report.html').read_text(encoding='utf-8') == before
    assert [p.name for p in (tmp_path/'new folder').iterdir()] == ['report.html']


def test_parameters_and_versions_are_on_the_page(tmp_path):
    text = ''.join(Page(report(tmp_path, make_rows(), params={'train': {'gamma': 0.999}})).text)
    found = versions()
    assert 'train:\n  gamma: 0.999' in text and all(f'{name} {version}\n' in text for name, version in found.items())
    assert found['torch'] == torch.__version__ and found['numpy'] == np.__version__
    assert all(isinstance(v, str) for v in found.values())


def test_published_table_is_printed_whole(tmp_path):
    table = Page(report(tmp_path, make_rows())).tables['published']
    assert table[0] == ['method', 'd', 'CUB-200-2011', 'Cars-196', 'SOP']
    assert table[1] == ['R@1', 'R@2', 'R@4', 'R@8']*2 + ['R@1', 'R@10', 'R@100']
    assert len(table) == 2+18 and all(len(line) == 13 for line in table[2:])
    plm = dict((line[1], line[2:]) for line in table if line[0] == 'PLM')
    assert plm['512'] == ('61.7±0.3 72.5±0.2 82.2±0.2 88.3±0.1 51.2±0.2 62.2±0.2 72.1±0.2 81.0±0.1 '
                          '66.4±0.2 81.1±0.1 90.6±0.1').split()
    for line in table[2:]: # a slip of the pen would break the rise of R@K with K
        values = [float(v.split('±')[0]) for v in line[2:]]
        assert all(a < b for part in (values[:4], values[4:8], values[8:]) for a, b in zip(part, part[1:]))


# ---- templates

def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match='dataset'): render('report.html')


def map_page(title='', **changed):
    data = dict(n=1, k=1, spaces=[dict(name='a')], planes=['b'], labels=None, names=None, files=None)
    return render('map.html', title=title, text='', sheets=[], data=data | changed)


def test_data_for_a_script_cannot_end_its_element():
    evil = ['</script><script>alert(1)</script>', '<!--<script>', "&'\u2028"]
    html = map_page(names=evil)
    data, = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert json.loads(data)['names'] == evil and '<' not in data
    assert html.count('<script') == html.count('</script>') == 2


def test_the_policy_allows_the_script_that_is_there_and_no_other():
    html = map_page()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html).group(1)
    script, = re.findall(r'<script>(.*?)</script>', html, re.S)
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'") and script == (ROOT/'plm/web/map.js').read_text(encoding='utf-8')


def test_pictures_are_known_by_their_first_bytes():
    for kind in ('png', 'gif', 'jpeg'):
        file = io.BytesIO()
        Image.new('RGB', (2, 2)).save(file, kind)
        assert data_url(file.getvalue()) == f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
    with pytest.raises(ValueError, match='mine is no PNG'): data_url(b'', 'mine')


def test_a_wheel_contains_the_files_of_the_pages(tmp_path):
    for name in ('pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, tmp_path)
    shutil.copytree(ROOT/'plm', tmp_path/'plm', ignore=shutil.ignore_patterns('__pycache__'))
    pip = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index']
    subprocess.run([*pip, '-w', tmp_path, tmp_path], check=True, capture_output=True)
    wheel, = tmp_path.glob('*.whl')
    files = {f'plm/web/{file.name}' for file in (ROOT/'plm/web').iterdir()}
    assert len(files) > 9 and files <= set(zipfile.ZipFile(wheel).namelist())
    code = "import plm; from plm.report import *; print(plm.__file__, len(published_rows())); render('table.html')"
    run = subprocess.run([sys.executable, '-c', code], env={'PYTHONPATH': str(wheel), 'OMP_NUM_THREADS': '1'},
                         cwd=tmp_path/'plm/web', capture_output=True, text=True)
    assert run.stdout == f'{wheel}/plm/__init__.py 198\n', run.stderr # Python reads a wheel as it reads a folder


# ---- pictures

@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 7), cols=st.integers(1, 5), c=st.sampled_from([None, 1, 3]),
       kind=st.sampled_from(['uint8', 'float', 'constant']))
def test_batches_of_any_kind_are_drawn(n, cols, c, kind):
    shape = (n, 6, 5) if c is None else (n, c, 6, 5)
    images = {'uint8': torch.randint(0, 256, shape).to(torch.uint8), 'float': torch.randn(shape),
              'constant': torch.full(shape, 3.)}[kind]
    fig = plot_batch(images, range(n), cols)
    drawn = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    assert len(drawn) == n and all(0 <= d.min() and d.max() <= 1 and d.shape[:2] == (6, 5) for d in drawn)
    if kind == 'uint8' and c is None: assert np.allclose(drawn[0]*255, images[0].numpy())
    assert not plt.get_fignums()


def test_curves_are_means_with_bands_of_one_deviation():
    log = [dict(method='plm', seed=str(s), epoch=str(e), images_seen=str(100*e), loss=str(v))
           for s, v0 in enumerate((1., 2., 6.)) for e, v in enumerate((v0, v0/2, ''))]
    ax, = plot_curves(log, 'loss', title='T', ylabel='L', scale=2).axes
    assert ax.lines[0].get_xydata().tolist() == [[0, 6], [100, 3]] # the row without a loss is passed over
    edge = ax.collections[0].get_paths()[0].vertices
    at_zero = edge[edge[:, 0] == 0, 1]
    std = np.std([2, 4, 12], ddof=1)
    assert math.isclose(at_zero.max(), 6 + std) and math.isclose(at_zero.min(), 6 - std)
    assert (ax.get_title(), ax.get_ylabel(), ax.get_xlabel()) == ('T', 'L', 'images through the trained encoder')
    assert ax.get_legend().get_texts()[0].get_text() == 'plm (3 seeds)'


def test_lines_differ_without_colour():
    rows = make_rows(methods=tuple('abcdefgh'))
    ax, = plot_recall(rows).axes
    assert len({(line.get_linestyle(), line.get_marker()) for line in ax.lines}) == 8


def test_recall_picture_shows_means_and_deviations():
    rows = make_rows()
    ax, = plot_recall(rows).axes
    assert np.allclose(ax.lines[2].get_ydata(), [expected(rows, 'stml', m)[1] for m in METRICS[:4]])
    edge = ax.collections[2].get_paths()[0].vertices
    spread = [np.ptp(edge[edge[:, 0] == k, 1])/2 for k in (1, 2, 4, 8)]
    own = [[100*float(r['value']) for r in rows if (r['method'], r['metric']) == ('stml', m)] for m in METRICS[:4]]
    assert np.allclose(spread, np.std(own, axis=1, ddof=1))
    assert [t.get_text() for t in ax.get_xticklabels()] == ['1', '2', '4', '8']
    assert len(plot_recall(rows + make_rows(dataset='glyphs')).axes) == 2


def test_diagnostics_have_a_panel_for_each_measure_of_the_log():
    log = [dict(method='plm', seed=s, images_seen=e, piece_size='', proxy_moved=0.1*e, proxy_used=0.5)
           for s in (0, 1) for e in (0, 1)]
    axes = [ax for ax in plot_diagnostics(iter(log), 'T').axes if ax.lines]
    assert [ax.get_title() for ax in axes] == ['How far proxies have moved', 'Proxies in use']
    assert axes[0].lines[0].get_ydata().tolist() == [0, 0.1] and axes[1].lines[0].get_ydata().tolist() == [50, 50]


def test_retrieved_images_are_marked_by_sign_and_dash():
    correct = torch.tensor([[True, False], [False, True]])
    queries, neighbors = torch.rand(2, 1, 5, 5), torch.rand(2, 2, 1, 5, 5)
    fig = plot_retrieved(queries, neighbors, correct)
    marked = [ax for ax in fig.axes if ax.texts]
    assert [ax.texts[0].get_text() == '✓' for ax in marked] == correct.flatten().tolist()
    assert [ax.spines['top'].get_linestyle() == '-' for ax in marked] == correct.flatten().tolist()
    everything = torch.cat([queries[:, None], neighbors], 1)
    stretched = (everything - everything.min())/(everything.max() - everything.min())
    for ax, image in zip(fig.axes, stretched.flatten(0, 2)): assert np.allclose(ax.images[0].get_array(), image)


@pytest.mark.parametrize('draw, message', [
    (lambda: plot_batch(torch.rand(3, 5, 5), ['a']), '1 titles'),
    (lambda: plot_batch(torch.rand(5, 5)), r'\(N, H, W\)'),
    (lambda: plot_batch(torch.rand(5, 2, 5, 5)), r'\(N, 3, H, W\)'),
    (lambda: channels_last(torch.rand(2, 5, 3, 3)), r'\(N, 3, H, W\)'),
    (lambda: plot_retrieved(torch.rand(2, 5, 5), torch.rand(2, 3, 5, 5), torch.ones(2, 2)), r'correct \(2, 2\)'),
    (lambda: plot_retrieved(torch.rand(1, 5, 5), torch.rand(2, 3, 5, 5), torch.ones(2, 3)), '1 queries'),
    (lambda: plot_diagnostics([dict(method='plm', seed=0, images_seen=0, loss=1)]), 'piece_size'),
    (lambda: plot_curves([], 'loss'), "'loss'"),
    (lambda: plot_recall([]), 'recall_at_K'),
])
def test_pictures_of_wrong_input_name_it(draw, message):
    with pytest.raises(ValueError, match=message): draw()
