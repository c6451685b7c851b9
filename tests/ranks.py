"What the processes of test_distributed do: functions that another process can import."
import os, signal, sys
from pathlib import Path
import torch
from plm import methods, sampling, training
from plm.core import generator_at
from plm.distributed import (all_gather, all_reduce_gradients, broadcast, divide, init_processes, own_rows, rank,
                             sync_batchnorm, world_size)
from plm.encoder import Encoder, embed
from plm.evaluation import ranking, retrieval_metrics
from plm.methods import METHODS, PLM, PLMConstants, SimCLRConstants, STMLConstants
from plm.sampling import NeighborhoodBatches, NeighborSearch, nearest_neighbors
from plm.training import TrainConstants

CPU = torch.device('cpu')
SHARED = TrainConstants(backbone='convnet', weights='none', dim=8, crop=None, precision='float32', norm='moving',
                        epochs=3, batch_size=24)
CONSTANTS = {
    'simclr': SimCLRConstants(lr=1e-3, temperature=0.1),
    'stml': STMLConstants(lr=1e-3, sigma=3., delta=1., k=3, gamma=0.9, wide=16, view='augmented'),
    'plm': PLMConstants(lr=1e-3, k=4, m=2, T=0.9, max_neighbors=23, similarity='piecewise', n_alpha=4., n_beta=0.5,
                        delta=2., n_proxies=5, terms=['point', 'proxy', 'neighborhood'], gamma=0.9, n_views=1,
                        view='plain', refresh='full')}


def replace(constants, **changes): return type(constants)(**constants.model_dump() | changes)


def pictures(n, *address):
    return torch.randint(0, 256, (n, 1, 24, 24), generator=generator_at('ranks', n, *address), dtype=torch.uint8)


VAL = pictures(12, 'val'), torch.arange(12) % 4 # images and labels


def same_views(images, g): return images.to(torch.get_default_dtype())/255


def train(name, scratch, images=None, shared=SHARED, kind=None, **changes):
    "A short training; its log."
    method = (kind or METHODS[name])(Encoder(dim=8), replace(CONSTANTS[name], **changes), 0)
    return methods.train(method, pictures(50) if images is None else images, VAL, shared, scratch), method


