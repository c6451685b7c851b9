"""Methods compared on photographs: what is read and refused, what a run is made of, the tables by their loops.
And `make cars` at toy size, as a user runs it."""
import csv, json, re
from pathlib import Path
from statistics import mean, stdev
import numpy as np, pytest, torch, yaml
from PIL import Image
from plm import ablation
from plm.ablation import run_setting, run_settings
from plm.core import generator_at
from plm.evaluation import interval
from plm.comparison import (begin_comparison, comparison_gains, comparison_rows, comparison_table, load_comparison,
                            run_seconds)
from plm.methods import METHODS
from plm.pretraining import new_encoder, principal_head
from plm.runs import FrozenData, PhotoData
from repository import copy_repository

ROOT = Path(__file__).parents[1]
OURS, FULL = (ROOT/f'pipelines/comparison/{way}.yaml' for way in ('frozen', 'full'))
SMALL = dict(backbone='resnet18', weights='none', dim=8, crop=32, epochs=2, batch_size=20)


def params(path, train={}, **change):
    "Our constants at toy size, some of them changed."
    raw = yaml.safe_load(OURS.read_text())
    raw['settings'] = {name: s for name, s in raw['settings'].items() if s.get('k') != 20} # a batch has only 20
    raw |= dict(seeds=[0, 1], device='cpu', side=40, val_every=2, views=2, workers=1,
                tries={}, cars={}, grocery={}) | change
    raw['train'] |= SMALL | train
    raw['plm'] |= dict(n_proxies=5, max_neighbors=8, lr=0.03) # so large that two epochs of a toy change something
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


# ---- what is read

def test_our_constants_hold_the_controls():
    p = load_comparison('cars', OURS)
    settings = {s.name: s for s in p.chosen(1280, 'cars')}
    assert list(settings) == list(p.settings) and {s.study for s in settings.values()} == {'cars'}
    assert settings['pretrained, all features'].train.dim == 1280
    assert settings['pretrained, components'].train == p.train
    assert settings['plm'].constants == p.method['plm'] and settings['stml, plain'].constants.view == 'plain'
    own, control = (s.constants for s in load_comparison('', OURS).chosen(1280) if s.name in ('plm', 'distance alone'))
    own, control = sorted((own, control), key=lambda c: c.similarity, reverse=True)
    assert own.model_copy(update={'similarity': 'distance', 'n_beta': 0.}) == control # nothing else differs
    assert {'pretrained, neighbors', 'distance alone'} <= set(p.controls)


@pytest.mark.parametrize('change, words', [
    (dict(seeds=[]), r'yaml.seeds: .*at least 1'), (dict(views=-1), 'yaml.views: .*greater than or equal to 0, got -1'),
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
    (dict(settings={'a': {'head': 'white'}}, controls=[]), "setting 'a': head: .* or 'neighbors', got 'white'"),
    (dict(settings={'a': {'head': 'random'}}, controls=[]), "setting 'a': head must be components or neighbors"),
    (dict(cars={'plmm': {}}), "unknown method or setting in cars 'plmm'. Did you mean 'plm'"),
    (dict(cars={'plm': {'detla': 1}}), "plm.detla is not a parameter. Did you mean 'delta'")])
def test_mistakes_are_named(tmp_path, change, words):
    with pytest.raises(ValueError, match=words): load_comparison('cars', params(tmp_path/'params.yaml', **change))


def test_a_data_set_has_its_own_constants_and_lists_are_all_tried(tmp_path):
    file = params(tmp_path/'params.yaml', cars={'plm': {'n_alpha': 7}, 'distance alone': {'lr': 1}}, tries={
        'a': [{'n_alpha': [4, 5], 'n_beta': [0, 1], 'k': 4}, {'terms': ['point']}], 'b': [{'method': 'simclr'}],
        'stml, plain': [{'lr': [1, 2]}]})
    cars, grocery = (load_comparison(name, file) for name in ('cars', 'grocery'))
    assert cars.method['plm'] == grocery.method['plm'].model_copy(update={'n_alpha': 7})
    lr = [{s.name: s.constants.lr for s in p.chosen(12) if s.method == 'plm'} for p in (cars, grocery)]
    assert lr[0]['distance alone'] == 1 and lr[0]['plm'] == lr[1]['plm'] == lr[1]['distance alone']
    tried = {s.name: s for s in cars.tried(12, 'cars')}
    grid = [f'a: n_alpha={a} n_beta={b} k=4' for a in (4, 5) for b in (0, 1)]
    assert list(tried) == [*grid, "a: terms=['point']", 'b: method=simclr', 'stml, plain: lr=1', 'stml, plain: lr=2']
    assert tried['stml, plain: lr=2'].constants.view == 'plain' # what has the name of a setting changes that setting
    assert tried['a: n_alpha=5 n_beta=0 k=4'].constants == cars.method['plm'].model_copy(
        update=dict(n_alpha=5, n_beta=0, k=4))
    assert tried["a: terms=['point']"].constants.terms == ['point'] and tried['b: method=simclr'].method == 'simclr'


