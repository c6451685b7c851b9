"""The whole DVC pipeline at toy size, in a copy of the repository: what it makes and reruns, and what a user sees.

The copy needs no network, no archives and no environment but the one that runs the tests. A test that changes something
works on its own copy of the finished toy."""
import csv, fcntl, json, os, pty, re, shutil, struct, subprocess, sys, termios, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, psutil, pytest, yaml

ROOT = Path(__file__).parent.parent
METHODS = ('pretrained', 'stml', 'distance', 'plm')
SEEDS = (1,) # one, because a stage takes 5 seconds to start; not 0, which the notebooks take when nothing is injected
METRICS = ('recall_at_1', 'recall_at_2', 'recall_at_4', 'recall_at_8', 'map_at_r', 'nmi')
STAGES = ['download', *(f'pretrain@{s}' for s in SEEDS), *(f'train@{m}-{s}' for m in METHODS for s in SEEDS),
          'evaluate', 'similarity', 'map', 'toy', 'report']
NOT_OURS = 'DVC_', 'JUPYTER', 'IPYTHON', 'XDG_', 'GIT_', 'PLM_', 'JPY_', 'MPL', 'PYTEST' # environment of the tests only
EPOCHS = 4 # so that a run can be killed well before its end


class Toy:
    "A copy of the repository, and the commands a user would type in it."
    def __init__(self, root, home):
        self.root, self.scratch = root, root/'scratch'
        # a home of its own: nothing of the user's is read or changed; and no sign of pytest, which kernels would notice
        mine = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
        self.env = mine | dict(HOME=str(home), DVC_SITE_CACHE_DIR=str(home/'dvc'), DVC_NO_ANALYTICS='1', CI='1',
                               PYTHONPATH=str(root), OMP_NUM_THREADS='1',
                               PATH=os.pathsep.join([str(Path(sys.executable).parent), mine['PATH']]))

    def start(self, *command, **kwargs):
        kwargs = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | kwargs
        return subprocess.Popen([str(c) for c in command], cwd=self.root, env=self.env, text=True, **kwargs)

    def run(self, *command):
        p = self.start(*command)
        p.out, p.err = p.communicate(timeout=300)
        return p

    def ok(self, *command):
        p = self.run(*command)
        assert p.returncode == 0, f"{' '.join(map(str, command))}\n{p.out[-2000:]}\n{p.err[-4000:]}"
        return p

    def notebook(self, stage, out='own', **parameters):
        "The command that runs a stage's notebook without DVC."
        return ['python', 'nbs/pipeline/start.py', f'nbs/pipeline/{stage}.ipynb', f'runs/notebooks/{out}.ipynb',
                *(word for name, value in parameters.items() for word in ('-p', name, value))]

    def edit_params(self, *path, value):
        params = yaml.safe_load((self.root/'params.yaml').read_text())
        *sections, last = path
        section = params
        for name in sections: section = section[name]
        section[last] = value
        self.write_params(params)

    def write_params(self, params): (self.root/'params.yaml').write_text(yaml.safe_dump(params, sort_keys=False))

    def read(self, file): return (self.root/file).read_text()

    def table(self, file): return list(csv.DictReader(open(self.root/file)))

    def would_run(self, *options):
        return re.findall(r"^Running stage '(.*)'", self.ok('dvc', 'repro', '--dry', *options).out, re.M)

    def commit(self): self.ok('git', '-c', 'user.name=toy', '-c', 'user.email=toy@toy', 'commit', '-qam', 'toy')

    def bytes_of(self, *folders):
        files = [f for folder in folders for f in sorted((self.root/folder).rglob('*')) if f.is_file()]
        return {str(f.relative_to(self.root)): f.read_bytes() for f in files}

    def half_written(self):
        return [f for folder in ('runs', 'results', 'data') for f in (self.root/folder).rglob('*.part')]

    def copy(self, to): return Toy(Path(shutil.copytree(self.root, to, symlinks=True)), Path(self.env['HOME']))


