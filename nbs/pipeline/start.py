"papermill, as the stages start it: a second faster, and with an error of one line instead of eighty; the whole traceback is in the executed notebook."
import sys
sys.modules['rfc3987_syntax'] = None # a grammar of internet addresses that comes with JupyterLab, takes a second to import, and checks nothing that a notebook has
from nbclient.exceptions import DeadKernelError
from papermill.cli import papermill
from papermill.exceptions import PapermillExecutionError
try: papermill()
except PapermillExecutionError as e: sys.exit(f'{e.ename}: {e.evalue}\n(the traceback is in {next(a for a in reversed(sys.argv) if a.endswith(".ipynb"))})')
except DeadKernelError: sys.exit('The process of the notebook was killed; most often memory had run out. Lower train.batch_size or train.crop, then give the same command again: finished epochs are kept.')
