"""What the estimation step costs beside its opponents, measured side by side in one run: the batched manifold against the plain loop over points,
and PLM's similarity and losses with backward against STML's whole loss.

    python benchmarks/estimation.py [--repeats 5] [--device auto]

Prints a table and writes benchmarks/estimation.csv. Each line of `comparisons` is one row: ours and its opponent, timed in turn on the same input,
and checked to agree where both compute the same. One thread, so that the ratio does not depend on how many cores are free.
"""
import argparse, csv, statistics, time
from pathlib import Path
import torch
from torch.nn.functional import normalize
from plm.baselines import STMLLoss
from plm.core import generator_at, pick_device, whole_file
from plm.losses import PLMLoss
from plm.manifold import PiecewiseLinearManifold
from plm.proxies import Proxies

B, d, m, T = 100, 512, 3, 0.9


def batch(setting, d=d):
    "(B, d) float32 unit vectors: 20 clusters of 5, or batches whose pieces grow large."
    g = generator_at(0, 'estimation', setting)
    def normal(*shape): return torch.randn(*shape, generator=g)
    centres = normalize(normal(B//5, d), dim=1).repeat_interleave(5, 0)
    if setting == 'clusters': z = centres + 0.5*normal(B, d)/d**0.5
    if setting == 'clusters, noise of rank 6': z = centres + 0.3*normal(B, 6)@normal(6, d)/(6*d)**0.5 + 0.1*normal(B, d)/d**0.5
    if setting == 'large: plane + noise': z = normal(B, 3)@normal(3, d)/d**0.5 + 0.1*normal(B, d)/d**0.5
    if setting == 'large: curved sheet':
        u = 3*torch.rand(B, 2, generator=g)
        z = torch.cat([u.sin(), u.cos(), u], 1)@normal(6, d)/d**0.5 + 0.02*normal(B, d)/d**0.5
    return normalize(z, dim=1)


def manifold_loop(t):
    "Members (B, B) by one SVD for each point and each neighbour visited."
    members = torch.eye(len(t), dtype=torch.bool, device=t.device)
    for i in range(len(t)):
        delta = t - t[i]
        order = delta.norm(dim=1).argsort(stable=True)
        order = order[order != i].tolist()
        piece = order[:m]
        for candidate in order[m:]:
            grown = delta[piece + [candidate]]
            basis = torch.linalg.svd(grown, full_matrices=False).Vh[:m]
            quality = (grown @ basis.T).square().sum(1) / grown.square().sum(1)
            if (quality >= T).all(): piece.append(candidate)
        members[i, piece] = True
    return members


def losses(device, d, fit):
    "PLM's losses (with or without the fit of the pieces) and STML's, each with its backward pass, on the same (B, d) embeddings."
    t = batch('clusters', d).to(device)
    z, wide = t.clone().requires_grad_(), normalize(torch.randn(B, 1024, generator=generator_at('wide')), dim=1).to(device).requires_grad_()
    plm, stml = PLMLoss(Proxies(100, d, m).to(device), m, T), STMLLoss()
    if not fit:
        pieces = plm.manifold(t)
        plm.manifold = lambda t: pieces
    index = torch.arange(B//2, device=device).repeat(2) # STML sees half as many images, twice
    return lambda: sum(plm(z, t).values()).backward(), lambda: sum(stml(z, wide, wide.detach(), index).values()).backward()


def comparisons(device):
    "(name, setting, ours, opponent, least share of equal entries; None: they compute different things)."
    for width in (128, 512):
        yield 'similarity, losses', f'against STML, d={width}', *losses(device, width, fit=False), None
        yield 'fit, similarity, losses', f'against STML, d={width}', *losses(device, width, fit=True), None
    for setting in ('clusters', 'clusters, noise of rank 6', 'large: plane + noise', 'large: curved sheet'):
        t = batch(setting).to(device)
        # a float32 SVD may settle a quality within rounding of T the other way, and all that follows for that point with it
        yield 'manifold', setting, lambda: PiecewiseLinearManifold(m, T)(t).members, lambda: manifold_loop(t), 0.99


def seconds(run, device):
    "Wall time of one call, and its result."
    if device.type == 'cuda': torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device.type == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - start, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--repeats', type=int, default=11, help='timings of ours; the median counts (default 11)')
    parser.add_argument('--device', default='auto')
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = pick_device(args.device)
    rows = []
    print(f'B={B}, d={d}, m={m}, T={T}, {device}, one thread\n{"name":24} {"setting":28} {"ours":>10} {"opponent":>10} {"ratio":>7}')
    for name, setting, fast, plain, least in comparisons(device):
        fast() # warm
        took, slow = [], []
        while len(took) < args.repeats:
            t, a = seconds(fast, device)
            took.append(t)
            if sum(slow) < 5: # a plain way of many seconds is timed once: its spread is small beside the ratio
                t, b = seconds(plain, device)
                slow.append(t)
        if least is not None and (a == b).float().mean() < least: raise AssertionError(f'{name}, {setting}: the two ways disagree')
        fast_s, plain_s = statistics.median(took), statistics.median(slow)
        rows.append((name, setting, f'{plain_s/fast_s:.2f}', f'{fast_s:.5f}', f'{plain_s:.4f}'))
        print(f'{name:24} {setting:28} {fast_s*1e3:7.1f} ms {plain_s*1e3:7.1f} ms {plain_s/fast_s:6.2f}x', flush=True)
    with whole_file(Path(__file__).with_suffix('.csv')) as tmp, open(tmp, 'w', newline='') as f:
        csv.writer(f).writerows([('name', 'setting', 'ratio', 'seconds', 'baseline_seconds'), *rows])


if __name__ == '__main__': main()
