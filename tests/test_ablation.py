"Ablations: what is read, what runs and what does not run again, and whether a difference is one."
import os, subprocess, sys, time
from pathlib import Path
import numpy as np, psutil, pytest, torch, yaml
from plm import ablation
from plm.ablation import PUBLISHED, Setting, findings_table, load_studies, plot_study, run_setting, run_settings
from plm.checkpoint import save_state
from plm.core import generator_at
from plm.datasets import SPLITS
from plm.encoder import Encoder
from plm.params import load_params
from plm.runs import RunData
from plm.training import TrainConstants

ROOT = Path(__file__).parent.parent
OURS, PARAMS = ROOT/'pipelines/ablations/params.yaml', ROOT/'params.yaml'
MAIN = load_params(PARAMS).method


def shared(epochs=1):
    return TrainConstants(backbone='convnet', weights='none', dim=8, crop=None, precision='float32', norm='moving',
                          epochs=epochs, batch_size=10)


def changed(method, **values): return type(MAIN[method])(**MAIN[method].model_dump() | values)


def small(**values): return changed('plm', **{'n_proxies': 4, 'm': 2} | values)


# ---- what is tried

def test_our_studies_hold_what_the_findings_need_and_the_setting_of_the_main_run():
    epochs, workers, settings = load_studies(OURS, PARAMS)
    for study in dict.fromkeys(s.study for s in settings):
        own = [s for s in settings if s.study == study]
        assert len({s.name for s in own}) == len({repr(s.constants) for s in own}) == len(own) > 1
        assert any(s.constants == MAIN[s.method] for s in own), study # every study can be read against the main run
    names = {(s.study, s.name) for s in settings}
    assert {(f['study'], f[of]) for f in PUBLISHED['findings'] for of in ('setting', 'than')} <= names
    assert {(study, name) for study, of in PUBLISHED['figures'].items() if study != 'parts' for name in of} <= names
    assert {(study, end) for study, of in PUBLISHED['ranges'].items() for r in of for end in r[:2]} <= names


def studies(tmp_path, text):
    (tmp_path/'studies.yaml').write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return load_studies(tmp_path/'studies.yaml', PARAMS)


def test_lists_grids_and_names(tmp_path):
    epochs, workers, s = studies(tmp_path, dict(epochs=3, workers=2, studies={
        'T': [None, 0.5], 'a grid': {'n_alpha': [2, 3], 'n_beta': [0, 0.5]},
        'some': {'slow': {'gamma': 0.999, 'k': 10}, 'peer': {'method': 'stml', 'sigma': 2}}}))
    assert (epochs, workers) == (3, 2)
    assert s == [
        Setting('T', 'none', 'plm', changed('plm', T=None)), Setting('T', '0.5', 'plm', changed('plm', T=0.5)),
        *(Setting('a grid', f'n_alpha={a} n_beta={b}', 'plm', changed('plm', n_alpha=a, n_beta=b))
          for b in (0, 0.5) for a in (2, 3)),
        Setting('some', 'slow', 'plm', changed('plm', gamma=0.999, k=10)),
        Setting('some', 'peer', 'stml', changed('stml', sigma=2))]


@pytest.mark.parametrize('change, words', [
    ({'epochs': 0}, 'yaml.epochs: input should be greater than or equal to 1, got 0'),
    ({'epochs': True}, 'yaml.epochs: .* integer, got True'),
    ({'workers': 0}, 'yaml.workers: input should be greater'),
    ({'worker': 1}, "yaml.worker is not a parameter. Did you mean 'workers'"),
    ({'studies': []}, 'yaml.studies: input should be a valid dict'),
    ({'studies': {'T': 0.5}}, "study 'T' must be a list of values, a grid"),
    ({'studies': {'T': []}}, "study 'T' must be"),
    ({'studies': {'T': {}}}, "study 'T' must be"),
    ({'studies': {'g': {'m': [1]}}}, "study 'g' must be a list of values, a grid of two"),
    ({'studies': {'g': {'m': [1], 'T': 2}}}, "study 'g' must be"),
    ({'studies': {'detla': [1.]}}, "study 'detla', setting '1.0': glyphs.plm.detla is not a parameter.*'delta'"),
    ({'studies': {'m': [3, 1000]}}, "study 'm', setting '1000': .*glyphs.plm: max_neighbors = 20 must be at least m"),
    ({'studies': {'x': {'y': {'method': 'smtl'}}}}, "study 'x', setting 'y': unknown method 'smtl'")])
def test_mistakes_in_the_studies(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        studies(tmp_path, {'epochs': 1, 'workers': None, 'studies': {}} | change)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match='studies.yaml is not valid YAML'): studies(tmp_path, 'epochs: [1')
    with pytest.raises(ValueError, match='yaml.epochs is missing'): studies(tmp_path, 'workers: 1')
    with pytest.raises(FileNotFoundError, match='nowhere.yaml is missing'):
        load_studies(tmp_path/'nowhere.yaml', PARAMS)


