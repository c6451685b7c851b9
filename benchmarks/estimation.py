"""What the estimation step costs (manifold, similarity, three losses and their backward): against STML's whole loss, against the matrix products that any way of
computing it needs, against the manifold by a plain loop over points, and against a training step of GoogLeNet at 224 pixels.

A part of `benchmarks/bench.py`, which runs it.
"""
import time
import torch
from torch.nn.functional import normalize
from plm.baselines import STMLLoss
from plm.core import generator_at
from plm.encoder import Encoder, MomentumEncoder
from plm.losses import PLMLoss
from plm.manifold import PiecewiseLinearManifold
from plm.proxies import Proxies
from timing import against, interleaved

m, T, PROXIES = 3, 0.9, 100


def batch(setting, B, d):
    "(B, d) float32 unit vectors: clusters of 5, as neighbourhood batches are; the blurred ones with pieces of the sizes that trained encoders give."
    g = generator_at(0, 'estimation', setting)
    def normal(*shape): return torch.randn(*shape, generator=g)
    centres = normalize(normal(-(-B//5), d), dim=1).repeat_interleave(5, 0)[:B]
    if setting == 'clusters': z = centres + 0.5*normal(B, d)/d**0.5
    if setting == 'blurred': z = centres + 0.3*normal(B, 6)@normal(6, d)/(6*d)**0.5 + 0.1*normal(B, d)/d**0.5
    if setting == 'plane': z = normal(B, 3)@normal(3, d)/d**0.5 + 0.1*normal(B, d)/d**0.5
    if setting == 'curved sheet':
        u = 3*torch.rand(B, 2, generator=g)
        z = torch.cat([u.sin(), u.cos(), u], 1)@normal(6, d)/d**0.5 + 0.02*normal(B, d)/d**0.5
    return normalize(z, dim=1)


def loop(t, points):
    "Members (points, B) of the first `points` pieces, by one SVD for each neighbour visited."
    members = torch.zeros(points, len(t), dtype=torch.bool, device=t.device)
    for i in range(points):
        delta = t - t[i]
        order = delta.norm(dim=1).argsort(stable=True)
        order = order[order != i].tolist()
        piece = order[:m]
        for candidate in order[m:]:
            grown = delta[piece + [candidate]]
            basis = torch.linalg.svd(grown, full_matrices=False).Vh[:m]
            if ((grown @ basis.T).square().sum(1) >= T*grown.square().sum(1)).all(): piece.append(candidate)
        members[i, piece + [i]] = True
    return members


def products(t, rho):
    "The matrix products alone: inner products of the momentum embeddings in float64, lengths along the pieces, distances of points and proxies; and back."
    B, d = t.shape
    inner, double = torch.empty(B, B, device=t.device), t.double()
    basis, proxy_basis = torch.empty(m, B, d, device=t.device).normal_(), torch.empty(m, len(rho), d, device=t.device).normal_()
    c = torch.empty(B, len(rho), device=t.device)
    def run():
        double @ double.T
        torch.mm(t, t.T, out=inner); inner @ t # distances of points, and their gradient
        for _ in range(2): torch.mm(t, rho.T, out=c)
        c @ rho; c.T @ t
        for directions in basis: t @ directions.T; rho @ directions.T
        for directions in proxy_basis: c.T @ t; t @ directions.T
    return run


def googlenet(device, images=4):
    "Seconds a training step takes per image: forward and backward of the trained encoder, forward of its moving average."
    encoder = Encoder('googlenet', 512).to(device).train()
    momentum, x = MomentumEncoder(encoder), torch.rand(images, 3, 224, 224, generator=generator_at('photos')).to(device)
    def step():
        encoder(x).square().sum().backward()
        momentum(x)
    return interleaved({'step': step}, 5, device)['step']/images


def rows(device):
    "The rows of this part."
    image = googlenet(device)
    for B in (100, 256, 1024):
        for d in (128, 512):
            for setting in ('clusters', 'blurred'):
                t = batch(setting, B, d).to(device)
                z, wide = t.clone().requires_grad_(), normalize(torch.randn(B, 1024, generator=generator_at('wide')), dim=1).to(device).requires_grad_()
                plm, stml, manifold = PLMLoss(Proxies(PROXIES, d, m).to(device), m, T), STMLLoss(), PiecewiseLinearManifold(m, T)
                pieces, given = manifold(t), PLMLoss(Proxies(PROXIES, d, m).to(device), m, T)
                given.manifold = lambda t: pieces
                index = torch.arange(B//2, device=device).repeat(2) # STML sees half as many images, twice
                took = interleaved({
                    'ours': lambda: sum(plm(z, t).values()).backward(),
                    'manifold': lambda: manifold(t),
                    'rest': lambda: sum(given(z, t).values()).backward(),
                    'STML': lambda: sum(stml(z, wide, wide.detach(), index).values()).backward(),
                    'matrix products': products(t, plm.proxies.location.detach())}, device=device)
                took['a GoogLeNet step'] = B*image
                for opponent in ('STML', 'matrix products', 'a GoogLeNet step'): yield against('estimation step', f'{setting}, B={B}, d={d}', took, opponent)
                yield against('manifold alone', f'{setting}, B={B}, d={d}', took, 'STML', 'manifold')
                yield against('similarity and losses', f'{setting}, B={B}, d={d}', took, 'STML', 'rest')
    clock = time.process_time if device.type == 'cpu' else time.perf_counter
    for setting in ('clusters', 'blurred', 'plane', 'curved sheet'): # the loop takes seconds: its first points, scaled
        t, points = batch(setting, 100, 128).to(device), 20
        took = interleaved({'ours': lambda: PiecewiseLinearManifold(m, T)(t)}, device=device)
        start = clock()
        members = loop(t, points)
        took['a loop of SVDs'] = (clock() - start)*len(t)/points
        # a float32 SVD may settle a quality within rounding of T the other way, and all that follows for that point with it
        if (members == PiecewiseLinearManifold(m, T)(t).members[:points]).float().mean() < 0.99: raise AssertionError(f'{setting}: the two ways disagree')
        yield against('manifold alone', f'{setting}, B=100, d=128', took, 'a loop of SVDs')
