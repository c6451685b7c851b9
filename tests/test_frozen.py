"""A frozen backbone: what is read and refused, what a run is made of, the tables by their loops. And `make cars` at toy
size, as a user runs it."""
import csv, json, os, re, shutil, subprocess, sys
from pathlib import Path
from statistics import mean, stdev
import numpy as np, pytest, torch, yaml
from PIL import Image
from plm import ablation
from plm.ablation import run_setting, run_settings
from plm.core import generator_at
from plm.evaluation import interval
from plm.frozen import begin_frozen, frozen_gains, frozen_rows, frozen_table, load_frozen, run_seconds
from plm.methods import METHODS
from plm.runs import FrozenData

ROOT = Path(__file__).parents[1]
OURS = ROOT/'pipelines/frozen/params.yaml'
SMALL = dict(backbone='resnet18', weights='none', dim=8, crop=32, epochs=2, batch_size=20)


def params(path, train={}, **change):
    "Our constants at toy size, some of them changed."
    raw = yaml.safe_load(OURS.read_text())
    raw |= dict(seeds=[0, 1], device='cpu', side=40, val_every=2, views=2, workers=1,
                tries={}, cars={}, grocery={}) | change
    raw['train'] |= SMALL | train
    raw['plm'] |= dict(n_proxies=5, max_neighbors=8, lr=0.03) # so large that two epochs of a toy change something
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


# ---- what is read

def test_our_constants_hold_the_controls():
    p = load_frozen('cars', OURS)
    settings = {s.name: s for s in p.chosen(1280, 'cars')}
    assert list(settings) == list(p.settings) and {s.study for s in settings.values()} == {'cars'}
    assert settings['pretrained, all features'].train.dim == 1280 and settings['pretrained, whitened'].train == p.train
    assert settings['plm'].constants == p.method['plm'] and settings['stml, plain'].constants.view == 'plain'
    own, control = (s.constants for s in load_frozen('', OURS).chosen(1280) if s.name in ('plm', 'distance alone'))
    own, control = sorted((own, control), key=lambda c: c.similarity, reverse=True)
    assert own.model_copy(update={'similarity': 'distance'}) == control # nothing else differs
    assert {'pretrained, whitened', 'distance alone'} <= set(p.controls)


@pytest.mark.parametrize('change, words', [
    (dict(seeds=[]), r'yaml.seeds: .*at least 1'), (dict(views=0), 'yaml.views: .*greater than or equal to 2, got 0'),
    (dict(sides=3), "yaml.sides is not a parameter. Did you mean 'side'"), (dict(val_every=1), 'yaml.val_every'),
    (dict(train=dict(crop=41)), 'train.crop must be a side in pixels, at most side = 40, got 41'),
    (dict(train=dict(crop=None)), 'train.crop must be a side'),
    (dict(train=dict(backbone='convnet')), 'convnet reads small grey images only'),
    (dict(train=dict(dims=8)), "train.dims is not a parameter. Did you mean 'dim'"),
    (dict(controls=['plmm']), "unknown setting in controls 'plmm'. Did you mean 'plm'"),
    (dict(settings={}), 'yaml.settings: '), (dict(settings={'a': 3}), 'a must be a mapping of names, got 3'),
    (dict(settings={'a': {'method': 'plmm'}}, controls=[]), "setting 'a': unknown method 'plmm'. Did you mean 'plm'"),
    (dict(settings={'a': {'detla': 2}}, controls=[]), "setting 'a': detla is not a parameter. Did you mean 'delta'"),
    (dict(settings={'a': {'dim': 0}}, controls=[]), "setting 'a': dim: .*greater than or equal to 1, got 0"),
    (dict(settings={'a': {'m': 9}}, controls=[]), "setting 'a': .*m = 9"),
    (dict(settings={'a': {'method': 'stml', 'k': 3}}, controls=[]), "setting 'a': k = 3 must be below, and divide"),
    (dict(settings={'a': {'whiten': 2}}, controls=[]), "setting 'a': whiten: .*less than or equal to 1, got 2"),
    (dict(cars={'plmm': {}}), "unknown method or setting in cars 'plmm'. Did you mean 'plm'"),
    (dict(cars={'plm': {'detla': 1}}), "plm.detla is not a parameter. Did you mean 'delta'")])
