"""The paper's experiments: presets that leave nothing open, a dry run that finds what is wrong before anything begins,
a table that fills as runs are made. And the README's section followed word by word, with a miniature archive instead of
the download."""
import csv, json, os, re, shutil, subprocess, threading, time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
import numpy as np, psutil, pytest, torch, yaml
from PIL import Image
from dvc.utils.hydra import apply_overrides
from plm import paper
from plm.backbones import build_encoder
from plm.datasets import DATASETS, PUBLISHED, fetch_published
from plm.methods import METHODS
from plm.paper import (Needed, PRESETS, TITLES, arguments, cache_type, disk_needed, dry_run, free_memory, measure,
                       needed_files, notes, paper_rows, paper_table, publish, settings)
from plm.params import load_params
from plm.core import text_table
from plm.report import published_rows
from plm.training import TrainConstants
from miniature_published import cub200, write_archives
from repository import Toy, copy_pipeline, kill_tree, outputs

ROOT = Path(__file__).parent.parent
PARAMS = ROOT/'params.yaml'
SMALL = {'sizes.side': 72, 'train.crop': 64, 'train.backbone': 'resnet18', 'train.weights': 'none', 'train.dim': 512,
         'train.batch_size': 20, 'train.precision': 'float32', 'stml.wide': 64}


def changes(dataset, **more):
    return ' '.join([*(f'{dataset}.{k}={v}' for k, v in SMALL.items()), *(f'{k}={v}' for k, v in more.items())])


# ---- presets

@pytest.mark.parametrize('name', PRESETS)
def test_a_preset_leaves_nothing_open(name):
    dataset, d = name.split('-')
    set_ = settings(name)
    kinds = dict(sizes=DATASETS[dataset], train=TrainConstants, **{m: METHODS[m].Constants for m in set_['methods']})
    wanted = {f'{dataset}.{section}.{entry}' for section, kind in kinds.items() for entry in kind.model_fields}
    assert set(set_) == wanted | {'dataset', 'methods', 'seeds', 'threads', f'{dataset}.pretrain'}
    p = load_params(PARAMS, set_)
    assert (p.dataset, p.train.dim, p.train.backbone, p.train.weights) == (dataset, int(d), 'googlenet', 'imagenet')
    assert (p.train.crop, p.sizes.val_every, p.pretrain, len(p.seeds)) == (224, None, None, 5)
    plm, stml = p.method['plm'], p.method['stml']
    assert plm.n_beta == 0.5 and 3 <= plm.n_alpha <= 6 and 100 <= plm.n_proxies <= 500 # published
    assert (stml.sigma, stml.delta, stml.k, stml.gamma, stml.lr) == (3, 1, 5, 0.999, 1e-4)
    assert (p.train.epochs, p.train.batch_size) == (90, 120)
    assert {c.source for c in PRESETS[name].values()} == {'published', 'STML', 'ours'}


def edited(folder):
    "A params.yaml in which somebody has changed every constant that a preset sets, in each layer."
    raw = yaml.safe_load(PARAMS.read_text())
    train = dict(backbone='resnet18', weights='none', dim=64, crop=64, precision='float32', norm='moving',
                 head='neighbors', epochs=3, batch_size=40)
    stml = dict(lr=0.5, sigma=9, delta=9, k=2, gamma=0.5, wide=9, view='plain')
    plm = dict(lr=0.5, k=2, m=2, T=0.5, max_neighbors=9, similarity='binary', n_alpha=9, n_beta=3, delta=9, n_proxies=9,
               terms=['point'], gamma=0.5, n_views=2, view='augmented')
    for name in ('cub200', 'photos'): raw[name] |= dict(train=dict(train), stml=dict(stml), plm=dict(plm))
    raw['plm'] |= plm
    raw['stml'] |= stml
    raw['cub200'] |= dict(sizes=dict(side=100, val_every=2))
    raw |= dict(dataset='sop', methods=['simclr'], seeds=[7], threads=9)
    (folder/'params.yaml').write_text(yaml.safe_dump(raw))
    return folder/'params.yaml'


