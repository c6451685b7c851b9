"Every mistake in params.yaml is met with a message that names the entry and the cure."
import inspect
import copy, dataclasses
from dataclasses import fields
from pathlib import Path
import pytest, yaml
from hypothesis import given, settings, strategies as st
from plm.data import DATASETS
from plm.losses import PLMLoss
from plm.params import METHODS, SIZES, Params, PLMParams, load_params, project_root

OURS = Path(__file__).parent.parent/'params.yaml'
RAW = yaml.safe_load(OURS.read_text())
MISSING = object()


def changed(path, value):
    "The repository's parameters with one entry set, or taken out."
    raw = copy.deepcopy(RAW)
    inner = raw
    for name in path[:-1]: inner = inner[name]
    if value is MISSING: del inner[path[-1]]
    else: inner[path[-1]] = value
    return raw


def load(raw, folder):
    (folder/'params.yaml').write_text(yaml.safe_dump(raw))
    return load_params(folder/'params.yaml')


@pytest.mark.parametrize('dataset', DATASETS)
def test_our_own_file_loads_for_each_data_set(tmp_path, dataset):
    p = load(changed(['dataset'], dataset), tmp_path)
    assert isinstance(p, Params) and p.dataset == dataset
    section = RAW[dataset]
    for name in METHODS: assert vars(p.method[name]) == section[name]
    assert isinstance(p.method['plm'], PLMParams) and set(p.method) == set(METHODS)
    assert vars(p.train) == section['train'] and (p.pretrain and vars(p.pretrain)) == section['pretrain']
    assert vars(p.sizes) == section['sizes'] and isinstance(p.sizes, SIZES[dataset])
    assert (p.methods, p.seeds, p.device, p.launch, p.processes, p.threads) == tuple(RAW[name] for name in ('methods', 'seeds', 'device', 'launch', 'processes', 'threads'))


def test_our_own_file_loads_as_it_is():
    assert load_params(OURS).dataset in DATASETS == tuple(SIZES)