def test_what_is_tried_is_as_many_settings_for_each_and_checked(tmp_path):
    for file in (OURS, FULL): # from each start
        tried = [s.name.split(': ')[0] for s in load_comparison('', file).tried(1280)]
        counts = {(name.endswith('from neighbors'), tried.count(name)) for name in tried}
        assert len(set(tried)) >= 4 and len({start for start, _ in counts}) == len(counts)
    wrong = load_comparison('', params(tmp_path/'params.yaml', tries={'a': [{'k': [4, 3]}]}))
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
    p = load_comparison('cars', params(tmp_path/'params.yaml'))
    settings = [s for s in p.chosen(12, 'toy') if s.name in (*p.controls, 'stml, plain')]
    rows = run_settings(settings, p.train, p.seeds, 1, 'cpu', data, tmp_path/'scratch', 'toy')
    assert len(rows) == len(settings)*2*10
    files = {f: f.stat().st_mtime_ns for f in (tmp_path/'scratch/ablation').iterdir()}
    assert run_settings(settings, p.train, p.seeds, 1, 'cpu', data, tmp_path/'scratch', 'toy') == rows
    assert len(files) == len(settings)*2 and files == {f: f.stat().st_mtime_ns for f in files}
    for s in settings[-2:]:
        alone = run_setting(s.method, s.constants, s.train, 1, data, scratch=tmp_path/'alone')
        assert alone == {r['metric']: r['value'] for r in rows if (r['setting'], r['seed']) == (s.name, 1)}
    value = {(r['setting'], r['seed'], r['metric']): r['value'] for r in rows}
    start = 'pretrained, neighbors' # it has no seed
    assert value[start, 0, 'map_at_r'] == value[start, 1, 'map_at_r']
    assert value['plm', 0, 'map_at_r'] != value['plm', 1, 'map_at_r'] != value['distance alone', 1, 'map_at_r']


@pytest.mark.parametrize('what', ['features/train.npy', 'features/val.npy', 'data/test_labels.npy'])
def test_other_features_or_labels_are_other_runs(data, tmp_path, what, monkeypatch):
    def here(function, jobs, *_):
        for file, (_, arguments) in jobs.items():
            if not file.exists(): function(file, *arguments)
    monkeypatch.setattr(ablation, 'run_jobs', here) # no process has to start
    own = dict(settings={'pretrained': {'method': 'pretrained'}}, controls=[])
    p = load_comparison('cars', params(tmp_path/'params.yaml', **own))
    def run(): return run_settings(p.chosen(12), p.train, [0], 1, 'cpu', data, tmp_path/'scratch')
    rows = run()
    file = Path(data.folder)/what
    np.save(file, np.load(file)[::-1].copy())
    assert len(run()) == len(rows) and len(list((tmp_path/'scratch/ablation').iterdir())) == 2


def test_all_weights_learn_from_photos(tmp_path):
    "The other way: pixels instead of features, from published weights (here: none), as in a loop of its own."
    g = torch.Generator().manual_seed(0)
    for split, n in dict(train=24, val=12, test=12).items():
        (tmp_path/'data').mkdir(exist_ok=True)
        images = torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8)
        np.save(tmp_path/f'data/{split}_images.npy', images)
        if split != 'train': np.save(tmp_path/f'data/{split}_labels.npy', np.arange(n) % 3)
    p = load_comparison('cars', params(tmp_path/'params.yaml', frozen=False, views=0))
    data = PhotoData(str(tmp_path))
    for head in ('components', 'neighbors'):
        shared = p.train.model_copy(update={'head': head})
        start, again = data.start(shared, 1), principal_head(new_encoder(shared, (1,)), data.images('train'), kind=head)
        assert all(torch.equal(a, b) for a, b in zip(start.state_dict().values(), again.state_dict().values()))
    found = run_setting('plm', p.method['plm'], p.train, 1, data, scratch=tmp_path/'scratch')
    assert len(found) == 10 and all(0 <= value <= 1 for value in found.values())


def test_the_estimate_grows_with_images_and_epochs(tmp_path):
    settings = {s.name: s for s in load_comparison('cars', params(tmp_path/'params.yaml')).chosen(12)}
    assert run_seconds(settings['pretrained, neighbors'], (3, 12), 1000) == 0
    threads = torch.get_num_threads()
    for shape in ((3, 12), (3, 32, 32)): # stored features, pixels
        assert 0 < run_seconds(settings['plm'], shape, 100) < run_seconds(settings['plm'], shape, 10_000)
    assert torch.get_num_threads() == threads