def test_an_edited_file_cannot_slip_in(tmp_path):
    "Neither into what is asked of `load_params`, nor into what `dvc exp run` makes of the file."
    ours, file = load_params(PARAMS, settings('cub200-512')), edited(tmp_path)
    asked = load_params(file, settings('cub200-512'))
    apply_overrides(file, arguments('cub200-512')[1::2])
    for p in (asked, load_params(file)):
        for name in ('dataset', 'methods', 'seeds', 'threads', 'sizes', 'pretrain', 'train'):
            assert getattr(p, name) == getattr(ours, name), name
        assert all(p.method[m] == ours.method[m] for m in p.methods)


def test_there_is_a_preset_for_each_cell_of_the_table():
    cells = {(r['dataset'], r['d']) for r in published_rows() if r['method'] == 'PLM'}
    assert {(TITLES[name.split('-')[0]], int(name.split('-')[1])) for name in PRESETS} == cells


@pytest.mark.parametrize('change', [
    '', 'seeds=[0] sop.train.batch_size=60 sop.plm.T=null sop.plm.lr=0.00003 sop.plm.terms=[point] '
        'sop.train.weights=some/file-1.pth'])
def test_dvc_reads_the_arguments_as_we_do(tmp_path, change):
    shutil.copy(PARAMS, tmp_path)
    words = arguments('sop-128', change)
    assert set(words[::2]) == {'-S'} and not any(re.search(r'\s', w) for w in words)
    apply_overrides(tmp_path/'params.yaml', words[1::2])
    assert load_params(tmp_path/'params.yaml') == load_params(PARAMS, settings('sop-128', change))


@pytest.mark.parametrize('preset, change, message', [
    ('cub-512', '', "unknown preset 'cub-512'. Did you mean 'cub200-512'"), ('', '', "unknown preset ''"),
    ('sop-128', 'sop.train.epoch=1', "Did you mean 'sop.train.epochs'"),
    ('sop-128', 'cub200.train.epochs=1', 'unknown entry of sop-128'),
    ('sop-128', 'plm.lr=1', "unknown entry of sop-128 'plm.lr'. Did you mean 'sop.plm.lr'"), # does not decide
    ('sop-128', 'seeds', 'NAME=VALUE without spaces')])
def test_a_wrong_name_is_named(preset, change, message):
    with pytest.raises(ValueError, match=re.escape(message)): settings(preset, change)


# ---- the table

def figures(folder, preset='cub200-512', values=(0.60, 0.62, 0.64), methods=('plm',), ks=(1, 2, 4, 8)):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{preset.split('-')[0]},{m},{s},recall_at_{k},{v + k/100}"
             for m in methods for s, v in enumerate(values) for k in ks]
    (folder/f'{preset}.csv').write_text('\n'.join(['dataset,method,seed,metric,value', *lines]) + '\n')


def test_a_cell_fills_when_its_preset_has_been_run(tmp_path):
    before = paper_rows(tmp_path)
    assert [r['value'] for r in before if r['own']] == ['']*2*3*11
    assert [{k: v for k, v in r.items() if k != 'own'} for r in before if not r['own']] == published_rows()
    figures(tmp_path)
    after = paper_rows(tmp_path)
    new = [tuple(a.values()) for a, b in zip(after, before, strict=True) if a != b] # by hand: mean 0.62, deviation 0.02
    assert new == [(512, 'PLM, ours', 'CUB-200-2011', k, f'{62 + k:.1f}±2.0 (3)', True) for k in (1, 2, 4, 8)]
    # one seed: no deviation; K = 1000 is not in the paper's table
    figures(tmp_path, 'sop-128', values=(0.5,), ks=(1, 10, 100, 1000))
    header, lines = paper_table(paper_rows(tmp_path))
    line, = (l for l in lines if l[:2] == ['128', 'PLM, ours'])
    assert dict(zip(header, line)) == {'d': '128', 'method': 'PLM, ours', **{c: '' for c in header[2:10]},
                                       'SOP R@1': '51.0 (1)', 'SOP R@10': '60.0 (1)', 'SOP R@100': '150.0 (1)'}
    assert [l[0] for l in lines] == ['128']*16 + ['512']*8
    assert [l[1] for l in lines[-4:]] == ['PLM', 'start, ours', 'STML, ours', 'PLM, ours']
    text = text_table(header, lines).splitlines()
    assert len(text) == 26 and '63.0±2.0 (3)' in text[-1]
    assert {line.find('66.4±0.2') for line in text if '66.4±0.2' in line} == {text[0].find('SOP R@1')}


