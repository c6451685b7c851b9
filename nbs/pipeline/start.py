"""papermill, as the stages start it: `start.py nbs/pipeline/STAGE.ipynb runs/notebooks/COPY.ipynb -p name value`.

It starts a second sooner than papermill's own command. Its error is one line instead of eighty; the traceback is in the
executed copy. The copy is the same to the byte whenever the stage computes the same, so dvc.lock stays as it is.
"""
import ast, os, re, sys, threading, time
from pathlib import Path
# a grammar of internet addresses that comes with JupyterLab, takes a second to import, and checks nothing in a notebook
sys.modules['rfc3987_syntax'] = None
import nbformat, psutil
from nbclient.exceptions import DeadKernelError
from papermill.cli import papermill
from papermill.exceptions import PapermillExecutionError

KERNEL = { # of the kernel's environment
    'JUPYTER_PATH': str(Path(__file__).resolve().parent), # its ipykernel keeps its own log out of the terminal
    # glibc keeps freed memory; else Linux clears each large activation anew, a quarter of a GoogLeNet step on a CPU
    'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(2**40),
}


def lasting(outputs):
    "A cell's outputs without what changes from run to run: progress bars and warnings (stderr), addresses of objects."
    kept = []
    for o in outputs:
        if o.output_type == 'stream' and o.name == 'stderr': continue
        if text := o.get('data', {}).get('text/plain'): o.data['text/plain'] = re.sub(r' at 0x[0-9a-f]+(?=>)', '', text)
        if kept and o.output_type == kept[-1].output_type == 'stream': kept[-1].text += o.text # the clock cuts these
        else: kept.append(o)
    return kept


def save(
    nb, # an executed notebook
    file: Path, # where it will be, whole or not at all
):
    "Save without times, folders, random ids, and all that `lasting` leaves out."
    nb.metadata = {'kernelspec': nb.metadata.kernelspec}
    for cell in nb.cells:
        tags = cell.metadata.get('tags', [])
        cell.metadata = {'tags': tags} if tags else {}
        if 'injected-parameters' in tags: cell.id = 'injected-parameters'
        if cell.cell_type == 'code': cell.outputs = lasting(cell.outputs)
    part = file.with_name(f'.{file.name}.part')
    nbformat.write(nb, part)
    part.replace(file)


def memory_kills():
    "How many processes this machine has ended because memory had run out; None if it does not count them."
    try: return int(re.search(r'^oom_kill (\d+)$', Path('/proc/vmstat').read_text(), re.M)[1])
    except (OSError, TypeError): return None


def killed(notebook, before):
    "What to do about a notebook whose process is gone."
    trains = re.search('train|ablate|comparison_c', Path(notebook).stem)
    why = {before: 'from outside (the system counts no lack of memory)', None: 'by hand, or because memory had run out'}
    less = 'lower train.batch_size or train.crop' if trains else 'close what else is running'
    return (f"The process of {notebook} was killed {why.get(memory_kills(), f'because memory had run out: {less}')}. "
            f"Give the same command again{'; finished epochs are kept' if trains else ''}.")


def check_parameters(notebook, words):
    "Exit if `-p` names what is no parameter of the notebook: papermill would go on with the values in the notebook."
    cells = [cell.source for cell in nbformat.read(notebook, 4).cells if 'parameters' in cell.metadata.get('tags', [])]
    names = [node for node in ast.walk(ast.parse('\n'.join(cells))) if isinstance(node, ast.Name)]
    known = [name.id for name in names if isinstance(name.ctx, ast.Store)]
    given = [name for flag, name in zip(words, words[1:]) if flag == '-p']
    if wrong := [name for name in given if name not in known]:
        sys.exit(f"{notebook} has no parameter {', '.join(wrong)}. It has: {', '.join(known) or 'none'}.")


def end_with(pids):
    "When one of these processes ends, however that ends, end the notebook and this process: nobody waits for them."
    def follow():
        while all(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in watched): time.sleep(0.5)
        for p in psutil.Process().children(recursive=True): p.kill()
        os._exit(1)
    try: watched = [psutil.Process(pid) for pid in pids if pid] # 0: in a container, this is the first process
    except psutil.NoSuchProcess: os._exit(1)
    threading.Thread(target=follow, daemon=True).start()


def main():
    end_with([int(os.environ.get('PLM_ALONE', os.getppid())), os.getppid()])
    check_parameters(sys.argv[1], sys.argv[3:])
    copy = Path(sys.argv[2])
    copy.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= KERNEL
    before = memory_kills()
    try: papermill([*sys.argv[1:], '--cwd', '.', '--no-progress-bar', '--log-level', 'ERROR'])
    except PapermillExecutionError as e: sys.exit(f'{e.ename}: {e.evalue}\n(the traceback is in {copy})')
    except DeadKernelError: sys.exit(killed(sys.argv[1], before))
    finally: # papermill ends by SystemExit, even if all is well
        if copy.exists(): save(nbformat.read(copy, 4), copy)


if __name__ == '__main__': main()
