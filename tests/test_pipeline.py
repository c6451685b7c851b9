"""The whole DVC pipeline at toy size, in a copy of the repository: what it makes and reruns, and what a user sees.

The copy needs no network, no archives and no environment but the one that runs the tests. A test that changes something
works on its own copy of the finished toy."""
import csv, fcntl, json, os, pty, re, shutil, struct, subprocess, sys, termios, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, psutil, pytest, yaml
from repository import EPOCHS, METHODS, ROOT, SEEDS, kill_tree, make_toy, outputs

METRICS = ('recall_at_1', 'recall_at_2', 'recall_at_4', 'recall_at_8', 'map_at_r', 'nmi')
STAGES = ['download', *(f'pretrain@{s}' for s in SEEDS), *(f'train@{m}-{s}' for m in METHODS for s in SEEDS),
          'evaluate', 'similarity', 'map', 'toy', 'report']


@pytest.fixture(scope='session')
def toy(tmp_path_factory):
    "The finished pipeline, committed to git; `toy.repro` is what the command of `make repro` wrote to its two streams."
    toy = make_toy(tmp_path_factory.mktemp('pipeline')/'toy', tmp_path_factory.mktemp('home'))
    toy.repro = toy.ok('python', 'nbs/pipeline/repro.py')
    toy.ok('git', 'add', '-A')
    toy.commit()
    return toy


# ---- what it makes

def test_every_stage_ran_once(toy):
    assert sorted(re.findall(r'^\r?(\S+): ran, \d+ s$', toy.repro.out, re.M)) == sorted(STAGES)
    assert not list(toy.scratch.iterdir()) and not toy.half_written()


def test_results(toy):
    rows = toy.table('results/retrieval.csv')
    assert list(rows[0]) == ['dataset', 'method', 'seed', 'metric', 'value']
    assert {r['dataset'] for r in rows} == {'glyphs'}
    value = {(r['method'], int(r['seed']), r['metric']): float(r['value']) for r in rows}
    assert len(value) == len(rows) and set(value) == {(m, s, k) for m in METHODS for s in SEEDS for k in METRICS}
    assert all(0 <= v <= 1 for v in value.values())
    for m in METHODS:
        for s in SEEDS:
            recalls = [value[m, s, f'recall_at_{k}'] for k in (1, 2, 4, 8)]
            assert recalls == sorted(recalls)
        shown = json.loads(toy.read(f'results/metrics/{m}.json'))['glyphs'] # the means over seeds, as DVC sees them
        means = {k: np.mean([value[m, s, k] for s in SEEDS]) for k in ('recall_at_1', 'map_at_r')}
        assert shown == pytest.approx(means)
    assert {f.stem for f in (toy.root/'results/metrics').iterdir()} == set(METHODS)
    for name, points in (('val', EPOCHS + 1), ('test', 4)):
        curve = toy.table(f'results/{name}_recall.csv')
        assert list(curve[0])[1:] == list(METHODS) and len(curve) == points
        assert all(0 <= float(r[m]) <= 1 for r in curve for m in METHODS)


def test_report_needs_nothing_around_it(toy):
    page, table = toy.read('results/report.html'), toy.read('results/table.txt')
    images = re.findall(r'\ssrc="([^"]*)"', page)
    assert len(images) >= 2 + len(METHODS) and all(i.startswith('data:image/') for i in images)
    assert re.findall(r'<link|<script|<iframe|@import|url\(', page) == []
    answer = re.findall(r'<p class="answer">(.*?)</p>', page, re.S)
    assert len(answer) == 3 and 'PLM − STML' in answer[1] and 'by distance alone' in answer[2]
    for m in METHODS: assert re.search(rf'^{m} ', table, re.M) and re.search(rf'<th[^>]*>{m}</th>', page)
    for number in re.findall(r'\d+\.\d', table): assert number in page