def test_mistakes_are_named(tmp_path, change, words):
    with pytest.raises(ValueError, match=words): load_frozen('cars', params(tmp_path/'params.yaml', **change))


def test_a_data_set_has_its_own_constants_and_lists_are_all_tried(tmp_path):
    file = params(tmp_path/'params.yaml', cars={'plm': {'n_alpha': 7}, 'distance alone': {'lr': 1}}, tries={
        'a': [{'n_alpha': [4, 5], 'n_beta': [0, 1], 'k': 4}, {'terms': ['point']}], 'b': [{'method': 'simclr'}]})
    cars, grocery = (load_frozen(name, file) for name in ('cars', 'grocery'))
    assert cars.method['plm'] == grocery.method['plm'].model_copy(update={'n_alpha': 7})
    lr = [{s.name: s.constants.lr for s in p.chosen(12) if s.method == 'plm'} for p in (cars, grocery)]
    assert lr[0]['distance alone'] == 1 and lr[0]['plm'] == lr[1]['plm'] == lr[1]['distance alone']
    tried = {s.name: s for s in cars.tried(12, 'cars')}
    grid = [f'a: n_alpha={a} n_beta={b} k=4' for a in (4, 5) for b in (0, 1)]
    assert list(tried) == [*grid, "a: terms=['point']", 'b: ']
    assert tried['a: n_alpha=5 n_beta=0 k=4'].constants == cars.method['plm'].model_copy(
        update=dict(n_alpha=5, n_beta=0, k=4))
    assert tried["a: terms=['point']"].constants.terms == ['point'] and tried['b: '].method == 'simclr'


def test_what_is_tried_is_as_many_settings_for_each_and_checked(tmp_path):
    tried = [s.name.split(': ')[0] for s in load_frozen('', OURS).tried(1280)]
    assert len(set(tried)) >= 5 and len({tried.count(name) for name in tried}) == 1
    wrong = load_frozen('', params(tmp_path/'params.yaml', tries={'a': [{'k': [4, 3]}]}))
    with pytest.raises(ValueError, match="setting 'a: k=3': k = 3 must be below, and divide"): wrong.tried(12)


# ---- what runs

@pytest.fixture
def data(tmp_path):
    "Stored features of five classes for val and test; the train ones have views."
    (tmp_path/'data').mkdir(), (tmp_path/'features').mkdir()
    for split, views in dict(train=2, val=0, test=0).items():
        labels = np.arange(30) % 5
        g = np.random.default_rng(len(split))
        x = g.normal(size=(5, 1, 12))[labels] + 0.7*g.normal(size=(30, 1 + views, 12))
        np.save(tmp_path/f'features/{split}.npy', x.astype(np.float16))
        if split != 'train': np.save(tmp_path/f'data/{split}_labels.npy', labels) # nobody may ask for those of train
    return FrozenData(str(tmp_path))


def test_every_setting_runs_once_and_as_it_does_alone(data, tmp_path):
    p = load_frozen('cars', params(tmp_path/'params.yaml'))
    settings = p.chosen(12, 'toy')
    rows = run_settings(settings, p.train, p.seeds, 1, 'cpu', data, tmp_path/'scratch', 'toy')
    assert len(rows) == len(settings)*2*10
    files = {f: f.stat().st_mtime_ns for f in (tmp_path/'scratch/ablation').iterdir()}
    assert run_settings(settings, p.train, p.seeds, 1, 'cpu', data, tmp_path/'scratch', 'toy') == rows
    assert len(files) == len(settings)*2 and files == {f: f.stat().st_mtime_ns for f in files}
    for s in settings[-2:]:
        alone = run_setting(s.method, s.constants, s.train, 1, data, scratch=tmp_path/'alone')
        assert alone == {r['metric']: r['value'] for r in rows if (r['setting'], r['seed']) == (s.name, 1)}
    value = {(r['setting'], r['seed'], r['metric']): r['value'] for r in rows}
    start = 'pretrained, whitened' # it has no seed
    assert value[start, 0, 'map_at_r'] == value[start, 1, 'map_at_r']
    assert value['plm', 0, 'map_at_r'] != value['plm', 1, 'map_at_r'] != value['distance alone', 1, 'map_at_r']


