"States of unfinished runs: whole, repeatable, safe to read; and the names that tell runs apart."
import copy, errno, re
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
import plm
from plm import checkpoint
from plm.checkpoint import code_of, fingerprint, is_full_memory, load_state, save_state, sum_fits
from plm.core import Constants, generator_at, whole_file

STATE = {'parts': [{'w': torch.arange(6.).view(2, 3), 'n': torch.tensor(3)}, {'lr': 0.1, 'betas': (0.9, 0.99)}],
         'log': [{'epoch': 0}, {'epoch': 1, 'name': 'é'}]}
IMAGES = torch.randint(0, 256, (50, 1, 24, 24), generator=generator_at('pictures'), dtype=torch.uint8)


def test_equal_states_give_equal_bytes_and_come_back(tmp_path):
    save_state(STATE, tmp_path/'a.pt')
    save_state(copy.deepcopy(STATE), str(tmp_path/'new'/'another name.pt'))
    assert (tmp_path/'a.pt').read_bytes() == (tmp_path/'new'/'another name.pt').read_bytes()
    back = load_state(tmp_path/'a.pt')
    assert torch.equal(back['parts'][0]['w'], STATE['parts'][0]['w']) and back['parts'][0]['n'] == 3
    assert back['parts'][1] == STATE['parts'][1] and back['log'] == STATE['log']


def test_a_state_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    save_state(STATE, tmp_path/'a.pt')
    before = (tmp_path/'a.pt').read_bytes()
    with pytest.raises(Exception): save_state({'w': lambda: 0}, tmp_path/'a.pt')
    assert (tmp_path/'a.pt').read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('words, error', [
    ('[enforce fail at inline_container.cc:626] . unexpected pos', OSError), ('shapes do not fit', RuntimeError)])
def test_a_full_disk_is_named_and_leaves_the_old_state(tmp_path, monkeypatch, words, error):
    save_state(STATE, tmp_path/'a.pt')
    before = (tmp_path/'a.pt').read_bytes()
    def half(state, f):
        f.write(b'half a state')
        raise RuntimeError(words)
    monkeypatch.setattr(torch, 'save', half)
    with pytest.raises(error) as e: save_state(STATE, tmp_path/'a.pt')
    if error is OSError:
        assert e.value.errno == errno.ENOSPC
        assert re.search(r'a\.pt could not be written.*\d+ MB are free\. Make room', str(e.value))
    else: assert str(e.value) == words
    assert (tmp_path/'a.pt').read_bytes() == before and len(list(tmp_path.iterdir())) == 1


class Sly:
    def __reduce__(self): return (open, ('sly', 'w'))


def test_a_state_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for save in (torch.save, save_state):
        save({'w': Sly()}, 'a.pt')
        with pytest.raises(ValueError, match=r'a\.pt cannot be read'): load_state('a.pt')
    assert not (tmp_path/'sly').exists()


@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'not a state'])
def test_a_damaged_state_is_named(damage, tmp_path):
    save_state(STATE, tmp_path/'a.pt')
    (tmp_path/'a.pt').write_bytes(damage((tmp_path/'a.pt').read_bytes()))
    assert sum_fits(tmp_path/'a.pt') is None
    with pytest.raises(ValueError, match=r'a\.pt cannot be read as a saved state.*Delete it.*dvc repro'):
        load_state(tmp_path/'a.pt')


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    "Neither in the weights, nor in names, nor in the sum itself."
    save_state(STATE, tmp_path/'a.pt')
    assert sum_fits(tmp_path/'a.pt')
    whole, g = (tmp_path/'a.pt').read_bytes(), generator_at('flips')
    places = {*torch.randint(len(whole), (150,), generator=g).tolist(), *range(len(whole) - 90, len(whole))}
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        (tmp_path/'a.pt').write_bytes(data)
        with pytest.raises(ValueError, match='cannot be read as a saved state: it is damaged'):
            load_state(tmp_path/'a.pt')


def test_a_full_disk_is_named_whatever_is_written(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        words = r'a\.csv could not be written: the disk is full, or .*MB are free. Make'
        with pytest.raises(OSError, match=words) as e:
            with whole_file(tmp_path/'a.csv'): raise OSError(number, 'no')
        assert e.value.errno == number and not list(tmp_path.iterdir())
    with pytest.raises(PermissionError, match='^.Errno 13. no$'), whole_file(tmp_path/'a.csv'):
        raise OSError(errno.EACCES, 'no')


def test_a_state_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'a\.pt is missing.*dvc repro'): load_state(tmp_path/'a.pt')


