"""`dvc repro` of dvc.yaml, with stages side by side that do not wait for each other.

As many run at once as have `threads` (params.yaml) cores each, one on a GPU. Every stage is a `dvc repro` of its own,
so what is run, kept and written to dvc.lock is what a plain `dvc repro` would. One of these comes last: it runs what
was overlooked, and says that everything is up to date.
"""
import json, os, queue, re, subprocess, sys, time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait


def dvc(*command):
    "What DVC answers; it says itself what is wrong."
    answer = subprocess.run(['dvc', *command], stdout=subprocess.PIPE, text=True)
    if answer.returncode: sys.exit(answer.returncode)
    return answer.stdout


def graph():
    """Stage -> the stages it needs, in the order of dvc.yaml, which leaves other pipelines out.

    Only those that have changed, and those that come after them."""
    dot, changed = dvc('dag', '--dot'), set(json.loads(dvc('status', '--json', 'dvc.yaml')))
    edges = re.findall(r'^"([^":]+)" -> "([^":]+)";', dot, re.M)
    while more := {after for before, after in edges if before in changed} - changed: changed |= more
    needs = {name: set() for name in re.findall(r'^"(.+)";', dot, re.M) if name in changed}
    for before, after in edges:
        if before in needs and after in needs: needs[after].add(before)
    return needs


def abreast():
    "How many stages at once. One if params.yaml has a mistake: then the first stage names it."
    ask = """if True:
        from plm.core import pick_device
        from plm.params import load_params
        p = load_params()
        print(p.threads*(p.processes if p.launch == 'torchrun' else 1) if pick_device(p.device).type == 'cpu' else 0)"""
    # in a process of its own, because torch stays in memory
    answer = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True).stdout.strip()
    if not int(answer or 0): return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return max(1, cores//int(answer))


def run(stage, lines):
    "One stage, with its progress bar on a line of its own; whether it ended well."
    line, began = lines.get(), time.monotonic()
    command = ['dvc', '--wait-for-lock', 'repro', '--single-item', stage]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {'TQDM_POSITION': str(line)})
    lines.put(line)
    if done.returncode:
        print(f'\r{stage} failed; what it said is above. What else has finished is kept: mend the cause, '
              'and give the command again.', file=sys.stderr, flush=True)
    elif 'Running stage' in done.stdout: print(f'\r{stage}: ran, {time.monotonic() - began:.0f} s', flush=True)
    elif 'is cached' in done.stdout: print(f'\r{stage}: taken from the cache', flush=True)
    else: print(f'\r{stage}: nothing to do', flush=True)
    return not done.returncode


def main():
    needs, lines, running, well = graph(), queue.SimpleQueue(), {}, True
    most = abreast()
    for line in range(most): lines.put(line)
    with ThreadPoolExecutor(most) as pool:
        while running or well and needs:
            for stage in [s for s, before in needs.items() if not before][:well*(most - len(running))]:
                del needs[stage]
                running[pool.submit(run, stage, lines)] = stage
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                stage, well = running.pop(job), job.result() and well
                for before in needs.values(): before.discard(stage)
    return subprocess.run(['dvc', 'repro']).returncode if well else 1


if __name__ == '__main__': sys.exit(main())
