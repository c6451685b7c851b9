"Near duplicates: the hash, the groups and what bounds them, the list, and the measured table."
import csv, itertools, sys, tracemalloc
from pathlib import Path
import faiss, numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
import plm.copies as copies
import reference_copies as slow
from plm.copies import HASH, HEAD, Group, Reach, near_duplicates, photo_hash, write_duplicates_csv
from plm.photos import decode_image

ROOT = Path(__file__).parents[1]
temple, flower = (Image.fromarray(x) for x in load_sample_images().images)


def differ(a, b): return int(np.bitwise_count(photo_hash(a) ^ photo_hash(b)).sum())


def flipped(h, *bits):
    "The hash with these of its 64 bits turned."
    new = np.unpackbits(h)
    new[list(bits)] ^= 1
    return np.packbits(new)


def random_hashes(n, seed=0): return np.random.default_rng(seed).integers(0, 256, (n, 8), np.uint8)


def as_sets(groups):
    found = {'copy': {}, 'same scene': {}}
    for g in groups: found[g.kind][int(g.rows[0])] = set(g.rows.tolist())
    return found


def test_a_hash_is_of_the_upright_central_square(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6 # to be turned by a quarter
    temple.rotate(90, expand=True).save(tmp_path/'turned.png', exif=exif)
    own = photo_hash(temple)
    assert own.dtype == np.uint8 and own.shape == (8,)
    for same in (tmp_path/'turned.png', str(tmp_path/'turned.png'), decode_image(temple).pixels,
                 ImageOps.fit(temple, (427, 427))): assert np.array_equal(photo_hash(same), own)
    assert differ(temple, flower) > 20 and differ(temple, ImageOps.mirror(temple)) > 20


@pytest.mark.parametrize('edit', [
    lambda im: im.resize((200, 133)), lambda im: im.resize((160, 107)), ImageOps.grayscale,
    lambda im: im.convert('RGBA'), lambda im: im.point(lambda v: int(0.8*v))])
def test_a_copy_has_the_same_hash(tmp_path, edit):
    for photo in (temple, flower):
        edit(photo).save(tmp_path/'copy.webp', quality=60)
        assert differ(photo, tmp_path/'copy.webp') <= HEAD.alone


def test_what_has_no_hash(tmp_path):
    (tmp_path/'a.jpg').write_bytes(b'\xff\xd8 broken')
    for wrong in (tmp_path/'a.jpg', tmp_path/'none.jpg', np.zeros((3, 9, 9)), np.zeros((9, 9, 3), np.uint8), 5):
        with pytest.raises(ValueError, match='has no hash|uint8|path or a PIL'): photo_hash(wrong)


@pytest.mark.parametrize('seed, with_z', itertools.product(range(4), (False, True)))
def test_groups_are_those_of_the_plain_loop(monkeypatch, seed, with_z):
    monkeypatch.setattr(copies, '_BLOCK', 7)
    monkeypatch.setattr(copies, '_NEAREST', 1000) # the plain loop looks at every leader
    rng = np.random.default_rng(seed)
    centres = random_hashes(6, seed)
    hashes = np.stack([flipped(centres[rng.integers(6)], *rng.integers(0, 64, rng.integers(0, 9))) for _ in range(120)])
    z = rng.normal(size=(6, 16))[rng.integers(0, 6, 120)] + 0.12*rng.normal(size=(120, 16))
    z = (z/np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) if with_z else None
    sizes = rng.integers(1, 9, (120, 3))
    reach = Reach(2, 6, 0.25, 0.3)
    expected, groups = slow.near_duplicates(hashes, z, sizes, reach), near_duplicates(hashes, z, sizes, reach)
    assert len(groups) > 5 and {g.kind for g in groups} == expected.keys()
    for kind, leader in expected.items(): # of two leaders that are equally near either may be taken
        found = {r: g.bits[i] if kind == 'copy' else g.rows[0] for g in groups if g.kind == kind
                 for i, r in enumerate(g.rows.tolist()) if i}
        assert found == {r: (np.unpackbits(hashes[r]) != np.unpackbits(hashes[best])).sum() if kind == 'copy' else best
                         for r, best in leader.items() if r != best}
    for g in groups:
        assert np.array_equal(g.bits, np.bitwise_count(hashes[g.rows] ^ hashes[g.rows[0]]).sum(1))
        assert not with_z or (np.diff(g.distance[1:]) >= 0).all()
        if with_z: assert np.allclose(g.distance, np.linalg.norm(z[g.rows] - z[g.rows[0]], axis=1), atol=1e-6)
        else: assert np.isnan(g.distance).all()


def test_the_best_has_most_pixels_then_the_largest_file():
    hashes = np.repeat(random_hashes(1), 4, 0)
    sizes = np.array([[400, 300, 9000], [300, 400, 9001], [640, 480, 10], [100, 100, 10**9]])
    (g,) = near_duplicates(hashes, sizes=sizes)
    assert g.kind == 'copy' and g.rows[0] == 2
    (g,) = near_duplicates(hashes[:2], sizes=sizes[:2])
    assert g.rows.tolist() == [1, 0]
    (g,) = near_duplicates(hashes)
    assert g.rows.tolist() == [0, 1, 2, 3]
    huge = np.array([[60_000, 60_000, 1], [40_000, 40_000, 1]], np.int32) # their pixels do not fit into 32 bits
    assert near_duplicates(hashes[:2], sizes=huge)[0].rows[0] == 0


def test_a_chain_is_cut_where_it_leaves_the_best():
    "Each frame is near to the next; all are one chain, and no group goes beyond the reach of its best."
    first = random_hashes(1)[0]
    hashes = np.stack([flipped(first, *range(3*i)) for i in range(20)])
    angle = torch.arange(20)*0.2
    z = torch.stack([angle.cos(), angle.sin()], 1)
    groups = near_duplicates(hashes)
    assert len(groups) > 5 and all(g.bits.max() <= HASH.alone for g in groups)
    scattered = random_hashes(20, 1)
    groups = near_duplicates(scattered, z)
    assert len(groups) > 2 and all(g.kind == 'same scene' and g.distance.max() <= HEAD.scene + 1e-6 for g in groups)
    assert sum(len(g.rows) for g in groups) >= 18


def test_hash_and_embedding_name_what_they_find():
    h, far = random_hashes(1)[0], random_hashes(2, 5)
    hashes = np.stack([h, flipped(h, 1, 2), flipped(h, *range(10)), flipped(h, *range(20, 30)), *far])
    z = F.normalize(torch.tensor([[1., 0, 0], [0, 1, 0], [1, 0.2, 0], [0, 0, 1], [1, 0, 0.4], [-1, 0, 0]]), dim=1)
    copy, scene = near_duplicates(hashes, z)
    assert copy.kind == 'copy' and set(copy.rows.tolist()) == {0, 1, 2} # 1 by the hash alone, 2 confirmed, 3 refused
    assert scene.kind == 'same scene' and scene.rows.tolist() == [0, 4] and scene.distance[1] > HEAD.copy*0.7
    assert as_sets(near_duplicates(hashes, z.double().numpy()))['copy'] == {0: {0, 1, 2}}


@pytest.mark.parametrize('with_z', [False, True])
def test_a_crowd_is_compared_with_its_leaders_only(monkeypatch, with_z):
    "20,000 frames of a fixed camera: what is compared grows with N and not with its square, and so does memory."
    n, rng, compared = 20_000, np.random.default_rng(0), []
    hashes = np.repeat(random_hashes(1), n, 0)
    hashes[np.arange(n), rng.integers(0, 8, n)] ^= 1 << rng.integers(0, 8, n).astype(np.uint8)
    z = F.normalize(1 + 0.05*torch.randn(n, 64, generator=torch.Generator().manual_seed(0)), dim=1) if with_z else None
    def counting(index):
        class Counting(index):
            def search(self, x, k):
                compared.append(len(x)*self.ntotal)
                return super().search(x, k)
        return Counting
    monkeypatch.setattr(copies.faiss, 'IndexBinaryFlat', counting(faiss.IndexBinaryFlat))
    monkeypatch.setattr(copies.faiss, 'IndexFlatL2', counting(faiss.IndexFlatL2))
    tracemalloc.start()
    groups = near_duplicates(hashes, z)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(g.rows) for g in groups] == [n] and groups[0].kind == 'copy'
    assert sum(compared) <= 3*n and peak < 100*2**20