# ---- what it means

def made_up(settings=('a', 'b', 'c'), seeds=4):
    g = generator_at('made up')
    return [dict(study='toy', setting=s, seed=seed, metric=m, value=torch.rand((), generator=g).item())
            for s in settings for seed in range(seeds)
            for m in ('recall_at_1', 'map_at_r', 'val_recall_at_1', 'val_map_at_r')]


def test_rows_say_their_split():
    rows = comparison_rows(made_up())
    assert list(rows[0]) == ['dataset', 'setting', 'seed', 'split', 'metric', 'value']
    assert [(r['split'], r['metric']) for r in rows[:4]] == [
        ('test', 'recall_at_1'), ('test', 'map_at_r'), ('val', 'recall_at_1'), ('val', 'map_at_r')]
    assert [r['value'] for r in rows] == [r['value'] for r in made_up()] and {r['dataset'] for r in rows} == {'toy'}


@pytest.mark.parametrize('split, prefix', [('val', 'val_'), ('test', '')])
def test_tables_by_the_loop(split, prefix):
    rows = [{k: str(v) for k, v in r.items()} for r in comparison_rows(made_up())] # as csv gives them
    def values(setting, metric):
        return [r['value'] for r in made_up() if (r['setting'], r['metric']) == (setting, prefix + metric)]
    header, lines = comparison_table(rows, split)
    assert header == [f'{split}, %', 'R@1', 'MAP@R'] and [line[0] for line in lines] == ['a', 'b', 'c']
    for name, *cells in lines:
        for metric, cell in zip(('recall_at_1', 'map_at_r'), cells, strict=True):
            assert cell == f'{100*mean(values(name, metric)):.1f} ± {100*stdev(values(name, metric)):.1f}'
    header, lines = comparison_gains(rows, ['b', 'c'], split)
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
    root, run = copy_repository(top, 'pipelines/comparison/dvc.yaml')
    settings = {'pretrained, all features': {'method': 'pretrained', 'dim': None}, 'plm': {}}
    params(root/'pipelines/comparison/frozen.yaml', settings=settings, train=dict(batch_size=10),
           controls=['pretrained, all features'])
    for kind in range(10):
        (top/f'my cars/kind {kind}').mkdir(parents=True)
        for i in range(6): picture(kind, i).save(top/f"my cars/kind {kind}/it's {i}.png")
    return root, top/'my cars', run


def stages(p): return re.findall(r"^Running stage 'pipelines/comparison/dvc.yaml:(.*)'", p.out, re.M)


def test_one_command_compares_the_methods(project):
    root, folder, run = project
    p = run('make', '-o', 'env', 'cars', f'FOLDER={folder}') # in the environment of the tests
    assert p.returncode == 0, p.out[-2000:] + p.err[-3000:]
    assert stages(p) == ['features@frozen-cars', 'compare@frozen-cars']
    assert 'train 18 of 3 classes, val 12 of 2 classes, test 30 of 5 classes' in p.out
    shapes = {f.stem: np.load(f).shape for f in (root/'runs/frozen/cars/features').glob('*.npy')}
    assert shapes == {'train': (18, 3, 512), 'val': (12, 1, 512), 'test': (30, 1, 512)}
    rows = list(csv.DictReader(open(root/'results/frozen/cars.csv')))
    assert list(rows[0]) == ['dataset', 'setting', 'seed', 'split', 'metric', 'value'] and len(rows) == 2*2*2*5
    assert (root/'results/frozen/cars.txt').read_text() in p.out and 'plm' in p.out
    lock = (root/'pipelines/comparison/dvc.lock').read_text()
    assert 'my cars' not in lock and str(folder.parent) not in lock # git learns nothing of the machine
    assert not list((root/'scratch').rglob('*.part')) and not list((root/'scratch').rglob('*.pt'))

    def would_run(): return stages(run('dvc', 'repro', '--dry', 'pipelines/comparison/dvc.yaml:compare@frozen-cars'))
    assert would_run() == [] # nothing has changed
    losses = root/'plm/losses.py'
    losses.write_text(losses.read_text() + '# another line\n')
    assert would_run() == ['compare@frozen-cars'] # what features are does not depend on how one trains on them
    picture(3, 77).save(folder/'kind 3/new.png')
    begin_comparison('cars', '', root/'pipelines/comparison/frozen.yaml', root/'runs/frozen') # the last folder
    assert 'features@frozen-cars' in would_run()


