"Photos: which files are images, what becomes of odd ones, and writing that survives a kill. All files are made here."
import csv, errno, inspect, io, json, logging, os, shutil, signal, stat, struct, subprocess, sys, tempfile, threading
import time, unicodedata, warnings, zlib
from pathlib import Path
import numpy as np, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image, ImageFile
from plm import photos
from plm.photos import MAX_PIXELS, decode_image, list_images, write_photos
from reference_photos import resize_slowly, unique_slowly

ROOT = Path(__file__).parent.parent


def smooth(seed, size=(60, 40)):
    "A picture without hard edges, so that JPEG hardly changes it."
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or smooth(len(str(path)) + sum(str(path).encode()))).save(path, **options)
    return path


def near(pixels, image, tolerance=1.1): # Pillow rounds twice, after each direction
    expected = resize_slowly(np.asarray(image.convert('RGB')), pixels.shape[-1])
    return np.abs(pixels - expected).max() <= tolerance


@pytest.fixture
def unprivileged():
    "A folder, and rights that stop at chmod (root may read everything, so root steps down)."
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root: os.seteuid(65534)
    yield folder
    if root: os.seteuid(0)
    for place, inner, _ in os.walk(folder):
        for name in inner: os.chmod(Path(place, name), 0o777)
    shutil.rmtree(folder)


# ---- listing

def test_listing_goes_by_content_and_keeps_an_order(tmp_path):
    for name in ('b/2.PNG', 'b/10.jpg', 'a/x.webp', 'a/deep/er/y.bmp', 'B/z.tga', 'a/ä, "ö"\n.gif'): save(tmp_path/name)
    save(tmp_path/'a'/'nothing', format='PNG'); save(tmp_path/'a'/'wrong.data', format='JPEG')
    (tmp_path/'b'/'broken.jpg').write_bytes(b'no')  # listed: the report shall name it
    for name in ('b/notes.txt', 'b/list.csv', 'b/program', 'b/Thumbs.db'): (tmp_path/name).write_bytes(b'\0\1 text')
    (tmp_path/'.hidden').mkdir(); save(tmp_path/'.hidden'/'x.png'); save(tmp_path/'b'/'._2.png')
    found = list_images(tmp_path)
    assert [f.relative_to(tmp_path).as_posix() for f in found.files] == [
        'B/z.tga', 'a/deep/er/y.bmp', 'a/nothing', 'a/wrong.data', 'a/x.webp', 'a/ä, "ö"\n.gif', 'b/10.jpg', 'b/2.PNG',
        'b/broken.jpg']
    assert found.names == ['B', 'a', 'b'] and found.labels.tolist() == [0] + [1]*5 + [2]*3
    assert found.labels.dtype == np.int64
    assert found.counts == {'hidden': 2, 'not images': 3, 'bins and thumbnails': 1}


def test_bins_and_thumbnails_are_neither_photos_nor_labels(tmp_path, capsys):
    for name in ('a/1.png', 'b/2.png', 'b/@eaDir/2.png/SYNOPHOTO_THUMB_M.jpg', '@eaDir/x.jpg', '#recycle/a/3.png',
                 '$RECYCLE.BIN/4.png', '$Recycle.Bin/5.png', 'a/.thumbnails/6.png', '.Trash-1000/files/7.png',
                 'b/Thumbs.db', 'a/@eaDirectory.png'): save(tmp_path/name, format='PNG')
    found = list_images(tmp_path)
    assert [f.relative_to(tmp_path).as_posix() for f in found.files] == ['a/1.png', 'a/@eaDirectory.png', 'b/2.png']
    assert found.names == ['a', 'b'] and found.counts == {'bins and thumbnails': 8}
    assert capsys.readouterr().out.startswith('left out: 8 bins and thumbnails (@eaDir, #recycle, ')
    assert list_images(tmp_path/'b').counts == {'bins and thumbnails': 2}
    shutil.rmtree(tmp_path/'b'/'@eaDir'), (tmp_path/'b'/'Thumbs.db').unlink(), capsys.readouterr()
    assert list_images(tmp_path/'b').counts == {} and not capsys.readouterr().out


def test_patterns_leave_out_and_all_that_is_left_out_is_said_in_one_line(tmp_path, capsys):
    for name in ('a/1.png', 'a/1 copy.PNG', 'previews/2.png', 'b/previews/3.png', 'b/4.png', '.x.png'):
        save(tmp_path/name)
    (tmp_path/'b/5.png').symlink_to('4.png')
    def names(*exclude):
        return [f.relative_to(tmp_path).as_posix() for f in list_images(tmp_path, exclude=exclude).files]
    assert names('* copy.png', 'Previews') == ['a/1.png', 'b/4.png']
    assert capsys.readouterr().out == 'left out: 3 excluded (* copy.png, Previews), 1 hidden, 1 links\n'
    assert names('previews/*') == ['a/1 copy.PNG', 'a/1.png', 'b/4.png', 'b/previews/3.png']
    assert len(names()) == 5 and capsys.readouterr().out.endswith('left out: 1 hidden, 1 links\n')
    with pytest.raises(ValueError, match='must be a list of patterns'): list_images(tmp_path, exclude='*.bak')


def test_what_was_passed_over_is_in_the_report(tmp_path):
    files = [save(tmp_path/'in'/name) for name in ('a.png', 'b.png')]
    write_photos(files, tmp_path/'plain.npy', 32)
    (tmp_path/'in'/'c.jxl').write_bytes(b'\xff\n'), (tmp_path/'in'/'link').symlink_to('a.png')
    found = list_images(tmp_path/'in')
    write_photos(found.files, tmp_path/'o.npy', 32, passed=found.passed)
    rows = list(csv.DictReader(open(tmp_path/'o_skipped.csv')))
    assert [(r['file'], r['kept'], r['reason'].partition(':')[0]) for r in rows] == [
        ('c.jxl', 'no', 'no reader'), ('link', 'no', 'passed over')]


@pytest.mark.parametrize('names, labels', [
    (['1.png'], None), (['1.png', '2.png'], None), (['a/1.png', 'a/2.png'], None), (['a/1.png', '2.png'], None),
    (['a/1.png', 'b/1.png'], [0, 1]), (['1.png', 'a/1.png', 'b/1.png'], [-1, 0, 1]),
    (['images/a/1.png', 'images/b/1.png'], [0, 1]), (['x/images/a/1.png', 'x/images/b/c/1.png'], [0, 1]),
    (['x/1.png', 'x/a/1.png', 'x/b/1.png'], None)])
def test_labels_of_subfolders(tmp_path, names, labels):
    for name in names: save(tmp_path/name)
    (tmp_path/'without').mkdir()
    found = list_images(tmp_path)
    assert (None if found.labels is None else found.labels.tolist()) == labels
    assert found.counts == ({'unlabelled': 1} if labels and -1 in labels else {})