@pytest.mark.parametrize('what', ['features/train.npy', 'features/val.npy', 'data/test_labels.npy'])
def test_other_features_or_labels_are_other_runs(data, tmp_path, what, monkeypatch):
    def here(function, jobs, *_):
        for file, (_, arguments) in jobs.items():
            if not file.exists(): function(file, *arguments)
    monkeypatch.setattr(ablation, 'run_jobs', here) # no process has to start
    own = dict(settings={'pretrained': {'method': 'pretrained'}}, controls=[])
    p = load_frozen('cars', params(tmp_path/'params.yaml', **own))
    def run(): return run_settings(p.chosen(12), p.train, [0], 1, 'cpu', data, tmp_path/'scratch')
    rows = run()
    file = Path(data.folder)/what
    np.save(file, np.load(file)[::-1].copy())
    assert len(run()) == len(rows) and len(list((tmp_path/'scratch/ablation').iterdir())) == 2


def test_the_estimate_grows_with_images_and_epochs(tmp_path):
    settings = {s.name: s for s in load_frozen('cars', params(tmp_path/'params.yaml')).chosen(12)}
    assert run_seconds(settings['pretrained, whitened'], 12, 2, 1000) == 0
    threads = torch.get_num_threads()
    assert 0 < run_seconds(settings['plm'], 12, 2, 100) < run_seconds(settings['plm'], 12, 2, 10_000)
    assert torch.get_num_threads() == threads


# ---- what it means

def made_up(settings=('a', 'b', 'c'), seeds=4):
    g = generator_at('made up')
    return [dict(study='toy', setting=s, seed=seed, metric=m, value=torch.rand((), generator=g).item())
            for s in settings for seed in range(seeds)
            for m in ('recall_at_1', 'map_at_r', 'val_recall_at_1', 'val_map_at_r')]


def test_rows_say_their_split():
    rows = frozen_rows(made_up())
    assert list(rows[0]) == ['dataset', 'setting', 'seed', 'split', 'metric', 'value']
    assert [(r['split'], r['metric']) for r in rows[:4]] == [
        ('test', 'recall_at_1'), ('test', 'map_at_r'), ('val', 'recall_at_1'), ('val', 'map_at_r')]
    assert [r['value'] for r in rows] == [r['value'] for r in made_up()] and {r['dataset'] for r in rows} == {'toy'}


@pytest.mark.parametrize('split, prefix', [('val', 'val_'), ('test', '')])
def test_tables_by_the_loop(split, prefix):
    rows = [{k: str(v) for k, v in r.items()} for r in frozen_rows(made_up())] # as csv gives them
    def values(setting, metric):
        return [r['value'] for r in made_up() if (r['setting'], r['metric']) == (setting, prefix + metric)]
    header, lines = frozen_table(rows, split)
    assert header == [f'{split}, %', 'R@1', 'MAP@R'] and [line[0] for line in lines] == ['a', 'b', 'c']
    for name, *cells in lines:
        for metric, cell in zip(('recall_at_1', 'map_at_r'), cells, strict=True):
            assert cell == f'{100*mean(values(name, metric)):.1f} ± {100*stdev(values(name, metric)):.1f}'
    header, lines = frozen_gains(rows, ['b', 'c'], split)
    assert header == [f'{split}, points', 'R@1 − b', 'MAP@R − b', 'R@1 − c', 'MAP@R − c']
    for name, *cells in lines:
        for (control, metric), cell in zip([(c, m) for c in 'bc' for m in ('recall_at_1', 'map_at_r')], cells):
            if name == control: assert cell == ''
            else:
                gain, half = interval([x - y for x, y in zip(values(name, metric), values(control, metric))])
                assert cell == f'{100*gain:+.1f} ± {100*half:.1f}'


# ---- make cars

