"""Images per second of a full PLM step (load, augment, encoder, momentum encoder, manifold, losses, backward, AdamW, moving average) against plain cross-entropy with the same encoder,
loader and optimiser. The momentum encoder adds a forward pass, so the bound is about 0.75 of cross-entropy's throughput.

Photos are random pixels of 256 x 256 in a file that is mapped, as in training; the small images are in memory. What PLM does once an epoch (embedding all images for the neighbours) is not in a step.
A part of `benchmarks/bench.py`, which runs it.
"""
import itertools, tempfile
from pathlib import Path
import numpy as np, torch
import torch.nn.functional as F
from torch import nn
from plm.core import generator_at
from plm.data import Augment, PhotoAugment, batches_on, load_images, settle
from plm.paper import settings
from plm.params import load_params
from plm.sampling import RandomBatches
from plm.training import PLM, encoder_of, parameter_groups
from timing import against, interleaved

CLASSES, SIDE, PARAMS = 100, 256, Path(__file__).parent.parent/'params.yaml'


class CrossEntropy(nn.Module):
    "A linear classifier on the embedding, taught by random labels."
    def __init__(self, encoder, labels):
        super().__init__()
        self.encoder, self.labels, self.classify = encoder, labels, nn.Linear(encoder.head.out_features, CLASSES).to(labels.device)
    def batches(self, n, batch_size, seed): return RandomBatches(n, batch_size, seed)
    def forward(self, images, index, augment, g): return {'cross-entropy': F.cross_entropy(self.classify(self.encoder(augment(images, g))), self.labels[index])}
    def after_step(self): pass


class Run:
    "A method in training: a call does some steps."
    def __init__(self, method, images, batch, p, device, steps):
        self.method, self.images, self.device, self.steps = method, settle(images, device), device, steps
        self.augment = PhotoAugment(p.train.crop) if p.train.crop else Augment()
        groups = method.groups(p.method['plm'].lr) if hasattr(method, 'groups') else parameter_groups(method, [], p.method['plm'].lr)
        self.opt, self.epoch = torch.optim.AdamW(groups), 0
        self.batches = method.batches(len(images), batch, 0)
        if hasattr(self.batches, 'refresh'): self.batches.refresh(F.normalize(torch.randn(len(images), p.train.dim, generator=generator_at('neighbours')), dim=1))
        method.train()

    def endless(self):
        while True:
            self.batches.set_epoch(self.epoch)
            self.epoch += 1
            yield from self.batches

    def __call__(self):
        g = generator_at('benchmark', self.epoch)
        for index, x in batches_on(self.images, itertools.islice(self.endless(), self.steps), self.device):
            loss = sum(self.method(x, index, self.augment, g).values())
            self.opt.zero_grad(); loss.backward(); self.opt.step()
            self.method.after_step()


def rows(device):
    "The rows of this part: seconds are those of an image."
    gpu = device.type == 'cuda'
    small, photos = load_params(PARAMS, {'dataset': 'glyphs'}), [(load_params(PARAMS, settings('cub200-512', f'cub200.train.precision={precision}')), batch)
        for precision in (('float32', 'bf16') if gpu else ('float32',)) for batch in ((100, 120) if gpu else (100,))]
    for p, batch in [(small, 100), *photos]:
        steps, side = (20 if gpu else 1) if p.train.crop else 10, (3, SIDE, SIDE) if p.train.crop else (1, 28, 28)
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder)/'train_images.npy', np.random.default_rng(0).integers(0, 256, (4*batch*steps, *side), np.uint8))
            images = load_images(folder, 'train')
            labels = torch.randint(CLASSES, (len(images),), generator=generator_at('labels')).to(device)
            plm, plain = (Run(method, images, batch, p, device, steps) for method in (PLM(encoder_of(p.train).to(device), p.method['plm'], 0), CrossEntropy(encoder_of(p.train).to(device), labels)))
            took = interleaved({'ours': plm, 'cross-entropy': plain}, 9, device, 240)
        yield against('training step, an image', f'{p.train.backbone}, {p.train.crop or 28} px, B={batch}, {p.train.precision}', {name: seconds/(batch*steps) for name, seconds in took.items()}, 'cross-entropy')
