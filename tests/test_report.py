"plm.plots and plm.report: what the pictures and the page say is what the rows say."
import base64, io, math, re, warnings
from html.parser import HTMLParser
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from matplotlib import pyplot as plt
from PIL import Image
from plm.plots import plot_batch, plot_curves, plot_gallery, plot_recall, thumbnails
from plm.report import beside_published, markdown_table, published_rows, table_cells, text_table, versions, write_report

METRICS = ['recall_at_1', 'recall_at_2', 'recall_at_4', 'recall_at_8', 'map_at_r', 'nmi']


def make_rows(seeds=3, methods=('start', 'simclr', 'stml', 'plm'), dataset='omniglot', seed=0):
    rng = np.random.default_rng(seed)
    return [dict(dataset=dataset, method=m, seed=str(s), metric=k, value=repr(rng.random())) for m in methods for s in range(seeds) for k in METRICS]


class Page(HTMLParser):
    "Tables as lists of rows of texts, everything loaded, alt texts; fails on a tag that is not closed."
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.loads, self.alts, self.tables, self.best, self.text, self.ids, self.jumps = [], [], [], {}, {}, [], [], []
        self.feed(text); self.close()
        assert not self.tags and len(set(self.ids)) == len(self.ids) and set(self.jumps) <= set(self.ids)
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loads += [attrs[a] for a in ('src', 'href', 'srcset', 'action', 'data', 'poster', 'background') if a in attrs and not attrs[a].startswith('#')]
        if 'id' in attrs: self.ids.append(attrs['id'])
        if attrs.get('href', '').startswith('#'): self.jumps.append(attrs['href'][1:])
        if tag == 'img': self.alts.append(attrs.get('alt'))
        if tag == 'table': self.table = self.tables[attrs['id']] = []; self.marked = self.best[attrs['id']] = []
        if tag == 'tr': self.table.append([])
        if tag in ('td', 'th'): self.table[-1].append('')
        if attrs.get('class') == 'best': self.marked.append((len(self.table)-1, len(self.table[-1])-1))
        if tag not in ('meta', 'img'): self.tags.append(tag)
    def handle_endtag(self, tag): assert self.tags.pop() == tag
    def handle_data(self, data):
        self.text.append(data)
        if self.tags and self.tags[-1] in ('td', 'th'): self.table[-1][-1] += data


def report(tmp_path, rows, blocks=(), **changed):
    path = tmp_path/'new folder'/'report.html'
    given = dict(path=path, dataset='omniglot', rows=rows, sections=[('Pictures', 'What there is to see.', blocks)], params={'batch': 100}, versions=versions(), published=published_rows())
    write_report(**{**given, **changed})
    return path.read_text(encoding='utf-8')


def expected(rows, method, metric):
    values = [100*float(r['value']) for r in rows if r['method'] == method and r['metric'] == metric]
    return (f'{np.mean(values):.1f}' + (f' ± {np.std(values, ddof=1):.1f}' if len(values) > 1 else '')), np.mean(values)


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
    _, lines = table_cells(rows)['omniglot']
    aligned = text_table(rows).splitlines()
    assert [re.split(r'\s{2,}', a) for a in aligned[3:]] == [[t + '*'*b for t, b in line] for line in lines]
    starts = [[m.start() for m in re.finditer(r'(?<=\s\s)\S', a)] for a in aligned[1:]]
    assert all(s == starts[0] for s in starts) # columns stand under each other
    piped = [[c.strip() for c in a.strip('|').split('|')] for a in markdown_table(rows).splitlines()[4:]]
    assert piped == [[f'**{t}**' if b else t for t, b in line] for line in lines]


def test_equal_means_share_the_mark_and_several_data_sets_get_a_table_each():
    rows = [dict(dataset=d, method=m, seed=0, metric='nmi', value=v) for d in 'ab' for m, v in [('x', 0.50001), ('y', 0.50002), ('z', 0.09)]]
    for d in 'ab': assert [line[2] for line in table_cells(rows)[d][1]] == [('50.0', True), ('50.0', True), ('9.0', False)]
    assert text_table(rows).count('method') == 2