def picture(kind, i):
    r = np.random.default_rng([kind, i])
    pattern = np.random.default_rng(kind).random((4, 4, 3)) + 0.5*r.random((4, 4, 3))
    return Image.fromarray((pattern/1.5*255).astype(np.uint8)).resize((50, 44), Image.Resampling.BICUBIC)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A copy of the repository with small constants, and a folder of ten classes beside it."
    top = tmp_path_factory.mktemp('frozen')
    root, home = top/'plm repository', top/'home'
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('plm', 'nbs/pipeline'): shutil.copytree(ROOT/name, root/name, ignore=ignore)
    for name in ('pipelines/frozen/dvc.yaml', 'Makefile', '.dvcignore', '.gitignore', '.dvc/config', '.dvc/.gitignore',
                 'params.yaml'):
        (root/name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT/name, root/name)
    home.mkdir()
    settings = {'pretrained, all features': {'method': 'pretrained', 'dim': None}, 'plm': {}}
    params(root/'pipelines/frozen/params.yaml', settings=settings, train=dict(batch_size=10),
           controls=['pretrained, all features'])
    for kind in range(10):
        (top/f'my cars/kind {kind}').mkdir(parents=True)
        for i in range(6): picture(kind, i).save(top/f"my cars/kind {kind}/it's {i}.png")
    foreign = ('DVC_', 'JUPYTER', 'IPYTHON', 'XDG_', 'GIT_', 'PLM_', 'JPY_', 'MPL', 'PYTEST')
    env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    env |= dict(HOME=str(home), DVC_SITE_CACHE_DIR=str(home/'dvc'), PYTHONPATH=str(root), OMP_NUM_THREADS='1', CI='1',
                PATH=os.pathsep.join([str(Path(sys.executable).parent), env['PATH']]))
    def run(*command): return subprocess.run(command, cwd=root, env=env, text=True, capture_output=True, timeout=300)
    run('git', 'init', '-q')
    return root, top/'my cars', run


def stages(p): return re.findall(r"^Running stage 'pipelines/frozen/dvc.yaml:(.*)'", p.stdout, re.M)


def test_one_command_compares_the_methods(project):
    root, folder, run = project
    p = run('make', '-o', 'env', 'cars', f'FOLDER={folder}') # in the environment of the tests
    assert p.returncode == 0, p.stdout[-2000:] + p.stderr[-3000:]
    assert stages(p) == ['features@cars', 'compare@cars']
    assert 'train 18 of 3 classes, val 12 of 2 classes, test 30 of 5 classes' in p.stdout
    shapes = {f.stem: np.load(f).shape for f in (root/'runs/frozen/cars/features').glob('*.npy')}
    assert shapes == {'train': (18, 3, 512), 'val': (12, 1, 512), 'test': (30, 1, 512)}
    rows = list(csv.DictReader(open(root/'results/frozen/cars.csv')))
    assert list(rows[0]) == ['dataset', 'setting', 'seed', 'split', 'metric', 'value'] and len(rows) == 2*2*2*5
    assert (root/'results/frozen/cars.txt').read_text() in p.stdout and 'plm' in p.stdout
    lock = (root/'pipelines/frozen/dvc.lock').read_text()
    assert 'my cars' not in lock and str(folder.parent) not in lock # git learns nothing of the machine
    assert not list((root/'scratch').rglob('*.part')) and not list((root/'scratch').rglob('*.pt'))

    def would_run(): return stages(run('dvc', 'repro', '--dry', 'pipelines/frozen/dvc.yaml:compare@cars'))
    assert would_run() == [] # nothing has changed
    losses = root/'plm/losses.py'
    losses.write_text(losses.read_text() + '# another line\n')
    assert would_run() == ['compare@cars'] # what features are does not depend on how one trains on them
    picture(3, 77).save(folder/'kind 3/new.png')
    begin_frozen('cars', '', root/'pipelines/frozen/params.yaml', root/'runs/frozen') # the folder of the last time
    assert 'features@cars' in would_run()


def test_training_depends_on_no_train_label():
    deps = yaml.safe_load((ROOT/'pipelines/frozen/dvc.yaml').read_text())['stages']['compare']['deps']
    here = 'runs/frozen/${item.dataset}'
    assert [d for d in deps if d.startswith('runs/')] == [
        f'{here}/features', f'{here}/data/val_labels.npy', f'{here}/data/test_labels.npy']