def test_photos_are_refused(tmp_path):
    (tmp_path/'params.yaml').write_text(PARAMS.read_text().replace('dataset: glyphs', 'dataset: cub200'))
    with pytest.raises(ValueError, match='dataset: cub200. Set glyphs or omniglot'):
        load_studies(OURS, tmp_path/'params.yaml')


# ---- what runs

@pytest.fixture
def runs(tmp_path):
    "Files as the pipeline leaves them, with noise for images."
    (tmp_path/'runs/data').mkdir(parents=True)
    for split in SPLITS:
        noise = torch.randint(0, 256, (20, 24, 24), generator=generator_at('ablation', split), dtype=torch.uint8)
        np.save(tmp_path/f'runs/data/{split}_images.npy', noise.numpy())
        np.save(tmp_path/f'runs/data/{split}_labels.npy', np.arange(20) % 5)
    for seed in (0, 1):
        save_state(Encoder(dim=8, address=(seed,)).state_dict(), tmp_path/f'runs/pretrain/{seed}/encoder.pt')
    return dict(data=RunData(str(tmp_path/'runs')), scratch=str(tmp_path/'scratch'))


def finished(where): return {f.name: f.stat().st_mtime_ns for f in Path(where['scratch']).glob('ablation/*.json')}


def test_each_run_is_made_once_and_is_that_of_train(runs):
    settings = [Setting('delta', '1.4', 'plm', small()), Setting('parts', 'full', 'plm', small()),
                Setting('delta', '1', 'plm', small(delta=1))]
    rows = run_settings(settings, shared(), [0, 1], **runs)
    first = finished(runs)
    assert len(first) == 4 and len(rows) == 3*2*10 and not list(Path(runs['scratch']).glob('*.pt'))
    order = [(s.study, s.name, seed) for s in settings for seed in (0, 1)]
    assert [(r['study'], r['setting'], r['seed']) for r in rows[::10]] == order
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert {r['metric']: r['value'] for r in rows[:10]} == run_setting('plm', small(), shared(), 0, **runs)
    torch.set_num_threads(threads)
    assert run_settings(settings, shared(), [0, 1], **runs) == rows and finished(runs) == first
    more = run_settings([*settings, Setting('delta', '2', 'plm', small(delta=2))], shared(), [0, 1], **runs)
    assert more[:len(rows)] == rows and len(finished(runs)) == 6 and first.items() <= finished(runs).items()


def test_another_budget_test_set_or_program_is_another_run(runs, monkeypatch):
    def here(function, jobs, *_):
        for file, (_, arguments) in jobs.items():
            if not file.exists(): function(file, *arguments)
    monkeypatch.setattr(ablation, 'run_jobs', here) # no process has to start
    def run(epochs=1): return run_settings([Setting('delta', '1.4', 'plm', small())], shared(epochs), [0], **runs)
    rows = run()
    run(epochs=2)
    assert len(finished(runs)) == 2
    np.save(Path(runs['data'].folder)/'data/test_labels.npy', np.arange(20)[::-1] % 4)
    assert run()[0]['value'] != rows[0]['value'] and len(finished(runs)) == 3
    code_of = ablation.code_of
    monkeypatch.setattr(ablation, 'code_of', lambda *modules: code_of(*modules) + b'# another line')
    run()
    assert len(finished(runs)) == 4
    assert run() and len(finished(runs)) == 4 # the same program


def test_a_run_that_fails_is_named_and_the_finished_ones_stay(runs):
    good, bad = Setting('lr', 'usual', 'plm', small()), Setting('lr', '1e30', 'plm', small(lr=1e30))
    with pytest.raises(RuntimeError, match="study 'lr', setting '1e30', seed 0: .*learning rate"):
        run_settings([good, bad], shared(epochs=2), [0], workers=1, **runs)
    assert len(finished(runs)) == 1 and not list(Path(runs['scratch']).rglob('*.part'))
    assert len(run_settings([good], shared(epochs=2), [0], **runs)) == 10


