"""Images per second of a full PLM step (load, augment, encoder, momentum encoder, manifold, losses, backward, AdamW, moving average) against plain cross-entropy with the same encoder,
loader and optimiser, in one run. The momentum encoder adds a forward pass, so the bound is 0.75 of cross-entropy's throughput.

    python benchmarks/step.py [--batch 100 120] [--precision bf16] [--device auto]

Prints a table and writes benchmarks/step.csv: medians over repeats in which the two take turns. Photos are random pixels of 256 x 256 in a file that is mapped, as in training. What PLM does once an
epoch (embedding all images for the neighbours) is not in a step. Without a GPU the batch is 20 and the steps are few: a figure of that kind says little about one.
"""
import argparse, csv, itertools, os, statistics, tempfile, time
from pathlib import Path
import numpy as np, torch
import torch.nn.functional as F
from torch import nn
from plm.core import generator_at, pick_device, whole_file
from plm.data import PhotoAugment, batches_on, load_images
from plm.paper import settings
from plm.params import load_params
from plm.sampling import RandomBatches
from plm.training import PLM, encoder_of, parameter_groups

CLASSES, SIDE = 100, 256


class CrossEntropy(nn.Module):
    "A linear classifier on the embedding, taught by random labels."
    def __init__(self, encoder, labels):
        super().__init__()
        self.encoder, self.labels, self.classify = encoder, labels, nn.Linear(encoder.head.out_features, CLASSES).to(labels.device)
    def batches(self, n, batch_size, seed): return RandomBatches(n, batch_size, seed)
    def forward(self, images, index, augment, g): return {'cross-entropy': F.cross_entropy(self.classify(self.encoder(augment(images, g))), self.labels[index])}
    def after_step(self): pass


class Run:
    "A method in training: a call does some steps and returns images per second."
    def __init__(self, method, images, batch, p, device):
        self.method, self.images, self.batch, self.device, self.augment = method, images, batch, device, PhotoAugment(p.train.crop)
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

    def __call__(self, steps):
        g = generator_at('benchmark', self.epoch)
        wait = torch.cuda.synchronize if self.device.type == 'cuda' else lambda: None
        loader = batches_on(self.images, itertools.islice(self.endless(), steps + 1), self.device)
        index, x = next(loader) # the loader's threads are at work; the clock starts when the first batch is there, and stops when the last has been used
        wait()
        start = time.perf_counter()
        for index, x in itertools.chain([(index, x)], itertools.islice(loader, steps - 1)):
            loss = sum(self.method(x, index, self.augment, g).values())
            self.opt.zero_grad(); loss.backward(); self.opt.step()
            self.method.after_step()
        wait()
        rate = steps*self.batch/(time.perf_counter() - start)
        loader.close()
        return rate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, nargs='+', help='multiples of 5 (default: 100 and 120 on a GPU, 20 elsewhere)')
    parser.add_argument('--precision', nargs='+', default=['float32', 'bf16'])
    parser.add_argument('--device', default='auto')
    parser.add_argument('--steps', type=int, help='per repeat (default: 20 on a GPU, 2 elsewhere)')
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    device = pick_device(args.device)
    gpu = device.type == 'cuda'
    name = torch.cuda.get_device_name(device) if gpu else f'CPU, {torch.get_num_threads()} threads'
    steps, rows = args.steps or (20 if gpu else 2), []
    load = '' if gpu else f' (load {os.getloadavg()[0]:.1f}: others on the machine count)'
    print(f'googlenet at 224, {name}{load}\n{"precision":10} {"batch":>5} {"PLM":>10} {"cross-entropy":>14} {"ratio":>6} {"memory":>9}')
    with tempfile.TemporaryDirectory() as folder:
        batches = args.batch or ([100, 120] if gpu else [20])
        n = 20*max(batches) if gpu else 3*max(batches)
        np.save(Path(folder)/'train_images.npy', np.random.default_rng(0).integers(0, 256, (n, 3, SIDE, SIDE), np.uint8))
        images = load_images(folder, 'train')
        for precision, batch in itertools.product(args.precision, batches):
            p = load_params(Path(__file__).parent.parent/'params.yaml', settings('cub200-512', f'cub200.train.precision={precision}'))
            labels = torch.randint(CLASSES, (n,), generator=generator_at('labels')).to(device)
            runs = [Run(method, images, batch, p, device) for method in (PLM(encoder_of(p.train).to(device), p.method['plm'], 0), CrossEntropy(encoder_of(p.train).to(device), labels))]
            if gpu: torch.cuda.reset_peak_memory_stats()
            for run in runs: run(3 if gpu else 1) # warm
            memory = f'{torch.cuda.max_memory_reserved()/1e9:.2f} GB' if gpu else ''
            rates = [[run(steps) for run in runs] for _ in range(args.repeats)]
            plm, plain = (statistics.median(r) for r in zip(*rates))
            ratio = statistics.median(a/b for a, b in rates) # of neighbours in time, so that a busy moment hits both
            rows.append((name, precision, batch, f'{plm:.1f}', f'{plain:.1f}', f'{ratio:.3f}'))
            print(f'{precision:10} {batch:5} {plm:6.1f} im/s {plain:10.1f} im/s {ratio:6.2f} {memory:>9}', flush=True)
            del runs
            if gpu: torch.cuda.empty_cache()
    with whole_file(Path(__file__).with_suffix('.csv')) as tmp, open(tmp, 'w', newline='') as f:
        csv.writer(f).writerows([('device', 'precision', 'batch', 'plm_images_per_second', 'cross_entropy_images_per_second', 'ratio'), *rows])


if __name__ == '__main__': main()