def test_links_and_pipes_are_left_alone(tmp_path):
    inside, outside = tmp_path/'in', tmp_path/'out'
    save(inside/'a.png'); save(outside/'secret.png')
    (inside/'circle').symlink_to(inside)
    (inside/'way out').symlink_to(outside); (inside/'b.png').symlink_to(outside/'secret.png')
    (inside/'c.png').symlink_to('a.png'); (inside/'dangling.png').symlink_to('nowhere')
    os.mkfifo(inside/'pipe.png')
    found = list_images(inside)
    assert [f.name for f in found.files] == ['a.png'] and found.counts == {'links': 5, 'not images': 1}
    assert list(found.passed) == ['b.png', 'c.png', 'circle', 'dangling.png', 'way out']
    assert set(found.passed.values()) == {'passed over: a link, which is not followed'}
    (tmp_path/'link').symlink_to(inside)
    assert len(list_images(tmp_path/'link').files) == 1  # the folder itself may be one: the user named it


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'): list_images(tmp_path/'no')
    with pytest.raises(NotADirectoryError, match='is a file'): list_images(save(tmp_path/'a.png'))
    (tmp_path/'e').mkdir()
    with pytest.raises(ValueError, match='it is empty'): list_images(tmp_path/'e')
    (tmp_path/'e'/'a.txt').touch(); (tmp_path/'e'/'b.png').symlink_to(tmp_path/'a.png')
    with pytest.raises(ValueError, match='1 not images, 1 links|1 links, 1 not images'): list_images(tmp_path/'e')


def test_what_may_not_be_opened_is_counted_or_named(unprivileged):
    for name in ('a/1.png', 'b/2.png', 'c/3.png', 'shut/4.png', 'blind/5.png'): save(unprivileged/name)
    (unprivileged/'shut').chmod(0)
    (unprivileged/'blind').chmod(0o444); (unprivileged/'a/1.png').chmod(0); (unprivileged/'b/no suffix').touch(mode=0)
    found = list_images(unprivileged)
    assert [f.name for f in found.files] == ['1.png', '2.png', 'no suffix', '3.png']
    assert found.counts == {'not permitted': 2}
    assert found.passed == {f: 'passed over: may not be read' for f in ('blind/5.png', 'shut')}
    kept, notes = write_photos(found.files, unprivileged/'out.npy', 32)
    assert kept.tolist() == [1, 3] and notes[0] == 'unreadable: Permission denied'
    (unprivileged/'out.npy').unlink()


def test_folders_however_deep(tmp_path):
    deep = [tmp_path/'in'] + [tmp_path/'in'/'/'.join('d'*n) for n in range(1, 1100)]
    for folder in deep: folder.mkdir()
    save(tmp_path/'b.png').rename(deep[-1]/'b.png')
    try: assert list_images(tmp_path/'in').files == [deep[-1]/'b.png']
    finally:
        (deep[-1]/'b.png').unlink()
        for folder in reversed(deep): folder.rmdir()


# ---- labels from a CSV

@pytest.mark.parametrize('name', ['x'*6000 + '.png', 'y/'*3000])
def test_names_in_the_csv_that_no_file_can_have(tmp_path, name):
    save(tmp_path/'a.png')
    with open(tmp_path/'l.csv', 'w', newline='') as f: csv.writer(f).writerows([['file', 'label'], [name, 'a']])
    with pytest.raises(ValueError, match=r"l\.csv, line 2: .*is no name that a file can have") as e:
        list_images(tmp_path, tmp_path/'l.csv')
    assert len(str(e.value)) < 500


def write_csv(folder, rows, header=('file', 'label'), encoding='utf-8', name='labels.csv'):
    with open(folder/name, 'w', newline='', encoding=encoding) as f: csv.writer(f).writerows([header, *rows])
    return folder/name


def test_csv_of_labels(tmp_path):
    odd = 'b/комма, "quote"\nline.png'
    for name in ('a.png', odd, 'b/c.png', 'd.png', unicodedata.normalize('NFD', 'é.png')): save(tmp_path/name)
    rows = [('a.png', 'zwei', 1), (odd, 'eins', 2), ('b\\c.png', ' zwei ', 3), ('./d.png', '', 4), ('é.png', 'drei', 5)]
    table = write_csv(tmp_path, rows, ('file', 'label', 'price'), 'utf-8-sig')
    found = list_images(tmp_path, table)
    names = (unicodedata.normalize('NFC', f.relative_to(tmp_path).as_posix()) for f in found.files)
    by_name = dict(zip(names, found.labels))
    assert found.names == ['drei', 'eins', 'zwei']
    assert by_name == {'a.png': 2, odd: 1, 'b/c.png': 2, 'd.png': -1, 'é.png': 0}
    assert found.counts == {'unlabelled': 1, 'not images': 1}


@pytest.mark.parametrize('text, complaint', [
    ('', 'first line must name the columns'), ('name,label\na.png,x\n', r"lacks \['file'\]"),
    ('file,label\n', 'labels no image'), ('file,label\na.png,\n', 'labels no image'),
    ('file,label\na.png,x\nb.png,y\nc.png,z\n', r"line 4: 'c.png' is not in"),
    ('file,label\na.pmg,x\n', "Did you mean 'a.png'"),
    ('file,label\na.png,x\nb.png,y\na.png,x\n', r"line 4: 'a.png' is listed twice \(first in line 2\)"),
    ('file,label\na.png,x\n./a.png,x\n', 'line 3: .*listed twice'),
    ('file,label\na, b.png,x\n', 'line 2: the number of fields .* double quotes'),
    ('file,label\na.png\n', 'line 2: the number of fields'),
    ('file,label\nnotes.txt,x\n', 'line 2: .*is there, but was passed over'),
    ('file,label\n../out.png,x\n', 'line 2: .*is not in'), ('file,label\n"a.png,x\n', 'Is a double quote missing'),
    ('file,label\n/etc/hostname,x\n', 'line 2: .*is not in'), (b'file,label\n\xff.png,x\n', 'not UTF-8')])
def test_mistakes_in_the_csv_are_named_by_line(tmp_path, text, complaint):
    folder = tmp_path/'f'
    for name in ('a.png', 'b.png', '../out.png'): save(folder/name)
    (folder/'notes.txt').touch()
    (tmp_path/'l.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=complaint) as e: list_images(folder, tmp_path/'l.csv')
    assert 'l.csv' in str(e.value)
    with pytest.raises(FileNotFoundError, match='no.csv does not exist'): list_images(folder, tmp_path/'no.csv')


# ---- one image

@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(w=st.integers(16, 90), h=st.integers(16, 90), side=st.integers(16, 70), seed=st.integers(0, 99))
def test_decoding_is_the_triangle_filter_on_the_central_square(tmp_path, w, h, side, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))
    pixels, note = decode_image(save(tmp_path/'a.png', image), side)
    assert pixels.shape == (3, side, side) and pixels.dtype == np.uint8 and pixels.flags['C_CONTIGUOUS'] and not note
    assert near(pixels, image)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