def outputs(notebook):
    "All that the cells of an executed notebook printed, the names of the errors in it, and its code cells."
    cells = [c for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code']
    found = [o for c in cells for o in c['outputs']]
    errors = [o['ename'] for o in found if o['output_type'] == 'error']
    return ''.join(''.join(o.get('text', '')) for o in found), errors, cells


@pytest.fixture(scope='session')
def toy(tmp_path_factory):
    "The finished pipeline, committed to git; `toy.repro` is what the command of `make repro` wrote to its two streams."
    root, home = tmp_path_factory.mktemp('pipeline')/'toy', tmp_path_factory.mktemp('home')
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '[0-9]*.ipynb')
    for folder in ('nbs', 'plm'): shutil.copytree(ROOT/folder, root/folder, ignore=ignore)
    (root/'.dvc').mkdir()
    for folder in ('results/frozen', 'results/full', 'pipelines/ablations', 'pipelines/namr', 'docs/images'):
        (root/folder).mkdir(parents=True)
    for file in ('dvc.yaml', 'data.dvc', '.dvcignore', '.gitignore', '.dvc/config', '.dvc/.gitignore',
                 'pipelines/ablations/dvc.yaml', 'pipelines/namr/dvc.yaml', 'results/frozen/cars.csv',
                 'results/frozen/grocery.csv', 'results/full/cars.csv', 'results/full/grocery.csv',
                 'docs/images/grocery.png'): shutil.copy(ROOT/file, root/file)
    command = 'runs/notebooks/toy.ipynb'
    stages = (root/'dvc.yaml').read_text().replace(f'{command}\n', f'{command} -p steps 4 -p n_seeds 1\n', 1)
    assert '-p n_seeds 1' in stages
    (root/'dvc.yaml').write_text(stages)
    header = 'dataset,study,setting,seed,metric,value\n'
    (root/'results/ablation.csv').write_text(header + 'omniglot,m,2,0,recall_at_1,0.5\n')
    (root/'results/ablation.json').write_text('{"omniglot": {}}\n')
    studies = {'m': [2, 3], 'parts': {'full': {}, 'no subset selection': {'T': None}}}
    ablations = dict(epochs=1, workers=2, studies=studies)
    (root/'pipelines/ablations/params.yaml').write_text(yaml.safe_dump(ablations))
    rows = [f'toy,triplet,{variant},{seed},{metric},0.{seed + 5}\n' for variant in ('plain', 'wide', 'flat', 'namr')
            for seed in (0, 1) for metric in ('recall_at_1', 'map_at_r')]
    (root/'results/namr.csv').write_text('dataset,loss,variant,seed,metric,value\n' + ''.join(rows))
    rows = [f'toy,9,{embedding},Flat,Flat,{metric},1\n' for embedding in ('sample', 'NAMR')
            for metric in ('build_seconds', 'index_bytes', 'bytes_per_vector', 'recall_at_10', 'queries_per_second')]
    (root/'results/index.csv').write_text('dataset,vectors,embedding,index,setting,metric,value\n' + ''.join(rows))
    namr = yaml.safe_load((ROOT/'pipelines/namr/params.yaml').read_text()) | dict(seeds=[3, 4], workers=2)
    namr['train'] |= dict(dim=32, epochs=1, batch_size=20, per_class=5)
    namr['structure'] |= dict(hidden=16)
    namr['unsupervised'] |= dict(epochs=1)
    namr['losses'] = {'triplet': namr['losses']['triplet']}
    (root/'pipelines/namr/params.yaml').write_text(yaml.safe_dump(namr))
    params = yaml.safe_load((ROOT/'params.yaml').read_text())
    params.update(dataset='glyphs', methods=list(METHODS), seeds=list(SEEDS), device='cpu')
    params['glyphs']['sizes'] = dict(n_train=12, n_val=8, n_test=8, n_source=30, per_class=10)
    params['pretrain'] |= dict(epochs=2, batch_size=64)
    params['train'] |= dict(dim=32, epochs=EPOCHS, batch_size=20)
    params['stml'] |= dict(wide=64, k=5)
    params['plm'] |= dict(n_proxies=10, k=5)
    toy = Toy(root, home)
    toy.write_params(params)
    toy.ok('git', 'init', '-q')
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
    own.ok('dvc', 'repro')
    page = own.read('results/report.html')
    assert 'Study: m' in page and 'Study: parts' in page
    assert 'None have been run' not in page and 'with other constants' not in page
    own.edit_params('plm', 'delta', value=1.25)
    own.ok(*own.notebook('report'))
    assert 'made with other constants: plm.delta = ' in own.read('results/report.html')


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
    own.ok('dvc', 'repro')
    assert 'namr.html' in own.read('results/report.html')
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

def kill_tree(process):
    """DVC, papermill and the kernel, which has a process group of its own. DVC first: if it sees its stage fail, it
    writes .dvc/tmp/rwlock, and if it is killed then, half of that file stays."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for p in tree: p.kill()
    psutil.wait_procs(tree, timeout=20)


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
