"""What a stage costs before it computes: a notebook with the imports of the training stage, started by `nbs/pipeline/start.py` as the stages are, by papermill's own command, and the bound, the same imports in a plain Python.

Wall-clock seconds, since kernels are processes of their own. A part of `benchmarks/bench.py`, which runs it.
"""
import json, os, subprocess, sys, tempfile
from pathlib import Path
import statistics, time
from timing import against

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ['--cwd', '.', '--no-progress-bar', '--log-level', 'ERROR']


def imports():
    "The cell of the training stage that imports."
    return next(''.join(c['source']) for c in json.loads((ROOT/'nbs/pipeline/train.ipynb').read_text())['cells'] if 'from plm' in ''.join(c['source']))


def rows(device):
    "The rows of this part."
    with tempfile.TemporaryDirectory() as folder:
        stage, copy = Path(folder)/'stage.ipynb', Path(folder)/'copy.ipynb'
        cell = dict(cell_type='code', source=imports(), metadata={}, outputs=[], execution_count=None, id='imports')
        stage.write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), nbformat=4, nbformat_minor=5)))
        env = os.environ | dict(PYTHONPATH=str(ROOT), PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))
        ways = {'ours': [sys.executable, ROOT/'nbs/pipeline/start.py', stage, copy], "papermill's own command": ['papermill', stage, copy, *OPTIONS], 'the imports alone': [sys.executable, '-c', imports()]}
        took = {name: [] for name in ways}
        for _ in range(8):
            for name, command in ways.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
                took[name].append(time.perf_counter() - start)
    took = {name: statistics.median(times[1:]) for name, times in took.items()}
    for opponent in ("papermill's own command", 'the imports alone'): yield against('start of a stage', 'the imports of training', took, opponent)
