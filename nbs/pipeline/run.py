"""Runs notebooks of nbs/ and stores them with their outputs, two at a time: `run.py [NAME...]`, by default all.

A name is a module's (manifold), a number (04), or a file (04_manifold.ipynb). A notebook that fails stays as it was.
"""
import os, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from start import KERNEL, save
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

NBS = Path(__file__).resolve().parents[1]


def chosen(names):
    "The notebooks of these names, all if there are none; exits if a name is nobody's."
    files = sorted(NBS.glob('[0-9][0-9]_*.ipynb'))
    known = {name: f for f in files for name in (f.stem, f.stem[:2], f.stem[3:])}
    stems = [Path(name).stem for name in names]
    if missing := [s for s in stems if s not in known]: sys.exit(f"no notebook in nbs/ is named {', '.join(missing)}")
    return [known[s] for s in stems] or files


def run(file):
    "Whether the notebook ran; if it did, it is stored."
    nb, began = nbformat.read(file, 4), time.monotonic()
    client = NotebookClient(nb, timeout=None, kernel_name='python3', resources={'metadata': {'path': str(NBS)}})
    try: client.execute(stderr=subprocess.DEVNULL) # progress bars
    except (CellExecutionError, DeadKernelError) as e: print(f'{file.name} failed and stays as it was\n{e}', flush=True)
    else:
        save(nb, file)
        print(f'{file.name}: ran, {time.monotonic() - began:.0f} s', flush=True)
        return True


if __name__ == '__main__':
    os.environ |= KERNEL
    with ProcessPoolExecutor(2) as pool: well = list(pool.map(run, chosen(sys.argv[1:])))
    subprocess.run(['nbdev_clean'], cwd=NBS.parent, check=True)
    sys.exit(not all(well))