def test_exif_rotation(tmp_path, suffix, orientation):
    upright, exif = smooth(3), Image.Exif()
    exif[0x0112] = orientation
    # how the camera was held
    undo = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_90',
            7: 'TRANSVERSE', 8: 'ROTATE_270'}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose[undo[orientation]])
    path = save(tmp_path/f'a{suffix}', stored, exif=exif,
                **({'quality': 98} if suffix == '.jpg' else {'lossless': True} if suffix == '.webp' else {}))
    pixels, note = decode_image(path, 32)
    assert near(pixels, upright, 12 if suffix == '.jpg' else 1.1)
    assert note == ('' if orientation == 1 else 'turned upright by EXIF')


def test_damaged_exif_does_not_matter(tmp_path):
    path = save(tmp_path/'a.jpg', smooth(1), exif=b'Exif\0\0II*\0\xff\xff\xff\xff broken', quality=98)
    pixels, note = decode_image(path, 32)
    assert near(pixels, smooth(1), 12) and not note


def ramp16(h=40, w=60): return np.linspace(0, 65535, h*w).reshape(h, w).astype(np.uint16)


def png(path, w, h, bits, kind, data):
    "A PNG of the given header and compressed data, which may belie each other."
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, kind, 0, 0, 0))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b''))
    return path


def png16(path, values):
    "A PNG of 16 bits a channel, which Pillow reads but does not write for colour."
    h, w, c = values.shape
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    return png(path, w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], rows)


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.pgm'])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    pixels, note = decode_image(save(tmp_path/f'a{suffix}', Image.fromarray(ramp16())), 40)
    assert near(pixels, Image.fromarray((ramp16() >> 8).astype(np.uint8))) and note == '16-bit grey scaled to 8 bits'


def tiff16(path, order='<', samples=1):
    data = ramp16().astype(order + 'u2').tobytes()
    tags = [(256, 60), (257, 40), (258, 16), (259, 1), (262, 1), (273, 200), (277, samples), (278, 40),
            (279, len(data))]
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IH', 8, len(tags))
    head += b''.join(struct.pack(order + 'HHII', t, 4, 1, v) for t, v in tags) + b'\0'*4
    path.write_bytes(head.ljust(200, b'\0') + data)
    return path


@pytest.mark.parametrize('order', ['<', '>'])
def test_16_bit_tiff_of_either_byte_order(tmp_path, order):
    pixels, note = decode_image(tiff16(tmp_path/'a.tif', order), 40)
    assert near(pixels, Image.fromarray((ramp16() >> 8).astype(np.uint8))) and note == '16-bit grey scaled to 8 bits'


def test_16_bit_colour_and_alpha(tmp_path):
    colour = np.stack([ramp16(), ramp16()[::-1], ramp16()[:, ::-1]], 2)
    pixels, note = decode_image(png16(tmp_path/'a.png', colour), 40)
    assert near(pixels, Image.fromarray((colour >> 8).astype(np.uint8))) and note == '16-bit colour scaled to 8 bits'
    clear = np.concatenate([colour, np.zeros_like(colour[:, :, :1])], 2)
    pixels, note = decode_image(png16(tmp_path/'b.png', clear), 40)
    assert (pixels == 255).all() and note == '16-bit colour scaled to 8 bits; transparent parts laid on white'


RAMP = np.linspace(0, 255, 900)
@pytest.mark.parametrize('values, expected', [
    (np.linspace(0, 1, 900, dtype=np.float32), RAMP), (np.linspace(0.25, 0.5, 900, dtype=np.float32), RAMP/4 + 63.75),
    (np.linspace(0, 1.5, 900, dtype=np.float32), RAMP), (np.linspace(-7, 3, 900, dtype=np.float32), RAMP),
    (np.linspace(-10**9, 10**9, 900).astype(np.int32), RAMP), (np.linspace(0, 65535, 900).astype(np.int32), RAMP),
    (np.full(900, 3.5, np.float32), np.zeros(900))])
def test_32_bit_grey(tmp_path, values, expected):
    pixels, note = decode_image(save(tmp_path/'a.tif', Image.fromarray(values.reshape(30, 30))), 30)
    assert np.abs(pixels[0].flatten() - expected).max() <= 1 and (pixels[0] == pixels[2]).all()
    assert 'grey scaled to 8 bits' in note
    assert ('32-bit' in note) == (values.dtype != np.int32 or values.min() < 0)


def test_nan_is_broken(tmp_path):
    path = save(tmp_path/'a.tif', Image.fromarray(np.full((30, 30), np.nan, np.float32)))
    assert decode_image(path) == (None, 'broken: NaN or infinite values')


def half_transparent():
    "Red, with a transparent right half under which there is blue."
    values = np.zeros((40, 40, 4), np.uint8)
    values[:, :20], values[:, 20:] = (255, 0, 0, 255), (0, 0, 255, 0)
    return Image.fromarray(values)


@pytest.mark.parametrize('kind', ['RGBA', 'LA', 'P', 'P of bytes', 'key colour', 'key grey', 'webp', 'gif'])
def test_transparency_is_laid_on_white(tmp_path, kind):
    image, options, suffix = half_transparent(), {}, '.png'
    if kind == 'LA': image = image.convert('LA')
    if kind == 'P of bytes': image = image.quantize(8)
    if kind in ('P', 'gif'):
        image = Image.fromarray(np.repeat([[0]*20 + [1]*20], 40, 0).astype(np.uint8)).convert('P')
        image.putpalette([255, 0, 0, 0, 0, 255]); options = {'transparency': 1}
    if kind == 'key colour': image, options = image.convert('RGB'), {'transparency': (0, 0, 255)}
    if kind == 'key grey': image, options = image.convert('L'), {'transparency': 29} # grey of blue
    if kind in ('webp', 'gif'): suffix = '.' + kind
    if kind == 'webp': options = {'lossless': True}
    pixels, note = decode_image(save(tmp_path/f'a{suffix}', image, **options), 40)
    left, right = pixels[:, :, :19], pixels[:, :, 21:]
    assert (right >= 254).all() and note == 'transparent parts laid on white'
    expected = 76 if kind in ('LA', 'key grey') else np.array([255, 0, 0])[:, None, None]
    assert np.abs(left.astype(int) - expected).max() <= 1


def test_opaque_alpha_is_nothing_odd(tmp_path):
    pixels, note = decode_image(save(tmp_path/'a.png', smooth(1).convert('RGBA')), 40)
    assert near(pixels, smooth(1)) and not note


