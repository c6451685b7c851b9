"Files of others: fetched, checked, unpacked. Nothing here needs a network."
import errno, hashlib, io, os, resource, shutil, signal, socket, stat, struct, subprocess, sys, tarfile, time, warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from plm import core, transfer
from plm.transfer import check_file, download, file_digest, unpack
from miniature_published import write_tgz, write_zip
from server import BYTES

ROOT = Path(__file__).parent.parent
SHA = f'sha256:{hashlib.sha256(BYTES).hexdigest()}'


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch): monkeypatch.delenv('PLM_MIRROR', raising=False)


def files_in(folder): return sorted(p.name for p in folder.iterdir())


def wait_for(what):
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- download

def test_download_and_again(server, tmp_path):
    target = tmp_path/'new'/'file'
    assert download(server.url, target, len(BYTES), SHA) == target and target.read_bytes() == BYTES
    download(server.url, target, len(BYTES), SHA)
    assert files_in(target.parent) == ['file'] # no leftovers
    assert len(server.asked) == 1 # the second call did not ask


@pytest.mark.parametrize('size', [None, len(BYTES)])
@pytest.mark.parametrize('checksum', [None, SHA])
def test_a_line_that_breaks_is_taken_up_again(server, tmp_path, size, checksum):
    server.cut = (1 << 20) + 5
    download(server.url, tmp_path/'file', size, checksum)
    assert (tmp_path/'file').read_bytes() == BYTES and files_in(tmp_path) == ['file']
    assert server.asked == [(None, None), (f'bytes={server.cut}-', '"1"'), (f'bytes={2*server.cut}-', '"1"')]


def test_a_break_after_little_is_an_error_that_keeps_it(server, tmp_path):
    server.cut = 1000
    with pytest.raises(ConnectionError, match='1000 bytes are kept: run again'):
        download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert files_in(tmp_path) == ['.file.part', '.file.version']
    with pytest.raises(ConnectionError, match='2000 bytes are kept'):
        download(server.url, tmp_path/'file', len(BYTES), SHA)
    server.cut = None
    download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert server.ranges_asked() == [None, 'bytes=1000-', 'bytes=2000-'] and (tmp_path/'file').read_bytes() == BYTES


def test_a_server_that_ignores_ranges(server, tmp_path):
    server.cut, server.ranges = (1 << 20) + 5, False
    with pytest.raises(ConnectionError, match='cut after'): download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert len(server.asked) == 2 # it went on once, got no further, and did not try for ever
    server.cut = None
    download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert (tmp_path/'file').read_bytes() == BYTES


def test_a_file_that_changed_meanwhile_is_begun_anew(server, tmp_path):
    server.cut = 1000
    with pytest.raises(ConnectionError): download(server.url, tmp_path/'file')
    server.cut, server.tag, server.body = None, '"2"', b'new' + BYTES
    download(server.url, tmp_path/'file')
    assert (tmp_path/'file').read_bytes() == b'new' + BYTES and server.asked[-1] == ('bytes=1000-', '"1"')


@pytest.mark.parametrize('tag', [None, 'W/"weak"'])
def test_without_tag_and_checksum_nothing_is_joined(server, tmp_path, tag):
    server.tag, server.cut = tag, 1000
    for _ in range(2):
        with pytest.raises(ConnectionError): download(server.url, tmp_path/'file')
    assert server.ranges_asked() == [None, None]
    with pytest.raises(ConnectionError): download(server.url, tmp_path/'file', checksum=SHA) # with a checksum it may
    assert server.ranges_asked()[-1] == 'bytes=1000-'


def test_parts_from_elsewhere_are_begun_anew(server, tmp_path):
    (tmp_path/'.file.part').write_bytes(BYTES[:1000])
    server.odd_part = True # answers with another part than it was asked for
    download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert (tmp_path/'file').read_bytes() == BYTES and server.ranges_asked() == ['bytes=1000-', None]


@pytest.mark.parametrize('size', [None, len(BYTES)])
def test_all_was_here_already(server, tmp_path, size):
    "The process was killed between the last byte and the check."
    (tmp_path/'.file.part').write_bytes(BYTES)
    download(server.url, tmp_path/'file', size, SHA)
    assert (tmp_path/'file').read_bytes() == BYTES
    assert server.ranges_asked() == ([] if size else [f'bytes={len(BYTES)}-'])