def test_products_of_one_hash_are_no_copies_if_the_embedding_may_say_so():
    "Where hashes are all alike, a photo is compared with a few leaders only: the list and the work stay bounded."
    n = 600
    z = F.normalize(torch.randn(n, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    hashes = np.stack([flipped(random_hashes(1)[0], *np.random.default_rng(i).choice(64, 5, False)) for i in range(n)])
    assert sum(len(g.rows) for g in near_duplicates(hashes, z, reach=Reach(0, 12, 0.5, 0.6))) < n/20
    assert max(len(g.rows) for g in near_duplicates(hashes, reach=Reach(12, 12, 0.5, 0.6))) > n/2


def test_nothing_and_one():
    assert near_duplicates(np.empty((0, 8), np.uint8), torch.empty(0, 4)) == []
    assert near_duplicates(random_hashes(1), torch.ones(1, 1)) == []


@pytest.mark.parametrize('given, said', [
    (dict(hashes=random_hashes(4).astype(int)), 'uint8'), (dict(hashes=random_hashes(4)[:, :7]), r'\(N, 8\)'),
    (dict(z=torch.ones(4, 2)), 'unit length'), (dict(z=torch.ones(3, 1)), '4 hashes and 3'),
    (dict(z=torch.full((4, 1), torch.nan)), 'NaN'), (dict(sizes=np.ones((4, 2), int)), 'width, height and bytes'),
    (dict(sizes=np.ones((4, 3))), 'whole numbers')])
def test_wrong_input_is_named(given, said):
    with pytest.raises(ValueError, match=said): near_duplicates(**dict(hashes=random_hashes(4)) | given)


def test_the_list_names_every_photo_whatever_its_name(tmp_path):
    files = ['a,"b"\n.jpg', 'caf\udce9.jpg', 'ü/1.png', '=1.png']
    hashes, sizes = np.repeat(random_hashes(1), 4, 0), np.arange(12).reshape(4, 3)
    groups = near_duplicates(hashes, torch.ones(4, 1), sizes)
    write_duplicates_csv(tmp_path/'new/list.csv', groups, files, sizes)
    with open(tmp_path/'new/list.csv', newline='', encoding='utf-8', errors='surrogateescape') as f:
        rows = list(csv.DictReader(f))
    assert {r['file'] for r in rows} == set(files) and [r['suggested'] for r in rows] == ['yes', 'no', 'no', 'no']
    assert rows[0] == dict(group='1', kind='copy', file=files[3], width='9', height='10', bytes='11',
                           distance='0.0000', bits='0', suggested='yes')
    before = (tmp_path/'new/list.csv').read_bytes()
    with pytest.raises(IndexError): write_duplicates_csv(tmp_path/'new/list.csv', groups, files[:1], sizes)
    assert (tmp_path/'new/list.csv').read_bytes() == before and len(list((tmp_path/'new').iterdir())) == 1
    write_duplicates_csv(tmp_path/'hash.csv', near_duplicates(hashes), files, sizes)
    assert ',,0,yes' in (tmp_path/'hash.csv').read_text(errors='surrogateescape')


def test_the_table_is_of_the_edits_that_there_are(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'benchmarks'))
    monkeypatch.delitem(sys.modules, 'copies', raising=False)
    import copies as benchmark
    rows = list(csv.DictReader((ROOT/'results/copies.csv').open()))
    chosen = [r for r in rows if r['edit'] == 'all']
    rows = [r for r in rows if r['edit'] != 'all']
    assert {r['edit'] for r in rows} == set(benchmark.EDITS) and len(chosen) == len(benchmark.HASHES) + 2
    assert {r['part'] for r in rows} == {'grocery 0-40', 'grocery 41-80', 'cars', 'products'}
    assert all(int(r['copy']) + int(r['scene']) <= int(r['copies']) for r in rows)
    for edit in benchmark.EDITS:
        with Image.open(benchmark.edited(temple, edit, np.random.default_rng(0))) as im: im.load()


def test_copies_that_the_benchmark_counts():
    "Row 4 is a copy of row 1, row 5 of 2; rows 0 and 3 are others."
    sys.path.insert(0, str(ROOT/'benchmarks'))
    try: from copies import found_in
    finally: sys.path.pop(0)
    def group(kind, *rows): return Group(kind, np.array(rows), np.zeros(len(rows)), np.zeros(len(rows)))
    groups = [group('copy', 1, 4, 0), group('same scene', 5, 2), group('same scene', 1, 3)]
    assert found_in(groups, 4, np.array([1, 2])) == dict(copies=2, copy=1, scene=1, false_copies=1, false_scenes=1)