def test_half_transparent_is_mixed_with_white(tmp_path):
    pixels, _ = decode_image(save(tmp_path/'a.png', Image.new('RGBA', (40, 40), (0, 0, 0, 128))), 40)
    assert np.abs(pixels.astype(int) - 127).max() <= 1


def test_cmyk_palette_grey_and_black_and_white(tmp_path):
    for suffix in ('.jpg', '.tif'):
        pixels, note = decode_image(save(tmp_path/f'a{suffix}', smooth(2).convert('CMYK'),
                                         **({'quality': 98} if suffix == '.jpg' else {})), 40)
        assert near(pixels, smooth(2), 12) and note == 'CMYK converted to RGB'
    for mode in ('P', 'L', '1'):
        image = smooth(2).convert(mode)
        pixels, note = decode_image(save(tmp_path/'b.png', image), 40)
        assert near(pixels, image) and not note


@pytest.mark.parametrize('suffix', ['.gif', '.png', '.webp', '.tif', '.avif'])
def test_of_several_pictures_the_first_is_kept(tmp_path, suffix):
    options = {'lossless': True} if suffix == '.webp' else {'quality': 100} if suffix == '.avif' else {}
    red, blue = (Image.new('RGB', (40, 40), colour) for colour in ('red', 'blue'))
    path = save(tmp_path/f'a{suffix}', red, save_all=True, append_images=[blue]*2, **options)
    pixels, note = decode_image(path, 32)
    assert note == 'animated or several pages: first one kept'
    assert np.abs(pixels.astype(int) - np.array([255, 0, 0])[:, None, None]).max() <= 3


def test_a_photo_with_its_preview_is_nothing_odd(tmp_path):
    pixels, note = decode_image(save(tmp_path/'a.jpg', smooth(4), format='MPO', save_all=True,
                                     append_images=[smooth(5, (24, 16))], quality=98), 40)
    with Image.open(tmp_path/'a.jpg') as im: assert im.format == 'MPO' and im.n_frames == 2
    assert near(pixels, smooth(4), 12) and not note


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.gif', '.webp', '.tif', '.bmp', '.avif', '.jp2', '.tga', '.ppm'])
def test_cut_off_files_are_broken(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = save(tmp_path/f'a{suffix}', Image.fromarray(noise)).read_bytes()
    assert decode_image(tmp_path/f'a{suffix}', 32).pixels is not None
    for length in (1, 10, len(whole)//2):
        (tmp_path/f'a{suffix}').write_bytes(whole[:length])
        pixels, note = decode_image(tmp_path/f'a{suffix}', 32)
        assert pixels is None and note.split(':')[0] in ('broken', 'not an image')


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(['.jpg', '.png', '.gif', '.webp', '.tif', '.bmp', '.tga', '.ppm']),
       places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=30))
def test_damaged_bytes_never_raise(tmp_path, suffix, places):
    damaged = bytearray(save(tmp_path/f'a{suffix}', smooth(7)).read_bytes())
    for where, byte in places: damaged[int(where*(len(damaged) - 1))] = byte
    (tmp_path/f'b{suffix}').write_bytes(damaged)
    pixels, note = decode_image(tmp_path/f'b{suffix}', 32)
    assert pixels.shape == (3, 32, 32) if pixels is not None else ':' in note and '\n' not in note


@pytest.mark.parametrize('size, ok', [((16, 16), True), ((15, 400), False), ((400, 15), False), ((16, 5000), True),
                                      ((1, 1), False)])
def test_tiny_images_are_skipped(tmp_path, size, ok):
    pixels, note = decode_image(save(tmp_path/'a.png', smooth(0, size)), 32)
    assert (pixels is not None) == ok and (ok or note.startswith(f'too small: {size[0]}x{size[1]}'))


@pytest.mark.parametrize('side', [12_000, 20_000, 65_000]) # over our limit, over Pillow's error, and more than memory
def test_bombs_are_refused_from_the_header(tmp_path, side, monkeypatch):
    png(tmp_path/'a.png', side, side, 8, 2, bytes(9))
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail('decoded'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert decode_image(tmp_path/'a.png').note == f'too large: over {MAX_PIXELS:,} pixels; make it smaller first'
    assert MAX_PIXELS < 2*Image.MAX_IMAGE_PIXELS


def test_a_large_jpeg_is_decoded_at_an_eighth(tmp_path, monkeypatch):
    sizes, load = [], ImageFile.ImageFile.load
    path = save(tmp_path/'a.jpg', smooth(5, (4800, 3600)))
    expected = decode_image(save(tmp_path/'a.png', smooth(5, (4800, 3600))), 64).pixels
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: (sizes.append(self.size), load(self))[1])
    pixels, note = decode_image(path, 64)
    assert sizes[0] == (600, 450) and np.abs(pixels.astype(int) - expected).max() < 8 and not note
    # never below twice the side
    assert decode_image(path, 1000).pixels.shape == (3, 1000, 1000) and sizes[-1] == (4800, 3600)


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path/'pipe.png')
    (tmp_path/'empty.png').touch()
    (tmp_path/'html.jpg').write_text('<html>404')
    (tmp_path/'run.jpg').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n')
    (tmp_path/'run.eps').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n')
    no_image = 'not an image: no format that Pillow reads'
    for name, note in {'pipe.png': 'unreadable: not a file', '.': 'unreadable: not a file', 'html.jpg': no_image,
                       'run.jpg': no_image, 'run.eps': no_image, 'empty.png': 'broken: empty file (0 bytes)',
                       'no.png': 'unreadable: No such file or directory'}.items():
        assert decode_image(tmp_path/name) == (None, note)


def test_memory_that_is_not_enough_costs_one_file(tmp_path, monkeypatch):
    def load(self): raise MemoryError
    monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
    assert decode_image(save(tmp_path/'a.png')) == (None, 'too large: memory was not enough')