def test_executed_notebooks(toy):
    expected = {f"{s.replace('@', '-')}.ipynb" for s in STAGES}
    files = {f.name: f for f in (toy.root/'runs/notebooks').glob('*.ipynb')}
    assert set(files) == expected
    for file in files.values():
        _, errors, cells = outputs(file)
        assert errors == [] and all(c['execution_count'] for c in cells if ''.join(c['source']).strip())
    for m in METHODS:
        for s in SEEDS:
            text, _, cells = outputs(files[f'train-{m}-{s}.ipynb'])
            injected, = (''.join(c['source']) for c in cells if 'injected-parameters' in c['metadata'].get('tags', []))
            assert f'method = "{m}"' in injected and f'seed = {s}' in injected and 'val R@1' in text


def test_metrics_and_plots(toy, tmp_path):
    shown = toy.ok('dvc', 'metrics', 'show', '--md').out
    head, _, *lines = [[c.strip() for c in line.split('|')[1:-1]] for line in shown.split('\n') if line]
    assert head == ['Path', 'glyphs.map_at_r', 'glyphs.recall_at_1']
    assert [line[0] for line in lines] == [f'results/metrics/{m}.json' for m in sorted(METHODS)] # a line for each
    plots = toy.ok('dvc', 'plots', 'show', '-o', tmp_path/'plots')
    assert plots.out.strip().endswith('index.html') and not plots.err
    assert 'R@1 on val while training' in (tmp_path/'plots/index.html').read_text()
    own = toy.copy(tmp_path/'toy')
    assert own.ok('dvc', 'metrics', 'diff').out == ''
    file = own.root/'results/metrics/plm.json'
    file.write_text(re.sub(r'0\.\d+', '0.123', file.read_text(), count=1))
    assert '0.123' in own.ok('dvc', 'metrics', 'diff').out


# ---- what it reruns

def test_nothing_changed_nothing_runs(toy):
    assert 'Running stage' not in toy.ok('dvc', 'repro').out
    assert toy.ok('git', 'status', '--short').out == ''


def test_a_constant_reruns_what_depends_on_it(toy, tmp_path):
    own = toy.copy(tmp_path/'toy')
    own.edit_params('omniglot', 'stml', 'gamma', value=0.9)
    assert own.would_run() == []
    own.edit_params('plm', 'delta', value=1.5)
    plm = [f'train@plm-{s}' for s in SEEDS]
    # a dry run changes no file, so stages that depend on files only are not among them; the graph knows these
    assert sorted(own.would_run()) == ['report', 'similarity', *plm]
    downstream = own.would_run('--force', '--downstream', *plm)
    assert sorted(downstream) == sorted([*plm, 'evaluate', 'similarity', 'map', 'report'])


# ---- a method of one's own

def test_a_method_is_a_class_and_its_constants(toy, tmp_path):
    "The cell of notebook 13 written into plm.methods, and two entries of params.yaml: DVC trains this method alone."
    own, run = toy.copy(tmp_path/'toy'), f'lean-{SEEDS[0]}'
    _, _, cells = outputs(ROOT/'nbs/13_methods.ipynb')
    lean, = (''.join(c['source']) for c in cells if "@register('lean', LeanConstants)" in ''.join(c['source']))
    file = own.root/'plm/methods.py'
    file.write_text(f'{file.read_text()}\n{lean}\n') # as `#| export` and `make nbs` do
    own.edit_params('lean', value=dict(lr=0.001, k=5, n_alpha=6))
    own.edit_params('methods', value=[*METHODS, 'lean'])
    own.commit()
    before = own.bytes_of('runs/data', 'runs/pretrain', 'runs/train')
    said = own.ok('dvc', 'exp', 'run', '-S', 'lean.n_alpha=8', f'train@{run}').out
    assert re.findall(r"Running stage '(.*)'", said) == [f'train@{run}']
    log = own.table(f'runs/train/{run}/log.csv')
    assert len(log) == EPOCHS + 1 and float(log[-1]['point']) < float(log[1]['point'])
    text, errors, _ = outputs(own.root/f'runs/notebooks/train-{run}.ipynb')
    assert errors == [] and re.search(r'lr=0\.001,? k=5,? n_alpha=8\.0', text)
    after = own.bytes_of('runs/data', 'runs/pretrain', 'runs/train')
    assert {name: after[name] for name in before} == before and not own.half_written()


