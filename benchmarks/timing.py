"""How every part of the benchmark is timed: one thread, opponents in turn, medians.

On a CPU the clock is the processor's (time that others on the machine take does not count), on a GPU the wall's, with
the device waited for."""
import statistics, time
import torch


def interleaved(ways, repeats=15, device=torch.device('cpu'), enough=60):
    """Median seconds of each of `ways` (name -> function), run in turn, so that a busy minute hits all alike; fewer
    than `repeats`, but 3, if that would take more than `enough` seconds."""
    clock = time.process_time if device.type == 'cpu' else time.perf_counter
    def once(run):
        if device.type == 'cuda': torch.cuda.synchronize()
        start = clock()
        run()
        if device.type == 'cuda': torch.cuda.synchronize()
        return clock() - start
    took = {name: [once(run)] for name, run in ways.items()}
    turn = sum(sum(times) for times in took.values())
    if short := turn < enough/3: took = {name: [] for name in ways} # the first turn has warmed up, and does not count
    for _ in range(max(3, min(repeats, int(enough/max(turn, 1e-9)))) if short else 2):
        for name, run in ways.items(): took[name].append(once(run))
    return {name: statistics.median(times) for name, times in took.items()}


def against(name, setting, took, opponent, ours='ours'):
    "A row of the table: name, setting, how many times as fast as the opponent, seconds, seconds of the opponent."
    return name, f'{setting}, against {opponent}', took[opponent]/took[ours], took[ours], took[opponent]
