"Several processes compute what one computes, and end together."
import os, socket, subprocess, sys, time
from pathlib import Path
import pytest, torch
import ranks
from plm.distributed import (all_gather, all_reduce_gradients, broadcast, divide, own_rows, rank, spawn, sync_batchnorm,
                             world_size)
from plm.evaluation import ranking, retrieval_metrics
from plm.sampling import nearest_neighbors


# so that processes can import `ranks`
TESTS = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])


@pytest.fixture(autouse=True)
def importable(monkeypatch): monkeypatch.setenv('PYTHONPATH', TESTS)


def test_alone_nothing_changes():
    x, net = torch.rand(5, 2), torch.nn.BatchNorm2d(3)
    assert all_gather(x) is x and broadcast(x, 0) is x and own_rows(5) == slice(0, 5)
    assert (rank(), world_size()) == (0, 1)
    assert type(sync_batchnorm(net)) is torch.nn.BatchNorm2d
    assert torch.equal(divide(lambda rows: x[rows])(torch.tensor([3, 1])), x[[3, 1]])
    with pytest.raises(ValueError, match='process 0 of 1 has 6 of 6 rows, got 5'): all_gather(x, 6)
    p = torch.nn.Parameter(x)
    p.grad = x.clone()
    all_reduce_gradients([p])
    assert torch.equal(p.grad, x)


def test_normalisation_that_cannot_be_shared_is_refused(monkeypatch):
    from plm import distributed
    class Own(torch.nn.BatchNorm2d): pass
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)
    with pytest.raises(ValueError, match='Own of this network cannot be shared.*launch: single'):
        sync_batchnorm(torch.nn.Sequential(torch.nn.BatchNorm2d(2), Own(3)))
    assert type(sync_batchnorm(torch.nn.Sequential(torch.nn.BatchNorm2d(2)))[0]) is distributed._BatchNorm


def test_rows_are_shared_out_once(monkeypatch):
    from plm import distributed
    for n in range(12):
        for n_processes in range(1, 6):
            monkeypatch.setattr(distributed, 'world_size', lambda: n_processes)
            rows = []
            for r in range(n_processes):
                monkeypatch.setattr(distributed, 'rank', lambda: r)
                rows.append(list(range(n))[own_rows(n)])
            assert sum(rows, []) == list(range(n)) and max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.fixture(scope='module', params=[(2, ('plm', 'plm, two views', 'stml', 'simclr'), (1, 5, 8)),
                                        (3, ('plm',), (2, 7))],
                ids='{0[0]} processes'.format)
def started(request, tmp_path_factory):
    "What one process finds, and several: started once for the tests below."
    processes, *what, folder = *request.param, tmp_path_factory.mktemp('started')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PYTHONPATH', TESTS)
        return processes, what[0], ranks.everything(*what, folder), spawn(ranks.everything, processes, *what, folder)


def test_gradients_and_embeddings_are_those_of_one_process(started):
    processes, names, ((_, one, z), *_), ((n, several, z_), *_) = started
    assert n == processes
    for name, a, b in zip(names, one, several, strict=True):
        assert b[0] == pytest.approx(a[0], abs=1e-12), name
        for mine, theirs in zip(a[1:], b[1:]):
            assert mine.keys() == theirs.keys() and max(v.abs().max() for v in mine.values()) > 1e-3
            for key in mine: torch.testing.assert_close(theirs[key], mine[key], rtol=0, atol=1e-10, msg=f'{name} {key}')
    for a, b in zip(z, z_, strict=True): torch.testing.assert_close(b, a, rtol=0, atol=1e-5)


def test_searches_are_divided_and_those_of_one_process(started):
    processes, _, (_, (one, by_one, *_), _), (_, (several, searched, same, said, shared), _) = started
    assert by_one == [203] and sum(searched) == 203 and max(searched) - min(searched) <= 1 and same
    assert len(one['index: recall']) == 3 and one['index: recall'][0] < 1 # an index was used
    assert one['index of no use: recall'].tolist() == [1] # and here was not
    for name in one: assert torch.equal(one[name], several[name]), name
    assert f'process {processes - 1} of {processes} has other images, weights, constants or code than process 0' in said
    assert shared == {'of': processes - 1}


def test_all_processes_keep_the_embeddings_of_the_whole_batch(started):
    *_, (one, begun, _), (several, _, same) = (*started[:2], started[2][2], started[3][2])
    moved = (one - begun).norm(dim=1)
    assert same and (moved > 0.02).sum() > 30 # of 50 images; a process draws at most 24 rows of two epochs by itself
    torch.testing.assert_close(several, one, rtol=0, atol=2e-3)


