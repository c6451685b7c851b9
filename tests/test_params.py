"Every mistake in params.yaml is met with a message that names the entry and the cure."
import copy, inspect, shutil
from pathlib import Path
import pytest, yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import given, settings, strategies as st
from plm.datasets import DATASETS, PHOTOS
from plm.losses import PLMLoss
from plm.manifold import PiecewiseLinearManifold
from plm.methods import METHODS, PLMConstants
from plm.params import Params, load_params, project_root, read_yaml
from plm.proxies import Proxies
from plm.similarity import PiecewiseLinear

OURS = Path(__file__).parent.parent/'params.yaml'
RAW = yaml.safe_load(OURS.read_text())
MISSING = object()


def changed(path, value):
    "The repository's parameters with one entry set, or taken out."
    raw = copy.deepcopy(RAW)
    inner = raw
    for name in path[:-1]: inner = inner.setdefault(name, {})
    if value is MISSING: del inner[path[-1]]
    else: inner[path[-1]] = value
    return raw


def load(raw, folder):
    (folder/'params.yaml').write_text(yaml.safe_dump(raw))
    return load_params(folder/'params.yaml')


def layers(dataset, entry):
    "What the file says of an entry, the later layer over the earlier."
    value = RAW[entry]
    for layer in [RAW['photos']]*(dataset in PHOTOS) + [RAW[dataset]]:
        if entry in layer: value = layer[entry] and value | layer[entry]
    return value


@pytest.mark.parametrize('dataset', DATASETS)
def test_our_own_file_loads_for_each_data_set(tmp_path, dataset):
    p = load(changed(['dataset'], dataset), tmp_path)
    assert isinstance(p, Params) and p.dataset == dataset
    for name in METHODS: assert p.method[name].model_dump() == layers(dataset, name)
    assert isinstance(p.method['plm'], PLMConstants) and set(p.method) == set(METHODS)
    assert p.train.model_dump() == layers(dataset, 'train')
    assert (p.pretrain and p.pretrain.model_dump()) == layers(dataset, 'pretrain')
    assert vars(p.sizes) == RAW[dataset]['sizes'] and isinstance(p.sizes, DATASETS[dataset])
    for name in ('methods', 'seeds', 'device', 'launch', 'processes', 'threads'): assert getattr(p, name) == RAW[name]


def test_our_own_file_loads_as_it_is():
    assert load_params(OURS).dataset in DATASETS


def test_a_later_layer_wins(tmp_path):
    raw = changed(['cub200', 'plm'], {'lr': 0.5})
    for dataset, lr in (('glyphs', 0.001), ('sop', 0.0001), ('cub200', 0.5)):
        assert load(raw | {'dataset': dataset}, tmp_path).method['plm'].lr == lr


