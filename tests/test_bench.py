"The benchmark's table and its registry."
import csv, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def benchmarks_in_path(monkeypatch): monkeypatch.syspath_prepend(str(ROOT/'benchmarks'))


def test_the_table_is_of_the_parts_that_there_are():
    import bench
    rows = list(csv.DictReader((ROOT/'results/bench.csv').open()))
    assert list(rows[0]) == ['name', 'setting', 'ratio', 'seconds', 'baseline_seconds']
    assert {bench.part_of(r) for r in rows} == set(bench.PARTS)
    assert all((ROOT/'benchmarks'/f'{part}.py').exists() for part in bench.PARTS)
    assert len({(r['name'], r['setting']) for r in rows}) == len(rows)
    for r in rows: assert float(r['ratio']) == pytest.approx(float(r['baseline_seconds'])/float(r['seconds']), rel=0.02)


def test_opponents_are_timed_in_turn_and_the_slower_takes_longer():
    from timing import against, interleaved
    calls = []
    def work(name, n):
        calls.append(name)
        sum(range(n))
    took = interleaved({'ours': lambda: work('ours', 1000), 'theirs': lambda: work('theirs', 300000)}, repeats=5)
    assert calls == ['ours', 'theirs']*6 # one turn to warm up
    name, setting, ratio, seconds, baseline = against('sum', 'of numbers', took, 'theirs')
    assert setting == 'of numbers, against theirs' and ratio == baseline/seconds > 10


@pytest.mark.parametrize('setting', ['clusters', 'blurred', 'plane', 'curved sheet'])
def test_the_loop_that_the_manifold_is_compared_with_agrees(setting):
    import estimation
    from plm.manifold import PiecewiseLinearManifold, grow_piece
    assert setting in estimation.SETTINGS and len(estimation.SETTINGS) == 4
    t = estimation.batch(setting, 30, 16).double()
    members = PiecewiseLinearManifold(estimation.m)(t).members
    for i in range(30): assert members[i].nonzero()[:, 0].tolist() == sorted([i, *grow_piece(t, i, estimation.m)])


@pytest.mark.parametrize('arguments, words', [(['nothing'], 'no such part: nothing')])
def test_a_part_that_is_not_there(arguments, words, monkeypatch, capsys):
    import bench
    monkeypatch.setattr(sys, 'argv', ['bench.py', *arguments])
    with pytest.raises(SystemExit): bench.main()
    assert words in capsys.readouterr().err