def test_processes_that_evaluate_their_own_rows_get_their_own_figures_and_wait_for_nobody(tmp_path):
    z, labels = ranks.crowd(90), torch.arange(90) % 9
    for r, (metrics, *near) in spawn(ranks.own_shards, 2, tmp_path).items():
        mine = slice(45*r, 45*r + 45)
        assert metrics == pytest.approx(retrieval_metrics(z[mine], labels[mine]), abs=1e-12)
        for found, search in zip(near, (ranking, nearest_neighbors)): assert torch.equal(found, search(z[mine], 3))


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PYTHONPATH', TESTS)
        return spawn(ranks.run, 1, 'plm', tmp_path_factory.mktemp('alone'))[0]


def test_a_run_of_two_follows_a_run_of_one_and_all_have_the_same_state(tmp_path, alone):
    log, _, apart, saved = spawn(ranks.run, 2, 'plm', tmp_path)
    assert apart == 0 and saved == [0, 0, 0] and not list(tmp_path.rglob('*.pt'))
    for a, b in zip(alone, log, strict=True): assert b == pytest.approx(a, rel=2e-3)


def test_a_killed_run_of_two_is_resumed_by_three(tmp_path, alone):
    with pytest.raises(RuntimeError, match='process 0 of 2 failed.*SIGKILL'): spawn(ranks.run, 2, 'plm', tmp_path, 1)
    assert len(list(tmp_path.glob('*.pt'))) == 1
    log, _, apart, saved = spawn(ranks.run, 3, 'plm', tmp_path)
    assert apart == 0 and saved == [0, 0] # the first epoch was not done again
    for a, b in zip(alone, log, strict=True): assert b == pytest.approx(a, rel=2e-3)


@pytest.mark.parametrize('how, words',
                         [('early', 'ValueError: broken on purpose, early'),
                         ('late', 'ValueError: broken on purpose, late'), ('killed', 'Signal 9')])
def test_one_that_fails_ends_all_and_is_named(how, words):
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=f'process 1 of 2 failed, and the others were ended: {words}'):
        spawn(ranks.fail, 2, how)
    assert time.monotonic() - began < 60 # the others do not wait for the time limit of ten minutes


def test_two_machines_without_a_common_disk(tmp_path, alone):
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc-per-node=1',
               '--rdzv-backend=c10d', f'--rdzv-endpoint=localhost:{port}', '--rdzv-id=two', '--local-addr=localhost',
               ranks.__file__, tmp_path]
    began = time.monotonic()
    launchers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try: said = [launcher.communicate(timeout=100)[1] for launcher in launchers]
    finally:
        for launcher in launchers: launcher.kill()
    found = torch.load(tmp_path/'found.pt', weights_only=True)
    # taken up after the first epoch, from the disk of the machine that is number 1 now
    assert (found['world_size'], found['local'], found['files'], found['epochs']) == (2, '1', [1, 0], [0, 1, 1, 2])
    for a, b in zip(alone, found['log'], strict=True): assert b == pytest.approx(a, rel=2e-3)
    assert not list(tmp_path.rglob('*.pt'))[1:] # the checkpoints are gone, on both machines
    # one machine's end is the end of the other
    assert all(launcher.returncode for launcher in launchers) and any('Signal 9' in text for text in said)
    assert time.monotonic() - began < 60


def test_a_batch_that_cannot_be_shared(tmp_path):
    with pytest.raises(RuntimeError, match='batch_size = 26 cannot be shared equally by 2 processes.*multiple of 4'):
        spawn(ranks.indivisible, 2, tmp_path)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    call = f"spawn(ranks.wait_forever, 2, {str(tmp_path/'pid')!r})"
    code = f"import ranks\nfrom plm.distributed import spawn\nif __name__ == '__main__': {call}"
    (tmp_path/'start.py').write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path/'start.py'])
    pids = [tmp_path/f'pid{r}' for r in range(2)]
    while not all(p.exists() and p.read_text() for p in pids): time.sleep(0.1); assert parent.poll() is None
    parent.kill()
    parent.wait()
    for _ in range(100):
        alive = [p for p in pids if Path(f'/proc/{p.read_text()}').exists()
                 and 'Z' not in Path(f'/proc/{p.read_text()}/stat').read_text().split()[2]]
        if not alive: break
        time.sleep(0.1)
    assert not alive
