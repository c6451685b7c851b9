"Ablations: what is read, what runs and what does not run again, and whether a difference is one."
import math, os, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, psutil, pytest, torch, yaml
from plm import ablation
from plm.ablation import PUBLISHED, PUBLISHED_BANDS, Setting, findings, load_studies, paired_gain, plot_study, run_setting, run_settings
from plm.core import generator_at
from plm.data import SPLITS
from plm.encoder import Encoder
from plm.params import TrainParams, load_params
from plm.training import save_state

ROOT = Path(__file__).parent.parent
OURS, PARAMS = ROOT/'pipelines/ablations/params.yaml', ROOT/'params.yaml'
SHARED = TrainParams(backbone='convnet', weights='none', dim=8, crop=None, precision='float32', norm='moving', epochs=1, batch_size=10)
FULL = replace(load_params(PARAMS).method['plm'], n_proxies=4, m=2)


# ---- what is tried

def test_our_studies_hold_what_the_claims_need_and_the_setting_of_the_main_run():
    epochs, workers, settings = load_studies(OURS, PARAMS)
    main = load_params(PARAMS).method
    for study in dict.fromkeys(s.study for s in settings):
        own = [s for s in settings if s.study == study]
        assert len({s.name for s in own}) == len({repr(s.constants) for s in own}) == len(own) > 1
        assert any(s.constants == main[s.method] for s in own), study # every study can be read against the main run
    names = {(s.study, s.name) for s in settings}
    assert {(study, name) for study, _, a, b, *_ in ablation._claims for name in (a, b)} <= names
    assert {(study, name) for study, values in PUBLISHED.items() if study != 'parts' for name in values} <= names
    assert {(study, f'n_alpha={x} {curve}') for study, bands in PUBLISHED_BANDS.items() for curve, first, last, *_ in bands for x in (first, last)} <= names


def studies(tmp_path, text):
    (tmp_path/'studies.yaml').write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return load_studies(tmp_path/'studies.yaml', PARAMS)


def test_lists_grids_and_names(tmp_path):
    epochs, workers, s = studies(tmp_path, dict(epochs=3, workers=2, studies={
        'T': [None, 0.5], 'a grid': {'n_alpha': [2, 3], 'n_beta': [0, 0.5]}, 'some': {'slow': {'gamma': 0.999, 'k': 10}, 'peer': {'method': 'stml', 'sigma': 2}}}))
    full, stml = (load_params(PARAMS).method[m] for m in ('plm', 'stml'))
    assert (epochs, workers) == (3, 2)
    assert s == [Setting('T', 'none', 'plm', replace(full, T=None)), Setting('T', '0.5', 'plm', replace(full, T=0.5)),
                 *(Setting('a grid', f'n_alpha={a} n_beta={b}', 'plm', replace(full, n_alpha=a, n_beta=b)) for b in (0, 0.5) for a in (2, 3)),
                 Setting('some', 'slow', 'plm', replace(full, gamma=0.999, k=10)), Setting('some', 'peer', 'stml', replace(stml, sigma=2))]


@pytest.mark.parametrize('text, words', [
    ('epochs: [1', 'studies.yaml is not valid YAML'), ('a: 1', 'must have the entries epochs, workers, studies'), ({'epochs': 0, 'workers': None, 'studies': {}}, 'epochs in .* at least 1, got 0'),
    ({'epochs': True, 'workers': None, 'studies': {}}, 'epochs in'), ({'epochs': 1, 'workers': 0, 'studies': {}}, 'workers in'), ({'epochs': 1, 'workers': 1, 'studies': []}, 'must be a mapping'),
    ({'epochs': 1, 'workers': 1, 'studies': {'T': 0.5}}, "study 'T' must be a list of values, a grid"), ({'epochs': 1, 'workers': 1, 'studies': {'T': []}}, "study 'T'"),
    ({'epochs': 1, 'workers': 1, 'studies': {'g': {'m': [1]}}}, "grid 'g' must have two constants, got m"),
    ({'epochs': 1, 'workers': 1, 'studies': {'detla': [1.]}}, "study 'detla', setting '1.0': glyphs.plm.detla is not a parameter.*'delta'"),
    ({'epochs': 1, 'workers': 1, 'studies': {'m': [3, 1000]}}, "study 'm', setting '1000': glyphs.plm.m"),
    ({'epochs': 1, 'workers': 1, 'studies': {'x': {'y': {'method': 'smtl'}}}}, "study 'x', setting 'y': unknown method 'smtl'")])
