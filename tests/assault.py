"""Kills what writes, and breaks what is read, for as long as one gives it: `python tests/assault.py MINUTES [SEED]`.

Each assault is drawn from a seed. At the end stands a table: what was done how often, and what came out. An outcome in
capitals is a fault, and the program says where it came from. Killing the whole pipeline takes minutes, so it is done
where five are given at least.
"""
import csv, io, os, random, signal, sys, tempfile, time, traceback, zipfile
from collections import Counter
from pathlib import Path
from subprocess import DEVNULL
import faiss, numpy as np, psutil, torch
from PIL import Image
from plm import photos
from plm.backbones import build_encoder
from plm.checkpoint import load_state, save_state
from plm.core import Constants, generator_at, text_table
from plm.encoder import Encoder
from plm.photos import decode_image, list_images, write_photos
from plm.pretraining import new_encoder
from plm.search import Search
from plm.training import Method, Run, TrainConstants, fit
from plm.transfer import unpack
from repository import make_toy

TINY = TrainConstants(backbone='convnet', weights='none', dim=8, crop=None, precision='float32', norm='moving',
                      epochs=3, batch_size=10)


def broken(data, draw):
    "Bytes with some flipped, cut off, or doubled."
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 8])): data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    how = draw.random()
    if how < 0.1: data = data[:draw.randrange(len(data))]
    elif how < 0.2: data[draw.randrange(len(data)):0] = data[:draw.randrange(len(data))]
    return bytes(data)


def refused(call, good='UNNOTICED'):
    "How a call ends: in one sentence, well, or in an error that nobody has thought of."
    try: call()
    except (ValueError, FileNotFoundError) as e: return 'refused' if len(str(e)) < 1000 else 'LONG ERROR'
    return good


def state(draw, folder):
    save_state({'w': torch.ones(50, 4), 'log': [{'epoch': 1}]}, folder/'a.pt')
    (folder/'a.pt').write_bytes(broken((folder/'a.pt').read_bytes(), draw))
    return refused(lambda: load_state(folder/'a.pt'))


def search(draw, folder):
    z = torch.nn.functional.normalize(torch.randn(9, 8, generator=generator_at('assault')), dim=1)
    Search(new_encoder(TINY), TINY, 28, list('abcdefghi'), list('123456789'), z).save(folder)
    file = draw.choice(sorted(folder.iterdir()))
    if draw.random() < 0.1: file.unlink()
    else: file.write_bytes(broken(file.read_bytes(), draw))
    return refused(lambda: Search.load(folder, 'cpu'))


def weights(draw, folder):
    "Of somebody else, so without a sum: they may be taken, but not raise."
    torch.save(build_encoder(dim=4).backbone.state_dict(), folder/'w.pth')
    (folder/'w.pth').write_bytes(broken((folder/'w.pth').read_bytes(), draw))
    return refused(lambda: build_encoder(weights=str(folder/'w.pth')), 'taken')


def picture(draw):
    return Image.fromarray((np.random.default_rng(draw.randrange(9)).random((40, 50, 3))*255).astype('uint8'))


def image(draw, folder):
    kind = draw.choice(['JPEG', 'PNG', 'TIFF', 'WEBP', 'GIF', 'BMP', 'PPM', 'JPEG2000', 'AVIF', 'ICO', 'TGA', 'PCX'])
    whole = io.BytesIO()
    picture(draw).save(whole, kind)
    file = folder/f'a.{draw.choice([kind.lower(), "jpg", "tif", "nef", "xyz"])}'
    file.write_bytes(broken(whole.getvalue(), draw))
    refused(lambda: list_images(folder)) # which may find no image
    pixels, note = decode_image(file, 32)
    return 'decoded' if pixels is not None else 'named' if note else 'SILENT'


def labels(draw, folder):
    picture(draw).save(folder/'a.png')
    text = io.StringIO()
    name = draw.choice(['a.png', './a.png', 'b.png', 'b'*9999])
    row = name, draw.choice(['x', '"', 'é']), '1'*draw.randrange(99)
    csv.writer(text).writerows([['file', 'label', 'price'], row])
    (folder/'l.csv').write_bytes(broken(text.getvalue().encode(), draw))
    return refused(lambda: list_images(folder, folder/'l.csv'), 'read')


def archive(draw, folder):
    with zipfile.ZipFile(folder/'a.zip', 'w') as z:
        for i in range(3): z.writestr('d/'*draw.choice([1, 5, 2000]) + f'{i}.txt', 'text'*draw.randrange(99))
    (folder/'a.zip').write_bytes(broken((folder/'a.zip').read_bytes(), draw))
    try: return refused(lambda: unpack(folder/'a.zip', folder/'in'), 'unpacked')
    except FileExistsError: return 'refused'