def test_raw_and_heic_are_named_and_never_a_thumbnail(tmp_path):
    save(tmp_path/'raw.NEF', format='TIFF')
    (tmp_path/'telephone.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(200))
    save(tmp_path/'really a jpeg.heic', format='JPEG')
    found = list_images(tmp_path)
    def note(suffix): return (f'no reader: Pillow alone cannot decode {suffix}; convert it to JPEG or PNG (HEIC, HEIF: '
                              'or pip install pillow-heif)')
    assert [decode_image(f, 32).note for f in found.files] == [note('.NEF'), '', note('.heic')]


SMALL = {254: 1} # NewSubfileType: a reduced version of another image
@pytest.mark.parametrize('name, tags, head', [
    *((f'a{suffix}', SMALL, b'') for suffix in ('.nrw', '.3fr', '.sr2', '.erf', '.kdc', '.mef', '.dcr', '.fff', '.mos',
                                                '.rwl', '.unheard', '.tif', '.jpg', '')),
    ('a.gpr', {50706: b'\1\4\0\0'}, b''), ('a.tif', {50706: b'\1\4\0\0'}, b''), # DNGVersion
    ('a.iiq', {}, b'IIII'), ('a.cap', {}, b'MMMM'), ('a.tif', {}, b'IIII'), ('a.tif', {}, b'CR\2\0'),
    ('b.new', {}, b'')])
def test_the_thumbnail_of_camera_raw_is_no_photo(tmp_path, name, tags, head):
    file = tmp_path/name
    save(file, format='TIFF', tiffinfo=tags)
    if head: # between the header and the first directory
        data = bytearray(file.read_bytes())
        at, = struct.unpack('<I', data[4:8])
        data += b'\0'*(len(data) % 2)
        n, = struct.unpack('<H', data[at:at + 2])
        data[4:8] = struct.pack('<I', len(data))
        data += data[at:at + 2 + 12*n + 4]
        data[8:8 + len(head)] = head
        file.write_bytes(data)
    assert list_images(tmp_path).files == [file]
    assert decode_image(file, 32).note.startswith('no reader: Pillow alone cannot decode ')
    if tags: assert decode_image(Image.open(file), 32).note.startswith('no reader: ')


@pytest.mark.parametrize('name', ['a.tif', 'a.tiff', 'a', 'a.jpg'])
def test_a_tiff_is_a_photo(tmp_path, name):
    assert decode_image(save(tmp_path/name, format='TIFF'), 32).pixels is not None


@pytest.mark.parametrize('head', [b'\0\0\0\x18ftypheix', b'\0\0\0\x18ftypcrx ', b'\xff\n', b'\0\0\0\x0cJXL ', b'IIU\0',
                                  b'IIRO', b'FUJIFILMCCD-RAW'])
@pytest.mark.parametrize('name', ['a.jpg', 'a', 'a.hif', 'a.heics', 'a.jxl'])
def test_photos_without_a_reader_are_known_by_their_content(tmp_path, name, head):
    (tmp_path/name).write_bytes(head + bytes(200))
    assert list_images(tmp_path).files == [tmp_path/name]
    assert decode_image(tmp_path/name, 32).note.startswith('no reader: Pillow alone cannot decode ')


@pytest.mark.parametrize('image', [np.zeros((40, 40, 3), np.uint8), b'a.jpg', None, 3])
def test_what_is_neither_path_nor_image_is_named(image):
    with pytest.raises(ValueError, match='a path or a PIL image'): decode_image(image)


def test_a_plugin_reads_what_pillow_cannot(tmp_path, monkeypatch):
    (tmp_path/'a.heic').write_bytes(b'HEIC')
    class Plugin(ImageFile.ImageFile):
        format = 'FAKEHEIF'
        def _open(self): self._size, self._mode = (20, 20), 'RGB'
        def load(self): self.im = Image.new('RGB', (20, 20), 'red').im
    Image.init()
    monkeypatch.setattr(Image, 'ID', [*Image.ID])
    monkeypatch.setattr(Image, 'OPEN', {**Image.OPEN}); monkeypatch.setattr(Image, 'EXTENSION', {**Image.EXTENSION})
    Image.register_open('FAKEHEIF', Plugin, lambda head: head.startswith(b'HEIC'))
    Image.register_extension('FAKEHEIF', '.heic')
    assert (decode_image(tmp_path/'a.heic', 32).pixels[0] == 255).all()


@pytest.mark.parametrize('side', [0, 15, -1, 32., '64', None])
def test_sides_that_are_refused(tmp_path, side):
    for call in (lambda: decode_image(tmp_path/'a.png', side),
                 lambda: write_photos([tmp_path/'a.png'], tmp_path/'o.npy', side)):
        with pytest.raises(ValueError, match='side must be a whole number of pixels, at least 16'): call()


def noisy(folder):
    "Files at which Pillow warns or logs."
    image = smooth(1).quantize(8)
    save(folder/'palette.png', image, transparency=bytes(range(8)))
    save(folder/'exif.jpg', smooth(2), exif=b'Exif\0\0II*\0\xff\xff\xff\xff broken')
    whole = save(folder/'cut.tif', smooth(3), compression='tiff_lzw').read_bytes()
    (folder/'cut.tif').write_bytes(whole[:-300])
    (folder/'head.tif').write_bytes(whole[:40])
    tiff16(folder/'samples.tif', samples=99) # Pillow logs an error
    save(folder/'big.png', Image.new('1', (11_000, 9_000))) # a decompression bomb warning
    return [folder/n for n in ('palette.png', 'exif.jpg', 'cut.tif', 'head.tif', 'samples.tif', 'big.png')]


def test_pillow_never_speaks_to_the_user(tmp_path, capfd, caplog):
    files = noisy(tmp_path)
    level, filters = logging.getLogger('PIL').level, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(Image.DecompressionBombWarning): Image.open(files[-1])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        list_images(tmp_path)
        for f in files: decode_image(f, 32)
        assert capfd.readouterr() == ('', '') # libtiff writes past Python
        write_photos(files, tmp_path/'o.npy', 32)
    out, err = capfd.readouterr()
    assert not seen and not caplog.records and not out
    assert all('decoding photos' in line for line in err.replace('\r', '\n').splitlines() if line)
    assert logging.getLogger('PIL').level == level and warnings.filters == filters


# ---- all of them

@pytest.fixture
def mixed(tmp_path):
    "Twelve files: photos, duplicates in other formats, broken ones."
    folder = tmp_path/'in'
    for i in range(6): save(folder/f'{i}.png', smooth(i))
    save(folder/'6.bmp', smooth(2))
    shutil.copy(folder/'1.png', folder/'7.png'); save(folder/'8.webp', smooth(2), lossless=True)
    (folder/'9.jpg').write_bytes(b'no')
    (folder/'a.png').touch(); save(folder/'b.gif', smooth(9), save_all=True, append_images=[smooth(8)])
    return list_images(folder).files


def rows_of(report):
    with open(report, newline='', encoding='utf-8') as f: return list(csv.reader(f))


@pytest.mark.parametrize('workers', [1, 3, None])
def test_the_array_is_that_of_a_plain_loop(tmp_path, mixed, workers):
    kept, notes = write_photos(mixed, tmp_path/'sub'/'o.npy', 32, workers)
    plain = [decode_image(f, 32).pixels for f in mixed]
    assert kept.tolist() == unique_slowly(plain) == [0, 1, 2, 3, 4, 5, 11] and kept.dtype == np.int64
    images = np.load(tmp_path/'sub'/'o.npy', mmap_mode='r', allow_pickle=False)
    assert images.dtype == np.uint8 and np.array_equal(images, np.stack([plain[i] for i in kept]))
    assert (tmp_path/'sub'/'o.npy').stat().st_size == images.offset + images.nbytes
    assert {i: n.split(':')[0] for i, n in notes.items()} == dict.fromkeys((6, 7, 8), 'duplicate') | {
        9: 'not an image', 10: 'broken', 11: 'animated or several pages'}
    listed = [[mixed[i].name, 'yes' if i == 11 else 'no', notes[i]] for i in range(6, 12)]
    assert rows_of(tmp_path/'sub'/'o_skipped.csv') == [['file', 'kept', 'reason'], *listed]
    assert notes[8] == 'duplicate: same pixels as 2.png'
    assert sorted(p.name for p in (tmp_path/'sub').iterdir()) == ['o.npy', 'o_skipped.csv']


def test_a_protocol_may_count_every_file(tmp_path, mixed):
    kept, notes = write_photos(mixed, tmp_path/'o.npy', 32, drop_duplicates=False)
    assert kept.tolist() == [*range(9), 11] and notes[7] == 'duplicate: same pixels as 1.png'
    assert len(np.load(tmp_path/'o.npy')) == 10


def test_same_centre_other_margin_is_a_duplicate_too(tmp_path):
    wide = np.asarray(smooth(1, (80, 40))).copy()
    save(tmp_path/'a.png', Image.fromarray(wide)); wide[:, :5] = 0; save(tmp_path/'b.png', Image.fromarray(wide))
    # for training and evaluation they are one photo
    assert len(write_photos([tmp_path/'a.png', tmp_path/'b.png'], tmp_path/'o.npy', 40).kept) == 1


def test_one_photo_and_none(tmp_path):
    assert write_photos([str(save(tmp_path/'a.png'))], tmp_path/'o.npy').kept.tolist() == [0]
    assert np.load(tmp_path/'o.npy').shape == (1, 3, 256, 256)
    (tmp_path/'b.png').touch()
    message = 'none of the 1 files could be decoded; the first: b.png: broken: empty .*p_skipped.csv says why'
    with pytest.raises(ValueError, match=message):
        write_photos([tmp_path/'b.png'], tmp_path/'p.npy')
    assert rows_of(tmp_path/'p_skipped.csv')[1][0] == 'b.png' and not (tmp_path/'p.npy').exists()
    assert not list(tmp_path.glob('.*'))
    for wrong, complaint in ((dict(files=[]), 'files is empty'), (dict(files=str(tmp_path)), 'a list of paths'),
                             (dict(out=tmp_path/'o.zip'), 'must end in .npy'),
                             (dict(workers=0), 'workers must be at least 1')):
        with pytest.raises(ValueError, match=complaint):
            write_photos(**(dict(files=[tmp_path/'a.png'], out=tmp_path/'q.npy') | wrong))


def test_names_of_any_kind_in_the_report(tmp_path):
    names = ['ü, "ß".png', 'line\nbreak.png', '日本.png', '=1+1.png']
    for i, name in enumerate(names): save(tmp_path/'d'/name, smooth(0))
    raw = os.fsencode(tmp_path/'d') + b'/\xff.png'
    with open(raw, 'wb') as f: f.write(b'no')
    files = [tmp_path/'d'/n for n in names] + [Path(os.fsdecode(raw)), tmp_path/'e'/'gone.png']
    write_photos(files, tmp_path/'o.npy', 32)
    listed = [r[0] for r in rows_of(tmp_path/'o_skipped.csv')[1:]]
    assert listed == [*(f'd/{n}' for n in names[1:]), 'd/\\udcff.png', 'e/gone.png']


def test_labels_follow_the_rows(tmp_path):
    for i, name in enumerate(('a/1.png', 'a/2.png', 'b/1.png', 'b/2.png', 'c/1.png')):
        save(tmp_path/'d'/name, smooth(i))
    (tmp_path/'d'/'b'/'1.png').write_bytes(b'no')
    (tmp_path/'d'/'loose.png').write_bytes((tmp_path/'d'/'c'/'1.png').read_bytes())
    found = list_images(tmp_path/'d')
    kept, _ = write_photos(found.files, tmp_path/'o.npy', 32)
    assert found.labels[kept].tolist() == [0, 0, 1, 2] # the loose copy of c/1 comes later, and goes


def test_out_of_order_decoding_keeps_the_order_and_the_window(tmp_path, monkeypatch):
    files = [save(tmp_path/f'{i:02}.png', smooth(i)) for i in range(40)]
    started, first_done, plain = [], threading.Event(), photos._decode
    def slow_first(path, *how):
        started.append(path)
        if path == files[0]: assert first_done.wait(20)
        if len(started) == 16: first_done.set() # 2 workers of 8: the whole window
        if path == files[0]: time.sleep(0.2); seen.append(len(started)) # and nothing beyond it, though there is time
        return plain(path, *how)
    seen = []
    monkeypatch.setattr(photos, '_decode', slow_first); monkeypatch.setattr(photos, '_AHEAD', 8)
    write_photos(files, tmp_path/'o.npy', 32, workers=2)
    expected = np.stack([plain(f, 32, False).pixels for f in files])
    assert seen == [16] and np.array_equal(np.load(tmp_path/'o.npy'), expected)


class Power(BaseException): "A power cut."


def cut_at(monkeypatch, n):
    "Let the n-th decoding fail; returns the list of the files decoded."
    seen, plain = [], photos._decode.plain if hasattr(photos._decode, 'plain') else photos._decode
    def decode(path, *how):
        if len(seen) == n: raise Power
        seen.append(path)
        return plain(path, *how)
    decode.plain = plain
    monkeypatch.setattr(photos, '_decode', decode)
    return seen


@pytest.fixture
def commit_always(monkeypatch):
    "Commit after each photo; and the source that the fingerprint reads stays the same, whatever the tests put in."
    monkeypatch.setattr(photos, '_COMMIT', -1)
    deciding = ('_open', '_decode', '_read', '_square', '_as_rgb', '_grey_as_rgb', '_without_twins', 'write_photos')
    plain = {f: inspect.getsource(getattr(photos, f)) for f in deciding}
    monkeypatch.setattr(photos.inspect, 'getsource',
                        lambda f: plain.get('_decode' if f.__name__ == 'decode' else f.__name__))


@pytest.mark.parametrize('n', range(12))
def test_a_run_cut_anywhere_goes_on(tmp_path, mixed, monkeypatch, commit_always, n):
    expected = write_photos(mixed, tmp_path/'whole.npy', 32)
    before = cut_at(monkeypatch, n)
    with pytest.raises(Power): write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    assert not (tmp_path/'o.npy').exists() and not (tmp_path/'o_skipped.csv').exists() and len(before) == n
    after = cut_at(monkeypatch, None)
    found = write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    assert before + after == list(mixed) and np.array_equal(found.kept, expected.kept) and found.notes == expected.notes
    assert (tmp_path/'o.npy').read_bytes() == (tmp_path/'whole.npy').read_bytes()
    assert (tmp_path/'o_skipped.csv').read_bytes() == (tmp_path/'whole_skipped.csv').read_bytes()
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize('other', [dict(squeeze=True), dict(drop_duplicates=False), dict(side=40)])
def test_what_was_decoded_otherwise_is_not_gone_on_with(tmp_path, mixed, monkeypatch, commit_always, other):
    how = dict(side=32, workers=1)
    write_photos(mixed, tmp_path/'whole.npy', **how | other)
    cut_at(monkeypatch, 8)
    with pytest.raises(Power): write_photos(mixed, tmp_path/'o.npy', **how)
    again = cut_at(monkeypatch, None)
    write_photos(mixed, tmp_path/'o.npy', **how | other)
    assert again == list(mixed) and (tmp_path/'o.npy').read_bytes() == (tmp_path/'whole.npy').read_bytes()


@pytest.mark.parametrize('damage, again', [
    ('half of the state', 12), ('state of nothing', 12), ('zeros behind the state', 12), ('no state', 12),
    ('fewer rows', 12), ('no rows', 12), ('rows of zeros', 12), ('more rows', 4), ('nothing', 4)])
def test_what_a_crash_has_torn_is_done_again(tmp_path, mixed, monkeypatch, commit_always, damage, again):
    write_photos(mixed, tmp_path/'whole.npy', 32)
    cut_at(monkeypatch, 8)
    with pytest.raises(Power): write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    part, state = tmp_path/'.o.npy.part', tmp_path/'.o.npy.state'
    if damage == 'half of the state': state.write_bytes(state.read_bytes()[:-5])
    if damage == 'state of nothing': state.write_bytes(b'')
    if damage == 'zeros behind the state': state.write_bytes(state.read_bytes() + bytes(50))
    if damage == 'no state': state.unlink()
    if damage == 'fewer rows': part.write_bytes(part.read_bytes()[:-10])
    if damage == 'no rows': part.unlink()
    if damage == 'rows of zeros': part.write_bytes(bytes(part.stat().st_size))
    if damage == 'more rows': part.write_bytes(part.read_bytes() + b'\7'*4000)
    after = cut_at(monkeypatch, None)
    write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    assert len(after) == again and (tmp_path/'o.npy').read_bytes() == (tmp_path/'whole.npy').read_bytes()


def test_two_crashes_one_after_the_other(tmp_path, mixed, monkeypatch, commit_always):
    "A row that the first crash left behind must not be in the way of what is committed after it."
    write_photos(mixed, tmp_path/'whole.npy', 32)
    for n in (5, 3):
        cut_at(monkeypatch, n)
        with pytest.raises(Power): write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
        done = len(json.loads((tmp_path/'.o.npy.state').read_text())) - 1
        np.lib.format.open_memmap(tmp_path/'.o.npy.part', 'r+')[done:] = 7
    after = cut_at(monkeypatch, None)
    write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    assert len(after) == 12 - 5 - 3 and (tmp_path/'o.npy').read_bytes() == (tmp_path/'whole.npy').read_bytes()


@pytest.mark.parametrize('where', ['header', 'name'])
def test_a_kill_at_the_very_end_loses_nothing(tmp_path, mixed, monkeypatch, commit_always, where):
    write_photos(mixed, tmp_path/'whole.npy', 32)
    def killed(*args): raise Power
    with monkeypatch.context() as m:
        if where == 'header': m.setattr(photos.npy, 'write_array_header_1_0', killed)
        else: m.setattr(photos.os, 'fsync', killed) # the header is there and the file is cut
        with pytest.raises(Power): write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    assert not (tmp_path/'o.npy').exists()
    after = cut_at(monkeypatch, None)
    write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    assert not after and (tmp_path/'o.npy').read_bytes() == (tmp_path/'whole.npy').read_bytes()
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize('change', ['side', 'order', 'touched', 'other size', 'fewer', 'duplicates', 'code', 'nothing'])
def test_another_task_starts_afresh(tmp_path, mixed, monkeypatch, commit_always, change):
    cut_at(monkeypatch, 5)
    with pytest.raises(Power): write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    side, keep = 32, False
    if change == 'side': side = 33
    if change == 'order': mixed = mixed[::-1]
    if change == 'touched': os.utime(mixed[0], ns=(1, 1))
    if change == 'other size':
        before = mixed[-1].stat()
        mixed[-1].write_bytes(mixed[-1].read_bytes() + b'\0')
        os.utime(mixed[-1], ns=(before.st_atime_ns, before.st_mtime_ns))
    if change == 'fewer': mixed = mixed[:-1]
    if change == 'duplicates': keep = True
    if change == 'code': monkeypatch.setattr(photos, 'MIN_SIDE', 17)
    after = cut_at(monkeypatch, None)
    write_photos(mixed, tmp_path/'o.npy', side, 1, drop_duplicates=not keep)
    assert len(after) == (7 if change == 'nothing' else len(mixed))
    monkeypatch.undo()
    write_photos(mixed, tmp_path/'fresh.npy', side, 1, drop_duplicates=not keep)
    assert (tmp_path/'o.npy').read_bytes() == (tmp_path/'fresh.npy').read_bytes()


def test_a_kill_loses_little(tmp_path, mixed):
    code = f"""
import time
from plm import photos
photos._COMMIT, work = 0.05, photos.decode_images
def slowly(files, *how):
    for result in work(files, *how): time.sleep(0.15); yield result
photos.decode_images = slowly
photos.write_photos([{', '.join(repr(str(f)) for f in mixed)}], {str(tmp_path/'o.npy')!r}, 32, workers=1)
"""
    run = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stderr=subprocess.DEVNULL,
                           env={**os.environ, 'OMP_NUM_THREADS': '1'})
    state, deadline = tmp_path/'.o.npy.state', time.monotonic() + 60
    def finished(): return len(json.loads(state.read_text())) - 1 if state.exists() else 0
    while finished() < 4:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not (tmp_path/'o.npy').exists()
    done = finished()
    photos_seen, plain = [], photos.decode_images
    def count(files, *how): photos_seen.extend(files); return plain(files, *how)
    try:
        photos.decode_images = count
        write_photos(mixed, tmp_path/'o.npy', 32)
    finally: photos.decode_images = plain
    assert len(photos_seen) == len(mixed) - done < len(mixed)
    write_photos(mixed, tmp_path/'whole.npy', 32)
    assert (tmp_path/'o.npy').read_bytes() == (tmp_path/'whole.npy').read_bytes()


