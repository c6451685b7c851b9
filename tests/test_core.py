"Random numbers with an address, files that are whole or absent, and messages that help."
import subprocess, sys
import pytest, torch
from hypothesis import given, settings, strategies as st
from pydantic import Field, model_validator
from plm.core import (Constants, check_embeddings, generator_at, one_of, pick_device, progress, read_constants,
                      whole_file)


def draw(*address): return torch.randint(2**60, (4,), generator=generator_at(*address)).tolist()


def test_the_numbers_of_an_address_never_change():
    "Frozen: a resumed run, another process and another year draw the same."
    frozen = 3644924942034388978
    assert generator_at(0, 'augment', 7).initial_seed() == frozen
    code = "from plm.core import generator_at; print(generator_at(0, 'augment', 7).initial_seed())"
    assert int(subprocess.run([sys.executable, '-c', code], capture_output=True, check=True).stdout) == frozen


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
    words = r"unknown data set 'glphys'\. Did you mean 'glyphs'\? Choose one of: glyphs, omniglot\."
    with pytest.raises(ValueError, match=words):
        one_of('glphys', (n for n in ('glyphs', 'omniglot')), 'data set')
    with pytest.raises(ValueError) as e: one_of('zzz', ['glyphs'], 'data set')
    assert 'Did you mean' not in str(e.value)
    with pytest.raises(ValueError, match='unknown method 3'): one_of(3, ['plm'], 'method')


@pytest.mark.parametrize('z, words', [
    (torch.zeros(3), r'points must have shape \(B, d\), got \(3,\)'), (torch.zeros(2, 3, 1), r'\(2, 3, 1\)'),
    (torch.tensor([[0.], [float('nan')], [float('inf')]]),
     r'points have NaN or infinite values in 2 of 3 rows \(first: row 1\)'),
    (torch.tensor([[-float('inf'), 0.]]), r'1 of 1 rows')])
def test_bad_embeddings(z, words):
    with pytest.raises(ValueError, match=words): check_embeddings(z, 'points')


@pytest.mark.parametrize('shape', [(0, 3), (3, 0), (2, 2)])
def test_good_embeddings_come_back_as_they_are(shape):
    z = torch.zeros(shape)
    assert check_embeddings(z) is z


class Piece(Constants):
    m: int = Field(ge=1) # dimension
    T: float | None = Field(gt=0, le=1) # quality
    sizes: dict[str, int] = {}

    @model_validator(mode='after')
    def fits(self):
        if self.m > 9 and self.T is None: raise ValueError('m above 9 needs a T')
        return self


def test_constants_are_read_and_stay():
    piece = read_constants(Piece, {'m': 3, 'T': 1}, 'plm')
    assert (piece.m, piece.T, piece.sizes) == (3, 1., {})
    assert read_constants(Piece, {'m': 3, 'T': None}, 'plm').T is None
    with pytest.raises(ValueError, match='frozen'): piece.m = 4


@pytest.mark.parametrize('values, words', [
    ({'T': 1.}, r'^plm\.m is missing\.$'),
    ({'m': True, 'T': 1.}, r'^plm\.m: input should be a valid integer, got True\.$'),
    ({'m': 3., 'T': 1.}, r'plm\.m: .*got 3\.0'), ({'m': 3, 'T': '1'}, r"plm\.T: .*got '1'"),
    ({'m': 0, 'T': 1.}, r'plm\.m: .*got 0'),
    ({'m': 3, 'T': 1., 'sizes': {'a': 'b'}}, r"plm\.sizes\.a: .*got 'b'"),
    ({'m': 10, 'T': None}, '^plm: m above 9 needs a T$'),
    ({'m': 3, 'T': 1., 'size': {}}, r"^plm\.size is not a parameter\. Did you mean 'sizes'\? plm has: m, T, sizes\.$"),
    ({'m': 3, 'T': 1., 'xyz': 0}, r'^plm\.xyz is not a parameter\. plm has'),
    ({'m': 0, 'T': 2.}, r'(?s)plm\.m: .*\nplm\.T: '), # every one that is wrong
    ([3, 1.], r'plm must be a mapping of names to values, got \[3, 1\.0\]')])
def test_constants_that_are_refused(values, words):
    with pytest.raises(ValueError, match=words): read_constants(Piece, values, 'plm')


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
