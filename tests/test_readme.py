"What README.md and the pages of docs/ show is true: code runs, tables are the results, links lead somewhere."
import csv, itertools, re
from pathlib import Path
from statistics import mean, stdev
import pytest
from plm.ablation import findings_table
from plm.core import gain_and_interval, markdown_table
from plm.comparison import comparison_gains, comparison_table
from plm.estimates import NAMES as NAMES_OF_ESTIMATES, difference
from plm.evaluation import interval
from plm.report import retrieval_markdown
from plm.supervised import gains_table, namr_table, serving_table

ROOT = Path(__file__).parents[1]
PAGES = {p: p.read_text() for p in (ROOT/'README.md', *sorted((ROOT/'docs').glob('*.md')))}
BLOCK = re.compile(r'<!-- (\w+): (\S+) -->\n(.*?)<!-- end -->', re.S)
BLOCKS = [found for text in PAGES.values() for found in BLOCK.findall(text)]


def blocks(kind):
    "What the marks `<!-- kind: NAME -->` name, mostly a file, and the text from there to `<!-- end -->`."
    return [(name, shown.strip()) for k, name, shown in BLOCKS if k == kind]


def rows_of(file): return list(csv.DictReader((ROOT/file).open()))


def markdown(header, lines):
    return '\n'.join(f"| {' | '.join(line)} |" for line in [header, ['---']*len(header), *lines])


def test_the_code_runs_as_it_stands():
    pages = ROOT/'README.md', ROOT/'docs/loop.md' # the second goes on with the names of the first
    code = [block for page in pages for block in re.findall(r'```python\n(.*?)```', PAGES[page], re.S)]
    assert len(code) >= 3
    names = {}
    for block in code: exec(compile(block, 'README.md', 'exec'), names)
    assert names['s'].shape == (100, 100) and all(t.isfinite() for t in names['terms'].values())


def test_readme_is_short():
    assert len(PAGES[ROOT/'README.md'].encode()) <= 10_000


def front_markdown():
    "The first table: where methods begin, and where they end; STML with the view that val chose."
    files = {'cars R@1': ('frozen/cars.csv', 'recall_at_1'), 'grocery MAP@R': ('frozen/grocery.csv', 'map_at_r'),
             'grocery, all weights': ('full/grocery.csv', 'map_at_r'), 'glyphs R@1': ('retrieval.csv', 'recall_at_1'),
             'Omniglot R@1': ('omniglot/retrieval.csv', 'recall_at_1')}
    rows = {'where all begin': ['pretrained, components']*3 + ['pretrained']*2, 'SimCLR': ['simclr']*5,
            'STML': ['stml, augmented', 'stml, plain', 'stml', 'stml', 'stml'],
            'PLM, by distance alone': ['distance alone']*3 + ['distance']*2, '**PLM**': ['plm']*5,
            'a head in closed form, no training': ['pretrained, neighbors']*3 + ['']*2,
            'SimCLR from that head': ['simclr from neighbors']*3 + ['']*2,
            '**PLM** from that head': ['plm from neighbors']*3 + ['']*2}
    lines = {name: [name] for name in rows}
    for column, (file, metric) in enumerate(files.values()):
        found = rows_of(f'results/{file}')
        for name, names in rows.items():
            values = [100*float(row['value']) for row in found if metric == row['metric']
                      and names[column] == row.get('setting', row.get('method')) and row.get('split', 'test') == 'test']
            lines[name].append(f'{mean(values):.1f} ± {stdev(values):.1f}' if values else '')
    return markdown_table(['%', *files], list(lines.values()))


def test_the_first_table_is_the_results():
    assert blocks('front') == [('results', front_markdown())]


def test_tables_are_the_results():
    tables = {file: (rows_of(file), shown) for file, shown in blocks('table')}
    assert {rows[0]['dataset'] for rows, _ in tables.values()} == {'glyphs', 'omniglot'}
    for file, (rows, shown) in tables.items():
        assert len({row['seed'] for row in rows}) >= 3
        assert shown == retrieval_markdown(rows).strip(), file


def pairs_markdown():
    "By how much PLM is above the others on characters."
    files = {'glyphs': 'results/retrieval.csv', 'Omniglot': 'results/omniglot/retrieval.csv'}
    def cell(file, metric, other):
        pairs = difference(rows_of(file), metric, dict(method='plm'), dict(method=other))
        return gain_and_interval(*interval(pairs))
    lines = [[f'PLM − {other}', *(cell(file, metric, other) for file in files.values() for metric in NAMES)]
             for other in ('pretrained', 'simclr', 'stml', 'distance')]
    return markdown(['test, points', *(f'{name} {short}' for name in files for short in NAMES.values())], lines)


def test_the_differences_on_characters_are_the_results():
    assert blocks('pairs') == [('results', pairs_markdown())]


def test_nothing_is_left_to_fill_in():
    for page, text in PAGES.items(): assert '@@' not in text, page.name


def test_links_and_pictures_exist():
    links = [(page, t) for page, text in PAGES.items() for t in re.findall(r'\]\(([^)#]+?)(?:#[^)]*)?\)', text)]
    assert len(links) > 15
    assert [(page.name, t) for page, t in links if not t.startswith('http') and not (page.parent/t).exists()] == []


def test_the_findings_are_those_of_the_last_ablations():
    (file, shown), = blocks('findings')
    header, lines = findings_table([row for row in rows_of(file) if row['dataset'] == 'glyphs'])
    assert len(lines) >= 5 and shown == markdown(header, lines)