def test_a_full_disk_is_seen_before_beginning(tmp_path, mixed, monkeypatch, commit_always):
    need, usage = 12*3*32*32, shutil.disk_usage(tmp_path)
    monkeypatch.setattr(photos.shutil, 'disk_usage', lambda path: usage._replace(free=free))
    free = need - 1
    message = r'the disk of .* is full: 12 photos need up to 0.0 MiB at side 32, and 0.0 MiB are free. Free some'
    with pytest.raises(OSError, match=message) as e: write_photos(mixed, tmp_path/'o.npy', 32)
    assert e.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == [tmp_path/'in']
    free = 2**30
    with pytest.raises(OSError, match='need up to 2,304.0 MiB at side 8192, and 1,024.0 MiB are free'):
        write_photos(mixed, tmp_path/'o.npy', 8192)
    free = need
    cut_at(monkeypatch, 8)
    with pytest.raises(Power): write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    free = 0 # for the rest of the run: its room is reserved
    assert (tmp_path/'.o.npy.part').stat().st_blocks*512 >= need
    cut_at(monkeypatch, None)
    write_photos(mixed, tmp_path/'o.npy', 32, workers=1)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize('step', ['posix_fallocate', 'open_memmap'])
def test_room_that_cannot_be_reserved_is_a_full_disk(tmp_path, mixed, monkeypatch, number, step):
    def full(*args): raise OSError(number, 'no')
    monkeypatch.setattr(photos.os if step == 'posix_fallocate' else photos.npy, step, full)
    words = r'(is full|takes no file of this size): 12 photos need up to .*Free some, choose another disk'
    with pytest.raises(OSError, match=words) as e: write_photos(mixed, tmp_path/'o.npy', 32)
    assert e.value.errno == number and list(tmp_path.iterdir()) == [tmp_path/'in']