PLM = ['glyphs', 'plm']
MISTAKES = {
    'misspelt constant': (PLM + ['n_aplha'], 4, r"glyphs\.plm\.n_aplha is not a parameter.*Did you mean 'n_alpha'.*n_proxies"),
    'unheard-of constant': (PLM + ['xyzzy'], 4, r'glyphs\.plm\.xyzzy is not a parameter\. glyphs\.plm has: lr, k'),
    'constant of a method without any': (['glyphs', 'pretrained'], {'lr': 0.1}, r'glyphs\.pretrained\.lr is not a parameter.*has: nothing'),
    'missing constant': (PLM + ['delta'], MISSING, r'glyphs\.plm\.delta is missing'),
    'missing method': (PLM, MISSING, r'glyphs\.plm is missing'),
    'missing sizes': (['glyphs', 'sizes'], MISSING, r'glyphs\.sizes is missing'),
    'misspelt method section': (['glyphs', 'simcrl'], {}, r"unknown entry of glyphs 'simcrl'.*'simclr'"),
    'section that is a number': (PLM, 3, r'glyphs\.plm must be a mapping'),
    'data set that is a list': (['glyphs'], [1], r'glyphs must be a mapping with the entries .*plm'),
    'mistake in the data set not in use': (['omniglot', 'plm', 'k'], 'five', r'omniglot\.plm\.k must be int'),
    'whole number with a point': (PLM + ['k'], 5.0, r'glyphs\.plm\.k must be int, got 5\.0'),
    'number as text': (PLM + ['delta'], '2', r"glyphs\.plm\.delta must be float, got '2'"),
    'exponent without a number': (PLM + ['lr'], 'e-3', r"glyphs\.plm\.lr must be float, got 'e-3'"),
    'yes is not a number': (PLM + ['lr'], True, r'glyphs\.plm\.lr must be float, got True'),
    'yes is not a count': (PLM + ['k'], True, r'glyphs\.plm\.k must be int, got True'),
    'null where none is allowed': (PLM + ['m'], None, r'glyphs\.plm\.m must be int, got None'),
    'text where null is allowed': (PLM + ['T'], 'none', r"glyphs\.plm\.T must be float or null, got 'none'"),
    'number as a name': (['glyphs', 'train', 'backbone'], 18, r'glyphs\.train\.backbone must be str'),
    'k as large as a batch': (PLM + ['k'], 100, r'glyphs\.plm\.k = 100 must be below, and divide, the 100.*glyphs\.train\.batch_size = 100'),
    'k as large as the images of a batch of two views': (['glyphs', 'stml', 'k'], 50, r'glyphs\.stml\.k = 50 must be below, and divide, the 50 images'),
    'm as large as a batch': (PLM + ['m'], 100, r'glyphs\.plm\.m = 100 must be below glyphs\.train\.batch_size = 100'),
    'k that does not divide the batch': (PLM + ['k'], 6, r'glyphs\.plm\.k = 6 must be below, and divide, the 100'),
    'odd batch': (['glyphs', 'train', 'batch_size'], 25, r'glyphs\.train\.batch_size must be even'),
    'm above the dimension': (['glyphs', 'train', 'dim'], 2, r'glyphs\.plm\.m = 3 must be at most glyphs\.train\.dim = 2'),
    'decays the wrong way round': (PLM + ['n_alpha'], 0.1, r'glyphs\.plm\.n_alpha = 0\.1 must not be below n_beta'),
    'fewer visits than directions': (PLM + ['visit'], 2, r'glyphs\.plm\.visit = 2 must be at least m = 3 and below'),
    'more visits than a batch': (PLM + ['visit'], 100, r'glyphs\.plm\.visit = 100 must be at least m = 3 and below glyphs\.train\.batch_size = 100'),
    'misspelt similarity': (PLM + ['similarity'], 'binry', r'glyphs\.plm\.similarity must be piecewise or binary'),
    'misspelt view': (['glyphs', 'stml', 'view'], 'plane', r'glyphs\.stml\.view must be plain or augmented'),
    'misspelt refresh': (PLM + ['refresh'], 'keep', r'glyphs\.plm\.refresh must be full or kept'),
    'distorted images kept': (PLM, RAW['glyphs']['plm'] | {'view': 'augmented', 'refresh': 'kept'}, r'glyphs\.plm\.refresh = kept .* glyphs\.plm\.view = augmented .*Set view to plain, or refresh to full'),
    'misspelt term': (PLM + ['terms'], ['points'], r'glyphs\.plm\.terms must be a list of some of point, proxy, neighborhood'),
    'term twice': (PLM + ['terms'], ['point', 'point'], r'glyphs\.plm\.terms must be a list of some'),
    'no term': (PLM + ['terms'], [], r'glyphs\.plm\.terms must be a list of some'),
    'nothing that trains the encoder': (PLM + ['terms'], ['neighborhood'], r'glyphs\.plm\.terms = .* never the encoder'),
    'no step size': (PLM + ['lr'], 0., r'glyphs\.plm\.lr must be a number above 0'),
    'NaN': (PLM + ['lr'], float('nan'), r'glyphs\.plm\.lr must be a number above 0'),
    'momentum above 1': (PLM + ['gamma'], 2., r'glyphs\.plm\.gamma must be from 0 to 1'),
    'quality above 1': (PLM + ['T'], 3., r'glyphs\.plm\.T must be above 0 and at most 1, or null'),
    'no epochs': (['glyphs', 'train', 'epochs'], 0, r'glyphs\.train\.epochs must be at least 1'),
    'misspelt backbone': (['glyphs', 'train', 'backbone'], 'resnet', r'glyphs\.train\.backbone must be one of convnet, resnet18'),
    'misspelt weights': (['glyphs', 'train', 'weights'], 'imagnet', r'glyphs\.train\.weights must be none, imagenet, or a file'),
    'weights of null': (['glyphs', 'train', 'weights'], None, r'glyphs\.train\.weights must be str, got None'),
    'ImageNet for characters': (['glyphs', 'train', 'weights'], 'imagenet', r'glyphs\.train\.weights = imagenet: there are none for convnet'),
    'misspelt precision': (['cub200', 'train', 'precision'], 'fp16', r'cub200\.train\.precision must be one of float32, bf16'),
    'photos without a crop': (['cub200', 'train', 'crop'], None, r'cub200\.train\.crop must be a side in pixels, at most cub200\.sizes\.side = 256, got None'),
    'crop above the stored side': (['sop', 'train', 'crop'], 257, r'sop\.train\.crop must be a side in pixels, at most sop\.sizes\.side = 256, got 257'),
    'crop of characters': (['glyphs', 'train', 'crop'], 24, r'glyphs\.train\.crop must be null'),
    'photos for a grey network': (['folder', 'train', 'backbone'], 'convnet', r'folder\.train\.backbone = convnet reads small grey images only'),
    'pre-training without a source': (['sop', 'pretrain'], RAW['glyphs']['pretrain'], r'sop\.pretrain must be null: there is no labelled source'),
    'every class in val': (['inshop', 'sizes', 'val_every'], 1, r'inshop\.sizes\.val_every must be at least 2, or null'),
    'labels that are no table': (['folder', 'sizes', 'labels'], 'labels.xlsx', r'folder\.sizes\.labels must be the path of a \.csv file, or null'),
    'no folder': (['folder', 'sizes', 'path'], ' ', r'folder\.sizes\.path must be the path of a folder'),
    'timm without a name': (['glyphs', 'train', 'backbone'], 'timm:', r'glyphs\.train\.backbone must be one of .*timm:NAME'),
    'method in brackets': (['methods'], [['plm']], r'methods must be a list of names'),
    'seed that is yes': (['seeds'], [True, 2], r'seeds must be a list of whole numbers'),
    'device that is a number': (['device'], 3, r'device must be auto, cpu'),
    'misspelt launch': (['launch'], 'torchrnu', r"launch must be single or torchrun, got 'torchrnu'"),
    'no processes': (['processes'], 0, r'processes must be a whole number, at least 1, got 0'),
    'half a process': (['processes'], 1.5, r'processes must be a whole number, at least 1, got 1\.5'),
    'no threads': (['threads'], 0, r'threads must be a whole number, at least 1, got 0'),
    'misspelt data set': (['dataset'], 'omnigolt', r"unknown data set 'omnigolt'.*'omniglot'"),
    'misspelt method': (['methods'], ['plm', 'smtl'], r"unknown method 'smtl'.*'stml'"),
    'method twice': (['methods'], ['plm', 'plm'], r'methods must be a list of names without repetitions'),
    'no method': (['methods'], [], r'methods must be a list.*at least one'),
    'method without brackets': (['methods'], 'plm', r"methods must be a list.*got 'plm'"),
    'seed twice': (['seeds'], [0, 1, 0], r'seeds must be a list of whole numbers without repetitions'),
    'no seed': (['seeds'], None, r'seeds must be a list'),
    'seed as text': (['seeds'], [0, 'one'], r"seeds must be a list of whole numbers.*'one'"),
    'seed with a point': (['seeds'], [0.5], r'seeds must be a list of whole numbers'),
    'misspelt entry': (['sedes'], [0], r"unknown entry of params\.yaml 'sedes'.*'seeds'"),
    **{f'no {name}': ([name], MISSING, f"params.yaml has no entry '{name}'") for name in RAW},
}