def gradients(name, B=24):
    "Loss terms and the gradient of every parameter on one batch, in 64 bits, without augmentation."
    torch.set_default_dtype(torch.float64)
    try:
        kind, _, two = name.partition(', ')
        constants = replace(CONSTANTS[kind], n_views=2) if two else CONSTANTS[kind]
        method = METHODS[kind](Encoder(dim=8).double(), constants, 0).double().train()
        sync_batchnorm(method)
        views = 1 if name == 'plm' else 2
        index = torch.arange(B//views)
        rows = own_rows(len(index))
        methods.as_input, before = lambda images: same_views(images, None), methods.as_input
        terms = method.step(pictures(B//views)[rows], index[rows], same_views, None)
        methods.as_input = before
        sum(terms.values()).backward()
        all_reduce_gradients(method.parameters(), method.replicated())
        grads = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
        buffers = {k: b for k, b in method.named_buffers() if b.is_floating_point()}
        return {k: v.item() for k, v in terms.items()}, grads, buffers
    finally: torch.set_default_dtype(torch.float32)


def many_gradients(names, embed_n=()):
    "The above for several methods, and the embeddings of some numbers of images."
    init_processes(CPU)
    encoder = Encoder(dim=8)
    embedded = [divide(lambda rows: embed(encoder, pictures(n)[rows]))(torch.arange(n)) for n in embed_n]
    return world_size(), [gradients(name) for name in names], embedded


def run(name, scratch, stop=None):
    """A short training, the same views everywhere; killed by its own hand after `stop` epochs. Log, weights, their
    greatest difference between processes, and which process wrote."""
    init_processes(CPU)
    torch.set_num_threads(1)
    training.Augment = lambda: same_views
    saved, real = [], training.save_state
    def save(state, path):
        real(state, path)
        saved.append(rank())
        if len(state['log']) - 1 == stop: os.kill(os.getpid(), signal.SIGKILL)
    training.save_state = save
    log, method = train(name, scratch)
    whole = method.state_dict()
    flat = torch.cat([v.double().flatten() for v in whole.values()])
    everywhere = all_gather(flat[None]) # one row of each process
    return log, whole, (everywhere - everywhere[0]).abs().max().item(), saved


def fail(how):
    if how != 'early': init_processes(CPU)
    if rank() == 1 or how == 'early' and os.environ['RANK'] == '1':
        if how == 'killed': os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(f'broken on purpose, {how}')
    if how == 'early': init_processes(CPU)
    all_gather(torch.zeros(1))


def wait_forever(file):
    import time
    init_processes(CPU)
    Path(f'{file}{rank()}').write_text(str(os.getpid()))
    time.sleep(600)


def indivisible(scratch):
    init_processes(CPU)
    train('plm', scratch, shared=replace(SHARED, batch_size=26), k=2)


def crowd(n, *address):
    return torch.nn.functional.normalize(torch.randn(n, 12, generator=generator_at('crowd', n, *address)))


def divided(scratch):
    """What is searched: batches and measured recall; how many rows each process searched at first; whether all have the
    same; what is said of a process that begins otherwise."""
    init_processes(CPU)
    torch.set_num_threads(1)
    found, asked, real, block = {}, [], NeighborSearch.__call__, sampling._block
    NeighborSearch.__call__ = lambda self, rows: asked.append(len(rows)) or real(self, rows)
    try:
        for name, n, sampling._block, options in (('at once', 203, 2**14, {}), ('later', 203, 50, {}),
                                                  ('index', 900, 60, dict(exact_up_to=100, enough=0.5)),
                                                  ('index of no use', 900, 60, dict(exact_up_to=100, enough=1.01))):
            batches = NeighborhoodBatches(n, 20, 4, **options)
            batches.refresh(crowd(n), divide)
            found[name] = torch.tensor([*batches, *(batches.set_epoch(1) or batches)])
            measured = [batches.search.recall, *(batches.search.cells or ())]
            found[f'{name}: recall'] = torch.tensor(measured, dtype=torch.double)
        found['two points'] = divide(NeighborSearch(crowd(2), 1))(torch.arange(2)) # fewer than three processes
    finally: NeighborSearch.__call__, sampling._block = real, block
    searched = all_gather(torch.tensor(asked[:1])).tolist()
    same = all((everywhere == everywhere[0]).all() for x in found.values() for everywhere in [all_gather(x[None])])
    said, last = None, world_size() - 1
    if last:
        mine = pictures(50, *[rank()]*(rank() == last))
        try: train('plm', scratch, mine)
        except ValueError as e: said = str(e)
    return found, searched, same, said, broadcast({'of': rank()}, last)


def kept(scratch):
    """The embeddings that a short training with `refresh: kept` has kept, those it began with, and whether all have the
    same."""
    init_processes(CPU)
    before, begun = training.Augment, []
    class Kept(PLM):
        def begin(self, z, g):
            begun.append(z)
            super().begin(z, g)
    training.Augment = lambda: same_views
    try: _, method = train('plm', scratch, shared=replace(SHARED, epochs=2), kind=Kept, refresh='kept')
    finally: training.Augment = before
    everywhere = all_gather(method.kept[None])
    return method.kept, begun[0], bool((everywhere == everywhere[0]).all())


def own_shards(folder):
    """Retrieval figures of the rows of this process alone, of process 1 alone, and who waited for nobody: process 0
    begins when all others are done."""
    import time
    init_processes(CPU)
    z, labels = crowd(90), torch.arange(90) % 9
    mine = own_rows(90)
    if not rank():
        began = time.monotonic()
        while not Path(folder, 'done').exists():
            if time.monotonic() - began > 60: raise TimeoutError
            time.sleep(0.05)
    here = retrieval_metrics(z[mine], labels[mine]), ranking(z[mine], 3), nearest_neighbors(z[mine], 3)
    if rank(): Path(folder, 'done').touch()
    return {r: broadcast(here, r) for r in range(world_size())}


def everything(names, embed_n, scratch):
    "`many_gradients`, `divided` and `kept`, in one start of the processes."
    return many_gradients(names, embed_n), divided(scratch), kept(scratch)


def on_machine(folder):
    """Training on machines that share no disk: broken off in the second epoch, and taken up again with the machines
    numbered the other way round. Then process 1 dies."""
    init_processes(CPU)
    torch.set_num_threads(1)
    training.Augment = lambda: same_views
    def on(disk): return train('plm', f'{folder}/disk{disk}')[0]
    real, epochs = training._train_epoch, []
    def until_second(*args):
        epochs.append(args[2].epoch)
        if len(epochs) == 2: raise KeyboardInterrupt
        return real(*args)
    training._train_epoch = until_second
    try: on(rank())
    except KeyboardInterrupt: all_gather(torch.zeros(1))
    files = [len(list(Path(folder, f'disk{i}').glob('*.pt'))) for i in range(2)]
    all_gather(torch.zeros(1))
    log = on(1 - rank())
    if not rank():
        sizes = dict(world_size=world_size(), local=os.environ['LOCAL_WORLD_SIZE'])
        torch.save(dict(log=log, epochs=epochs, files=files, **sizes), f'{folder}/found.pt')
    all_gather(torch.zeros(1))
    if rank() == 1: os.kill(os.getpid(), signal.SIGKILL)
    all_gather(torch.zeros(1))


if __name__ == '__main__': on_machine(sys.argv[1])