def test_a_method_without_a_metric_has_an_empty_cell():
    rows = make_rows(2)[:-12] + [dict(dataset='omniglot', method='plm', seed=0, metric='nmi', value=0.2)]
    assert [t for t, _ in table_cells(rows)['omniglot'][1][-1]] == ['plm', '1', '', '', '', '', '', '20.0']


def test_a_perfect_score_beats_all_others():
    rows = [dict(dataset='a', method=m, seed=0, metric='nmi', value=v) for m, v in [('x', 0.999), ('y', 1.0), ('z', 0.0)]]
    assert [line[2] for line in table_cells(rows)['a'][1]] == [('99.9', False), ('100.0', True), ('0.0', False)]


def test_no_rows_is_an_error():
    for table in (text_table, markdown_table):
        with pytest.raises(ValueError, match='no retrieval rows'): table([])


def test_several_tests_of_a_data_set_stand_side_by_side():
    rows = [dict(dataset='v', method='plm', seed=0, metric=f'{test}/{m}', value=v) for test, v in (('small', 0.8), ('large', 0.6)) for m in ('recall_at_1', 'map_at_r')]
    assert table_cells(rows)['v'] == (['method', 'seeds', 'small R@1', 'small MAP@R', 'large R@1', 'large MAP@R'], [[('plm', False), ('1', False), ('80.0', True), ('80.0', True), ('60.0', True), ('60.0', True)]])


# ---- beside the paper

RENAMED = {'cub200': 'CUB-200-2011', 'cars196': 'Cars-196', 'sop': 'SOP'}

@pytest.mark.parametrize('dataset', RENAMED)
@pytest.mark.parametrize('d', [128, 512])
def test_the_papers_own_row_stands_under_ours(dataset, d):
    ks = (1, 10, 100, 1000) if dataset == 'sop' else (1, 2, 4, 8)
    rows = [dict(dataset=dataset, method=m, seed=s, metric=f'recall_at_{k}', value=0.1*i + 0.01*s) for m in ('pretrained', 'simclr', 'stml', 'plm') for s in (0, 1) for i, k in enumerate(ks, 1)]
    rows += [dict(dataset='glyphs', method='plm', seed=0, metric='recall_at_1', value=1)]
    header, lines = beside_published(rows, dataset, d)
    assert header == ['method', 'figures', *(f'R@{k}' for k in ks)]
    assert [line[:2] for line in lines] == [['pretrained', 'here'], ['simclr', 'here'], ['stml', 'here'], ['stml', 'paper'], ['plm', 'here'], ['plm', 'paper']]
    assert lines[0][2] == '10.5 ± 0.7'
    for name, line in (('STML', lines[3]), ('PLM', lines[5])):
        printed = {r['k']: r['value'] for r in published_rows() if (r['d'], r['method'], r['dataset']) == (d, name, RENAMED[dataset])}
        assert [cell.replace(' ', '') for cell in line[2:]] == [printed.get(k, '') for k in ks] and line[2]


@pytest.mark.parametrize('dataset, d', [('glyphs', 128), ('inshop', 512), ('cub200', 64)])
def test_where_the_paper_has_no_table_there_is_none(dataset, d):
    assert beside_published(make_rows(dataset=dataset), dataset, d) is None


def test_the_page_says_whose_the_published_columns_are(tmp_path):
    here, elsewhere = (report(tmp_path, make_rows(dataset=d), dataset=d) for d in ('cars196', 'omniglot'))
    assert 'Cars-196 is the data set of this page' in here and 'other data sets and another network' not in here and 'Published figures (%), Cars-196 and two' in here
    assert 'other data sets and another network' in elsewhere and 'is the data set of this page' not in elsewhere and 'Published figures (%), on other data sets' in elsewhere


