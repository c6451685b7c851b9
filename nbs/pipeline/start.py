"papermill, as the stages start it: `start.py nbs/pipeline/STAGE.ipynb runs/notebooks/COPY.ipynb -p name value`. A second faster than its own command, and with an error of one line instead of eighty; the whole traceback is in the executed copy."
import os, sys
from pathlib import Path
sys.modules['rfc3987_syntax'] = None # a grammar of internet addresses that comes with JupyterLab, takes a second to import, and checks nothing that a notebook has
from nbclient.exceptions import DeadKernelError
from papermill.cli import papermill
from papermill.exceptions import PapermillExecutionError
copy = Path(sys.argv[2])
copy.parent.mkdir(parents=True, exist_ok=True)
os.environ['JUPYTER_PATH'] = str(Path(__file__).parent) # a description of the kernel that keeps ipykernel's own log out of the terminal; errors of a notebook still get there
os.environ |= {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(2**40)} # glibc keeps freed memory; else the kernel clears each large activation anew, a quarter of a GoogLeNet step on a CPU
try: papermill([*sys.argv[1:], '--cwd', '.', '--no-progress-bar', '--log-level', 'ERROR'])
except PapermillExecutionError as e: sys.exit(f'{e.ename}: {e.evalue}\n(the traceback is in {copy})')
except DeadKernelError: sys.exit('The process of the notebook was killed; most often memory had run out. Lower train.batch_size or train.crop, then give the same command again: finished epochs are kept.')
