"""A copy of the repository, in which commands are run as a user runs them."""
import os, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = 'DVC_', 'JUPYTER', 'IPYTHON', 'XDG_', 'GIT_', 'PLM_', 'JPY_', 'MPL', 'PYTEST' # variables of who runs the tests


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
    env = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    env |= dict(HOME=str(home), DVC_SITE_CACHE_DIR=str(home/'dvc'), PYTHONPATH=str(root), OMP_NUM_THREADS='1', CI='1',
                PATH=os.pathsep.join([str(Path(sys.executable).parent), env['PATH']]))
    def run(*command): return subprocess.run(command, cwd=root, env=env, text=True, capture_output=True, timeout=300)
    run('git', 'init', '-q')
    return root, run