def test_no_figure_of_ours_is_made_up():
    "What the repository shows as ours has its figures and its circumstances in docs/paper."
    for r in paper_rows(ROOT/'docs/paper'):
        if r['own'] and r['value']:
            name = next(k for k, t in TITLES.items() if t == r['dataset']) + f"-{r['d']}"
            assert json.loads((ROOT/f'docs/paper/{name}.json').read_text()).keys() == {'changed', 'device', 'versions'}


def run_of(root, preset, change=''):
    "What a finished run leaves, as far as `publish` reads it."
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(PARAMS, root)
    apply_overrides(root/'params.yaml', arguments(preset, change)[1::2])
    made = yaml.safe_load((root/'params.yaml').read_text())
    figures(root/'results', preset, (0.60, 0.62, 0.64, 0.61, 0.63)[:len(made['seeds'])], made['methods'])
    dataset = preset.split('-')[0]
    used = {name: made[name] for name in ('dataset', 'methods', 'seeds', 'train', 'photos', dataset)}
    used['train.dim'] = made['train']['dim'] # of part of a section, as a stage may say
    (root/'dvc.lock').write_text(yaml.safe_dump({'stages': {'evaluate': {'params': {'params.yaml': used}}}}))
    (root/f'results/{preset}.csv').rename(root/'results/retrieval.csv')


def test_publishing_keeps_the_figures_and_what_was_changed(tmp_path):
    run_of(tmp_path, 'cub200-512')
    text = publish('cub200-512', tmp_path)
    assert (tmp_path/'docs/paper/cub200-512.csv').read_bytes() == (tmp_path/'results/retrieval.csv').read_bytes()
    assert re.search(r'^512  PLM, ours +63.0±1.6 \(5\)', text, re.M) and re.search(r'^512  PLM +61.7±0.3', text, re.M)
    assert '128' not in text and notes(tmp_path/'docs/paper') == []
    run_of(tmp_path, 'cars196-128', 'seeds=[0,1] cars196.plm.T=null')
    text = publish('cars196-128', tmp_path)
    assert 'cars196-128 was run with other constants' in text and 'cub200' not in text
    assert notes(tmp_path/'docs/paper') == [
        "cars196-128 was run with other constants than the preset's: seeds = [0,1], cars196.plm.T = null."]
    assert (tmp_path/'docs/paper/cub200-512.csv').exists()
    for wrong in ('cars196-512', 'sop-128'):
        with pytest.raises(ValueError, match=f'not the figures of {wrong}'): publish(wrong, tmp_path)
    apply_overrides(tmp_path/'params.yaml', ['seeds=[0,1,2]']) # asked for after that run, and not finished
    with pytest.raises(ValueError, match='is not of the last settings.*PRESET=cars196-128. again'):
        publish('cars196-128', tmp_path)
    for entry in ('cars196.train.epochs=7', 'cars196.plm.lr=0.5', '++photos.plm.lr=0.5'):
        run_of(tmp_path, 'cars196-128', 'seeds=[0,1]')
        apply_overrides(tmp_path/'params.yaml', [entry])
        with pytest.raises(ValueError, match='is not of the last settings'): publish('cars196-128', tmp_path)
    (tmp_path/'results/retrieval.csv').unlink()
    with pytest.raises(FileNotFoundError, match='make paper PRESET=cars196-128'): publish('cars196-128', tmp_path)


def test_figures_of_one_set_under_params_of_another_are_refused(tmp_path):
    run_of(tmp_path, 'cub200-512')
    apply_overrides(tmp_path/'params.yaml', arguments('sop-512')[1::2]) # somebody edited params.yaml after the run
    with pytest.raises(ValueError, match='the last run was of cub200, and params.yaml is of sop-512'):
        publish('sop-512', tmp_path)