# ---- the second pipeline

def test_ablations_run_when_asked_and_find_their_place(toy, tmp_path):
    own, pipeline = toy.copy(tmp_path/'toy'), 'pipelines/ablations/dvc.yaml'
    assert not (own.root/'runs/ablation/ablation.csv').exists()
    assert 'None have been run on glyphs' in own.read('results/report.html')
    assert own.would_run(pipeline) == [f'{pipeline}:ablate'] # data and pre-training are there
    own.ok('dvc', 'repro', pipeline)
    rows = list(csv.DictReader(open(own.root/'runs/ablation/ablation.csv')))
    assert list(rows[0]) == ['dataset', 'study', 'setting', 'seed', 'metric', 'value'] and len(rows) == 4*len(SEEDS)*10
    assert {r['dataset'] for r in rows} == {'glyphs'}
    settings = {('m', '2'), ('m', '3'), ('parts', 'full'), ('parts', 'no subset selection')}
    assert {(r['study'], r['setting']) for r in rows} == settings
    value = {(r['study'], r['setting'], r['metric']): r['value'] for r in rows}
    for k in ('recall_at_1', 'map_at_r'): assert value['m', '3', k] == value['parts', 'full', k]
    assert len(list((own.scratch/'ablation').iterdir())) == 3*len(SEEDS) # these two are one run
    own.ok('python', '-c', 'from plm.ablation import publish; publish()') # as `make ablations` does
    kept = own.table('results/ablation.csv')
    assert kept[1:] == rows and kept[0]['dataset'] == 'omniglot' # of another data set: left alone
    assert own.would_run(pipeline) == [] and own.would_run() == ['report']
    own.ok(*own.notebook('report'))
    page = own.read('results/report.html')
    assert 'Study: m' in page and 'Study: parts' in page
    assert 'None have been run' not in page and 'with other constants' not in page


