"""`alone.py dvc repro`: runs a command that uses DVC in this folder, which nobody else may do meanwhile.

It heals what a kill has left of DVC's own files, and lets DVC work without git. When it ends, or the process that
started it, by whatever signal, nothing stays behind: it ends what it has started, and stages look at PLM_ALONE.
"""
import fcntl, json, os, signal, subprocess, sys
from pathlib import Path
import psutil, yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from voluptuous import Invalid

TMP = Path('.dvc/tmp')


def take(file):
    "A lock that lasts as long as this process, or None if another one has it."
    f = open(file, 'a+')
    try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: return None
    return f


def without_git():
    "A downloaded ZIP has no .git. DVC can do without, if it is told."
    if any((folder/'.git').exists() for folder in (Path.cwd(), *Path.cwd().parents)): return
    told = Path('.dvc/config.local')
    if not told.exists() or 'no_scm' not in told.read_text():
        subprocess.run(['dvc', 'config', '--local', 'core.no_scm', 'true'], check=True)


def heal():
    "What a kill has left half-written: DVC's list of who reads and writes what, and dvc.lock."
    if (held := TMP/'rwlock').exists() and (guard := take(TMP/'rwlock.lock')): # else somebody is writing it
        try: json.loads(held.read_text())
        except ValueError:
            held.unlink()
            print(f'{held} was left half-written by a process that was killed: removed.')
        guard.close()
    for lock in (Path('dvc.lock'), *Path('pipelines').glob('*/dvc.lock')):
        if not lock.exists(): continue
        try: COMPILED_LOCKFILE_SCHEMA(yaml.load(lock.read_bytes(), getattr(yaml, 'CSafeLoader', yaml.SafeLoader)))
        except (yaml.YAMLError, UnicodeDecodeError, Invalid):
            kept = subprocess.run(['git', 'show', f'HEAD:./{lock}'], capture_output=True)
            if kept.returncode: lock.unlink()
            else: lock.write_bytes(kept.stdout)
            done = 'removed: DVC makes it anew' if kept.returncode else 'taken from git again'
            print(f'{lock} cannot be read, as a kill or a merge has left it: {done}.')


def end(child):
    "End a process and all that it has started; by force those that do not go in five seconds."
    family = [child, *child.children(recursive=True)]
    for signal_, wait in ((signal.SIGTERM, 5), (signal.SIGKILL, 1)):
        for p in family:
            try: p.send_signal(signal_)
            except psutil.NoSuchProcess: pass
        family = psutil.wait_procs(family, timeout=wait)[1]


def end_leftovers():
    "What a killed predecessor has started in this folder: it would end by itself, but holds DVC's locks till then."
    for p in psutil.process_iter():
        try:
            if p.pid != os.getpid() and p.environ().get('PLM_ALONE') and p.cwd() == os.getcwd(): end(p)
        except psutil.Error: pass # it has just ended, or is somebody else's


def main(command):
    parent = os.getppid()
    for s in (signal.SIGTERM, signal.SIGHUP): signal.signal(s, lambda number, frame: sys.exit(128 + number))
    TMP.mkdir(parents=True, exist_ok=True)
    if not (lock := take(TMP/'alone')):
        who = (TMP/'alone').read_text().strip()
        sys.exit(f'{Path.cwd()} is in use by process {who}. Wait for its end, or end it: kill {who.split()[0]}')
    lock.truncate(0)
    print(os.getpid(), *command, file=lock, flush=True)
    without_git()
    end_leftovers()
    heal()
    child = psutil.Popen(command, env=os.environ | {'PLM_ALONE': str(os.getpid())})
    try:
        while os.getppid() == parent:
            try: return child.wait(timeout=0.5)
            except psutil.TimeoutExpired: pass
            except KeyboardInterrupt: pass # the child got it, too
        sys.exit('the process that started this one has ended: so do this one and its stages')
    finally:
        if child.is_running(): end(child)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
