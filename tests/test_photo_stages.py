"""The stages evaluate, similarity, map and report on photographs: colour, a benchmark of three tests with galleries, no
val classes. The runs before them are made up: random encoders, blobs of colour."""
import csv, json
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pytest, torch, yaml
from PIL import Image
import reference_evaluation as reference
from plm.backbones import build_encoder
from plm.checkpoint import save_state
from plm.core import write_csv
from plm.encoder import embed
from reference_map import cells
from repository import ROOT, Toy, copy_pipeline, outputs

METHODS, SEED = ('pretrained', 'plm'), 1
TESTS = {'small': 4, 'medium': 6, 'large': 10} # classes of each


def blobs(n_classes, per_class, side, seed=0):
    "Each class a colour, each image a disc of it somewhere, and noise."
    r = np.random.default_rng(seed)
    colours, labels = r.uniform(60, 230, (n_classes, 3, 1, 1)), np.arange(n_classes).repeat(per_class)
    y, x = np.mgrid[:side, :side]/side
    discs = np.stack([(x - a)**2 + (y - b)**2 < 0.09 for a, b in r.uniform(0.35, 0.65, (len(labels), 2))])
    images = np.where(discs[:, None], colours[labels], 40) + r.normal(0, 25, (len(labels), 3, side, side))
    return images.clip(0, 255).astype(np.uint8), labels


def rounds_of(labels, draws=2):
    "As VehicleID has them: of each class one image in the gallery."
    r = np.random.default_rng(1)
    for test, n in TESTS.items():
        images = np.flatnonzero(labels < n)
        for i in range(draws):
            gallery = np.array([r.choice(images[labels[images] == c]) for c in range(n)])
            yield test, i, np.setdiff1d(images, gallery), gallery


def encoder(address): return build_encoder('resnet18', 16, address, crop=32)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "The four stages' outputs on a made-up VehicleID."
    root, home = tmp_path_factory.mktemp('photos')/'toy', tmp_path_factory.mktemp('home')
    copy_pipeline(root)
    toy, data = Toy(root, home), root/'runs/data'
    for folder in ('runs/data', 'runs/toy', 'runs/notebooks'): (root/folder).mkdir(parents=True)
    params = yaml.safe_load((ROOT/'params.yaml').read_text())
    params |= dict(dataset='vehicleid', methods=list(METHODS), seeds=[SEED], device='cpu')
    train = dict(backbone='resnet18', weights='none', dim=16, crop=32, precision='float32', norm='moving', epochs=1)
    params['vehicleid'] = dict(sizes=dict(side=40, val_every=None), train=dict(train, batch_size=20))
    toy.write_params(params)
    images, labels = blobs(10, 8, 40)
    np.save(data/'test_images.npy', images), np.save(data/'test_labels.npy', labels)
    np.save(data/'val_images.npy', images[:0]), np.save(data/'val_labels.npy', labels[:0])
    np.savez(data/'test_rounds.npz', **{f'{test}|{i}|{kind}': which for test, i, q, g in rounds_of(labels)
                                        for kind, which in (('queries', q), ('gallery', g))})
    (data/'classes.json').write_text(json.dumps({'test': [f'vehicle {c}' for c in range(10)]}))
    for i, run in enumerate((f'pretrain/{SEED}', *(f'train/{m}-{SEED}' for m in METHODS))):
        save_state(encoder((i,)).state_dict(), root/f'runs/{run}/encoder.pt')
    trained = [dict(epoch=e, images_seen=100*e, loss=2 - e/2, proxy_moved=0.1*e, proxy_used=0.5, proxy_distance=0.7)
               for e in range(3)]
    for m, log in (('pretrained', [dict(epoch=0, images_seen=0)]), ('plm', trained)):
        write_csv(log, root/f'runs/train/{m}-{SEED}/log.csv')
    for name in ('toy.gif', 'grocery.png'): Image.new('L', (4, 4)).save(root/f'docs/images/{name}')
    Image.new('L', (4, 4)).save(root/'runs/toy/training.png')
    (root/'runs/toy/training.csv').write_text('seed\n0\n')
    (root/'results/ablation.csv').write_text('dataset,study,setting,seed,metric,value\n')
    namr = [f'toy,triplet,{v},{s},{m},0.{s + 5}\n'
            for v in ('plain', 'wide', 'namr') for s in (0, 1) for m in ('recall_at_1', 'map_at_r')]
    (root/'results/namr.csv').write_text('dataset,loss,variant,seed,metric,value\n' + ''.join(namr))
    (root/'results/index.csv').write_text('dataset,vectors,embedding,index,setting,metric,value\n')
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda stage: toy.ok(*toy.notebook(stage, stage)), ('evaluate', 'similarity', 'map')))
    toy.ok(*toy.notebook('report', 'report'))
    return toy