@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes(tmp_path, mistake):
    path, value, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words): load(changed(path, value), tmp_path)


@pytest.mark.parametrize('path, value', [(PLM + ['T'], None), (PLM + ['T'], 1), (PLM + ['lr'], 1), (PLM + ['lr'], 1e-5), (PLM + ['n_proxies'], 0), (PLM + ['visit'], 4), (PLM + ['view'], 'augmented'), (PLM + ['refresh'], 'kept'), (PLM + ['terms'], ['proxy']), (PLM + ['n_alpha'], 0.5),
                                         (['glyphs', 'sizes', 'n_source'], None), (['glyphs', 'pretrain'], None), (['cub200', 'sizes', 'val_every'], None), (['cub200', 'train', 'crop'], 256), (['cub200', 'train', 'precision'], 'float32'), (['glyphs', 'sizes', 'n_source'], 5), (['seeds'], [7])])
def test_what_is_allowed(tmp_path, path, value):
    raw = changed(path, value)
    if path[0] in DATASETS: raw['dataset'] = path[0]
    p = load(raw, tmp_path)
    if path[0] == 'seeds': assert p.seeds == value
    elif path[1:] == ['pretrain']: assert p.pretrain is None
    else: assert vars({'sizes': p.sizes, 'train': p.train}.get(path[1]) or p.method[path[1]])[path[-1]] == value