@pytest.mark.parametrize('how', ['the system cannot', 'the disk cannot'])
def test_room_need_not_be_reserved(tmp_path, mixed, monkeypatch, how):
    def cannot(fd, start, size): raise OSError(errno.EOPNOTSUPP, 'no')
    if how == 'the system cannot': monkeypatch.delattr(photos.os, 'posix_fallocate')
    else: monkeypatch.setattr(photos.os, 'posix_fallocate', cannot)
    assert len(write_photos(mixed, tmp_path/'o.npy', 32).kept) == 7


def test_a_disk_that_fills_up_keeps_what_is_done(tmp_path, mixed, monkeypatch, commit_always):
    commits, whole_file = [], photos.whole_file
    def full(path):
        commits.append(path)
        if len(commits) == 5: raise OSError(errno.ENOSPC, 'No space left on device')
        return whole_file(path)
    monkeypatch.setattr(photos, 'whole_file', full)
    with pytest.raises(OSError) as e: write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    assert e.value.errno == errno.ENOSPC and not (tmp_path/'o.npy').exists()
    monkeypatch.setattr(photos, 'whole_file', whole_file)
    after = cut_at(monkeypatch, None)
    write_photos(mixed, tmp_path/'o.npy', 32, workers=1)
    assert len(after) == 8 # four were committed