def test_a_constant_of_a_run_without_preset_is_named(tmp_path):
    "Whichever layer of params.yaml it comes from."
    run_of(tmp_path, 'cub200-512')
    raw = yaml.safe_load((tmp_path/'params.yaml').read_text())
    del raw['cub200']['plm']['delta']
    raw['photos']['plm']['delta'] = 1.5
    (tmp_path/'params.yaml').write_text(yaml.safe_dump(raw))
    (tmp_path/'dvc.lock').unlink()
    publish('cub200-512', tmp_path)
    assert json.loads((tmp_path/'docs/paper/cub200-512.json').read_text())['changed'] == {'cub200.plm.delta': 1.5}


# ---- the dry run

@pytest.fixture(autouse=True)
def no_mirror(monkeypatch): monkeypatch.delenv('PLM_MIRROR', raising=False)


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    "CUB's record, fitting the miniature archive in the folder that comes back."
    monkeypatch.setitem(PUBLISHED, 'cub200', write_archives('cub200', tmp_path/'mirror'))
    return tmp_path/'mirror'


def test_files_that_are_there(tmp_path, miniature):
    size = (miniature/'CUB_200_2011.tgz').stat().st_size
    n, = needed_files('cub200', tmp_path/'downloads', mirror=miniature)
    assert (n.file, n.size, n.problem) == ('CUB_200_2011.tgz', size, '') and n.state.startswith('will be copied')
    fetch_published('cub200', tmp_path/'downloads', miniature)
    n, = needed_files('cub200', tmp_path/'downloads')
    assert n.state.startswith('unpacked already') and not n.problem
    shutil.rmtree(tmp_path/'downloads/cub200/unpacked')
    n, = needed_files('cub200', tmp_path/'downloads')
    assert n.state.startswith('there') and (n.size, n.problem) == (size, '')
    with open(tmp_path/'downloads/cub200/CUB_200_2011.tgz', 'ab') as f: f.write(b'x')
    n, = needed_files('cub200', tmp_path/'downloads')
    assert f'has {size + 1} bytes, expected {size}' in n.problem and 'Delete it' in n.problem


def test_files_that_only_a_person_can_fetch(tmp_path):
    for dataset in ('cars196', 'inshop', 'vehicleid'):
        found = needed_files(dataset, tmp_path/'downloads')
        assert [n.file for n in found] == [a.name for a in PUBLISHED[dataset].archives]
        problem, = {n.problem for n in found} # one for all files
        assert 'No program may fetch' in problem and PUBLISHED[dataset].by_hand in problem
        assert str(tmp_path/'downloads'/dataset) in problem and 'PLM_MIRROR' in problem
        assert not (tmp_path/'downloads').exists()


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers['Range']))
        self.send_response(200 if 'CUB' in self.path else 404)
        self.send_header('Content-Length', str(self.server.size)) # of a body that nobody reads
        self.end_headers()
    def log_message(self, *_): pass


@pytest.fixture
def server():
    s = ThreadingHTTPServer(('127.0.0.1', 0), Server)
    s.asked, s.size = [], 1_150_585_339
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


def test_addresses_are_asked_and_not_fetched(tmp_path, server, monkeypatch):
    url = f'http://127.0.0.1:{server.server_port}'
    n, = needed_files('cub200', tmp_path/'downloads', mirror=url)
    assert (n.size, n.problem) == (server.size, '') and url in n.state
    assert server.asked == [('/CUB_200_2011.tgz', 'bytes=0-0')]
    (tmp_path/'downloads/cub200').mkdir(parents=True)
    (tmp_path/'downloads/cub200/.CUB_200_2011.tgz.part').write_bytes(b'x'*20_000_000)
    monkeypatch.setenv('PLM_MIRROR', url + '/')
    assert 'of which 19.1 MiB are there' in needed_files('cub200', tmp_path/'downloads')[0].state
    n, = needed_files('sop', tmp_path/'downloads')
    assert 'answers 404 Not Found' in n.problem and PUBLISHED['sop'].by_hand in n.problem
    server.size = 17 # a page that says sorry
    assert 'offers 17 bytes, expected 1150585339' in needed_files('cub200', tmp_path/'downloads')[0].problem
    monkeypatch.setenv('PLM_MIRROR', 'http://127.0.0.1:9')
    n, = needed_files('sop', tmp_path/'downloads')
    assert 'does not answer' in n.problem and 'Is there a network' in n.problem
    assert PUBLISHED['sop'].by_hand in n.problem and 'PLM_MIRROR' in n.problem
    monkeypatch.setenv('PLM_MIRROR', str(tmp_path))
    assert f'PLM_MIRROR is {tmp_path}, which does not hold' in needed_files('sop', tmp_path/'downloads')[0].problem