def test_namr_runs_when_asked_and_finds_its_place(toy, tmp_path):
    own = toy.copy(tmp_path/'toy')
    stages = [f'{s}@{d}' for s in ('prepare', 'train') for d in ('glyphs', 'omniglot')]
    stages += ['train-photos', 'evaluate-namr', 'index']
    listed = own.ok('dvc', 'stage', 'list', 'pipelines/namr/dvc.yaml').out.splitlines()
    assert {line.split()[0].removeprefix('pipelines/namr/dvc.yaml:') for line in listed} == set(stages)
    assert own.would_run() == []
    for stage in ('namr_prepare', 'namr_train'): own.ok(*own.notebook(stage, stage, dataset='glyphs'))
    own.ok(*own.notebook('namr_evaluate', 'namr_evaluate'), '-y', 'datasets: [glyphs]')
    rows = list(csv.DictReader(open(own.root/'runs/namr/namr.csv')))
    assert list(rows[0]) == ['dataset', 'loss', 'variant', 'seed', 'metric', 'value']
    assert {r['dataset'] for r in rows} == {'glyphs'}
    runs = {(r['loss'], r['variant'], r['seed']) for r in rows}
    variants = [*(('triplet', v) for v in ('plain', 'wide', 'scaled', 'nasa', 'flat', 'namr')),
                *(('plm', v) for v in ('plain', 'flat', 'namr'))]
    assert runs == {(*variant, seed) for variant in variants for seed in '34'}
    value = {(r['loss'], r['variant'], r['seed'], r['metric']): float(r['value']) for r in rows}
    for run in runs: assert (*run, 'recall_at_1') in value and (*run, 'val_map_at_r') in value
    assert all(0 <= v <= 1 for v in value.values())
    learned = np.load(own.root/'runs/namr/glyphs/embeddings.npz')
    assert learned['e'].shape == learned['w'].shape == (280, 32) and learned['wide'].shape == (280, 64)
    assert learned['test'].sum() == 80 and abs(learned['w'] - 1).max() > 1e-4
    own.ok(*own.notebook('namr_index', 'namr_index'), '-y', 'sizes: [3000]')
    index = list(csv.DictReader(open(own.root/'runs/index/index.csv')))
    def found(column): return {r[column] for r in index}
    assert found('embedding') == {'sample', 'NAMR', 're-ranked', 'plain wide'} and found('vectors') == {'3000'}
    assert found('index') >= {'Flat', 'IVF', 'HNSW', 'PQ32'}
    for name in ('namr/namr.csv', 'index/index.csv'): # as `make namr` does
        shutil.copy(own.root/'runs'/name, own.root/'results')
    assert own.would_run() == ['report']
    # an ablation of other constants, too, since a report takes ten seconds
    for kind in ('csv', 'json'): shutil.copy(ROOT/f'results/ablation.{kind}', own.root/'results')
    own.ok(*own.notebook('report'))
    assert 'namr.html' in own.read('results/report.html')
    assert 'made with other constants: ' in own.read('results/report.html')
    page = own.read('results/namr.html')
    assert 'NAMR on R@1' in page and 'Recall against time, glyphs' in page and 'namr − flat' in page
    assert 'What the structure of nasa is worth' in page
    assert not own.half_written()


def test_tables_of_the_other_stages(toy):
    rows = toy.table('results/similarity.csv')
    assert list(rows[0]) == ['dataset', 'embedding', 'estimate', 'seed', 'metric', 'value']
    assert {r['embedding'] for r in rows} == {'before', 'after'} # training
    assert {r['estimate'] for r in rows} >= {'kmeans', 'hierarchical', 'random_walk', 'contextual', 'cosine', 'plm',
                                             'plm_whole_batch', 'plm_nearest_k'}
    keys = [tuple(r.values())[:-1] for r in rows]
    assert len(set(keys)) == len(keys)
    def values(metric): return [float(r['value']) for r in rows if r['metric'] == metric]
    assert all(0 <= v <= 1 for v in values('label_purity')) and all(-1 <= v <= 1 for v in values('correlation'))
    rows = toy.table('results/map.csv')
    full = {r['embedding']: float(r['value']) for r in rows if r['plane'] == 'full' and r['metric'] == 'recall_at_1'}
    table = toy.table('results/retrieval.csv')
    retrieval = {r['method']: float(r['value']) for r in table if r['metric'] == 'recall_at_1'}
    assert full == {'before training': pytest.approx(retrieval['pretrained'], abs=1e-6),
                    'after plm': pytest.approx(retrieval['plm'], abs=1e-6)}
    assert {r['plane'] for r in rows} == {'full', 't-SNE', 'PCA'}


def test_without_plm_there_is_still_a_report(toy, tmp_path):
    own = toy.copy(tmp_path/'toy')
    own.edit_params('methods', value=['pretrained'])
    for stage in ('evaluate', 'similarity', 'map', 'report'): own.ok(*own.notebook(stage, stage))
    assert {f.name for f in (own.root/'results/metrics').iterdir()} == {'pretrained.json'}
    plots = own.ok('dvc', 'plots', 'show', '-o', tmp_path/'plots') # only what is there is drawn
    assert not plots.err and 'R@1 on val while training' in (tmp_path/'plots/index.html').read_text()
    assert {r['embedding'] for r in own.table('results/similarity.csv')} == {'before'}
    assert 'Pieces and proxies' not in own.read('results/report.html')


# ---- labels, and equal seeds