def test_the_page_explains_the_metrics_that_there_are(tmp_path):
    rows = [r for r in make_rows() if r['metric'] in ('recall_at_1', 'recall_at_2')]
    page = report(tmp_path, rows, asked='queries <look> in a gallery')
    assert 'R@K: share' in page and 'MAP@R:' not in page and 'NMI:' not in page and 'queries &lt;look&gt; in a gallery.' in page and 'among all the others' not in page
    assert all(text in report(tmp_path, make_rows()) for text in ('R@K: share', 'MAP@R:', 'NMI:', 'each test image looks for its own kind among all the others.'))


# ---- the page

def test_thumbnails_are_means_of_blocks():
    images = torch.randint(0, 256, (250, 3, 24, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = np.arange(240).reshape(12, 20)[:, ::-1].copy() # more than are taken at a time
    blocks = images.double().view(250, 3, 8, 3, 4, 3).mean((3, 5))
    found = thumbnails(images, index, 8)
    assert found.shape == (12, 20, 3, 8, 4) and found.dtype == torch.uint8 and (found.double() - blocks[index]).abs().max() <= 0.501
    assert torch.equal(thumbnails(images, index, 24), images[index]) and thumbnails(images, [0], 1).shape == (1, 3, 1, 1)
    assert thumbnails(images[:, :1], 3, 8).shape == (1, 8, 4)


def test_thumbnails_read_what_they_show_and_no_more(tmp_path):
    "Of a file larger than the memory one would spend: a sparse one of 40 GB, mapped as the data sets are."
    file = tmp_path/'images.npy'
    mapped = np.lib.format.open_memmap(file, 'w+', np.uint8, (200_000, 3, 256, 256))
    mapped[199_999] = 77
    with warnings.catch_warnings(action='ignore'): images = torch.from_numpy(np.load(file, 'r')) # torch warns of whoever writes to it: nobody does
    assert thumbnails(images, [0, 199_999], 48).float().mean((1, 2, 3)).tolist() == [0, 77]


def test_tests_of_a_data_set_have_a_panel_each():
    rows = [dict(dataset='v', method=m, seed=s, metric=f'{test}/recall_at_{k}', value=base + k/100 + s/1000) for test, base in (('small', 0.5), ('large', 0.3)) for m in 'ab' for s in (0, 1) for k in (1, 5)]
    small, large = plot_recall(rows).axes
    assert small.get_title() == 'Recall at K: v, small' and large.get_title() == 'Recall at K: v, large'
    assert np.allclose(large.containers[0].lines[0].get_ydata(), [31.05, 35.05])



def test_page_loads_nothing_and_says_so_to_the_browser(tmp_path):
    rows = make_rows()
    text = report(tmp_path, rows, [('Recall', plot_recall(rows), 'What is seen')])
    page = Page(text)
    assert len(page.loads) == 1 and page.loads[0].startswith('data:image/png;base64,')
    Image.open(io.BytesIO(base64.b64decode(page.loads[0].split(',')[1]))).verify()
    assert page.alts == ['Recall. What is seen']
    assert '<script' not in text and '<link' not in text and '@import' not in text and 'url(' not in text and 'http:' not in text and 'https:' not in text
    assert "default-src 'none'" in text and 'prefers-color-scheme: dark' in text and '@media print' in text and 'name="viewport"' in text


def test_everything_from_outside_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>&\''
    rows = make_rows(1, methods=(evil,), dataset=evil)
    text = report(tmp_path, rows, [(evil, plot_recall(make_rows()), evil)], dataset=evil, params={evil: evil}, versions={evil: evil},
                  published=[dict(d=1, method=evil, dataset=evil, k=1, value=evil)])
    assert '<script' not in text
    page = Page(text)
    assert page.tables['results'][1][0] == evil and page.tables['published'][-1] == [evil, '1', evil] and page.alts == [f'{evil}. {evil}']


def test_page_is_the_same_bytes_for_the_same_results(tmp_path):
    rows = make_rows()
    pages = [report(tmp_path, rows, [('Recall', plot_recall(rows), '')]) for _ in range(2)]
    assert pages[0] == pages[1]


def test_pictures_may_be_png_files(tmp_path):
    plot_batch(torch.rand(3, 8, 8)).savefig(tmp_path/'a.png')
    page = Page(report(tmp_path, make_rows(), [('A', tmp_path/'a.png', 'b')]))
    assert base64.b64decode(page.loads[0].split(',')[1]) == (tmp_path/'a.png').read_bytes()
    (tmp_path/'a.png').write_text('no picture')
    with pytest.raises(ValueError, match='neither a PNG nor a GIF'): report(tmp_path, make_rows(), [('A', tmp_path/'a.png', 'b')])


def test_sections_hold_tables_animations_and_links(tmp_path):
    frames = [Image.new('P', (4, 4), i) for i in range(3)]
    frames[0].save(tmp_path/'a.gif', save_all=True, append_images=frames[1:])
    (tmp_path/'map.html').write_text('')
    text = report(tmp_path, make_rows(), [('Steps <1>', (['step', 'value & unit'], [['one', '1'], ['two', '<2>']]), 'as told'), ('Watch', tmp_path/'a.gif', 'b'), ('Map', tmp_path/'map.html', 'c')])
    page = Page(text)
    assert page.tables['steps-1'] == [['step', 'value & unit'], ['one', '1'], ['two', '<2>']]
    assert page.loads[0].startswith('data:image/gif;base64,') and page.loads[1:] == ['../map.html'] # from the folder of the page
    assert page.jumps == ['h-results', 'h-pictures', 'h-the-paper-s-results-for-orientation', 'h-how-it-was-made']
    with pytest.raises(ValueError, match="the page 'Map' .*nowhere.html.* is not there"): report(tmp_path, make_rows(), [('Map', tmp_path/'nowhere.html', 'c')])


def test_failure_leaves_the_old_page(tmp_path):
    before = report(tmp_path, make_rows())
    with pytest.raises(ValueError, match="mean 'omniglot'"): report(tmp_path, make_rows(), dataset='omnigolt')
    assert (tmp_path/'new folder'/'report.html').read_text(encoding='utf-8') == before
    assert [p.name for p in (tmp_path/'new folder').iterdir()] == ['report.html']


def test_parameters_and_versions_are_on_the_page(tmp_path):
    text = ''.join(Page(report(tmp_path, make_rows(), params={'train': {'gamma': 0.999}}, versions={'torch': '9.9'})).text)
    assert 'train:\n  gamma: 0.999' in text and 'torch 9.9' in text
    found = versions()
    assert found['torch'] == torch.__version__ and found['numpy'] == np.__version__ and all(isinstance(v, str) for v in found.values())


def test_published_table_is_printed_whole(tmp_path):
    table = Page(report(tmp_path, make_rows())).tables['published']
    assert table[0] == ['method', 'd', 'CUB-200-2011', 'Cars-196', 'SOP']
    assert table[1] == ['R@1', 'R@2', 'R@4', 'R@8']*2 + ['R@1', 'R@10', 'R@100']
    assert len(table) == 2+18 and all(len(line) == 13 for line in table[2:])
    plm = dict((line[1], line[2:]) for line in table if line[0] == 'PLM')
    assert plm['512'] == '61.7±0.3 72.5±0.2 82.2±0.2 88.3±0.1 51.2±0.2 62.2±0.2 72.1±0.2 81.0±0.1 66.4±0.2 81.1±0.1 90.6±0.1'.split()
    for line in table[2:]: # a slip of the pen would break the rise of R@K with K
        values = [float(v.split('±')[0]) for v in line[2:]]
        assert all(a < b for part in (values[:4], values[4:8], values[8:]) for a, b in zip(part, part[1:]))


# ---- pictures

@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 7), cols=st.integers(1, 5), c=st.sampled_from([None, 1, 3]), kind=st.sampled_from(['uint8', 'float', 'constant']))
def test_batches_of_any_kind_are_drawn(n, cols, c, kind):
    shape = (n, 6, 5) if c is None else (n, c, 6, 5)
    images = {'uint8': torch.randint(0, 256, shape).to(torch.uint8), 'float': torch.randn(shape), 'constant': torch.full(shape, 3.)}[kind]
    fig = plot_batch(images, range(n), cols)
    drawn = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    assert len(drawn) == n and all(0 <= d.min() and d.max() <= 1 and d.shape[:2] == (6, 5) for d in drawn)
    if kind == 'uint8' and c is None: assert np.allclose(drawn[0]*255, images[0].numpy())
    assert not plt.get_fignums()