def test_more_than_all_is_begun_anew(server, tmp_path):
    (tmp_path/'.file.part').write_bytes(BYTES + b'!')
    download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert (tmp_path/'file').read_bytes() == BYTES


def test_a_wrong_start_costs_one_try(server, tmp_path):
    (tmp_path/'.file.part').write_bytes(bytes(1000))
    with pytest.raises(ValueError, match='SHA256.*expected'): download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert files_in(tmp_path) == []
    assert download(server.url, tmp_path/'file', len(BYTES), SHA).read_bytes() == BYTES


def test_another_file_is_refused_early_and_late(server, tmp_path):
    server.body = b'<html>please log in</html>'
    with pytest.raises(ValueError, match='offers 26 bytes, expected'):
        download(server.url, tmp_path/'file', len(BYTES), SHA)
    with pytest.raises(ValueError, match='MD5 is .* expected 0{32}') as e:
        download(server.url, tmp_path/'file', None, f'md5:{"0"*32}')
    assert server.url in str(e.value) and 'PLM_MIRROR' in str(e.value) and not (tmp_path/'file').exists()


def test_more_than_announced_is_not_written_for_ever(server, tmp_path):
    "A server that does not tell the length."
    server.length = False
    with pytest.raises(ValueError, match='sends more than the expected 1000 bytes'):
        download(server.url, tmp_path/'file', 1000, SHA)
    assert not (tmp_path/'file').exists() and (tmp_path/'.file.part').stat().st_size < 1 << 18
    assert download(server.url, tmp_path/'file', len(BYTES), SHA).read_bytes() == BYTES


@pytest.mark.parametrize('code, error', [(404, FileNotFoundError), (410, FileNotFoundError),
                                         *((code, ConnectionError) for code in (403, 416, 503))])
def test_refusals(server, tmp_path, code, error):
    server.code = code
    with pytest.raises(error, match=f'{code}.*PLM_MIRROR'): download(server.url, tmp_path/'file')
    assert files_in(tmp_path) == []


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)) # bound but not listening: nobody answers
        with pytest.raises(ConnectionError, match='refused. Is there a network.*PLM_MIRROR'):
            download(f'http://127.0.0.1:{s.getsockname()[1]}/x', tmp_path/'file')
    with pytest.raises(ConnectionError, match='unknown url type'): download('nowhere://x/y', tmp_path/'file')
    with pytest.raises(FileNotFoundError, match='does not exist.*PLM_MIRROR'):
        download(tmp_path/'nowhere', tmp_path/'file')
    assert files_in(tmp_path) == []


def test_silence_ends_in_an_error(tmp_path, monkeypatch):
    real = transfer.urllib.request.urlopen
    def impatient(request, timeout):
        assert 5 <= timeout <= 120
        return real(request, timeout=0.3)
    monkeypatch.setattr(transfer.urllib.request, 'urlopen', impatient)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen() # accepts, and says nothing
        with pytest.raises(ConnectionError, match='timed out'):
            download(f'http://127.0.0.1:{s.getsockname()[1]}/x', tmp_path/'file')


def test_a_different_file_is_never_overwritten(server, tmp_path):
    (tmp_path/'file').write_bytes(b'mine')
    with pytest.raises(ValueError, match='left as it is: delete it'): download(server.url, tmp_path/'file', 4, SHA)
    with pytest.raises(ValueError, match='4 bytes, expected'): download(server.url, tmp_path/'file', len(BYTES))
    assert (tmp_path/'file').read_bytes() == b'mine' and not server.asked


def test_a_full_disk_is_seen_before_and_during(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, 'disk_usage', lambda p: usage._replace(free=len(BYTES) - 1))
    words = 'file cannot be written to .*3.1 MB are needed, 3.1 MB are free. Free some space'
    with pytest.raises(OSError, match=words) as e:
        download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert e.value.errno == errno.ENOSPC and files_in(tmp_path) == []
    monkeypatch.undo()
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > 1 << 20: raise OSError(errno.ENOSPC, 'No space left on device')
            return super().write(data)
    monkeypatch.setattr(transfer, 'open', lambda p, mode: Full(p, mode.replace('b', '')), raising=False)
    with pytest.raises(OSError, match='file cannot be written to .*Free some space') as e:
        download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert not isinstance(e.value, ConnectionError) and (tmp_path/'.file.part').stat().st_size > 1 << 20
    monkeypatch.delattr(transfer, 'open')
    download(server.url, tmp_path/'file', len(BYTES), SHA) # space was made: it goes on
    assert (tmp_path/'file').read_bytes() == BYTES and server.ranges_asked()[-1].startswith('bytes=1')