PLM = ['plm']
MISTAKES = {
    'misspelt constant': (PLM + ['n_aplha'], 4, r"^plm\.n_aplha is not a parameter.*Did you mean 'n_alpha'.*n_proxies"),
    'in the layer of photos': (
        ['photos', 'plm', 'n_aplha'], 4, r"^photos\.plm\.n_aplha is not a parameter.*Did you mean 'n_alpha'"),
    'in a data set': (['omniglot', 'plm', 'n_aplha'], 4, r"^omniglot\.plm\.n_aplha is not a parameter"),
    'unheard-of constant': (PLM + ['xyzzy'], 4, r'^plm\.xyzzy is not a parameter\. plm has: lr, k'),
    'constant of a method without any': (
        ['pretrained'], {'lr': 0.1}, r'^pretrained\.lr is not a parameter.*has: nothing'),
    'missing constant': (PLM + ['delta'], MISSING, r'^plm\.delta is missing'),
    'missing method': (PLM, MISSING, r"params\.yaml has no entry 'plm'"),
    'missing sizes': (['glyphs', 'sizes'], MISSING, r'glyphs\.sizes must be a mapping'),
    'misspelt method section': (['omniglot', 'simcrl'], {}, r"unknown entry of omniglot 'simcrl'.*'simclr'"),
    'section that is a number': (PLM, 3, r'^plm must be a mapping'),
    'data set that is a list': (['glyphs'], [1], r'glyphs must be a mapping with the entries .*plm'),
    'mistake in the data set not in use': (['omniglot', 'plm', 'k'], 'five', r'^omniglot\.plm\.k: .*integer'),
    'whole number with a point': (PLM + ['k'], 5.5, r'^plm\.k: .*integer, got 5\.5'),
    'number as text': (PLM + ['delta'], '2', r"^plm\.delta: .*number, got '2'"),
    'exponent without a number': (PLM + ['lr'], 'e-3', r"^plm\.lr: .*number, got 'e-3'"),
    'yes is not a number': (PLM + ['lr'], True, r'^plm\.lr: .*number, got True'),
    'yes is not a count': (PLM + ['k'], True, r'^plm\.k: .*integer, got True'),
    'null where none is allowed': (PLM + ['m'], None, r'^plm\.m: .*integer, got None'),
    'text where null is allowed': (PLM + ['T'], 'none', r"^plm\.T: .*number, got 'none'"),
    'number as a name': (['train', 'backbone'], 18, r'^train\.backbone: .*string, got 18'),
    'k as large as a batch': (PLM + ['k'], 100, r'plm on glyphs: k = 100 must be below, and divide, the 100'),
    'k as large as a batch of two views': (
        ['stml', 'k'], 50, r'stml on glyphs: k = 50 must be below, and divide, the 50 images'),
    'm as large as a batch': (
        PLM, RAW['plm'] | dict(m=100, max_neighbors=100), r'plm on glyphs: m = 100 must be below the 100 images'),
    'k that does not divide the batch': (PLM + ['k'], 6, r'plm on glyphs: k = 6 must be below, and divide, the 100'),
    'odd batch': (['train', 'batch_size'], 25, r'^train\.batch_size: must be even'),
    'm above the dimension': (['train', 'dim'], 2, r'plm on glyphs: m = 3 must be at most dim = 2'),
    'decays the wrong way round': (PLM + ['n_alpha'], 0.1, r'^plm: n_alpha = 0\.1 must not be below n_beta'),
    'fewer candidates than directions': (PLM + ['max_neighbors'], 2, r'^plm: max_neighbors = 2 must be at least m = 3'),
    'misspelt similarity': (PLM + ['similarity'], 'binry',
                            r"^plm\.similarity: .*'piecewise', 'binary' or 'distance', got 'binry'"),
    'binary without selection': (
        PLM, RAW['plm'] | dict(similarity='binary', T=None), r'^plm: similarity = binary .* Set T'),
    'misspelt view': (['stml', 'view'], 'plane', r"^stml\.view: .*'plain' or 'augmented'"),
    'misspelt refresh': (PLM + ['refresh'], 'keep', r"^plm\.refresh: .*'full' or 'kept'"),
    'distorted images kept': (
        PLM, RAW['plm'] | {'view': 'augmented', 'refresh': 'kept'}, r'^plm: refresh = kept .*Set view to plain'),
    'misspelt term': (PLM + ['terms'], ['points'], r"^plm\.terms\.0: .*'point', 'proxy' or 'neighborhood'"),
    'term twice': (PLM + ['terms'], ['point', 'point'], r'^plm: terms = .* names a term twice'),
    'no term': (PLM + ['terms'], [], r'^plm\.terms: .*at least 1'),
    'nothing that trains the encoder': (PLM + ['terms'], ['neighborhood'], r'^plm: terms = .* never the encoder'),
    'nothing to train': (
        PLM, RAW['plm'] | dict(n_proxies=0, terms=['proxy']), r'^plm: terms = .* leaves nothing to train'),
    'no step size': (PLM + ['lr'], 0., r'^plm\.lr: .*greater than 0'),
    'NaN': (PLM + ['lr'], float('nan'), r'^plm\.lr: .*finite'),
    'momentum above 1': (PLM + ['gamma'], 2., r'^plm\.gamma: .*less than or equal to 1'),
    'quality above 1': (PLM + ['T'], 3., r'^plm\.T: .*less than or equal to 1'),
    'no epochs': (['train', 'epochs'], 0, r'^train\.epochs: .*at least|^train\.epochs: .*greater than or equal to 1'),
    'misspelt backbone': (['train', 'backbone'], 'resnet', r'unknown backbone .*of glyphs.*resnet18'),
    'misspelt weights': (
        ['train', 'weights'], 'imagnet', r"train\.weights of glyphs must be none, imagenet, or a file.*got 'imagnet'"),
    'weights of null': (['train', 'weights'], None, r'^train\.weights: .*string, got None'),
    'ImageNet for characters': (['train', 'weights'], 'imagenet', r'imagenet on glyphs: there are none for convnet'),
    'misspelt precision': (
        ['cub200', 'train', 'precision'], 'fp16', r"^cub200\.train\.precision: .*'float32' or 'bf16'"),
    'photos without a crop': (
        ['cub200', 'train', 'crop'], None,
        r'train\.crop of cub200 must be a side in pixels, at most cub200\.sizes\.side = 256'),
    'crop above the stored side': (
        ['sop', 'train', 'crop'], 257, r'train\.crop of sop must be .* at most sop\.sizes\.side = 256, got 257'),
    'crop of characters': (['glyphs', 'train', 'crop'], 24, r'train\.crop of glyphs must be null'),
    'photos for a grey network': (['folder', 'train', 'backbone'], 'convnet', r'convnet'),
    'pre-training without a source': (
        ['sop', 'pretrain'], RAW['pretrain'], r'pretrain of sop must be null: there is no labelled source'),
    'every class in val': (['inshop', 'sizes', 'val_every'], 1, r'^inshop\.sizes\.val_every'),
    'labels that are no table': (['folder', 'sizes', 'labels'], 'labels.xlsx', r'^folder\.sizes\.labels'),
    'no folder': (['folder', 'sizes', 'path'], ' ', r'^folder\.sizes\.path'),
    'timm without a name': (['train', 'backbone'], 'timm:', r'unknown backbone .*timm:NAME'),
    'method in brackets': (['methods'], [['plm']], r'^methods\.0: .*string'),
    'seed that is yes': (['seeds'], [True, 2], r'^seeds\.0: .*integer'),
    'device that is a number': (['device'], 3, r'^device: .*string'),
    'misspelt launch': (['launch'], 'torchrnu', r"^launch: .*'single' or 'torchrun', got 'torchrnu'"),
    'no processes': (['processes'], 0, r'^processes: .*greater than or equal to 1'),
    'half a process': (['processes'], 1.5, r'^processes: .*integer'),
    'no threads': (['threads'], 0, r'^threads: .*greater than or equal to 1'),
    'misspelt data set': (['dataset'], 'omnigolt', r"unknown data set 'omnigolt'.*'omniglot'"),
    'misspelt method': (['methods'], ['plm', 'smtl'], r"unknown method 'smtl'.*'stml'"),
    'method twice': (['methods'], ['plm', 'plm'], r'^methods: must name each once'),
    'no method': (['methods'], [], r'^methods: .*at least 1'),
    'method without brackets': (['methods'], 'plm', r"^methods: .*list, got 'plm'"),
    'seed twice': (['seeds'], [0, 1, 0], r'^seeds: must name each once'),
    'no seed': (['seeds'], None, r'^seeds: .*list'),
    'seed as text': (['seeds'], [0, 'one'], r"^seeds\.1: .*integer, got 'one'"),
    'misspelt entry': (['sedes'], [0], r"unknown entry of params\.yaml 'sedes'.*'seeds'"),
    **{f'no {name}': ([name], MISSING, f"params.yaml has no entry '{name}'") for name in RAW},
}