def test_train_labels_are_no_dependency():
    stages = yaml.safe_load((ROOT/'dvc.yaml').read_text())['stages']
    assert 'runs/data' in stages['download']['outs']
    for name, stage in stages.items():
        for dep in stage['deps']:
            assert 'train_labels' not in dep, f'{name} depends on {dep}'
            assert Path(dep) not in (Path('runs'), Path('runs/data')), f'{name} depends on {dep}'


def test_train_labels_cannot_leak(toy, tmp_path):
    """Two methods run again with the labels shuffled, one and the evaluation with the file deleted. The same bytes come
    out, which also shows that equal seeds give equal runs."""
    own, (labels, images) = toy.copy(tmp_path/'toy'), ('runs/data/train_labels.npy', 'runs/data/train_images.npy')
    right = np.load(own.root/labels)
    assert len(right) == len(np.load(own.root/images)) and len(set(right)) == 12
    before = toy.bytes_of('runs/train', 'results')
    np.save(own.root/labels, np.random.default_rng(0).permutation(right))
    def again(command):
        stage, method, rewritten = command
        old = (own.root/rewritten).stat().st_mtime_ns
        parameters = dict(method=method, seed=SEEDS[0]) if stage == 'train' else {}
        own.ok(*own.notebook(stage, f'own-{method}', **parameters))
        assert (own.root/rewritten).stat().st_mtime_ns > old
    def train(method): return 'train', method, f'runs/train/{method}-{SEEDS[0]}/encoder.pt'
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(again, [train('plm'), train('distance')]))
        (own.root/labels).unlink()
        list(pool.map(again, [train('stml'), ('evaluate', 'all', 'results/retrieval.csv')]))
    after = own.bytes_of('runs/train', 'results')
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_methods_differ(toy):
    "Else the comparisons of bytes above would prove nothing."
    encoders = [(toy.root/f'runs/train/{m}-{s}/encoder.pt').read_bytes() for m in METHODS for s in SEEDS]
    assert len(set(encoders)) == len(encoders)


# ---- a killed run