def killed(draw, work):
    "A copy of this process works; it is killed at any moment and begun again till it ends."
    for patience in range(99):
        child = os.fork()
        if not child:
            try: work()
            except BaseException: os._exit(1)
            os._exit(0)
        time.sleep(draw.random()*0.3*(1 + patience))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0: break
    work() # nothing to do, or the rest


def same(folder, kind):
    alone, killed = ((folder/f'{who}.{kind}').read_bytes() for who in ('alone', 'killed'))
    return 'same bytes' if alone == killed else 'OTHER BYTES'


class Pull(Method):
    def step(self, images, index, augment, g):
        return {'pull': (self.encoder(augment(images, g))[:, 0] - 1).square().mean()}


def training(draw, folder):
    images = torch.randint(0, 256, (40, 1, 28, 28), generator=generator_at('assault'), dtype=torch.uint8)
    def work(place):
        if (folder/f'{place}.pt').exists(): return
        method = Pull(Encoder(dim=8), Constants())
        fit(method, images, Run('pull', TINY, 1e-3, scratch=folder/place))
        save_state(method.state_dict(), folder/f'{place}.pt')
    work('alone')
    killed(draw, lambda: work('killed'))
    return same(folder, 'pt')


def decoding(draw, folder):
    for i in range(30): picture(random.Random(i)).rotate(i).save(folder/f'{i}.png')
    files, photos._COMMIT = sorted(folder.glob('*.png')), 0
    write_photos(files, folder/'alone.npy', 64, workers=1)
    killed(draw, lambda: write_photos(files, folder/'killed.npy', 64, workers=1))
    return same(folder, 'npy')


REPRO = 'python', 'nbs/pipeline/alone.py', 'python', 'nbs/pipeline/repro.py' # what `make repro` runs
MADE = 'runs/train', 'results'

def pipeline(draw, folder, known={}):
    "The whole pipeline at toy size: every process of it is killed, in any order, at any moments, and it goes on."
    if not known:
        known['top'] = tempfile.TemporaryDirectory()
        whole = make_toy(Path(known['top'].name)/'toy', Path(known['top'].name))
        whole.ok(*REPRO)
        known['made'] = whole.bytes_of(*MADE)
    toy = make_toy(folder/'toy', folder)
    for _ in range(draw.randrange(1, 6)):
        process = toy.start(*REPRO, stdout=DEVNULL, stderr=DEVNULL)
        time.sleep(draw.random()*40)
        if process.poll() is not None: break
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        if draw.random() < 0.5: family = family[:1] # what it has started must go with it
        draw.shuffle(family)
        for p in family:
            try: p.kill()
            except psutil.NoSuchProcess: pass
        process.wait()
    toy.ok(*REPRO) # or it says what was said
    if toy.half_written() or list(toy.scratch.iterdir()): return 'LEFTOVERS'
    return 'same bytes' if toy.bytes_of(*MADE) == known['made'] else 'OTHER BYTES'


ASSAULTS = state, search, weights, image, labels, archive, training, decoding, pipeline
KILLS = training, decoding, pipeline # which take long


def main(minutes, seed=0):
    "Assault till the time is over, each kind once at least; the number of faults."
    torch.set_num_threads(1), faiss.omp_set_num_threads(1)
    counts, until, number, faults = Counter(), time.monotonic() + 60*minutes, 0, []
    terminal, sys.stdout = (sys.stdout, sys.stderr), open(os.devnull, 'w')
    sys.stderr = sys.stdout # progress bars, and what is left out
    kinds = ASSAULTS if minutes >= 5 else ASSAULTS[:-1]
    while number < len(kinds) or time.monotonic() < until:
        assault = kinds[number % len(kinds)]
        for again in range(1 if assault in KILLS else 10):
            with tempfile.TemporaryDirectory() as folder:
                draw = random.Random(f'{seed} {number} {again}')
                try: outcome = assault(draw, Path(folder))
                except Exception as e:
                    outcome = f'RAW {type(e).__name__}'
                    where = f'{assault.__name__}, seed {seed}, number {number}, {again}'
                    faults.append(f'{where}\n{traceback.format_exc()}')
                counts[assault.__name__, outcome] += 1
        number += 1
    sys.stdout, sys.stderr = terminal
    lines = [[*key, str(n)] for key, n in sorted(counts.items())]
    print(*faults, text_table(['what', 'outcome', 'times'], lines), sep='\n')
    return sum(n for (_, outcome), n in counts.items() if outcome.split()[0].isupper())


if __name__ == '__main__': sys.exit(bool(main(float(sys.argv[1]), *map(int, sys.argv[2:]))))