@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes(tmp_path, mistake):
    path, value, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words): load(changed(path, value), tmp_path)


@pytest.mark.parametrize('path, value', [
    (PLM + ['T'], None), (PLM + ['T'], 1), (PLM + ['lr'], 1), (PLM + ['lr'], 1e-5), (PLM + ['n_proxies'], 0),
    (PLM + ['max_neighbors'], 4), (PLM + ['view'], 'augmented'), (PLM + ['refresh'], 'kept'),
    (PLM + ['terms'], ['proxy']), (['glyphs', 'plm', 'n_alpha'], 0.5), (['seeds'], [7]),
    (['glyphs', 'sizes', 'n_source'], None), (['glyphs', 'sizes', 'n_source'], 5), (['glyphs', 'pretrain'], None),
    (['cub200', 'sizes', 'val_every'], None), (['cub200', 'train', 'crop'], 256),
    (['cub200', 'train', 'precision'], 'float32')])
def test_what_is_allowed(tmp_path, path, value):
    raw = changed(path, value)
    if path[0] in DATASETS: raw['dataset'] = path[0]
    p = load(raw, tmp_path)
    if path[0] == 'seeds': assert p.seeds == value
    elif path[-1] == 'pretrain': assert p.pretrain is None
    else: assert getattr({'sizes': p.sizes, 'train': p.train, 'plm': p.method['plm']}[path[-2]], path[-1]) == value


@pytest.mark.parametrize('change, words', [
    ({'plm.n_proxies': 0, 'plm.terms': ['proxy']}, 'leaves nothing to train with n_proxies = 0'),
    ({'glyphs.plm.detla': 2}, "glyphs.plm.detla is not a parameter.*Did you mean 'delta'"),
    ({'glyhps.plm.delta': 2}, "unknown entry of params.yaml 'glyhps'.*'glyphs'"),
    ({'glyphs.plmm.delta': 2}, "unknown entry of glyphs 'plmm'.*'plm'"),
    ({'plm.delta': -1}, 'plm.delta: .*greater than 0')])
def test_changes_are_checked_like_the_file(change, words):
    with pytest.raises(ValueError, match=words): load_params(OURS, change)


@pytest.mark.parametrize('backbone, weights', [
    ('googlenet', 'imagenet'), ('timm:resnet50.tv_in1k', 'imagenet'), ('convnet', 'runs/pretrain/0/encoder.pt'),
    ('efficientnet_lite0', 'none')])
def test_backbones_and_their_weights(backbone, weights):
    change = {'dataset': 'glyphs', 'glyphs.train.backbone': backbone, 'glyphs.train.weights': weights}
    train = load_params(OURS, change).train
    assert (train.backbone, train.weights) == (backbone, weights)