def test_training_depends_on_no_train_label():
    deps = yaml.safe_load((ROOT/'pipelines/comparison/dvc.yaml').read_text())['stages']['compare']['deps']
    here = 'runs/${item.way}/${item.dataset}'
    assert [d for d in deps if d.startswith('runs/')] == [
        f'{here}/features', *(f'{here}/data/{name}.npy' for name in (
            'train_images', 'val_images', 'val_labels', 'test_images', 'test_labels'))]


def test_constants_that_decide_are_watched():
    "Each entry of the file is a parameter of a stage, but for those that decide no figure."
    text = yaml.safe_load((ROOT/'pipelines/comparison/dvc.yaml').read_text())['stages']
    watched = {name for stage in text.values() for of in stage['params'] for names in of.values() for name in names}
    assert '${item.dataset}' in watched # its own section
    watched |= {'cars', 'grocery'}
    entries = {name.split('.')[0] for name in watched} - {'${item'}
    assert entries == set(yaml.safe_load(OURS.read_text())) - {'device', 'workers'}
    assert set(METHODS) - {'distance'} <= watched # there it is plm with another similarity


@pytest.mark.parametrize('name, folder, words', [
    ('cars', 'nowhere', 'make cars: the folder .*nowhere does not exist'),
    ('bikes', '', 'make bikes: name the photos: make bikes FOLDER=/my/bikes')])
def test_a_mistake_is_one_line_and_leaves_the_choice(tmp_path, name, folder, words):
    (tmp_path/'runs/cars').mkdir(parents=True)
    (tmp_path/'runs/cars/listing.json').write_text('{"folder": "before"}')
    with pytest.raises(SystemExit, match=words):
        begin_comparison(name, folder and str(tmp_path/folder), params(tmp_path/'params.yaml'), tmp_path/'runs')
    assert json.loads((tmp_path/'runs/cars/listing.json').read_text())['folder'] == 'before'


def test_a_set_that_is_known_needs_no_folder(tmp_path, monkeypatch, capsys):
    "As `make grocery` asks for it: by its name, with the constants' val_every."
    from plm import comparison
    from plm.datasets import photo_splits
    for kind in range(10):
        (tmp_path/f'a/{kind}').mkdir(parents=True)
        for i in range(8): picture(kind, i).save(tmp_path/f'a/{kind}/{i}.png')
    asked = []
    def splits(*arguments):
        asked.append(arguments)
        return photo_splits('folder', 2, tmp_path/'a')
    monkeypatch.setattr(comparison, 'PHOTOS', ('grocery',)), monkeypatch.setattr(comparison, 'photo_splits', splits)
    begin_comparison('grocery', '', params(tmp_path/'params.yaml'), tmp_path/'runs')
    assert asked == [('grocery', 2, None)] and '80 photos: train 24 of 3 classes' in capsys.readouterr().out
    assert json.loads((tmp_path/'runs/grocery/listing.json').read_text())['folder'] is None


@pytest.mark.parametrize('change, words', [
    (dict(cars={'plm': None}), 'cars: plm must be a mapping of names, got None'),
    (dict(cars=['plm']), r"cars: cars must be a mapping of names, got \['plm'\]"),
    (dict(plm=None), 'plm must be a mapping of names, got None'),
    (dict(views=1), 'views must be 2 or more if frozen, got 1'),
    (dict(settings=['a']), r"settings must be a mapping of names, got \['a'\]"),
    (dict(seeds=[0, 0]), 'seeds must name each once'),
    (dict(train=dict(head='random')), 'head must be components or neighbors')])
def test_what_is_no_mapping_and_what_stands_twice_is_named(tmp_path, change, words):
    file = tmp_path/'params.yaml'
    if 'plm' in change: params(file), file.write_text(file.read_text() + 'plm: null\n')
    else: params(file, **change)
    with pytest.raises(ValueError, match=words): load_comparison('cars', file)


def test_a_set_that_is_known_takes_no_folder_and_few_images_are_named_at_once(tmp_path):
    with pytest.raises(SystemExit, match='make grocery: grocery is a set of its own. Leave FOLDER out'):
        begin_comparison('grocery', str(tmp_path), OURS, tmp_path/'runs')
    for kind in range(8):
        (tmp_path/f'a/{kind}').mkdir(parents=True)
        for i in range(3): picture(kind, i).save(tmp_path/f'a/{kind}/{i}.png')
    with pytest.raises(SystemExit, match='there are 6 train images, fewer than train.batch_size = 20'):
        begin_comparison('cars', str(tmp_path/'a'), params(tmp_path/'params.yaml'), tmp_path/'runs')
    assert not (tmp_path/'runs').exists()