FULL = [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'), MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError('CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate')]


def test_a_full_memory_is_told_from_other_errors():
    assert all(is_full_memory(e) for e in FULL)
    others = RuntimeError('shapes do not fit'), ValueError('out of memory'), OSError()
    assert not any(is_full_memory(e) for e in others)


@pytest.mark.parametrize('error', FULL)
def test_a_memory_too_small_for_a_state_is_named(tmp_path, monkeypatch, error):
    "The file is good: nobody should delete it."
    save_state(STATE, tmp_path/'a.pt')
    def fail(*args, **kwargs): raise error
    monkeypatch.setattr(torch, 'load', fail)
    with pytest.raises(MemoryError, match=r'a\.pt.*Close what else') as e: load_state(tmp_path/'a.pt')
    assert 'Delete' not in str(e.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_state_goes_where_it_is_wanted(tmp_path):
    save_state({'w': torch.ones(3, device='cuda')}, tmp_path/'a.pt')
    assert not load_state(tmp_path/'a.pt')['w'].is_cuda and load_state(tmp_path/'a.pt', 'cuda')['w'].is_cuda


class Knobs(Constants):
    k: int = 5
    lr: float = 1e-3


def test_what_decides_a_run_changes_its_fingerprint():
    parts = [Knobs(), Knobs(k=6), Knobs(lr=1.0000001e-3), 0, 1, '0', b'code', IMAGES, IMAGES[:-1], IMAGES.int(),
             torch.zeros(3), torch.zeros(4), {'a': 1}, {'a': 2}]
    prints = [fingerprint(p) for p in parts]
    assert len(set(prints)) == len(parts) and all(len(f) == 16 and int(f, 16) >= 0 for f in prints)
    assert fingerprint(IMAGES.clone(), Knobs()) == fingerprint(IMAGES, Knobs(k=5))
    assert fingerprint(IMAGES, 0) != fingerprint(0, IMAGES)
    for one, other in (((1, 23), (12, 3)), ((0.001, 10), (0.0011, 0)), ((b'ab', b'c'), (b'a', b'bc'))):
        assert fingerprint(*one) != fingerprint(*other)


def test_how_a_tensor_lies_in_memory_changes_nothing():
    turned = IMAGES.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    assert not turned.is_contiguous() and fingerprint(turned) == fingerprint(IMAGES)
    assert fingerprint(torch.ones(3, requires_grad=True)) == fingerprint(torch.ones(3))


def test_empty_tensors_are_told_apart():
    "As val is, where all classes are trained on."
    shapes = ((0,), np.int64), ((0, 3, 8, 8), np.uint8)
    assert len({fingerprint(torch.from_numpy(np.zeros(shape, kind))) for shape, kind in shapes}) == 2


def test_the_version_of_torch_is_part_of_the_fingerprint(monkeypatch):
    before = fingerprint('x')
    monkeypatch.setattr(torch, '__version__', '0.0')
    assert fingerprint('x') != before


@pytest.fixture
def package(tmp_path, monkeypatch):
    "Four modules: `top` imports `middle`, `middle` imports `bottom`, and `aside` is imported by none of them."
    code = {'__init__': '', 'top': 'from .middle import a\n', 'middle': 'def f():\n    from .bottom import b\n',
            'bottom': 'import torch\nfrom .top import c\n', 'aside': 'from .top import a\n'} # a circle does no harm
    for name, text in code.items(): (tmp_path/f'{name}.py').write_text(text)
    monkeypatch.setattr(plm, '__file__', str(tmp_path/'__init__.py'))
    return tmp_path


@pytest.mark.parametrize('edited, noticed', [('top', True), ('middle', True), ('bottom', True), ('aside', False)])
def test_the_code_that_a_run_imports_is_part_of_it(package, edited, noticed):
    before = code_of('top')
    assert code_of('top') == before == code_of('top', 'middle')
    (package/f'{edited}.py').write_text((package/f'{edited}.py').read_text() + '# edited\n')
    assert (code_of('top') != before) == noticed


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(['core', 'manifold', 'similarity', 'proxies', 'losses', 'baselines']), min_size=1))
def test_code_is_that_of_the_modules_in_any_order(modules):
    "By a walk through the imports, one at a time."
    folder, found, todo = Path(checkpoint.__file__).parent, set(), list(modules)
    while todo:
        name = todo.pop()
        found.add(name)
        imported = re.findall(r'^from \.(\w+) import', (folder/f'{name}.py').read_text(), re.M)
        todo += set(imported) - found
    assert code_of(*modules) == b''.join((folder/f'{name}.py').read_bytes() for name in sorted(found))
    assert code_of(*modules) == code_of(*reversed(modules))