@pytest.mark.parametrize('config, local, expected', [
    ('', '', 'reflink,copy'), ('[core]\n    analytics = false\n', '', 'reflink,copy'),
    ('[cache]\n    type = copy\n', '', 'copy'),
    ('[cache]\n    type = copy\n', '[cache]\n    type = "hardlink,symlink"\n', 'hardlink,symlink'),
    ("['remote \"x\"']\n    url = y%%z\n", '', 'reflink,copy')])
def test_cache_type(tmp_path, config, local, expected):
    (tmp_path/'.dvc').mkdir()
    (tmp_path/'.dvc/config').write_text(config)
    (tmp_path/'.dvc/config.local').write_text(local)
    assert cache_type(tmp_path) == expected


def test_cache_type_is_read_as_dvc_writes_it(tmp_path):
    env = {**os.environ, 'HOME': str(tmp_path), 'DVC_NO_ANALYTICS': '1'}
    for command in ('git init -q', 'dvc init -q', 'dvc config --local cache.type hardlink,symlink'):
        subprocess.run(command.split(), cwd=tmp_path, env=env, check=True, capture_output=True)
    assert cache_type(tmp_path) == 'hardlink,symlink'


def test_disk(tmp_path):
    p = load_params(PARAMS, settings('sop-128'))
    size, decoded = 3_083_860_082, (59551 + 60502)*3*256*256
    there, absent = (Needed('Stanford_Online_Products.zip', size, s) for s in ('there, in a folder', 'will be fetched'))
    assert disk_needed(p, [absent], tmp_path) == {
        'archives': size, 'unpacked': size, 'decoded': decoded, "DVC's copy": decoded}
    assert disk_needed(p, [there], tmp_path)['archives'] == 0
    p = load_params(PARAMS, settings('cars196-128'))
    need = disk_needed(p, [Needed('car_ims.tgz', None, ''), Needed('cars_annos.mat', None, '')], tmp_path)
    assert need['archives'] == pytest.approx(2e9, rel=0.1) # TensorFlow Datasets: 1.82 GiB


@pytest.fixture
def repository(tmp_path, miniature, monkeypatch):
    "One in which everything is ready for cub200-512."
    root = tmp_path/'repository'
    root.mkdir()
    shutil.copy(PARAMS, root)
    for command in ('init -q', 'config user.name a', 'config user.email a@b'):
        subprocess.run(['git', *command.split()], cwd=root, check=True)
    monkeypatch.setenv('PLM_MIRROR', str(miniature))
    cost = paper.Cost(step=2., look=0.5, fixed=1e8, memory=1e9, views=20)
    monkeypatch.setattr(paper, 'measure', lambda method, p, device, views=None: cost)
    return root


def everything(root): return {f: f.stat().st_mtime_ns for f in root.rglob('*')}


def test_a_dry_run_of_what_is_ready(repository):
    before = everything(repository)
    plan = dry_run('cub200-512', changes('cub200', seeds='[0,1]'), repository)
    assert plan.problems == [] and str(plan).endswith('Ready.') and everything(repository) == before
    assert re.search(r'data +CUB_200_2011.tgz, [\d.]+ KiB: will be copied', plan.text)
    assert '3 classes train (9 images), 3 test (9)' in plan.text and 'weights    none, there' in plan.text
    assert 'seeds 0, 1' in plan.text and 'pretrained, stml, plm' in plan.text


def test_time_is_multiplied_out(repository, monkeypatch):
    monkeypatch.setitem(PUBLISHED, 'cub200', replace(PUBLISHED['cub200'], images=(1000, 500)))
    text = dry_run('cub200-512', changes('cub200', seeds='[0,1]') + ' cub200.train.epochs=3', repository).text
    # seconds, by hand: epochs of 50 steps and a look at the train images; at last a look at all
    seed = 3*(50*2 + 1000*0.5) + 1500*0.5
    assert '3 epochs of 50 steps of 20 views; a step takes 2.00 s' in text and f'a seed {seed/60:.1f} min' in text
    assert f'{2*2*seed/3600:.1f} h for all seeds of all methods' in text