def in_terminal(toy, *command):
    "What a terminal gets from a command."
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0)) # a new one has no columns
    process = toy.start(*command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    got = b''
    try:
        while piece := os.read(master, 4096): got += piece
    except OSError: pass # how Linux says that the last writer has gone
    os.close(master)
    return process.wait(timeout=60), got.decode()


def test_a_killed_run_goes_on(toy, tmp_path):
    """Killed after an epoch and started again in a terminal, a run resumes, says so, shows its progress, and ends with
    the bytes of the undisturbed run."""
    own, run = toy.copy(tmp_path/'toy'), f'plm-{SEEDS[0]}'
    shutil.rmtree(own.root/'.dvc/cache/runs') # DVC must not remember the result, or it runs nothing
    for out in yaml.safe_load(own.read('dvc.lock'))['stages'][f'train@{run}']['outs']:
        (own.root/'.dvc/cache/files/md5'/out['md5'][:2]/out['md5'][2:]).unlink()
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = own.start('dvc', 'repro', '--force', '--single-item', f'train@{run}', **quiet)
    end = time.time() + 100
    while not (left := list(own.scratch.glob(f'{run}-*.pt'))):
        assert process.poll() is None and time.time() < end, 'no state was saved'
        time.sleep(0.005)
    kill_tree(process)
    assert left[0].exists(), 'the run ended before it could be killed'
    assert not (own.root/f'runs/train/{run}/encoder.pt').exists()
    code, got = in_terminal(own, 'dvc', 'repro')
    assert code == 0, got
    assert re.findall(r"Running stage '(.*)'", got) == [f'train@{run}']
    text, _, _ = outputs(own.root/f'runs/notebooks/train-{run}.ipynb')
    said = re.search(rf'plm, seed {SEEDS[0]}: resuming after epoch (\d)', text)
    assert said and 1 <= int(said[1]) < EPOCHS
    bars = re.findall(rf'plm seed {SEEDS[0]}: +(\d+)%', got)
    assert bars and bars[-1] == '100', got
    assert own.bytes_of('runs/train', 'results') == toy.bytes_of('runs/train', 'results')
    assert not list(own.scratch.iterdir())


# ---- what a user sees

def test_progress_passes_through_a_pipe(toy):
    for bar in [f'{m} seed {s}' for m in (*METHODS[1:], 'pretrain') for s in SEEDS] + ['evaluate']:
        assert re.search(rf'{bar}: +0%', toy.repro.err) and re.search(rf'{bar}: 100%', toy.repro.err), bar


def test_the_terminal_shows_nothing_else(toy):
    "Errors stream: nothing but progress bars."
    lines = [line for line in re.split(r'[\r\n]+', toy.repro.err) if line.strip()]
    assert [line for line in lines if not re.match(r'[\w ]+: +\d+%\|', line)] == []


def damage_start(toy): (toy.root/f'runs/pretrain/{SEEDS[0]}/encoder.pt').write_bytes(b'x'*100)

def no_archives(toy):
    toy.edit_params('dataset', value='omniglot')
    (toy.root/'empty').mkdir()
    toy.env['PLM_MIRROR'] = str(toy.root/'empty')

def misspell_constant(toy):
    params = yaml.safe_load((toy.root/'params.yaml').read_text())
    params['plm']['n_alhpa'] = params['plm'].pop('n_alpha')
    toy.write_params(params)

TRAIN = dict(stage='train', seed=SEEDS[0])
MISTAKES = { # what is wrong -> how it comes about, the command, what the last lines must say
    'data set': (lambda toy: toy.edit_params('dataset', value='glphys'), ['dvc', 'repro'],
                 ["unknown data set 'glphys'", "Did you mean 'glyphs'?"]),
    'method in params.yaml': (lambda toy: toy.edit_params('methods', value=['smtl']),
                              ['dvc', 'repro', '--single-item', f'train@smtl-{SEEDS[0]}'], ['smtl', 'params.yaml']),
    'method of the run': (lambda toy: None, dict(TRAIN, method='pml'), ["unknown method 'pml'", "Did you mean 'plm'?"]),
    'constant': (misspell_constant, ['dvc', 'repro'], ['plm.n_alhpa is not a parameter', "Did you mean 'n_alpha'?"]),
    'no archives': (no_archives, ['dvc', 'repro', 'download'],
                    ['images_background_small1.zip does not exist', 'PLM_MIRROR', 'dvc pull']),
    'damaged start': (damage_start, dict(TRAIN, method='plm'),
                      [f'runs/pretrain/{SEEDS[0]}/encoder.pt cannot be read', 'Delete it and run `dvc repro` again']),
}

@pytest.fixture(scope='session')
def mistaken(toy, tmp_path_factory):
    "Every mistake in a copy of its own, two at a time."
    def make(name):
        spoil, command, _ = MISTAKES[name]
        own = toy.copy(tmp_path_factory.mktemp('mistake')/'toy')
        spoil(own)
        return own, own.run(*(own.notebook(**command) if isinstance(command, dict) else command))
    with ThreadPoolExecutor(2) as pool: return dict(zip(MISTAKES, pool.map(make, MISTAKES)))

@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_named_with_its_cure(mistaken, name):
    own, process = mistaken[name]
    last = '\n'.join([line for line in process.err.splitlines() if line.strip()][-3:])
    assert process.returncode != 0
    for text in MISTAKES[name][2]: assert text in last, last
    assert not own.half_written()


def test_dvc_heals_a_damaged_start(mistaken, toy):
    own, _ = mistaken['damaged start']
    made = 'runs/pretrain', 'runs/train', 'results'
    assert 'Running stage' not in own.ok('dvc', 'repro').out # from its cache
    assert own.bytes_of(*made) == toy.bytes_of(*made)