def test_the_views_are_those_of_the_last_ablations():
    (study, shown), (file, _) = *blocks('study'), *blocks('findings')
    values = {}
    for row in rows_of(file):
        if (row['dataset'], row['study']) == ('glyphs', study):
            values.setdefault(row['setting'], {}).setdefault(row['metric'], []).append(100*float(row['value']))
    assert len(values) == 4
    cell = lambda v: f'{mean(v):.1f} ± {stdev(v):.1f}'
    lines = [(name, cell(v['recall_at_1']), cell(v['val_recall_at_1'])) for name, v in values.items()]
    assert shown.splitlines()[2:] == markdown((), lines).splitlines()[2:]
    assert shown.startswith('| what the estimating encoder sees | R@1 on test | R@1 on val |\n')


@pytest.mark.parametrize('kind, table', [
    ('namr', namr_table), ('gained', gains_table), ('serving', serving_table)])
def test_the_tables_of_namr_are_those_of_the_last_run(kind, table):
    (file, shown), = blocks(kind)
    header, lines = table(rows_of(file))
    assert len(lines) % 5 == 0 and lines and shown == markdown(header, lines)


JUDGED = {'cars': ('recall_at_1', 'map_at_r'), 'grocery': ('map_at_r', 'recall_at_1')} # first: what it is judged by
NAMES = {'recall_at_1': 'R@1', 'map_at_r': 'MAP@R'}


def comparison_markdown(way, part):
    "The figures of README on photographs, on test: settings, with what each is above; or parts of PLM, with the loss."
    lines, header, width = {}, ['test, %'], 0
    controls = ['plm'] if part == 'parts' else ['pretrained, components', 'distance alone']
    for dataset, metrics in JUDGED.items():
        if not (ROOT/f'results/{way}/{dataset}.csv').exists(): continue
        rows = rows_of(f'results/{way}/{dataset}.csv')
        assert len({row['seed'] for row in rows}) >= (5 if way == 'frozen' else 3)
        header += [f'{dataset} {NAMES[metrics[0]]}', NAMES[metrics[1]],
                   *(f"− {control.removeprefix('pretrained, ')}" for control in controls)]
        columns, found = comparison_table(rows, 'test')
        for name, *cells in found: # a setting may have run on one set only
            own = lines.setdefault(name, ['']*width)
            own += [cells[columns.index(NAMES[m]) - 1] for m in metrics]
        for control in controls:
            for name, cell in comparison_gains(rows, [control], 'test', metrics[:1])[1]: lines[name].append(cell)
        width = len(header) - 1
        for cells in lines.values(): cells += ['']*(width - len(cells))
    return markdown(header, [[name, *cells] for name, cells in lines.items()
                             if name.startswith('plm, ') == (part == 'parts')])


def few_markdown():
    "What a head makes of few photos: means over draws, in %."
    lines, heads = [], ('all features', 'components', 'neighbors')
    for dataset in JUDGED:
        rows = rows_of(f'results/frozen/few_{dataset}.csv')
        for c in dict.fromkeys(row['classes'] for row in rows):
            own = [row for row in rows if row['classes'] == c]
            cells = [f"{100*mean(float(r['value']) for r in own if (r['head'], r['metric']) == (head, m)):.1f}"
                     for m in NAMES for head in heads]
            lines.append([f"{dataset}, {c} classes", f"{mean(int(row['photos']) for row in own):.0f}", *cells])
    return markdown(['', 'photos', *(f'{name} {head}' for name in NAMES.values() for head in heads)], lines)


def pieces_markdown():
    "What pieces tell, on test, without training and after it."
    lines = {}
    for dataset in JUDGED:
        for row in rows_of(f'results/frozen/pieces_{dataset}.csv'):
            if row['split'] == 'test': lines.setdefault(row['embedding'], []).append(f"{float(row['value']):.2f}")
    metrics = ('purity', 'distance', 'similarity', 'share')
    return markdown(['test', *(f'{dataset} {m}' if m == 'purity' else m for dataset in JUDGED for m in metrics)],
                    [[name, *cells] for name, cells in lines.items()])


def estimates_markdown():
    "Who belongs together, by each estimate, before and after PLM's training, on test."
    lines, found = {}, {}
    for dataset in JUDGED:
        rows = rows_of(f'results/frozen/similarity_{dataset}.csv')
        assert len({row['seed'] for row in rows}) >= 3
        for row in rows:
            key = dataset, row['estimate'], row['metric'], row['embedding']
            found.setdefault(key, []).append(float(row['value']))
    for dataset, metric in itertools.product(JUDGED, ('label_purity', 'correlation')):
        for name in dict.fromkeys(estimate for _, estimate, *_ in found):
            values = [found.get((dataset, name, metric, when)) for when in ('before', 'after')]
            lines.setdefault(NAMES_OF_ESTIMATES[name], []).append(
                ' → '.join(f'{mean(v):.3f} ± {stdev(v):.3f}' for v in values if v))
    return markdown(['test', *(f'{dataset} {metric}' for dataset in JUDGED for metric in ('purity', 'correlation'))],
                    [[name, *cells] for name, cells in lines.items()])


def test_the_photographs_are_those_of_the_last_comparison():
    shown = {(way, part): table for way in ('frozen', 'full') for part, table in blocks(way)}
    assert set(shown) == {(way, part) for way in ('frozen', 'full') for part in ('settings', 'parts')}
    for block, table in shown.items(): assert table == comparison_markdown(*block), block
    assert blocks('pieces') == [('results/frozen', pieces_markdown())]
    assert blocks('estimates') == [('results/frozen', estimates_markdown())]
    assert blocks('few') == [('results/frozen', few_markdown())]

