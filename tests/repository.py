"""Copies of the repository, in which commands are run as a user runs them."""
import csv, json, os, re, shutil, subprocess, sys
from pathlib import Path
import psutil, yaml

ROOT = Path(__file__).parents[1]
OURS = 'DVC_', 'JUPYTER', 'IPYTHON', 'XDG_', 'GIT_', 'PLM_', 'JPY_', 'MPL', 'PYTEST' # variables of who runs the tests
# of the toy: one seed, because a stage takes 5 seconds to start; not 0, which notebooks take if nothing is injected
METHODS, SEEDS = ('pretrained', 'stml', 'distance', 'plm'), (1,)
EPOCHS = 4 # so that a run can be killed well before its end


class Toy:
    "A copy of the repository, and the commands a user would type in it."
    def __init__(self, root, home):
        self.root, self.scratch = root, root/'scratch'
        # a home of its own: nothing of the user's is read or changed; and no sign of pytest, which kernels would notice
        mine = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
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


def kill_tree(process):
    """DVC, papermill and the kernel, which has a process group of its own. DVC first: if it sees its stage fail, it
    writes .dvc/tmp/rwlock, and if it is killed then, half of that file stays."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for p in tree: p.kill()
    psutil.wait_procs(tree, timeout=20)


def copy_pipeline(root):
    "What the stages of dvc.yaml begin with. The toy on a plane is cheaper."
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '[0-9]*.ipynb')
    for folder in ('nbs', 'plm'): shutil.copytree(ROOT/folder, root/folder, ignore=ignore)
    stages, command = yaml.safe_load((ROOT/'dvc.yaml').read_text())['stages'].values(), 'runs/notebooks/toy.ipynb'
    made = {str(out if isinstance(out, str) else next(iter(out)))
            for stage in stages for kind in ('outs', 'metrics', 'plots') for out in stage.get(kind, [])}
    given = {dep for stage in stages for dep in stage['deps'] if dep.startswith(('results/', 'docs/'))} - made
    for file in ('dvc.yaml', 'params.yaml', 'data.dvc', '.dvcignore', '.gitignore', '.dvc/config', '.dvc/.gitignore',
                 *given):
        (root/file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/file, root/file)
    stages = (ROOT/'dvc.yaml').read_text().replace(f'{command}\n', f'{command} -p steps 4 -p n_seeds 1\n', 1)
    assert '-p n_seeds 1' in stages
    (root/'dvc.yaml').write_text(stages)


def make_toy(root, home):
    "The whole pipeline at toy size, in a repository of its own; nothing has run."
    copy_pipeline(root)
    for name in ('ablations', 'namr'):
        (root/'pipelines'/name).mkdir(parents=True)
        shutil.copy(ROOT/'pipelines'/name/'dvc.yaml', root/'pipelines'/name)
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
    return toy


def copy_repository(
    top: Path, # gets the copy, and a home beside it
    pipeline: str, # its dvc.yaml, as pipelines/comparison/dvc.yaml
): # -> the copy, and run(*command), in it
    root, home = top/'plm repository', top/'home'
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('plm', 'nbs/pipeline'): shutil.copytree(ROOT/name, root/name, ignore=ignore)
    for name in (pipeline, 'Makefile', '.dvcignore', '.gitignore', '.dvc/config', '.dvc/.gitignore', 'params.yaml'):
        (root/name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT/name, root/name)
    home.mkdir()
    toy = Toy(root, home)
    toy.run('git', 'init', '-q')
    return root, toy.run
