"A short, seeded run of `make assault`: nothing is taken unnoticed, nothing raises in other words than ours."
import os, subprocess, sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_assaults_come_out_well():
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(TESTS.parent), os.environ.get('PYTHONPATH', '')]))
    done = subprocess.run([sys.executable, TESTS/'assault.py', '0', '1'], capture_output=True, text=True, env=env)
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.startswith('what ') and 'training  same bytes  1' in done.stdout and 'state' in done.stdout
