"""What training costs: time and memory of one run of each method in params.yaml, as its stage does it.

    make repro && .venv/bin/python benchmarks/cost.py

One run after the other, of the first seed; writes results/cost.csv, which the report shows. The stages are left as they
were: training gives the same bytes again. Wall-clock seconds, so nothing else should run meanwhile.
"""
import os, subprocess, sys, tempfile, time
from datetime import date
from plm.core import pick_device, write_csv
from plm.params import load_params, project_root
from bench import device_name


def main():
    os.chdir(project_root())
    p, rows = load_params(), []
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True).stdout.strip()
    made = dict(device=device_name(pick_device(p.device)), commit=commit or 'unknown', date=date.today().isoformat())
    for method in p.methods:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, 'nbs/pipeline/start.py', 'nbs/pipeline/train.ipynb', f'{folder}/copy.ipynb',
                       '-p', 'method', method, '-p', 'seed', str(p.seeds[0])]
            began = time.monotonic()
            # a process of its own for each, since what is asked for is the largest of all children there have been
            measure = ('import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; '
                       'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)')
            done = subprocess.run([sys.executable, '-c', measure, *command], stdout=subprocess.PIPE, text=True,
                                  env=os.environ | {'OMP_NUM_THREADS': str(p.threads)}, check=True)
            seconds, gib = time.monotonic() - began, int(done.stdout.split()[-1])/2**20
        rows.append(dict(dataset=p.dataset, method=method, seconds=f'{seconds:.1f}', gib=f'{gib:.2f}', **made))
        print(f'{method:12} {seconds:7.1f} s {gib:6.2f} GiB', flush=True)
    write_csv(rows, 'results/cost.csv')


if __name__ == '__main__': main()