@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_from_a_folder(data, have):
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        (d/'ä b#%20').write_bytes(data) # a name that has to be quoted in a file:// address
        (d/'.copy.part').write_bytes(data[:have])
        assert file_digest(d/'ä b#%20', 'md5') == hashlib.md5(data).hexdigest()
        assert file_digest(d/'ä b#%20') == hashlib.sha256(data).hexdigest()
        assert download(d/'ä b#%20', d/'copy', None, f'sha256:{hashlib.sha256(data).hexdigest()}').read_bytes() == data
        assert files_in(d) == ['copy', 'ä b#%20']


@pytest.mark.parametrize('number', [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_to(server, tmp_path, monkeypatch, number):
    def refused(path, mode): raise OSError(number, os.strerror(number), str(path))
    monkeypatch.setattr(transfer, 'open', refused, raising=False)
    words = rf'file cannot be written to .*{os.strerror(number)} \(.*file.part\). Choose another folder'
    with pytest.raises(OSError, match=words) as e:
        download(server.url, tmp_path/'file')
    assert e.value.errno == number and not isinstance(e.value, ConnectionError)


def test_a_folder_that_may_not_be_looked_into(server, tmp_path, monkeypatch):
    "Then not even whether the file is there can be seen."
    real, target = os.stat, tmp_path/'file'
    def refused(path, *args, **kw):
        if path in (target, str(target)): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return real(path, *args, **kw)
    monkeypatch.setattr(os, 'stat', refused)
    with pytest.raises(PermissionError, match='file cannot be written to .*Permission denied .*Choose another folder'):
        download(server.url, target)


def test_a_file_where_the_folder_should_be(server, tmp_path):
    (tmp_path/'folder').write_text('a file')
    for target in (tmp_path/'folder'/'file', tmp_path/'folder'/'deeper'/'file'):
        with pytest.raises(OSError, match=r'a file is in the way \(.*folder') as e: download(server.url, target)
        assert not isinstance(e.value, ConnectionError)


def test_a_limit_on_the_size_of_files(server, tmp_path):
    "A refusal by the system itself, in the middle of the file."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match='file cannot be written to .*File too large. Free some space') as e:
            download(server.url, tmp_path/'file', len(BYTES), SHA)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert e.value.errno == errno.EFBIG and (tmp_path/'.file.part').read_bytes() == BYTES[:1 << 20]
    download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert (tmp_path/'file').read_bytes() == BYTES and server.ranges_asked() == [None, f'bytes={1 << 20}-']


def test_a_killed_process_is_taken_up_again(server, tmp_path):
    "kill -9: no time to clear anything away. The next call goes on, and finds no lock."
    server.cut, server.held = 2_000_000, True
    what = server.url, str(tmp_path/'file'), len(BYTES), SHA
    code = f"from plm.transfer import download; download(*{what!r})"
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path/'.file.part').exists() and (tmp_path/'.file.part').stat().st_size > 1_900_000)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert files_in(tmp_path) == ['.file.part', '.file.version']
    kept = (tmp_path/'.file.part').stat().st_size
    server.go_on.set()
    download(server.url, tmp_path/'file', len(BYTES), SHA)
    assert (tmp_path/'file').read_bytes() == BYTES and files_in(tmp_path) == ['file']
    assert server.asked == [(None, None), (f'bytes={kept}-', '"1"')]


def test_two_at_once_fetch_one_file(server, tmp_path, capsys):
    server.cut, server.held = 1000, True
    with ThreadPoolExecutor() as pool:
        two = [pool.submit(download, server.url, tmp_path/'file', len(BYTES), SHA) for _ in range(2)]
        wait_for(lambda: server.asked and 'waiting' in capsys.readouterr().err)
        server.go_on.set()
        assert {t.result() for t in two} == {tmp_path/'file'}
    assert len(server.asked) == 1 and (tmp_path/'file').read_bytes() == BYTES and files_in(tmp_path) == ['file']


def test_a_file_system_without_locks(server, tmp_path, monkeypatch):
    def unsupported(*args): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(core.fcntl, 'flock', unsupported)
    assert download(server.url, tmp_path/'file').read_bytes() == BYTES


def test_a_system_without_locks(server, tmp_path, monkeypatch):
    monkeypatch.setattr(core, 'fcntl', None)
    assert download(server.url, tmp_path/'file').read_bytes() == BYTES


