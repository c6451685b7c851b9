"The command `plm`, as it is installed from the wheel: in an empty folder, without the repository."
import csv, io, json, os, subprocess, sys
from pathlib import Path
import pillow_heif, pytest
from plm.command import _COMMANDS, main, parser
from test_album import folder, small
from test_search import picture

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def pillow_alone(monkeypatch):
    "What is registered with Pillow here would change other tests of this process."
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)


@pytest.fixture(scope='module')
def plm(tmp_path_factory):
    "Run the installed program; HOME and the working folder are empty ones."
    top = tmp_path_factory.mktemp('installed')
    pip = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check']
    subprocess.run([*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', top/'wheel', ROOT], check=True,
                   timeout=120)
    wheel, = (top/'wheel').glob('plm_metric-*.whl')
    subprocess.run([*pip, 'install', '--no-deps', '--target', top/'site', wheel], check=True, timeout=120)
    for name in ('home', 'work'): (top/name).mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'PLM_'))}
    env |= dict(HOME=str(top/'home'), PYTHONPATH=str(top/'site'), OMP_NUM_THREADS='1')
    def run(*words, before=()):
        return subprocess.run([*before, sys.executable, top/'site/bin/plm', *words], cwd=top/'work', env=env, text=True,
                              timeout=120, capture_output=True, errors='surrogateescape')
    return run, top


def test_a_newcomer_needs_no_clone(plm, folder):
    "With the real backbone, whose weights come with the package."
    run, top = plm
    (folder/'a'/'telephone.dng').write_bytes(b'II*\0' + bytes(99))
    pillow_heif.from_pillow(picture(20)).save(folder/'b/telephone.heic') # with the extra `heif`
    os.rename(folder/'a/00.png', folder/'a'/os.fsdecode(b'caf\xe9.png'))
    p = run('index', folder)
    assert p.returncode == 0, p.stderr
    assert p.stdout.startswith('14 new, 1 skipped\nSearch: 13 photos') and 'Now search: plm serve' in p.stdout
    assert 'Not used: 1 of the files: 1 no reader.' in p.stdout and (top/'home/.plm/album.sqlite').exists()
    p = run('search', folder/'b/03.png', '-k', '3', '--json')
    found, = json.loads(p.stdout)
    assert found['results'][0] == dict(path=str(folder/'b/03.png'), distance=pytest.approx(0, abs=0.02))
    assert len(found['results']) == 3
    p = run('search', folder/'b/03.png', folder/'b/05.png', '-k', '13', '--csv')
    rows = list(csv.DictReader(io.StringIO(p.stdout)))
    assert len(rows) == 26 and [row['rank'] for row in rows[:13]] == [str(i) for i in range(1, 14)]
    assert any(row['path'].endswith('telephone.heic') for row in rows)
    assert all(os.path.exists(row['path']) for row in rows) # also the one whose name is no text
    p = run('search', folder/'b/03.png', '-k', '2')
    assert p.stdout.splitlines()[1].split() == ['distance', 'photo'] and 'caf' not in p.stderr
    assert 'Traceback' not in p.stderr
    assert not list((top/'work').iterdir())
    closed = ('import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=-1); p.stdout.close(); '
              'sys.exit(p.wait())')
    p = run('search', folder/'b/03.png', '--csv', before=[sys.executable, '-c', closed])
    assert (p.returncode, p.stderr) == (0, '') # who read has had enough: no error


def test_without_the_extra_heic_is_named_with_the_cure(folder, tmp_path, monkeypatch, capsys):
    (folder/'telephone.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(99))
    main(['index', str(folder), '--at', str(small(tmp_path/'album').place)])
    assert '1 no reader' in capsys.readouterr().out
    assert 'or pip install pillow-heif' in (tmp_path/'album/skipped.csv').read_text()


def test_help_has_an_example_of_each(capsys):
    for name, (_, what, example, _) in _COMMANDS.items():
        with pytest.raises(SystemExit) as e: main([name, '--help'])
        said = capsys.readouterr().out
        assert e.value.code == 0 and example in said and '--at' in said
        words = example.split()[1:]
        assert parser().parse_args(words).command == name # it is understood
    with pytest.raises(SystemExit): main([])
    assert 'COMMAND' in capsys.readouterr().err


def test_help_comes_at_once():
    code = "import sys; from plm.command import parser; parser().format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == 'False\n'


def test_an_album_opens_without_what_only_its_pages_need():
    "It takes as long to import as half of torch, and every search would wait for it."
    code = "import sys, plm.album; print(sorted({'sklearn', 'matplotlib.figure'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == '[]\n'


@pytest.mark.parametrize('words, message', [
    (['search', 'x.png'], 'plm search: there is no album in .* Make it: plm index'),
    (['index'], 'plm index: there is no album'),
    (['index', 'nowhere'], 'plm index: the folder .*nowhere does not exist'),
    (['index', 'PHOTOS', '--labels', 'no.csv'], 'CSV of labels .*no.csv does not exist'),
    (['train'], 'there is no album'), (['map'], 'there is no album'), (['export', 'x'], 'there is no album')])
def test_a_mistake_is_one_line(words, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(folder) if word == 'PHOTOS' else word for word in words]
    with pytest.raises(SystemExit, match=message) as e: main([*words, '--at', str(tmp_path/'album')])
    assert '\n' not in str(e.value)
    assert not (tmp_path/'x').exists()


def test_the_way_of_a_user(folder, tmp_path, capsys, monkeypatch):
    at = ['--at', str(small(tmp_path/'album').place)]
    def say(*words): main([*map(str, words), *at]); return capsys.readouterr().out
    say('index', folder, '--exclude', 'b/1*')
    assert '11 same' in say('index') # the pattern is kept, and so is what is there
    assert 'before' in say('train') and (tmp_path/'album/after/search.json').exists()
    def ask(*which): return json.loads(say('search', folder/'a/02.png', '--json', *which))
    trained, first = ask(), ask('--which', 'before')
    assert [r['path'] for r in trained[0]['results'][:1]] == [r['path'] for r in first[0]['results'][:1]]
    assert 'map.html' in say('map') and (tmp_path/'album/map.html').stat().st_size > 20_000
    say('export', tmp_path/'out')
    assert {f.name for f in (tmp_path/'out').iterdir()} == {
        'embeddings.npy', 'encoder.pt', 'files.csv', 'index.faiss', 'search.json'}
    picture(70).save(folder/'new.png')
    assert say('index').startswith('left out: 1 excluded (b/1*)\n1 new, 11 same')
    os.rename(folder/'a', tmp_path/'disk')
    (folder/'a').mkdir()
    assert '6 away\n' in (said := say('index')) and '6 photos are not there, but their folder is empty' in said
    (folder/'a').rmdir()
    os.rename(tmp_path/'disk', folder/'a')
    assert 'away' not in say('index')
    assert 'about' in say('train', '--whole')
    def stop(*given): raise KeyboardInterrupt
    monkeypatch.setattr('plm.album.Album.update', stop)
    with pytest.raises(SystemExit, match='stopped. The same command goes on'): main(['index', *at])
