"Random numbers with an address, files that are whole or absent, and messages that help."
import subprocess, sys
import pytest, torch
from hypothesis import given, settings, strategies as st
from plm.core import check_embeddings, generator_at, one_of, pick_device, progress, whole_file


def draw(*address): return torch.randint(2**60, (4,), generator=generator_at(*address)).tolist()


def test_the_numbers_of_an_address_never_change():
    "Frozen: a resumed run, another process and another year draw the same."
    assert generator_at(0, 'augment', 7).initial_seed() == 3644924942034388978
    code = "from plm.core import generator_at; print(generator_at(0, 'augment', 7).initial_seed())"
    assert int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) == 3644924942034388978


parts = st.lists(st.one_of(st.integers(-2**70, 2**70), st.text(max_size=6)), max_size=4).map(tuple)

@settings(max_examples=100, deadline=None, derandomize=True)
@given(parts, parts)
def test_addresses_are_told_apart(a, b):
    assert draw(*a) == draw(*a)
    assert (draw(*a) == draw(*b)) == (a == b)


def test_neighbouring_addresses_are_told_apart():
    addresses = [(1, 2), (12,), ('1', 2), ('1', '2'), ('12',), ("1', '2",), (1, '2'), (2, 1), ()]
    assert len({tuple(draw(*a)) for a in addresses}) == len(addresses)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5); expected = torch.rand(3)
    torch.manual_seed(5); generator_at(1); draw(2)
    assert torch.equal(torch.rand(3), expected)


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path/'new'/'folder'/'a.txt'
    with whole_file(target) as tmp:
        tmp.write_text('first')
        assert not target.exists() and tmp.parent == target.parent
    with whole_file(str(target)) as tmp:
        tmp.write_text('second')
        assert target.read_text() == 'first'
    assert target.read_text() == 'second' and [p.name for p in target.parent.iterdir()] == ['a.txt']


@pytest.mark.parametrize('kind', [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_file_leaves_the_old_one(tmp_path, kind):
    (tmp_path/'a').write_text('old')
    with pytest.raises(kind):
        with whole_file(tmp_path/'a') as tmp:
            tmp.write_text('half')
            raise kind
    assert (tmp_path/'a').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_nothing_written_is_an_error(tmp_path):
    (tmp_path/'a').write_text('old')
    with pytest.raises(FileNotFoundError):
        with whole_file(tmp_path/'a'): pass
    assert (tmp_path/'a').read_text() == 'old'


def test_one_of():
    assert one_of('b', ('a', 'b'), 'letter') == 'b'
    assert one_of('a', {'a': 1}, 'letter') == 'a'
    with pytest.raises(ValueError, match=r"unknown data set 'glphys'\. Did you mean 'glyphs'\? Choose one of: glyphs, omniglot\."):
        one_of('glphys', (n for n in ('glyphs', 'omniglot')), 'data set')
    with pytest.raises(ValueError) as e: one_of('zzz', ['glyphs'], 'data set')
    assert 'Did you mean' not in str(e.value)
    with pytest.raises(ValueError, match='unknown method 3'): one_of(3, ['plm'], 'method')


@pytest.mark.parametrize('z, words', [
    (torch.zeros(3), r'points must have shape \(B, d\), got \(3,\)'), (torch.zeros(2, 3, 1), r'\(2, 3, 1\)'),
    (torch.tensor([[0.], [float('nan')], [float('inf')]]), r'points have NaN or infinite values in 2 of 3 rows \(first: row 1\)'),
    (torch.tensor([[-float('inf'), 0.]]), r'1 of 1 rows')])
def test_bad_embeddings(z, words):
    with pytest.raises(ValueError, match=words): check_embeddings(z, 'points')


@pytest.mark.parametrize('shape', [(0, 3), (3, 0), (2, 2)])
def test_good_embeddings_come_back_as_they_are(shape):
    z = torch.zeros(shape)
    assert check_embeddings(z) is z


def test_device(monkeypatch):
    assert pick_device('cpu') == torch.device('cpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert pick_device() == torch.device('cpu')
    with pytest.raises(RuntimeError, match="'cuda:1'.*device: auto"): pick_device('cuda:1')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert pick_device() == torch.device('cuda') and pick_device('cpu') == torch.device('cpu')


def test_progress_passes_everything_on(capsys):
    assert list(progress((i for i in 'abc'), 'letters', total=3)) == ['a', 'b', 'c']
    assert 'letters: 100%' in capsys.readouterr().err