def rows(toy, name): return list(csv.DictReader(open(toy.root/'results'/name)))


def test_each_test_has_its_own_figures_and_they_are_the_plain_loops(photos):
    value = {(r['method'], r['metric']): float(r['value']) for r in rows(photos, 'retrieval.csv')}
    assert list(value) == [(m, f'{test}/recall_at_{k}')
                           for m in METHODS for test in TESTS for k in (1, 5) if k <= min(TESTS.values())]
    images, labels = (np.load(photos.root/f'runs/data/test_{kind}.npy') for kind in ('images', 'labels'))
    for i, m in enumerate(METHODS, 1):
        z = embed(encoder((i,)), torch.from_numpy(images)).numpy()
        for test in TESTS:
            rounds = [(q, g) for name, _, q, g in rounds_of(labels) if name == test]
            slow = np.mean([reference.gallery_recall(z, labels, q, g, 1) for q, g in rounds])
            assert value[m, f'{test}/recall_at_1'] == pytest.approx(slow, abs=1e-12)


def test_tables_for_dvc(photos):
    test, = rows(photos, 'test_recall.csv') # K = 5 is more than the smallest gallery holds
    others = ['medium/pretrained', 'medium/plm', 'large/pretrained', 'large/plm']
    assert list(test) == ['k', *METHODS, *others] and test['k'] == '1'
    metrics = json.loads((photos.root/'results/metrics/plm.json').read_text())['vehicleid']
    assert set(metrics) == {f'{size}/recall_at_1' for size in TESTS}
    assert float(test['plm']) == metrics['small/recall_at_1']
    assert float(test['large/plm']) == metrics['large/recall_at_1']
    assert rows(photos, 'val_recall.csv') == [{'images_seen': n} for n in ('0', '100', '200')]
    said = outputs(photos.root/'runs/notebooks/evaluate.ipynb')[0]
    assert 'left out, because there are 4 images to look at: 5' in said


def test_the_gallery_shows_answers_of_the_first_round(photos):
    found = np.load(photos.root/'runs/evaluate/gallery.npz')
    labels = np.load(photos.root/'runs/data/test_labels.npy')
    _, _, queries, gallery = next(rounds_of(labels))
    assert np.isin(found['queries'], queries).all()
    assert found['plm'].shape == (8, 4) and np.isin(found['plm'], gallery).all()


def test_similarity_does_without_val(photos):
    assert {r['estimate'] for r in rows(photos, 'similarity.csv')} >= {'plm', 'kmeans', 'random_walk'}
    said = outputs(photos.root/'runs/notebooks/similarity.ipynb')[0]
    assert 'there are no val classes to choose by: k = 10, α = 0.9' in said


def test_the_map_has_the_images_in_colour(photos):
    kind, found = cells(photos.root/'results/map.html')
    images = np.load(photos.root/'runs/data/test_images.npy').transpose(0, 2, 3, 1)
    assert kind == 'jpeg' and np.shape(found) == images.shape == (len(images), 40, 40, 3)
    assert np.abs(np.subtract(found, images, dtype=int)).mean() < 20 # noise, whose colours JPEG halves
    assert 'vehicle 9' in (photos.root/'results/map.html').read_text()


def test_the_report_says_how_it_was_asked(photos):
    page = (photos.root/'results/report.html').read_text()
    for text in ('queries look for their own kind in a separate gallery (tests small, medium, large',
                 '<th scope="col">medium R@1</th>', 'There are no val classes', 'Along training: how far the proxies',
                 'nearest images of the gallery, test small'): assert text in page, text
    for text in ('NMI:', 'Retrieval while training', 'Beside the paper', 'how many other points'):
        assert text not in page, text
    for stage in ('evaluate', 'similarity', 'map', 'report'):
        assert outputs(photos.root/f'runs/notebooks/{stage}.ipynb')[1] == []