def test_curves_are_means_with_bands_of_one_deviation():
    log = [dict(method='plm', seed=str(s), epoch=str(e), images_seen=str(100*e), loss=str(v)) for s, v0 in enumerate((1., 2., 6.)) for e, v in enumerate((v0, v0/2, ''))]
    ax, = plot_curves(log, 'loss', title='T', ylabel='L', scale=2).axes
    assert ax.lines[0].get_xydata().tolist() == [[0, 6], [100, 3]] # the row without a loss is passed over
    edge = ax.collections[0].get_paths()[0].vertices
    at_zero = edge[edge[:, 0] == 0, 1]
    assert math.isclose(at_zero.max(), 6 + np.std([2, 4, 12], ddof=1)) and math.isclose(at_zero.min(), 6 - np.std([2, 4, 12], ddof=1))
    assert (ax.get_title(), ax.get_ylabel(), ax.get_xlabel()) == ('T', 'L', 'images through the trained encoder')
    assert ax.get_legend().get_texts()[0].get_text() == 'plm (3 seeds)'


def test_lines_differ_without_colour():
    rows = make_rows(methods=tuple('abcdefgh'))
    ax, = plot_recall(rows).axes
    looks = [(c.lines[0].get_linestyle(), c.lines[0].get_marker()) for c in ax.containers]
    assert len(set(looks)) == 8