@pytest.mark.parametrize('how', ['argument', 'slash', 'address', 'environment', 'both'])
def test_a_mirror_is_asked_instead(server, tmp_path, monkeypatch, how):
    mirror = tmp_path/'mirror'
    mirror.mkdir()
    (mirror/'file').write_bytes(BYTES)
    monkeypatch.setenv('PLM_MIRROR', {'environment': str(mirror), 'both': 'nowhere://'}.get(how, ''))
    given = {'slash': f'{mirror}/', 'address': mirror.as_uri(), 'environment': None}.get(how, mirror)
    assert download(server.url, tmp_path/'file', checksum=SHA, mirror=given).read_bytes() == BYTES and not server.asked
    words = f'{mirror.as_uri()}/other does not exist. Put other into .*Without the mirror .* from {server.url}. Ask.'
    with pytest.raises(FileNotFoundError, match=words):
        download(server.url, tmp_path/'other', mirror=given, cure='Ask.')
    assert download(None, tmp_path/'more'/'file', mirror=given).read_bytes() == BYTES # there is only the mirror


def test_without_an_address_a_person_has_to_fetch_it(tmp_path):
    words = 'a.zip is not in .*new, and there is no address.*Put a.zip into .*new yourself, or set PLM_.* Ask them.$'
    with pytest.raises(FileNotFoundError, match=words):
        download(None, tmp_path/'new'/'a.zip', cure='Ask them.')
    assert not (tmp_path/'new').exists()
    (tmp_path/'a.zip').write_bytes(BYTES)
    assert download(None, tmp_path/'a.zip', len(BYTES), SHA) == tmp_path/'a.zip'


def test_the_cure_is_told_with_each_failure(server, tmp_path):
    server.cut, server.length = 1000, True
    with pytest.raises(ConnectionError, match='kept: run again.*PLM_MIRROR.* Ask them.$'):
        download(server.url, tmp_path/'cut', cure='Ask them.')
    server.cut = None
    for target, kw in ((tmp_path/'size', dict(size=7)), (tmp_path/'sum', dict(checksum='md5:' + '0'*32))):
        with pytest.raises(ValueError, match='expected .*PLM_MIRROR.* Ask them.$'):
            download(server.url, target, cure='Ask them.', **kw)
    (tmp_path/'mine').write_bytes(b'mine')
    with pytest.raises(ValueError, match='mine is incomplete or another file.*delete it and run again. Ask them.$'):
        download(server.url, tmp_path/'mine', checksum=SHA, cure='Ask them.')


# ---- checksums

def test_the_beginning_of_a_sum_is_a_sum(server, tmp_path):
    download(server.url, tmp_path/'file', checksum=SHA[:15])
    check_file(tmp_path/'file', len(BYTES), SHA.upper()) # SHA256:ABCD is the same sum
    wrong = SHA[:14] + ('0' if SHA[14] != '0' else '1')
    words = f'its SHA256 is {SHA[7:]}, expected one that begins with {wrong[7:]}'
    with pytest.raises(ValueError, match=f'sent something else than new: {words}'):
        download(server.url, tmp_path/'new', checksum=wrong)
    with pytest.raises(ValueError, match=f'{tmp_path}/file is incomplete or another file: {words}.*Delete it'):
        check_file(tmp_path/'file', checksum=wrong)
    with pytest.raises(ValueError, match=f'it has {len(BYTES)} bytes, expected 5. Throw it away.'):
        check_file(tmp_path/'file', 5, wrong, 'Throw it away.')


@pytest.mark.parametrize('checksum', ['sha1:' + '0'*40, '0'*32, 'md5:', 'md5:1234567', 'md5:' + '0'*33,
                                      'sha256:1234567', 'sha256:' + 'g'*64])
def test_a_sum_that_is_none_is_noticed_before_the_download(server, tmp_path, checksum):
    with pytest.raises(ValueError, match=f'checksum {checksum!r}: give md5: or sha256:.*first 8'):
        download(server.url, tmp_path/'file', checksum=checksum)
    assert not server.asked


# ---- unpack