def test_classes_of_two_images(runs):
    np.save(Path(runs['data'].folder)/'data/test_labels.npy', np.arange(20)//2)
    metrics = {*(f'recall_at_{k}' for k in (1, 2, 4, 8)), 'map_at_r'}
    found = run_setting('plm', small(), shared(), 0, **runs)
    assert set(found) == metrics | {f'val_{m}' for m in metrics} and all(0 <= v <= 1 for v in found.values())


def test_a_worker_ends_with_its_parent(runs, tmp_path):
    "Killed, not asked: no process may stay behind, and what was finished is there."
    (tmp_path/'study.py').write_text(f'''
from test_ablation import *
if __name__ == '__main__':
    settings = [Setting('a', str(e), 'plm', small(delta=1 + e/50)) for e in range(40)]
    run_settings(settings, shared(), [0], workers=1, **{runs!r})
''')
    env = os.environ | {'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])}
    parent = subprocess.Popen([sys.executable, tmp_path/'study.py'], env=env, stderr=subprocess.DEVNULL)
    end = time.time() + 100
    while not finished(runs):
        assert parent.poll() is None and time.time() < end
        time.sleep(0.01)
    workers = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert workers and not alive and 1 <= len(finished(runs)) < 40


def test_a_start_that_is_missing_is_named_before_anything_runs(runs):
    with pytest.raises(FileNotFoundError, match='pretrain/7/encoder.pt is missing.*dvc repro'):
        run_settings([Setting('a', 'b', 'plm', small())], shared(), [0, 7], **runs)
    assert not finished(runs)


# ---- what it means

def rows_of(study, **values):
    "Rows as csv gives them: setting -> values by seed."
    return [dict(study=study, setting=name, seed=str(i), metric='recall_at_1', value=repr(v))
            for name, vs in values.items() for i, v in enumerate(vs)]


def proxies(**values): return rows_of('n_proxies', **{name.strip('_'): v for name, v in values.items()})


@pytest.mark.parametrize('full, none, verdict', [
    ([.7, .71, .72], [.6, .61, .62], 'shown'), ([.6, .61, .62], [.7, .71, .72], 'contradicted'),
    ([.6, .7, .8], [.7, .6, .78], 'undecided'), ([.7], [.5], 'undecided')]) # one seed decides nothing
def test_verdict_of_a_gain(full, none, verdict):
    header, [line] = findings_table(proxies(_100=full, _0=none)[::-1])
    assert len(line) == len(header) and line[:2] == ['100 proxies are better than none', '+4.3']
    assert line[2].startswith(f'{100*(np.mean(full) - np.mean(none)):+.1f} ') and line[3] == verdict


@pytest.mark.parametrize('more, verdict', [
    ([.705, .712, .718], 'shown'), ([.71, .7201, .73], 'shown'), ([.719, .729, .739], 'shown'),
    ([.8, .81, .82], 'contradicted'), ([.721, .731, .741], 'contradicted'),
    ([.715, .735, .735], 'undecided'), ([.6, .75, .8], 'undecided')])
def test_verdict_of_no_change(more, verdict):
    assert [line[3] for line in findings_table(proxies(_100=[.7, .71, .72], _500=more))[1]] == [verdict]


def test_seeds_are_matched_by_name_and_missing_ones_left_out():
    [line] = findings_table(proxies(_100=[0.1, 0.2, 0.3], _0=[0.0, 0.3]))[1]
    assert line[2].startswith('+0.0 ± ')
    assert findings_table(proxies(_100=[0.25], _0=[0.5]))[1][0][2] == '-25.0 (one seed)'
    other_seed = [dict(r, seed='7') for r in proxies(_0=[0.5])]
    assert findings_table(proxies(_100=[0.25]) + other_seed)[1] == findings_table([])[1] == []


def test_the_picture_shows_means_and_deviations():
    rows = proxies(_0=[.5, .6], _7=[.6, .62], _100=[.7, .7])
    ours, theirs = plot_study(rows, 'n_proxies', 'glyphs', 12).axes
    assert ours.get_title() == 'ours: glyphs, 2 seeds ± one deviation, 12 epochs'
    assert list(ours.lines[0].get_xdata()) == [0, 1, 2] and ours.lines[0].get_ydata() == pytest.approx([55, 61, 70])
    assert [t.get_text() for t in ours.get_xticklabels()] == ['0', '7', '100', '500']
    bar = ours.containers[0].lines[2][0].get_segments()[0] # deviation of the first value
    assert bar[:, 1] == pytest.approx([55 - 50**0.5, 55 + 50**0.5])
    assert list(theirs.lines[0].get_xdata()) == [0, 2, 3] and list(theirs.lines[0].get_ydata()) == [56.3, 60.6, 60.6]
    (ours,) = plot_study(rows_of('x', a=[.5], b=[.6]), 'x').axes
    assert [t.get_text() for t in ours.get_yticklabels()] == ['a', 'b']
    assert ours.lines[0].get_xdata() == pytest.approx([50, 60])
    with pytest.raises(ValueError, match="unknown study 'n_proxy'.*'n_proxies'"): plot_study(rows, 'n_proxy')


def test_ranges_are_drawn_over_their_values():
    rows = rows_of('n_alpha n_beta', **{f'n_alpha={a} n_beta={b}': [.5, .6] for b in (0, 0.5) for a in (1, 3, 6)})
    ours, theirs = plot_study(rows, 'n_alpha n_beta').axes
    spans = [(b.get_label(), *(v.round(2).tolist() for v in b.get_datalim(theirs.transData).get_points().T))
             for b in theirs.collections if 'about' in b.get_label()]
    assert spans == [('n_beta=0, about', [0, 2], [57.8, 58.2]), ('n_beta=0.5, about', [1, 2], [60.2, 60.7])]
    assert [t.get_text() for t in ours.get_legend().get_texts()][:2] == ['n_beta=0', 'n_beta=0.5']
