"""What the estimation step costs (manifold, similarity, three losses and their backward), beside STML's whole loss, the
matrix products that any way of computing it needs, and a training step of GoogLeNet at 224 pixels; and the manifold
beside the same by a plain loop (`plm.manifold.grow_piece`).

A part of `benchmarks/bench.py`, which runs it.
"""
import itertools
import torch
from torch.nn.functional import normalize
from plm.backbones import build_encoder
from plm.baselines import STMLLoss
from plm.core import generator_at
from plm.encoder import MomentumEncoder
from plm.losses import PLMLoss
from plm.manifold import PiecewiseLinearManifold, grow_piece
from plm.proxies import Proxies
from timing import against, interleaved

m, PROXIES = 3, 100
SETTINGS = ('clusters', 'blurred', 'plane', 'curved sheet')


def batch(setting, B, d):
    """(B, d) float32 unit vectors. Clusters of 5 are like neighbourhood batches; the blurred ones have pieces of the
    sizes that trained encoders give; plane and curved sheet have the largest pieces."""
    g = generator_at(0, 'estimation', setting)
    def normal(*shape): return torch.randn(*shape, generator=g)
    centres = normalize(normal(-(-B//5), d), dim=1).repeat_interleave(5, 0)[:B]
    if setting == 'clusters': z = centres + 0.5*normal(B, d)/d**0.5
    if setting == 'blurred': z = centres + 0.3*normal(B, 6) @ normal(6, d)/(6*d)**0.5 + 0.1*normal(B, d)/d**0.5
    if setting == 'plane': z = normal(B, 3) @ normal(3, d)/d**0.5 + 0.1*normal(B, d)/d**0.5
    if setting == 'curved sheet':
        u = 3*torch.rand(B, 2, generator=g)
        z = torch.cat([u.sin(), u.cos(), u], 1) @ normal(6, d)/d**0.5 + 0.02*normal(B, d)/d**0.5
    return normalize(z, dim=1)


def products(t, rho):
    """The matrix products alone: inner products of the momentum embeddings in float64, lengths along the pieces,
    distances of points and proxies; and back."""
    B, d = t.shape
    inner, double, c = torch.empty(B, B, device=t.device), t.double(), torch.empty(B, len(rho), device=t.device)
    basis, proxy_basis = (torch.empty(m, n, d, device=t.device).normal_() for n in (B, len(rho)))
    def run():
        double @ double.T
        torch.mm(t, t.T, out=inner)
        inner @ t # distances of points, and their gradient
        for _ in range(2): torch.mm(t, rho.T, out=c)
        c @ rho, c.T @ t
        for directions in basis: t @ directions.T, rho @ directions.T
        for directions in proxy_basis: c.T @ t, t @ directions.T
    return run


def googlenet(device, images=4):
    "Seconds per image of a training step: forward and backward of the encoder, forward of its moving average."
    encoder = build_encoder('googlenet', 512).to(device).train()
    momentum, x = MomentumEncoder(encoder), torch.rand(images, 3, 224, 224, generator=generator_at('photos')).to(device)
    def step():
        encoder(x).square().sum().backward()
        momentum(x)
    return interleaved({'step': step}, 5, device)['step']/images


def compare(t, setting, step):
    "Rows for a batch `t`; `step` is what a GoogLeNet step takes, in seconds."
    B, d = t.shape
    z, wide = t.clone().requires_grad_(), torch.randn(B, 1024, generator=generator_at('wide')).to(t.device)
    wide = normalize(wide, dim=1).requires_grad_()
    manifold, proxies, stml = PiecewiseLinearManifold(m), Proxies(PROXIES, d, m).to(t.device), STMLLoss()
    pieces = manifold(t)
    plm, rest = PLMLoss(proxies, manifold), PLMLoss(proxies, lambda t: pieces)
    index = torch.arange(B//2, device=t.device).repeat(2) # STML sees half as many images, twice
    took = interleaved({
        'ours': lambda: sum(plm(z, t).values()).backward(),
        'manifold': lambda: manifold(t),
        'rest': lambda: sum(rest(z, t).values()).backward(),
        'STML': lambda: sum(stml(z, wide, wide.detach(), index).values()).backward(),
        'matrix products': products(t, proxies.location.detach())}, device=t.device) | {'a GoogLeNet step': step}
    setting = f'{setting}, B={B}, d={d}'
    for opponent in ('STML', 'matrix products', 'a GoogLeNet step'):
        yield against('estimation step', setting, took, opponent)
    yield against('manifold alone', setting, took, 'STML', 'manifold')
    yield against('similarity and losses', setting, took, 'STML', 'rest')


def rows(device):
    "The rows of this part."
    image = googlenet(device)
    for B, d, setting in itertools.product((100, 256, 1024), (128, 512), ('clusters', 'blurred')):
        yield from compare(batch(setting, B, d).to(device), setting, B*image)
    for setting in SETTINGS:
        t = batch(setting, 100, 128).to(device)
        took = interleaved({'ours': lambda: PiecewiseLinearManifold(m)(t),
                            'a loop of SVDs': lambda: [grow_piece(t, i, m) for i in range(len(t))]}, device=device)
        yield against('manifold alone', f'{setting}, B=100, d=128', took, 'a loop of SVDs')