def member(name, type=tarfile.REGTYPE, linkname='', size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type, linkname, size
    return info


def raw_tgz(path, *members):
    with tarfile.open(path, 'w:gz') as t:
        for m in members: t.addfile(m, io.BytesIO(b'x'*m.size))
    return path


EVIL_NAMES = ['../out', 'a/../../out', '/out', 'a/../out', '..\\out', 'C:\\out', 'C:out', '\\out']


@pytest.mark.parametrize('name', EVIL_NAMES)
def test_no_path_leads_out(tmp_path, name):
    with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z:
        info = zipfile.ZipInfo('x'*len(name))
        info.filename = name # the constructor would mend it
        z.writestr(info, b'!')
    for archive in (raw_tgz(tmp_path/'t.tgz', member(name, size=1)), tmp_path/'z.zip'):
        with pytest.raises(ValueError, match='leads out of its folder'): unpack(archive, tmp_path/f'in-{archive.stem}')
        assert not list((tmp_path/f'in-{archive.stem}').rglob('*'))
    assert files_in(tmp_path) == ['in-t', 'in-z', 't.tgz', 'z.zip']


@pytest.mark.parametrize('kind', ['SYMTYPE', 'LNKTYPE', 'CHRTYPE', 'BLKTYPE', 'FIFOTYPE'])
@pytest.mark.parametrize('to', ['../secret', 'inside'])
def test_no_links_and_no_devices(tmp_path, kind, to):
    "Links are refused even where they point inside: it is with those that tarfile's filter was circumvented."
    link = member('link', getattr(tarfile, kind), to)
    archive = raw_tgz(tmp_path/'t.tgz', member('inside', size=3), link, member('link/owned', size=1))
    with pytest.raises(ValueError, match="'link' is a link or a device"): unpack(archive, tmp_path/'in')
    assert files_in(tmp_path/'in') == ['inside']


def test_no_links_in_zip_files(tmp_path):
    with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z:
        info = zipfile.ZipInfo('link')
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, '../secret')
    with pytest.raises(ValueError, match='link or a device'): unpack(tmp_path/'z.zip', tmp_path/'in')
    assert not files_in(tmp_path/'in')


