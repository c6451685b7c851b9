"papermill, as the stages start it: without a grammar of internet addresses that comes with JupyterLab, takes a second to import, and checks nothing that a notebook has."
import sys
sys.modules['rfc3987_syntax'] = None # jsonschema then does without
from papermill.cli import papermill
papermill()