def test_other_errors_of_the_disk_are_not_called_full(tmp_path, mixed, monkeypatch):
    def broken(self): raise OSError(errno.EIO, 'Input/output error')
    monkeypatch.setattr(np.memmap, 'flush', broken)
    with pytest.raises(OSError, match='Input/output'): write_photos(mixed, tmp_path/'o.npy', 32)


def test_scratch(tmp_path, mixed, monkeypatch, commit_always):
    cut_at(monkeypatch, 8)
    with pytest.raises(Power):
        write_photos(mixed, tmp_path/'runs'/'o.npy', 32, workers=1, scratch=tmp_path/'scratch'/'x')
    shutil.rmtree(tmp_path/'runs') # as DVC does before it runs a stage again
    after = cut_at(monkeypatch, None)
    write_photos(mixed, tmp_path/'runs'/'o.npy', 32, workers=1, scratch=tmp_path/'scratch'/'x')
    assert len(after) == 4 and sorted(os.listdir(tmp_path/'runs')) == ['o.npy', 'o_skipped.csv']
    assert not os.listdir(tmp_path/'scratch'/'x')
    plain, elsewhere = Path.stat, [*os.stat(tmp_path)]
    elsewhere[stat.ST_DEV] += 1
    monkeypatch.setattr(Path, 'stat', lambda self, **k: os.stat_result(elsewhere)
                        if self.name == 'x' else plain(self, **k))
    with pytest.raises(ValueError, match='not on the disk of'):
        write_photos(mixed, tmp_path/'o.npy', 32, scratch=tmp_path/'scratch'/'x')


def test_an_old_array_stays_until_the_new_one_is_whole(tmp_path, mixed, monkeypatch):
    np.save(tmp_path/'o.npy', np.arange(3))
    cut_at(monkeypatch, 8)
    with pytest.raises(Power): write_photos(mixed, tmp_path/'o.npy', 32)
    assert np.load(tmp_path/'o.npy').tolist() == [0, 1, 2]


def test_the_header_has_room_for_any_number_of_rows():
    def header(n):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, dict(descr='|u1', fortran_order=False, shape=(n, 3, 256, 256)))
        return len(head.getvalue())
    assert len({header(n) for n in (0, 1, 99, 10**6, 10**12)}) == 1


def test_squeezed_photos_are_whole(tmp_path):
    "Left half dark, right half light: the middle of a wide photo has less of both, the whole has each in its half."
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 60:] = 200
    wide[:, :30] = 100 # is cut off with the sides
    file = tmp_path/'wide.png'
    Image.fromarray(wide).save(file)
    cut, whole = (decode_image(file, 40, squeeze).pixels for squeeze in (False, True))
    assert cut.max() == 200 and 100 not in cut and (whole[:, :, :8] == 100).all() and (whole[:, :, 22:] == 200).all()
    assert np.array_equal(write_photos([file], tmp_path/'o.npy', 40, squeeze=True).kept, [0])
    assert np.array_equal(np.load(tmp_path/'o.npy')[0], whole)


def test_two_at_once_do_not_spoil_each_other(tmp_path):
    "Of other photos and sizes, with one scratch folder: the half-written file had one name for both."
    for split in 'ab':
        (tmp_path/split).mkdir()
        for i in range(12): save(tmp_path/split/f'{i}.png', smooth(100*ord(split) + i))
    sets = {split: (sorted((tmp_path/split).iterdir()), 24 + 8*(split == 'b')) for split in 'ab'}
    def write(split, folder, scratch):
        files, side = sets[split]
        write_photos(files, tmp_path/folder/split/'images.npy', side, scratch=tmp_path/scratch)
    for split in 'ab': write(split, 'one', f'scratch-{split}')
    threads = [threading.Thread(target=write, args=(split, 'both', 'scratch')) for split in 'ab']
    for t in threads: t.start()
    for t in threads: t.join()
    for split in 'ab':
        alone, together = (np.load(tmp_path/folder/split/'images.npy') for folder in ('one', 'both'))
        assert np.array_equal(alone, together)
