"What the README shows is true: its code runs, its tables are the results, its links lead somewhere."
import csv, re
from pathlib import Path
from statistics import mean, stdev
import pytest
from plm.ablation import findings_table
from plm.report import markdown_table
from plm.supervised import namr_table

ROOT = Path(__file__).parents[1]
README = (ROOT/'README.md').read_text()


def test_the_code_runs_as_it_stands():
    blocks = re.findall(r'```python\n(.*?)```', README, re.S)
    assert len(blocks) >= 2
    names = {}
    for block in blocks: exec(compile(block, 'README.md', 'exec'), names)
    assert names['s'].shape == (100, 100) and all(t.isfinite() for t in names['terms'].values())


@pytest.mark.parametrize('file', ['docs/glyphs/retrieval.csv', 'docs/omniglot/retrieval.csv'])
def test_tables_are_the_results(file):
    shown = re.search(rf'<!-- table: {file} -->\n(.*?)<!-- end -->', README, re.S).group(1).strip()
    rows = list(csv.DictReader(open(ROOT/file)))
    assert len({row['seed'] for row in rows}) >= 3
    assert shown == markdown_table(rows).strip()


def test_nothing_is_left_to_fill_in(): assert '@@' not in README


def test_links_and_pictures_exist():
    targets = re.findall(r'\]\(([^)#]+?)(?:#[^)]*)?\)', README)
    assert len(targets) > 15
    missing = [t for t in targets if not t.startswith('http') and not (ROOT/t).exists()]
    assert not missing


def test_the_findings_are_those_of_the_last_ablations():
    shown = re.search(r'<!-- findings: docs/ablation.csv -->\n(.*?)<!-- end -->', README, re.S).group(1).strip()
    header, lines = findings_table([row for row in csv.DictReader(open(ROOT/'docs/ablation.csv')) if row['dataset'] == 'glyphs'])
    assert len(lines) >= 5 and shown == '\n'.join(f"| {' | '.join(line)} |" for line in [header, ['---']*len(header), *lines])


def test_the_views_are_those_of_the_last_ablations():
    shown = re.search(r'<!-- study: view -->\n(.*?)<!-- end -->', README, re.S).group(1).strip()
    values = {}
    for row in csv.DictReader(open(ROOT/'docs/ablation.csv')):
        if (row['dataset'], row['study']) == ('glyphs', 'view'): values.setdefault(row['setting'], {}).setdefault(row['metric'], []).append(100*float(row['value']))
    cell = lambda v: f'{mean(v):.1f} ± {stdev(v):.1f}'
    assert len(values) == 4 and shown == '\n'.join(['| what the estimating encoder sees | R@1 on test | R@1 on val |', '| --- | ---: | ---: |',
        *(f"| {name} | {cell(v['recall_at_1'])} | {cell(v['val_recall_at_1'])} |" for name, v in values.items())])


def test_the_gains_are_those_of_the_last_run():
    shown = re.search(r'<!-- namr: docs/namr.csv -->\n(.*?)<!-- end -->', README, re.S).group(1).strip()
    header, lines = namr_table(csv.DictReader(open(ROOT/'docs/namr.csv')))
    assert len(lines) == 10 and shown == '\n'.join(f"| {' | '.join(line)} |" for line in [header, ['---']*len(header), *lines])