@pytest.mark.parametrize('change, words', [
    ({'glyphs.plm.n_proxies': 0, 'glyphs.plm.terms': ['proxy']}, 'leaves nothing to train with n_proxies = 0'),
    ({'glyphs.plm.T': None, 'glyphs.plm.similarity': 'binary'}, 'glyphs.plm.similarity = binary .* Set T'),
    ({'glyphs.plm.detla': 2}, "glyphs.plm.detla is not a parameter.*Did you mean 'delta'"), ({'glyhps.plm.delta': 2}, "unknown section 'glyhps'.*'glyphs'"),
    ({'glyphs.plmm.delta': 2}, "unknown section 'plmm'"), ({'glyphs.plm.delta': -1}, 'glyphs.plm.delta must be a number above 0')])
def test_changes_are_checked_like_the_file(change, words):
    with pytest.raises(ValueError, match=words): load_params(OURS, change)


@pytest.mark.parametrize('backbone, weights', [('googlenet', 'imagenet'), ('timm:resnet50.tv_in1k', 'imagenet'), ('convnet', 'runs/pretrain/0/encoder.pt'), ('efficientnet_lite0', 'none')])
def test_backbones_and_their_weights(backbone, weights):
    train = load_params(OURS, {'dataset': 'glyphs', 'glyphs.train.backbone': backbone, 'glyphs.train.weights': weights}).train
    assert (train.backbone, train.weights) == (backbone, weights)


def test_changes_change_what_they_name():
    p, q = load_params(OURS, {'dataset': 'glyphs'}), load_params(OURS, {'dataset': 'glyphs', 'glyphs.plm.T': None, 'seeds': [5]})
    assert q.seeds == [5] and q.method['plm'] == dataclasses.replace(p.method['plm'], T=None) and q.method['stml'] == p.method['stml'] and q.train == p.train


leaves = [(d, s, name) for d in DATASETS for s in RAW[d] for name in RAW[d][s] or ()]

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(leaves), st.sampled_from(['text', [1], {'a': 1}, True, MISSING]))
def test_no_leaf_takes_what_it_should_not(tmp_path_factory, leaf, value):
    "Whatever is broken, the complaint is a ValueError with the full name of the entry."
    if value == 'text' and leaf[2] in ('backbone', 'path'): return # a path is looked at by the stage that needs it
    with pytest.raises(ValueError, match=r'\.'.join(leaf)): load(changed(list(leaf), value), tmp_path_factory.mktemp('p'))


@pytest.mark.parametrize('text, words', [
    ('dataset: [glyphs', r'params\.yaml is not valid YAML: .*line'), ('', r'must be a mapping with the entries dataset, methods'), ('- a\n- b', 'must be a mapping')])
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
    for thing in (p, p.train, p.pretrain, *p.method.values()):
        for field in fields(thing):
            with pytest.raises(AttributeError): setattr(thing, field.name, 0)


def test_the_defaults_of_the_loss_are_the_values_of_the_run():
    defaults = {name: p.default for name, p in inspect.signature(PLMLoss).parameters.items()}
    for dataset in DATASETS:
        for name in ('m', 'T', 'n_alpha', 'n_beta', 'delta', 'visit', 'similarity'): assert defaults[name] == RAW[dataset]['plm'][name], (dataset, name)


def test_numbers_as_dvc_writes_them(tmp_path):
    "DVC sets 0.00001 as 1e-05, which is a text to YAML 1.1."
    (tmp_path/'params.yaml').write_text(OURS.read_text().replace('plm: {lr: 0.001', 'plm: {lr: 1e-05', 1))
    assert load_params(tmp_path/'params.yaml').method['plm'].lr == 1e-5