def test_bombs(tmp_path):
    zeros = bytes(90 << 20)
    with zipfile.ZipFile(tmp_path/'b.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('zeros', zeros)
    write_tgz(tmp_path/'b.tgz', {'zeros': zeros})
    for archive in (tmp_path/'b.zip', tmp_path/'b.tgz'):
        assert archive.stat().st_size < 200_000
        with pytest.raises(ValueError, match='over the limit'): unpack(archive, tmp_path/f'in{archive.suffix}')
        assert not files_in(tmp_path/f'in{archive.suffix}')
    many = write_zip(tmp_path/'many.zip', {f'{i}': b'' for i in range(11)})
    with pytest.raises(ValueError, match='11 members, over'): unpack(many, tmp_path/'many', max_files=10)
    assert len(files_in(unpack(many, tmp_path/'eleven', max_files=11))) == 11
    ten = write_tgz(tmp_path/'ten.tgz', {'a': b'12345', 'b': b'12345'})
    with pytest.raises(ValueError, match='holds 10 bytes'): unpack(ten, tmp_path/'nine', max_bytes=9)
    assert files_in(unpack(ten, tmp_path/'ten', max_bytes=10)) == ['a', 'b']


def test_a_zip_that_lies_about_its_sizes(tmp_path):
    "The announced size is what the limit looks at, so no more than that may come out."
    with zipfile.ZipFile(tmp_path/'z.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('zeros', bytes(100_000))
    data = (tmp_path/'z.zip').read_bytes().replace(struct.pack('<L', 100_000), struct.pack('<L', 10))
    (tmp_path/'z.zip').write_bytes(data)
    with pytest.raises(ValueError, match="'zeros'"): unpack(tmp_path/'z.zip', tmp_path/'in')
    assert sum(p.stat().st_size for p in (tmp_path/'in').iterdir()) <= 10


@pytest.mark.parametrize('depth, good', [(99, True), (1900, False)])
@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_archives_are_not_unpacked_however_deep(tmp_path, kind, depth, good):
    name = 'd/'*depth + 'a.txt'
    if kind == 'zip':
        with zipfile.ZipFile(tmp_path/'a', 'w') as z: z.writestr(name, '1')
    else:
        with tarfile.open(tmp_path/'a', 'w') as t: t.addfile(tarfile.TarInfo(name))
    if good: assert (unpack(tmp_path/'a', tmp_path/'in')/name).exists()
    else:
        with pytest.raises(ValueError, match=r'was not unpacked: the path .* lies 1,900 folders deep'):
            unpack(tmp_path/'a', tmp_path/'in')


def test_an_encrypted_zip_asks_for_its_password(tmp_path):
    write_zip(tmp_path/'z.zip', {'secret.jpg': b'1234'})
    data = bytearray((tmp_path/'z.zip').read_bytes())
    data[6] |= 1 # the flag, in the member's header and in the table of contents
    data[data.index(b'PK\1\2') + 8] |= 1
    (tmp_path/'z.zip').write_bytes(data)
    with pytest.raises(ValueError, match='encrypted.*password'): unpack(tmp_path/'z.zip', tmp_path/'in')


def test_not_an_archive_empty_and_in_the_way(tmp_path):
    for name, data in (('page.tgz', b'<html>'), ('page.zip', b'<html>'), ('none.tgz', b'')):
        (tmp_path/name).write_bytes(data)
        with pytest.raises(ValueError, match='was not unpacked: it is damaged or cut off, or no tar or zip file. If'):
            unpack(tmp_path/name, tmp_path/'in')
    with pytest.raises(ValueError, match='it is empty'): unpack(write_zip(tmp_path/'e.zip', {}), tmp_path/'in')
    with pytest.raises(ValueError, match='file and a folder at once'):
        unpack(write_tgz(tmp_path/'c.tgz', {'a': b'1', 'a/b': b'2'}), tmp_path/'in')
    with pytest.raises(FileExistsError, match='not empty'): unpack(tmp_path/'c.tgz', tmp_path/'in')
    with pytest.raises(ValueError, match='too long for a name'):
        unpack(write_tgz(tmp_path/'l.tgz', {'a'*300: b'1'}), tmp_path/'in-l')
    with pytest.raises(FileNotFoundError): unpack(tmp_path/'not there.zip', tmp_path/'in-n')


def test_an_archive_does_not_choose_permissions(tmp_path):
    info = member('tool', size=3)
    info.mode = 0o4777
    raw_tgz(tmp_path/'t.tgz', info)
    (tmp_path/'plain').touch()
    assert (unpack(tmp_path/'t.tgz', tmp_path/'in')/'tool').stat().st_mode == (tmp_path/'plain').stat().st_mode


def test_a_full_disk_while_unpacking(tmp_path, monkeypatch):
    archive = write_tgz(tmp_path/'a.tgz', {'a': b'1'})
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(tarfile, 'copyfileobj', full)
    words = 'what is in a.tgz cannot be written to .*No space left on device. Free some space'
    with pytest.raises(OSError, match=words): unpack(archive, tmp_path/'in')
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, 'disk_usage', lambda p: usage._replace(free=5))
    with pytest.raises(OSError, match='a.tgz cannot be written to .* MB are needed'): unpack(archive, tmp_path/'in2')


@pytest.mark.parametrize('how', ['tgz', 'zip'])
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_cut_archive_is_never_taken_for_a_whole_one(how, share):
    import tempfile
    members = {f'f{i}': np.random.default_rng(i).bytes(500) for i in range(4)}
    with tempfile.TemporaryDirectory() as d:
        whole = (write_tgz if how == 'tgz' else write_zip)(Path(d)/f'whole.{how}', members)
        cut = Path(d)/f'cut.{how}'
        data = whole.read_bytes()
        cut.write_bytes(data[:int(share*len(data))])
        try: out = unpack(cut, Path(d)/'in')
        except ValueError as e: assert 'was not unpacked' in str(e)
        else: # gzip's own trailer may be missing when all members are there
            assert how == 'tgz' and share > 0.9 and {p.name: p.read_bytes() for p in out.iterdir()} == members


NAMES = (st.text(st.characters(codec='utf8'), min_size=1, max_size=12)
         | st.sampled_from([*EVIL_NAMES, 'a/b', './a', 'a//b', '.', 'a/']))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=20)), max_size=4), st.sampled_from(['tgz', 'zip']))
def test_whatever_the_names_nothing_is_written_outside(members, how):
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        archive = Path(d)/f'a.{how}'
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore') # a name twice
                (write_tgz if how == 'tgz' else write_zip)(archive, dict(members))
        except (ValueError, UnicodeError, IndexError): return # no such name can be stored (zipfile's for a NUL)
        try: unpack(archive, Path(d)/'x'/'in')
        except ValueError as e: assert 'was not unpacked' in str(e)
        assert files_in(Path(d)) == [archive.name, 'x'] and files_in(Path(d)/'x') == ['in']