def test_recall_picture_shows_means_and_deviations():
    rows = make_rows()
    ax, = plot_recall(rows).axes
    line, _, (bars,) = ax.containers[2].lines
    means = [expected(rows, 'stml', m)[1] for m in METRICS[:4]]
    assert np.allclose(line.get_ydata(), means)
    assert np.allclose([np.ptp(s[:, 1])/2 for s in bars.get_segments()],
                       [np.std([100*float(r['value']) for r in rows if (r['method'], r['metric']) == ('stml', m)], ddof=1) for m in METRICS[:4]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ['1', '2', '4', '8']
    assert len(plot_recall(rows + make_rows(dataset='glyphs')).axes) == 2


def test_gallery_marks_right_and_wrong_by_sign_and_dash():
    right = torch.tensor([[True, False], [False, True]])
    fig = plot_gallery(torch.rand(2, 1, 5, 5), torch.rand(2, 2, 1, 5, 5), right)
    marked = [ax for ax in fig.axes if ax.texts]
    assert [ax.texts[0].get_text() == '✓' for ax in marked] == right.flatten().tolist()
    assert [ax.spines['top'].get_linestyle() == '-' for ax in marked] == right.flatten().tolist()


@pytest.mark.parametrize('draw, message', [
    (lambda: plot_batch(torch.rand(3, 5, 5), ['a']), '1 titles'),
    (lambda: plot_batch(torch.rand(5, 5)), r'\(H, W\)'),
    (lambda: plot_batch(torch.rand(5, 2, 5, 5)), r'\(3, H, W\)'),
    (lambda: plot_gallery(torch.rand(2, 5, 5), torch.rand(2, 3, 5, 5), torch.ones(2, 2, dtype=bool)), r'\(Q, K\)'),
    (lambda: plot_gallery(torch.rand(1, 5, 5), torch.rand(2, 3, 5, 5), torch.ones(2, 3, dtype=bool)), '1 queries'),
    (lambda: plot_curves([], 'loss'), "'loss'"),
    (lambda: plot_recall([]), 'recall_at_K'),
])
def test_pictures_of_wrong_input_name_it(draw, message):
    with pytest.raises(ValueError, match=message): draw()