def test_mistakes_in_the_studies(tmp_path, text, words):
    with pytest.raises(ValueError, match=words): studies(tmp_path, text)


def test_no_studies_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.yaml is missing'): load_studies(tmp_path/'nowhere.yaml', PARAMS)


# ---- what runs

@pytest.fixture
def runs(tmp_path):
    "Files as the pipeline leaves them, with noise for images."
    (tmp_path/'runs/data').mkdir(parents=True)
    for split in SPLITS:
        g = generator_at('ablation', split)
        np.save(tmp_path/f'runs/data/{split}_images.npy', torch.randint(0, 256, (20, 24, 24), generator=g, dtype=torch.uint8).numpy())
        np.save(tmp_path/f'runs/data/{split}_labels.npy', np.arange(20) % 5)
    for seed in (0, 1): save_state(Encoder('convnet', 8, (seed,)).state_dict(), tmp_path/f'runs/pretrain/{seed}/encoder.pt')
    return dict(runs=str(tmp_path/'runs'), scratch=str(tmp_path/'scratch'))


def finished(where): return {f.name: f.stat().st_mtime_ns for f in Path(where['scratch']).glob('ablation/*.json')}


def test_each_run_is_made_once_and_is_that_of_train(runs):
    settings = [Setting('delta', '1.4', 'plm', FULL), Setting('parts', 'full', 'plm', FULL), Setting('delta', '1', 'plm', replace(FULL, delta=1))]
    rows = run_settings(settings, SHARED, [0, 1], **runs)
    first = finished(runs)
    assert len(first) == 4 and len(rows) == 3*2*4 and not list(Path(runs['scratch']).glob('*.pt'))
    assert [(r['study'], r['setting'], r['seed']) for r in rows[::4]] == [(s.study, s.name, seed) for s in settings for seed in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert {r['metric']: r['value'] for r in rows[:4]} == run_setting('plm', FULL, SHARED, 0, **runs)
    torch.set_num_threads(threads)
    assert run_settings(settings, SHARED, [0, 1], **runs) == rows and finished(runs) == first
    more = run_settings([*settings, Setting('delta', '2', 'plm', replace(FULL, delta=2))], SHARED, [0, 1], **runs)
    assert more[:len(rows)] == rows and len(finished(runs)) == 6 and first.items() <= finished(runs).items()
    run_settings(settings[:1], replace(SHARED, epochs=2), [0], **runs)
    assert len(finished(runs)) == 7 # another budget is another run
    np.save(Path(runs['runs'])/'data/test_labels.npy', np.arange(20)[::-1] % 4)
    assert run_settings(settings[:1], SHARED, [0], **runs)[0]['value'] != rows[0]['value'] and len(finished(runs)) == 8 # and so is another test set


def test_a_run_that_fails_is_named_and_the_finished_ones_stay(runs):
    good, bad = Setting('lr', 'usual', 'plm', FULL), Setting('lr', 'inf', 'plm', replace(FULL, lr=math.inf))
    with pytest.raises(RuntimeError, match="study 'lr', setting 'inf', seed 0: .*learning rate"): run_settings([good, bad], SHARED, [0], workers=1, **runs)
    assert len(finished(runs)) == 1 and not list(Path(runs['scratch']).rglob('*.part'))
    assert len(run_settings([good], SHARED, [0], **runs)) == 4


def test_classes_of_two_images(runs):
    np.save(Path(runs['runs'])/'data/test_labels.npy', np.arange(20)//2)
    assert set(run_setting('plm', FULL, SHARED, 0, **runs)) == {'recall_at_1', 'recall_at_2', 'map_at_r', 'val_recall_at_1'}


def test_a_worker_ends_with_its_parent(runs, tmp_path):
    "Killed, not asked: no process may stay behind, and what was finished is there."
    code = f'''
from test_ablation import *
if __name__ == '__main__':
    print('go', flush=True)
    run_settings([Setting('a', str(e), 'plm', replace(FULL, delta=1 + e/50)) for e in range(40)], SHARED, [0], workers=1, runs={runs['runs']!r}, scratch={runs['scratch']!r})
'''
    (tmp_path/'study.py').write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path/'study.py'], env=os.environ | {'PYTHONPATH': str(Path(__file__).parent)}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.time() + 100
    while not finished(runs):
        assert parent.poll() is None and time.time() < end
        time.sleep(0.01)
    workers = psutil.Process(parent.pid).children(recursive=True)
    parent.kill(); parent.wait()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert workers and not alive and 1 <= len(finished(runs)) < 40


def test_a_start_that_is_missing_is_named_before_anything_runs(runs):
    with pytest.raises(FileNotFoundError, match='pretrain/7/encoder.pt is missing.*dvc repro'): run_settings([Setting('a', 'b', 'plm', FULL)], SHARED, [0, 7], **runs)
    assert not finished(runs)


# ---- what it means

def rows_of(**values):
    return [dict(study='s', setting=name, seed=str(i), metric='recall_at_1', value=repr(v)) for name, vs in values.items() for i, v in enumerate(vs)]


def test_seeds_are_matched_by_name_and_missing_ones_left_out():
    rows = rows_of(a=[0.1, 0.2, 0.3], b=[0.0, 0.3])
    assert paired_gain(rows[::-1], 'a', 'b') == pytest.approx(paired_gain(rows, 'a', 'b')) and paired_gain(rows, 'a', 'b')[0] == pytest.approx(0)
    assert paired_gain(rows_of(a=[0.5], b=[0.25]), 'a', 'b') == (0.25, math.inf)
    with pytest.raises(ValueError, match="'a' and 'c' share no seed"): paired_gain(rows, 'a', 'c')


@pytest.mark.parametrize('full, none, verdict', [([.7, .71, .72], [.6, .61, .62], 'shown'), ([.6, .61, .62], [.7, .71, .72], 'contradicted'), ([.6, .7, .8], [.7, .6, .78], 'undecided')])
def test_verdicts(full, none, verdict):
    rows = [dict(r, study='n_proxies') for r in rows_of(**{'100': full, '0': none})]
    (found,) = findings(rows)
    assert found['verdict'] == verdict and found['published'] == '+4.3' and found['gain'] == pytest.approx(100*(np.mean(full) - np.mean(none)))


@pytest.mark.parametrize('more, verdict', [([.705, .712, .718], 'shown'), ([.71, .7201, .73], 'shown'), ([.8, .81, .82], 'contradicted'), ([.719, .729, .739], 'shown'), ([.721, .731, .741], 'contradicted'),
                                           ([.715, .735, .735], 'undecided'), ([.6, .75, .8], 'undecided')])
def test_verdict_of_no_change(more, verdict):
    rows = [dict(r, study='n_proxies') for r in rows_of(**{'100': [.7, .71, .72], '500': more})]
    assert [f['verdict'] for f in findings(rows)] == [verdict]


def test_one_seed_decides_nothing():
    assert [f['verdict'] for f in findings([dict(r, study='n_proxies') for r in rows_of(**{'100': [.7], '0': [.5]})])] == ['undecided']


def test_the_picture_shows_means_and_deviations():
    rows = [dict(r, study='n_proxies') for r in rows_of(**{'0': [.5, .6], '7': [.6, .62], '100': [.7, .7]})]
    ours, theirs = plot_study(rows, 'n_proxies', 'glyphs').axes
    assert ours.lines[0].get_ydata() == pytest.approx([55, 61, 70]) and [t.get_text() for t in ours.get_xticklabels()] == ['0', '7', '100', '500']
    assert list(ours.lines[0].get_xdata()) == [0, 1, 2] and list(theirs.lines[0].get_xdata()) == [0, 2, 3] and list(theirs.lines[0].get_ydata()) == [56.3, 60.6, 60.6]
    assert 'glyphs, 2 seeds' in ours.get_title()
    (ours,) = plot_study([dict(r, study='x') for r in rows_of(a=[.5], b=[.6])], 'x').axes
    assert [t.get_text() for t in ours.get_yticklabels()] == ['a', 'b'] and ours.lines[0].get_xdata() == pytest.approx([50, 60])
    with pytest.raises(ValueError, match="unknown study 'n_proxy'.*'n_proxies'"): plot_study(rows, 'n_proxy')