def test_changes_change_what_they_name():
    p = load_params(OURS, {'dataset': 'glyphs'})
    q = load_params(OURS, {'dataset': 'glyphs', 'plm.T': None, 'seeds': [5]})
    assert q.seeds == [5] and q.method['plm'] == p.method['plm'].model_copy(update={'T': None})
    assert q.method['stml'] == p.method['stml'] and q.train == p.train


leaves = [(s, name) for s in ('train', 'pretrain', *METHODS) for name in RAW[s]]
leaves += [(d, s, name) for d in ('photos', *DATASETS) for s in RAW[d] for name in RAW[d][s] or ()]

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(leaves), st.sampled_from(['text', [1], {'a': 1}, True]))
def test_no_leaf_takes_what_it_should_not(tmp_path_factory, leaf, value):
    "Whatever is broken, the complaint is a ValueError with the full name of the entry."
    if value == 'text' and leaf[-1] in ('backbone', 'weights', 'path'): return # names are looked up later
    raw = changed(list(leaf), value)
    with pytest.raises(ValueError, match=r'\.'.join(leaf)): load(raw, tmp_path_factory.mktemp('p'))


@pytest.mark.parametrize('text, words', [
    ('dataset: [glyphs', r'params\.yaml is not valid YAML: .*line'), ('', 'must be a mapping of names'),
    ('- a\n- b', 'must be a mapping')])
def test_files_that_are_no_parameters(tmp_path, text, words):
    (tmp_path/'params.yaml').write_text(text)
    with pytest.raises(ValueError, match=f'(?s){words}'): load_params(tmp_path/'params.yaml')


def test_missing_file(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r'nope\.yaml is missing.*top folder'): load_params(tmp_path/'nope.yaml')
    inner = tmp_path/'a'/'b'
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    with pytest.raises(FileNotFoundError, match='no params.yaml in .*inside the repository'): project_root()
    (tmp_path/'params.yaml').write_text('')
    assert project_root() == tmp_path
    (inner/'params.yaml').write_text('')
    assert project_root() == inner


def test_parameters_cannot_be_changed_by_accident():
    p = load_params(OURS)
    for thing in (p, p.train, p.pretrain, p.sizes, *p.method.values()):
        for field in type(thing).model_fields:
            with pytest.raises(ValueError, match='frozen'): setattr(thing, field, 0)


def test_a_constant_has_one_default():
    "What params.yaml says of PLM is what the classes take by themselves."
    plm, found = RAW['plm'], {}
    for kind in (PiecewiseLinearManifold, PiecewiseLinear, PLMLoss, Proxies):
        for name, p in inspect.signature(kind).parameters.items():
            name = {'n': 'n_proxies'}.get(name, name)
            default = list(p.default) if name == 'terms' else p.default
            if name in plm and default is not None: assert plm[name] == default, name
            found.setdefault(name, []).append(kind)
    assert {'m', 'T', 'max_neighbors', 'n_alpha', 'n_beta', 'delta', 'n_proxies', 'terms'} <= set(found)
    once = plm.keys() & found.keys() - {'m', 'similarity'} # proxies have an m of their own
    assert all(len(found[name]) == 1 for name in once)


def test_numbers_as_dvc_writes_them(tmp_path):
    "DVC sets 0.00001 as 1e-05, which is a text to YAML 1.1."
    numbers = {'1e-05': 1e-5, '2E+3': 2000., '1.5e-3': 1.5e-3, '-1e2': -100., '1e': '1e', 'e5': 'e5'}
    for text, value in numbers.items():
        (tmp_path/'a.yaml').write_text(f'lr: {text}\n')
        assert read_yaml(tmp_path/'a.yaml') == {'lr': value}


@pytest.mark.parametrize('change, gone, come', [
    ('plm.similarity=binary', '  similarity: piecewise', '  similarity: binary'),
    ('+glyphs.simclr.lr=2', '', '  simclr:\n    lr: 2'),
    ('methods=[plm]', '- pretrained\n- simclr\n- stml\n- distance', '')])
def test_dvc_changes_the_value_and_nothing_else(change, gone, come, tmp_path):
    "What `dvc exp run -S` does to the file. It writes lists and empty values in its own way; so must we."
    ours = shutil.copy(OURS, tmp_path)
    apply_overrides(ours, [change])
    before, after = OURS.read_text().splitlines(), Path(ours).read_text().splitlines()
    assert [line for line in before if line not in after] == gone.splitlines()
    assert len(after) - len(before) == len(come.splitlines()) - len(gone.splitlines())
    left = [line for line in after if line not in gone.splitlines() + come.splitlines()]
    assert left == [line for line in before if line not in gone.splitlines() + come.splitlines()]
