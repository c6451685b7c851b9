"""What a stage costs before it computes: a notebook with the imports of the training stage, started by
`nbs/pipeline/start.py` as the stages are, and by papermill's own command; and the bound, the same imports in a plain
Python.

Wall-clock seconds, since kernels are processes of their own. A part of `benchmarks/bench.py`, which runs it.
"""
import json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from timing import against

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ['--cwd', '.', '--no-progress-bar', '--log-level', 'ERROR']


def imports():
    "The cell of the training stage that imports."
    cells = json.loads((ROOT/'nbs/pipeline/train.ipynb').read_text())['cells']
    return next(code for code in (''.join(c['source']) for c in cells) if 'from plm' in code)


def rows(device):
    "The rows of this part."
    with tempfile.TemporaryDirectory() as folder:
        stage, copy = Path(folder)/'stage.ipynb', Path(folder)/'copy.ipynb'
        kernel = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
        nbformat.write(new_notebook(cells=[new_code_cell(imports())], metadata={'kernelspec': kernel}), stage)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
        ways = {'ours': [sys.executable, ROOT/'nbs/pipeline/start.py', stage, copy],
                "papermill's own command": ['papermill', stage, copy, *OPTIONS],
                'the imports alone': [sys.executable, '-c', imports()]}
        took = {name: [] for name in ways}
        for _ in range(8):
            for name, command in ways.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT), 'PATH': path}, check=True,
                               capture_output=True)
                took[name].append(time.perf_counter() - start)
    took = {name: statistics.median(times[1:]) for name, times in took.items()} # the first turn warms up
    for opponent in list(ways)[1:]: yield against('start of a stage', 'the imports of training', took, opponent)