def no_weights(root, monkeypatch):
    monkeypatch.setenv('PLM_WEIGHTS', str(root/'weights'))
    return 'cub200.train.weights=imagenet'

def no_disk(root, monkeypatch):
    monkeypatch.setattr(paper.shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10, 9, 1))
    return ''

def no_memory(root, monkeypatch):
    monkeypatch.setattr(paper, 'free_memory', lambda _: 420_000_000)
    return 'cub200.train.batch_size=100'

def no_git(root, monkeypatch):
    shutil.rmtree(root/'.git')
    return ''

def no_git_name(root, monkeypatch):
    monkeypatch.setenv('GIT_CONFIG_GLOBAL', os.devnull)
    monkeypatch.setenv('GIT_CONFIG_NOSYSTEM', '1')
    subprocess.run(['git', 'config', '--unset', 'user.email'], cwd=root, check=True)
    return ''

def no_dvc(root, monkeypatch):
    which = shutil.which
    monkeypatch.setattr(paper.shutil, 'which', lambda name: None if name == 'dvc' else which(name))
    return ''

def no_gpu(root, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    (root/'params.yaml').write_text((root/'params.yaml').read_text().replace('device: auto', 'device: cuda'))
    return ''

def no_archive(root, monkeypatch):
    monkeypatch.setenv('PLM_MIRROR', str(root))
    return ''

@pytest.mark.parametrize('spoil, message, cure', [
    (no_weights, 'resnet18-f37072fd.pth, are not in', "fetch_weights('resnet18')"),
    (no_disk, 'are needed on the disk of', 'cache.type hardlink,symlink'),
    (no_memory, 'stml needs about 953.7 MiB of memory', 'SET=cub200.train.batch_size=30'),
    (no_git, 'no git repository', 'Clone'), (no_git_name, 'git does not know who you are', 'git config user.name'),
    (no_dvc, 'the program dvc is not there', 'make env'), (no_gpu, 'torch sees no GPU', 'device: auto'),
    (no_archive, 'does not hold CUB_200_2011.tgz', 'Then put CUB_200_2011.tgz into')])
def test_what_is_not_ready_is_named_with_its_cure(repository, monkeypatch, spoil, message, cure):
    change = spoil(repository, monkeypatch)
    before = everything(repository)
    plan = dry_run('cub200-512', f"{changes('cub200')} {change}", repository)
    assert len(plan.problems) == (2 if spoil is no_memory else 1), plan.problems # too little memory: for each method
    assert message in plan.problems[0] and cure in plan.problems[0] and f'1. {plan.problems[0]}' in str(plan)
    assert everything(repository) == before


def test_several_things_are_named_at_once(repository, monkeypatch):
    changes_ = [spoil(repository, monkeypatch) for spoil in (no_weights, no_git, no_archive)]
    assert len(dry_run('cub200-512', f"{changes('cub200')} {changes_[0]}", repository).problems) == 3


def test_a_constant_out_of_range_is_an_error_at_once(repository):
    with pytest.raises(ValueError, match='cub200.train.epochs: .*greater than or equal to 1'):
        dry_run('cub200-512', 'cub200.train.epochs=0', repository)


# ---- what a step takes

def small(**train):
    set_ = settings('cub200-512', changes('cub200'))
    return load_params(PARAMS, set_ | {f'cub200.train.{name}': value for name, value in train.items()})


@pytest.mark.parametrize('method', ['stml', 'plm'])
def test_memory_scales_from_a_small_batch_to_a_large_one(method):
    p = small(batch_size=40, dim=128) # pixels outweigh the pairs of a batch, and the proxies
    guessed, found = measure(method, p, 'cpu'), measure(method, p, 'cpu', 40)
    assert guessed.views == (20 if method == 'stml' else 10) and found.views == 40
    assert guessed.memory - guessed.fixed == pytest.approx(found.memory - found.fixed, rel=0.05)
    weights = sum(t.nbytes for t in build_encoder('resnet18', 128).state_dict().values())
    # twice the encoder, gradients, two moments; proxies or a wide head
    assert guessed.fixed == found.fixed and 5*weights < guessed.fixed - paper._PROGRAM < 5.2*weights
    assert guessed.step > 0 and guessed.look > 0


def test_a_batch_that_does_not_fit_is_halved(repository, monkeypatch):
    "As a GPU would refuse it."
    tried = []
    def refuse(method, p, device, views=None):
        tried.append(views)
        if views > limit: raise torch.OutOfMemoryError('CUDA out of memory')
        return paper.Cost(step=1., look=1., fixed=0., memory=1e9, views=views)
    monkeypatch.setattr(paper, 'measure', refuse)
    p = small(batch_size=120)
    for limit, expected in ((120, [120]), (70, [120, 60]), (20, [120, 60, 20])):
        tried.clear()
        assert paper._fitting('plm', p, 'cuda').views == expected[-1] and tried == expected
    limit = 10
    assert paper._fitting('plm', p, 'cuda') is None
    monkeypatch.setattr(paper, '_fitting', lambda *_: None)
    assert 'not even 20 views of resnet18' in dry_run('cub200-512', changes('cub200'), repository).problems[0]


def test_memory_counts_what_autograd_keeps():
    "Against a network whose bill is easy: three products and a tanh."
    x, w = torch.randn(50, 100), torch.randn(100, 100, requires_grad=True)
    model = torch.nn.Linear(1, 1) # owns nothing of this
    kept = paper._Kept(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda t: t): (x @ w).tanh().square().sum()
    # x for w's gradient; the output of tanh once, though two operations keep it
    assert sum(kept.sizes.values()) == (50*100 + 50*100)*4


def test_a_smaller_batch_fits_every_method():
    p = small(batch_size=120)
    for share in (0.9, 0.5, 0.2, 0.01):
        batch = int(paper._smaller(p, share))
        assert 20 <= batch <= max(20, 120*share)
        assert load_params(PARAMS, settings('cub200-512', f'cub200.train.batch_size={batch}'))


def test_free_memory_is_below_what_the_machine_has():
    assert 0 < free_memory('cpu') <= psutil.virtual_memory().total


# ---- the README's section, word by word

STAND_IN = '''
"Python runs this at its start: in every process of the stages the miniature archive is the official one."
import dataclasses, sys
from importlib.util import find_spec

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != 'plm.datasets': return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            changes = eval({record!r}, vars(module))
            module.PUBLISHED['cub200'] = dataclasses.replace(module.PUBLISHED['cub200'], **changes)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
'''

def photo(seed, c):
    "A little photo whose colour tells its class."
    rng = np.random.default_rng(seed)
    pixels = np.random.default_rng(c).integers(60, 190, 3) + rng.integers(-50, 50, (6, 5, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((50, 60), Image.BILINEAR)
    image.save(out := BytesIO(), 'JPEG')
    return out.getvalue()


@pytest.fixture
def clone(tmp_path):
    """The repository as after `make env`, and a mirror with CUB in miniature: 8 classes of 6 photos.

    `clone.small` makes presets cheap."""
    root, home, mirror = tmp_path/'clone', tmp_path/'home', tmp_path/'mirror'
    copy_pipeline(root)
    for file in ('Makefile', 'requirements.lock', 'pyproject.toml'): shutil.copy(ROOT/file, root/file)
    (root/'.venv/bin').mkdir(parents=True)
    (root/'.venv/.done').touch()
    contents = cub200(classes=8, per_class=6)
    archive = contents['CUB_200_2011.tgz']
    for i, (name, data) in enumerate(archive.items()):
        if name.endswith('.jpg'): archive[name] = photo(i, int(re.search(r'/(\d+)\.', name)[1]))
    record = dict(archives=write_archives('cub200', mirror, contents).archives, classes=(4, 4), images=(24, 24))
    (home/'stand_in').mkdir(parents=True)
    (home/'stand_in/sitecustomize.py').write_text(STAND_IN.replace('{record!r}', repr(repr(record))))
    torch.save(build_encoder('resnet18', 8).state_dict(), home/'start.pth')
    clone = Toy(root, home)
    clone.env |= {'PYTHONPATH': f"{home/'stand_in'}:{root}", 'PLM_MIRROR': str(tmp_path)} # which lacks the archive
    clone.env = {name: value for name, value in clone.env.items() if not name.startswith('MAKE')}
    clone.mirror = str(mirror)
    clone.small = ' '.join(['seeds=[1]', 'methods=[pretrained,plm]', *(f'cub200.{word}' for word in (
        'sizes.side=40', 'train.crop=32', 'train.backbone=resnet18', f"train.weights={home/'start.pth'}",
        'train.precision=float32', 'train.epochs=12', 'train.batch_size=20'))])
    clone.ok('git', 'init', '-q')
    clone.ok('git', 'add', '-A')
    for setting in (('user.name', 'a'), ('user.email', 'a@b')): clone.ok('git', 'config', *setting)
    clone.ok('git', 'commit', '-qm', 'clone')
    return clone


def test_the_readme_can_be_followed(clone):
    "A dry run that finds the archive missing; the run, killed in training; the same command again, to the end."
    section = (ROOT/'docs/paper.md').read_text()
    blocks = re.findall(r'```bash\n(.*?)```', section, re.S)
    commands = [line.split('#')[0].strip() for block in blocks for line in block.strip().splitlines()]
    assert commands[0] == 'make env' and 'fetch_weights' in commands[1] # which need a network
    words = [re.findall(r'[^\s"=]+="[^"]*"|\S+', command) for command in commands[2:]]
    dry, paper_, changed = (['make', *rest] for _, *rest in words)
    assert dry == ['make', 'dry', 'PRESET=cub200-512'] and paper_ == ['make', 'paper', 'PRESET=cub200-512']
    set_ = settings('cub200-512', changed[3].removeprefix('SET=').strip('"'))
    assert set_['cub200.train.batch_size'] == 60
    small = f'SET={clone.small}'

    p = clone.run(*dry, small)
    assert p.returncode and 'does not hold CUB_200_2011.tgz' in p.out and '1. PLM_MIRROR is' in p.out
    assert 'Traceback' not in p.out + p.err
    assert re.search(r'^paper: dry ', (ROOT/'Makefile').read_text(), re.M) # so the run would not begin, either
    assert not any((clone.root/name).exists() for name in ('downloads', 'runs', 'scratch'))
    assert clone.ok('git', 'status', '--short').out == ''

    clone.env['PLM_MIRROR'] = clone.mirror
    with open(clone.root.parent/'killed.log', 'w') as log:
        process = clone.start(*paper_, small, stdout=log, stderr=log)
    end = time.time() + 400
    while not (left := list(clone.scratch.glob('plm-1-*.pt'))):
        assert process.poll() is None and time.time() < end, Path(log.name).read_text()[-3000:]
        time.sleep(0.01)
    kill_tree(process)
    assert left[0].exists() and not (clone.root/'docs/paper').exists()

    p = clone.ok(*paper_, small)
    assert 'Ready.' in p.out and '4 classes train (24 images), 4 test (24)' in p.out
    ran = re.findall(r"^Running stage '(.*)'", p.out, re.M)
    assert 'train@plm-1' in ran and 'report' in ran and not {'download', 'pretrain@1', 'train@pretrained-1'} & set(ran)
    assert 'plm, seed 1: resuming after epoch' in outputs(clone.root/'runs/notebooks/train-plm-1.ipynb')[0]
    assert not list(clone.scratch.glob('*.pt')) and not clone.half_written()
    assert (clone.root/'results/report.html').exists()

    rows = list(csv.DictReader(open(clone.root/'docs/paper/cub200-512.csv')))
    assert all((r['dataset'], r['seed']) == ('cub200', '1') and 0 <= float(r['value']) <= 1 for r in rows)
    value = {(r['method'], r['metric']): float(r['value']) for r in rows}
    assert len(value) == len(rows) and {m for m, _ in value} == {'pretrained', 'plm'}
    assert re.search(rf"^512  PLM, ours +{100*value['plm', 'recall_at_1']:.1f} \(1\)", p.out, re.M)
    assert re.search(r'^512  PLM +61.7±0.3', p.out, re.M)
    changed = json.loads((clone.root/'docs/paper/cub200-512.json').read_text())['changed']
    assert changed['cub200.train.backbone'] == 'resnet18' and changed['seeds'] == [1]
    assert 'cub200.train.dim' not in changed
    assert 'cub200-512 was run with other constants' in p.out
