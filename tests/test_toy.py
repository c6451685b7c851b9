"The toy animation: the stage's notebook with few training steps, twice, and the animation that is in the repository."
import csv, json, os, subprocess, sys
from pathlib import Path
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
STEPS = 6


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Two runs at once, each in a folder of its own."
    folders = [tmp_path_factory.mktemp('toy') for _ in range(2)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(('JPY_', 'PYTEST'))} | dict(
        OMP_NUM_THREADS='1', PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))
    def start(folder):
        given = dict(steps=STEPS, n_seeds=1, gif=folder/'toy.gif', folder=folder/'frames')
        words = [str(word) for name, value in given.items() for word in ('-p', name, value)]
        command = ['python', 'nbs/pipeline/start.py', 'nbs/pipeline/toy.ipynb', str(folder/'toy.ipynb'), *words]
        return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    started = [start(folder) for folder in folders]
    for p in started:
        message = p.communicate(timeout=300)[1]
        assert p.returncode == 0, message[-3000:]
    return folders


def opened(path):
    with Image.open(path) as gif:
        assert gif.format == 'GIF' and gif.size == (640, 360) and gif.info['loop'] == 0
        durations = []
        for n in range(gif.n_frames):
            gif.seek(n)
            durations.append(gif.info['duration'])
        return durations


def test_two_runs_give_the_same_bytes(runs):
    first, second = ({str(f.relative_to(run)): f.read_bytes()
                      for f in run.rglob('*') if f.is_file() and f.suffix != '.ipynb'} for run in runs)
    frames = {f'frames/{name}' for name in ('frame-000.png', 'training.csv', 'training.png')}
    assert first == second and {'toy.gif'} | frames <= set(first)
    assert not any(b'tIME' in data or b'tEXt' in data for name, data in first.items() if name.endswith('.png'))


def test_every_frame_is_in_the_animation_and_a_png(runs):
    run = runs[0]
    frames = sorted((run/'frames').glob('frame-*.png'))
    assert [f.name for f in frames] == [f'frame-{n:03d}.png' for n in range(len(frames))]
    with Image.open(run/'toy.gif') as gif:
        assert gif.n_frames == len(frames) > 50
        for n in (0, 7, len(frames)//2, len(frames) - 1):
            gif.seek(n)
            with Image.open(frames[n]) as png: assert gif.convert('RGB').tobytes() == png.convert('RGB').tobytes()


def test_the_table_holds_every_step(runs):
    rows = list(csv.DictReader(open(runs[0]/'frames/training.csv')))
    expected = [(s, n) for s in ('by distance alone', 'PLM') for n in range(STEPS + 1)]
    assert [(r['similarity'], int(r['step'])) for r in rows] == expected
    start, *_, end = [float(r['within_to_between']) for r in rows if r['similarity'] == 'PLM']
    assert 0 < end < start < 1


def test_the_animation_of_the_readme():
    path = ROOT/'docs/images/toy.gif'
    durations = opened(path)
    assert path.stat().st_size < 2e6 and 60 <= len(durations) <= 120
    assert durations[-1] >= 3000 and sorted(durations)[len(durations)//2] <= 500 # the last is held, most are not


def test_the_notebook_is_stored_with_its_outputs():
    cells = [c for c in json.loads((ROOT/'nbs/pipeline/toy.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    outputs = [o for c in cells for o in c['outputs']]
    assert sum('image/png' in o.get('data', {}) for o in outputs) >= 6
    assert any('over 3 seeds' in ''.join(o.get('text', '')) for o in outputs)
    assert not any(o.get('name') == 'stderr' for o in outputs)