def test_constants_that_decide_are_watched():
    "Each entry of the file is a parameter of a stage, but for those that decide no figure."
    text = yaml.safe_load((ROOT/'pipelines/frozen/dvc.yaml').read_text())['stages']
    watched = {name for stage in text.values() for of in stage['params'] for names in of.values() for name in names}
    assert '${item.dataset}' in watched # its own section
    watched |= {'cars', 'grocery'}
    entries = {name.split('.')[0] for name in watched} - {'${item'}
    assert entries == set(yaml.safe_load(OURS.read_text())) - {'device', 'workers'}
    assert set(METHODS) <= watched


@pytest.mark.parametrize('name, folder, words', [
    ('cars', 'nowhere', 'make cars: the folder .*nowhere does not exist'),
    ('bikes', '', 'make bikes: name the photos: make bikes FOLDER=/my/bikes')])
def test_a_mistake_is_one_line_and_leaves_the_choice(tmp_path, name, folder, words):
    (tmp_path/'runs/cars').mkdir(parents=True)
    (tmp_path/'runs/cars/listing.json').write_text('{"folder": "before"}')
    with pytest.raises(SystemExit, match=words):
        begin_frozen(name, folder and str(tmp_path/folder), params(tmp_path/'params.yaml'), tmp_path/'runs')
    assert json.loads((tmp_path/'runs/cars/listing.json').read_text())['folder'] == 'before'


def test_a_set_that_is_known_needs_no_folder(tmp_path, monkeypatch, capsys):
    "As `make grocery` asks for it: by its name, with the constants' val_every."
    from plm import frozen
    from plm.datasets import photo_splits
    for kind in range(10):
        (tmp_path/f'a/{kind}').mkdir(parents=True)
        for i in range(8): picture(kind, i).save(tmp_path/f'a/{kind}/{i}.png')
    asked = []
    def splits(*arguments):
        asked.append(arguments)
        return photo_splits('folder', 2, tmp_path/'a')
    monkeypatch.setattr(frozen, 'PHOTOS', ('grocery',)), monkeypatch.setattr(frozen, 'photo_splits', splits)
    begin_frozen('grocery', '', params(tmp_path/'params.yaml'), tmp_path/'runs')
    assert asked == [('grocery', 2, None)] and '80 photos: train 24 of 3 classes' in capsys.readouterr().out
    assert json.loads((tmp_path/'runs/grocery/listing.json').read_text())['folder'] is None


@pytest.mark.parametrize('change, words', [
    (dict(cars={'plm': None}), 'cars: plm must be a mapping of names, got None'),
    (dict(cars=['plm']), r"cars: cars must be a mapping of names, got \['plm'\]"),
    (dict(plm=None), 'plm must be a mapping of names, got None'),
    (dict(views=1), 'views: .*greater than or equal to 2'),
    (dict(settings=['a']), r"settings must be a mapping of names, got \['a'\]"),
    (dict(seeds=[0, 0]), 'seeds must name each once'),
    (dict(train=dict(whiten=None)), 'train.whiten must be a number')])
def test_what_is_no_mapping_and_what_stands_twice_is_named(tmp_path, change, words):
    file = tmp_path/'params.yaml'
    if 'plm' in change: params(file), file.write_text(file.read_text() + 'plm: null\n')
    else: params(file, **change)
    with pytest.raises(ValueError, match=words): load_frozen('cars', file)


def test_a_set_that_is_known_takes_no_folder_and_few_images_are_named_at_once(tmp_path):
    with pytest.raises(SystemExit, match='make grocery: grocery is a set of its own. Leave FOLDER out'):
        begin_frozen('grocery', str(tmp_path), OURS, tmp_path/'runs')
    for kind in range(8):
        (tmp_path/f'a/{kind}').mkdir(parents=True)
        for i in range(3): picture(kind, i).save(tmp_path/f'a/{kind}/{i}.png')
    with pytest.raises(SystemExit, match='there are 6 train images, fewer than train.batch_size = 20'):
        begin_frozen('cars', str(tmp_path/'a'), params(tmp_path/'params.yaml'), tmp_path/'runs')
    assert not (tmp_path/'runs').exists()
