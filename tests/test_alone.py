"A pipeline in a folder: alone, after kills, without git, and gone when what started it is gone."
import os, re, signal, subprocess, sys, time
from pathlib import Path
import nbformat, psutil, pytest, yaml

PIPELINE = Path(__file__).parents[1]/'nbs/pipeline'
sys.path.insert(0, str(PIPELINE))
import start

ALONE, START = [sys.executable, PIPELINE/'alone.py'], [sys.executable, PIPELINE/'start.py']
LOCK = dict(schema='2.0', stages=dict(copy=dict(cmd='cp a b', deps=[dict(path='a', hash='md5', md5='0'*32, size=1)])))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A pipeline of one stage, without git."
    place = tmp_path/'downloaded'
    (place/'.dvc').mkdir(parents=True)
    (place/'.dvc/config').write_text('[core]\n    analytics = false\n')
    (place/'a').write_text('1')
    (place/'dvc.yaml').write_text(yaml.safe_dump(dict(stages=dict(copy=dict(cmd='cp a b', deps=['a'], outs=['b'])))))
    monkeypatch.chdir(place)
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent), prepend=os.pathsep)
    for name in ('DVC_SITE_CACHE_DIR', 'DVC_GLOBAL_CONFIG_DIR'): monkeypatch.setenv(name, str(tmp_path/name))
    return place


def git(*command):
    subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *command], check=True, capture_output=True)


def alone(*command): return subprocess.run([*ALONE, *command], capture_output=True, text=True, timeout=60)


def test_without_git_and_after_every_half_written_file(folder):
    done = alone('dvc', 'repro')
    assert not done.returncode and (folder/'b').read_text() == '1', done
    whole = (folder/'dvc.lock').read_bytes()
    assert 'no_scm' in (folder/'.dvc/config.local').read_text()
    for half in (whole[:-40], b'schema: "2.0"\nstages:\n  copy:\n    cm', b'\xff\xfe'):
        (folder/'dvc.lock').write_bytes(half)
        (folder/'.dvc/tmp/rwlock').write_text('{"write": {"/a')
        done = alone('dvc', 'repro')
        assert not done.returncode and (folder/'dvc.lock').read_bytes() == whole, (half, done)
        assert '.dvc/tmp/rwlock was left half-written by a process that was killed: removed.' in done.stdout
        assert 'dvc.lock cannot be read' in done.stdout or half == whole[:-40]
    assert 'killed' not in alone('true').stdout and alone('false').returncode == 1


def test_a_lock_that_cannot_be_read_comes_from_git(folder):
    (folder/'dvc.lock').write_text(yaml.safe_dump(LOCK))
    git('init', '-q'), git('add', 'dvc.lock'), git('commit', '-qm', '1')
    ours, theirs = yaml.safe_dump(LOCK), yaml.safe_dump(LOCK).replace('cp', 'mv')
    for broken in ('schema: "2.0"\nstages:\n  copy:\n    cmd: c\n    deps',
                   f'<<<<<<< HEAD\n{ours}=======\n{theirs}>>>>>>> other\n'): # a merge that git could not do
        (folder/'dvc.lock').write_text(broken)
        said = alone('true').stdout
        assert 'dvc.lock cannot be read, as a kill or a merge has left it: taken from git again.' in said
        assert yaml.safe_load((folder/'dvc.lock').read_text()) == LOCK
    assert not (folder/'.dvc/config.local').exists()


def test_what_somebody_is_writing_is_left_alone(folder):
    import fcntl
    (folder/'.dvc/tmp').mkdir()
    (folder/'.dvc/tmp/rwlock').touch()
    with open(folder/'.dvc/tmp/rwlock.lock', 'w') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert alone('true').stdout == '' and (folder/'.dvc/tmp/rwlock').exists()
    assert 'removed' in alone('true').stdout and not (folder/'.dvc/tmp/rwlock').exists()


def test_a_folder_in_use_says_so(folder):
    first = subprocess.Popen([*ALONE, 'sleep', '60'])
    try:
        while not (folder/'.dvc/tmp/alone').exists() or not (folder/'.dvc/tmp/alone').read_text(): time.sleep(0.05)
        done = alone('touch', 'c')
        assert done.returncode == 1 and not (folder/'c').exists()
        assert done.stderr == (f'{folder} is in use by process {first.pid} sleep 60. Wait for its end, or end it: '
                               f'kill {first.pid}\n')
    finally:
        sleep, = psutil.Process(first.pid).children()
        first.terminate()
        assert first.wait() == 128 + signal.SIGTERM and not sleep.is_running()
    assert not alone('touch', 'c').returncode and (folder/'c').exists()


def test_what_a_killed_one_has_left_is_ended_first(folder):
    first = subprocess.Popen([*ALONE, 'sh', '-c', 'sleep 60; true'])
    while len(family := psutil.Process(first.pid).children(recursive=True)) < 2: time.sleep(0.05)
    first.kill()
    first.wait()
    assert all(p.is_running() for p in family)
    assert not alone('touch', 'c').returncode and (folder/'c').exists()
    assert not psutil.wait_procs(family, timeout=1)[1]


@pytest.mark.parametrize('who', ['maker', 'alone', 'dvc'])
def test_a_kernel_ends_with_what_started_it(folder, who):
    code = "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(300)"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={'kernelspec': {
        'display_name': 'python3', 'language': 'python', 'name': 'python3'}})
    nbformat.write(nb, 'a.ipynb')
    stage = dict(cmd=f'python {PIPELINE}/start.py a.ipynb c.ipynb', deps=['a.ipynb'], outs=['c.ipynb'])
    (folder/'dvc.yaml').write_text(yaml.safe_dump(dict(stages=dict(train=stage))))
    (folder/'Makefile').write_text(f'all:\n\t{sys.executable} {PIPELINE}/alone.py dvc repro\n')
    make = psutil.Popen(['make'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (folder/'pid').exists() or not (folder/'pid').read_text():
            time.sleep(0.1)
            assert make.poll() is None
        kernel = psutil.Process(int((folder/'pid').read_text()))
        family = make.children(recursive=True)
        target = make if who == 'maker' else next(p for p in family if f'{who}.py' in ' '.join(p.cmdline())
                                                  or p.cmdline()[1:2] and Path(p.cmdline()[1]).name == who)
        target.kill()
        assert not psutil.wait_procs([kernel, *family], timeout=15)[1]
    finally:
        for p in (make, *family):
            try: p.kill()
            except psutil.NoSuchProcess: pass
    make.wait()


@pytest.mark.parametrize('notebook, after, words', [
    ('nbs/pipeline/photos_train.ipynb', 8, 'memory had run out: lower train.batch_size or .*; finished'),
    ('nbs/pipeline/map.ipynb', 8, r'memory had run out: close what else is running. Give the same command again\.$'),
    ('nbs/pipeline/map.ipynb', 7, 'from outside'), ('nbs/pipeline/map.ipynb', None, 'by hand, or because memory')])
def test_a_killed_process_gets_the_advice_that_fits(monkeypatch, notebook, after, words):
    monkeypatch.setattr(start, 'memory_kills', lambda: after)
    assert re.search(words, start.killed(notebook, None if after is None else 7))
    assert ('batch_size' in start.killed(notebook, 7)) == ('train' in notebook)
