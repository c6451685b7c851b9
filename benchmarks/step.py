"""Seconds per image of a full PLM step (load, augment, encoder, momentum encoder, manifold, losses, backward, AdamW,
moving average), beside plain cross-entropy with the same encoder, loader and optimiser. The momentum encoder adds a
forward pass, so the bound is about 0.75 of cross-entropy's throughput.

Photos are random pixels of 256 x 256 in a file that is mapped, as in training; the small images are in memory. What PLM
does once an epoch (embedding all images for the neighbours) is not in a step.
A part of `benchmarks/bench.py`, which runs it.
"""
import itertools, tempfile
from pathlib import Path
import numpy as np, torch
import torch.nn.functional as F
from torch import nn
from plm.core import generator_at
from plm.datasets import load_images
from plm.images import Augment, PhotoAugment, load_batches, to_device_if_small
from plm.methods import PLM
from plm.paper import settings
from plm.params import load_params
from plm.pretraining import new_encoder
from plm.training import Method
from timing import against, interleaved

CLASSES, SIDE, PARAMS = 100, 256, Path(__file__).parent.parent/'params.yaml'


class CrossEntropy(Method):
    "A linear classifier on the embedding, taught by random labels."
    def __init__(self, encoder, constants, labels):
        super().__init__(encoder, constants)
        self.labels, self.classify = labels, nn.Linear(encoder.head.out_features, CLASSES).to(labels.device)

    def step(self, images, index, augment, g):
        return {'cross-entropy': F.cross_entropy(self.classify(self.encoder(augment(images, g))), self.labels[index])}


class Training:
    "A method in training: a call does some steps."
    def __init__(self, method, images, train, device, steps):
        self.method, self.images = method.train(), to_device_if_small(images, device)
        self.device, self.steps, self.epoch = device, steps, 0
        self.augment = PhotoAugment(train.crop) if train.crop else Augment()
        self.opt = torch.optim.AdamW(method.groups(method.constants.lr))
        self.batches = method.batches(len(images), train.batch_size)
        z = torch.randn(len(images), train.dim, generator=generator_at('neighbours'))
        self.batches.refresh(F.normalize(z, dim=1))

    def endless(self):
        while True:
            self.batches.set_epoch(self.epoch)
            self.epoch += 1
            yield from self.batches

    def __call__(self):
        g = generator_at('benchmark', self.epoch)
        for index, x in load_batches(self.images, itertools.islice(self.endless(), self.steps), self.device):
            loss = sum(self.method.step(x, index, self.augment, g).values())
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            self.method.after_step()


def compare(p, steps, device):
    "The row for the data set of `p`."
    train, constants = p.train, p.method['plm']
    side = (3, SIDE, SIDE) if train.crop else (1, 28, 28)
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.default_rng(0).integers(0, 256, (4*train.batch_size*steps, *side), np.uint8)
        np.save(Path(folder)/'train_images.npy', pixels)
        images = load_images(folder, 'train')
        labels = torch.randint(CLASSES, (len(images),), generator=generator_at('labels')).to(device)
        ways = {'ours': PLM(new_encoder(train).to(device), constants),
                'cross-entropy': CrossEntropy(new_encoder(train).to(device), constants, labels)}
        took = interleaved({name: Training(method, images, train, device, steps) for name, method in ways.items()},
                           9, device, 240)
    took = {name: seconds/(train.batch_size*steps) for name, seconds in took.items()}
    setting = f'{train.backbone}, {train.crop or 28} px, B={train.batch_size}, {train.precision}'
    return against('training step, an image', setting, took, 'cross-entropy')


def rows(device):
    "The rows of this part: seconds are those of an image."
    gpu = device.type == 'cuda'
    yield compare(load_params(PARAMS, {'dataset': 'glyphs', 'train.batch_size': 100}), 10, device)
    for precision, B in itertools.product(('float32', 'bf16'), (100, 120)) if gpu else [('float32', 100)]:
        photos = settings('cub200-512', f'cub200.train.precision={precision} cub200.train.batch_size={B}')
        yield compare(load_params(PARAMS, photos), 20 if gpu else 1, device)
