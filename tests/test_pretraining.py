"Where training begins: labels of the source, principal components, and the stored features of a frozen backbone."
import copy, os
import numpy as np, pytest, torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from sklearn.decomposition import PCA
from plm.backbones import FeatureNet, join_frozen
from plm.core import generator_at
from plm.encoder import Encoder, embed
from plm.images import PhotoAugment, as_input
from plm.methods import METHODS, PretrainedConstants, train
from plm.pretraining import (Features, PretrainConstants, features_encoder, load_features, new_encoder, pretrain,
                             principal_head, store_features)
from plm.training import TrainConstants
from test_methods import CONSTANTS, replace

SUPERVISED = PretrainConstants(epochs=3, batch_size=8, lr=1e-2, temperature=0.1, augment=0.5)
LONGER = PretrainConstants(**SUPERVISED.model_dump() | dict(epochs=8))
PRINTS = torch.randint(0, 256, (20, 1, 24, 24), generator=generator_at('pictures', 20, 'source'), dtype=torch.uint8)
LABELS = torch.arange(20) % 5


def start(): return Encoder(dim=8)


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_pretraining_learns_and_repeats_itself():
    first, again, other = start(), start(), start()
    log = pretrain(first, PRINTS, LABELS, LONGER, 0)
    assert log == pretrain(again, PRINTS, LABELS, LONGER, 0) and same(first, again)
    pretrain(other, PRINTS, LABELS, LONGER, 1)
    assert not same(first, other)
    assert [row['epoch'] for row in log] == list(range(1, 9)) and log[-1]['loss'] < 0.7*log[0]['loss']


def test_pretraining_on_too_few_images():
    with pytest.raises(ValueError, match='source has 7 images, fewer than pretrain.batch_size = 8'):
        pretrain(start(), PRINTS[:7], LABELS[:7], SUPERVISED, 0)


def test_pretraining_counts_only_the_trained_encoder():
    encoder, seen = start(), []
    encoder.register_forward_hook(lambda m, inputs, _: seen.append(len(inputs[0])))
    pretrain(encoder, PRINTS, LABELS, SUPERVISED, 0)
    assert seen == [8]*2*3 # 20 images make two batches; the rest waits for another epoch


def test_the_constants_describe_the_encoder():
    train = TrainConstants(backbone='resnet18', weights='none', dim=8, crop=32, precision='bf16', norm='still',
                           epochs=1, batch_size=4)
    a, b, other = new_encoder(train), new_encoder(train), new_encoder(train, (1,))
    assert same(a, b) and not same(a, other)
    assert (a.crop, a.head.out_features) == (32, 8) and a(torch.rand(2, 3, 40, 40)).shape == (2, 8)


# ---- principal components

TINY = TrainConstants(backbone='resnet18', weights='none', dim=8, crop=32, precision='float32', norm='moving', epochs=1,
                      batch_size=10)
SMOOTH = F.interpolate(torch.rand(40, 3, 5, 4, generator=generator_at('smooth')), (40, 40), mode='bicubic')
PHOTOS = SMOOTH.clamp(0, 1).mul(255).byte()


def test_the_head_begins_with_the_principal_components():
    e = principal_head(new_encoder(TINY), PHOTOS)
    f = embed(Features(e), PHOTOS)
    theirs = torch.from_numpy(PCA(8, svd_solver='full').fit_transform(f.double().numpy())).float()
    ours = e.head(f).detach()
    signs = (ours*theirs).sum(0).sign()
    torch.testing.assert_close(ours, theirs*signs, rtol=1e-2, atol=1e-3*theirs.abs().max().item())
    again = principal_head(new_encoder(TINY), PHOTOS)
    assert torch.equal(again.head.weight, e.head.weight) and torch.equal(again.head.bias, e.head.bias)


def test_the_head_of_many_photos_is_that_of_some():
    a, b = (principal_head(new_encoder(TINY), PHOTOS, at_most=20, address=(s,)) for s in (0, 1))
    assert not torch.equal(a.head.weight, b.head.weight)
    wide = new_encoder(TrainConstants(**TINY.model_dump() | dict(dim=600)))
    with pytest.raises(ValueError, match='at most the 512'): principal_head(wide, PHOTOS)


# ---- stored features

@pytest.fixture(scope='module')
def frozen(): return new_encoder(TINY).eval()


@pytest.fixture(scope='module')
def stored(frozen, tmp_path_factory):
    file = tmp_path_factory.mktemp('stored')/'train_features.npy'
    store_features(frozen, PHOTOS, file, views=3, seed=1)
    return load_features(file)


def test_stored_features_are_those_of_the_loop(frozen, stored):
    "Image by image: the plain one, then the views drawn at its own address."
    assert stored.shape == (40, 4, 512) and stored.dtype == torch.float16
    with torch.no_grad():
        for i in (0, 7, 39):
            plain = frozen.features(as_input(PHOTOS[i:i + 1]))
            views = PhotoAugment(32)(PHOTOS[i].expand(3, -1, -1, -1), generator_at('stored', 1, i))
            expected = torch.cat([plain, frozen.features(views)])
            torch.testing.assert_close(stored[i].float(), expected, rtol=2e-3, atol=2e-3)


def test_views_do_not_depend_on_what_is_computed_together(frozen, stored, tmp_path):
    store_features(frozen, PHOTOS[:11], tmp_path/'a.npy', views=3, seed=1, block=4)
    torch.testing.assert_close(load_features(tmp_path/'a.npy'), stored[:11], rtol=2e-3, atol=2e-3)
    store_features(frozen, PHOTOS[:11], tmp_path/'b.npy', views=3, seed=2)
    other = load_features(tmp_path/'b.npy')
    torch.testing.assert_close(other[:, 0], stored[:11, 0], rtol=2e-3, atol=2e-3)
    assert (other[:, 1:] != stored[:11, 1:]).float().mean() > 0.5
    store_features(frozen, PHOTOS[:11], tmp_path/'c.npy')
    assert torch.equal(load_features(tmp_path/'c.npy'), other[:, :1])


@pytest.mark.parametrize('at, torn', [(1, 0), (6, 0), (6, 5), (6, -1), (9, 0)])
def test_a_killed_run_goes_on(frozen, stored, tmp_path, at, torn):
    "Killed at a call of the backbone (two a block: plain, views); `torn`: bytes too many or too few at the end."
    calls, out, scratch = [], tmp_path/'out/f.npy', tmp_path/'scratch'
    def kill(_, inputs):
        calls.append(len(inputs[0]))
        if len(calls) == at: raise KeyboardInterrupt
    hook = frozen.backbone.register_forward_pre_hook(kill)
    try:
        with pytest.raises(KeyboardInterrupt): store_features(frozen, PHOTOS, out, 3, 1, scratch, block=8)
        part, = scratch.iterdir()
        assert not list(out.parent.iterdir()) # never a part of a file under its name
        with open(part, 'r+b') as f: f.truncate(part.stat().st_size + torn)
        store_features(frozen, PHOTOS, out, 3, 1, scratch, block=8)
    finally: hook.remove()
    finished = (at - 1)//2 - (torn < 0) # blocks that the second run need not look at
    assert calls[at:] == [8, 24]*(5 - finished) and not list(scratch.iterdir())
    torch.testing.assert_close(load_features(out), stored, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('what', ['images', 'weights', 'views', 'seed'])
def test_what_is_left_of_another_run_is_not_taken(frozen, tmp_path, what):
    def kill(*_): raise KeyboardInterrupt
    hook = frozen.backbone.register_forward_pre_hook(kill)
    other, images, views, seed = copy.deepcopy(frozen), PHOTOS[:8], 1, 0
    with pytest.raises(KeyboardInterrupt): store_features(frozen, images, tmp_path/'f.npy', views, seed)
    hook.remove()
    left, = tmp_path.iterdir()
    left.write_bytes(left.read_bytes() + b'x'*10**6) # as if all were done, and wrong
    other = copy.deepcopy(frozen)
    if what == 'images': images = images.flip(0)
    if what == 'weights': other.backbone.net.conv1.weight.data[0] += 1
    if what == 'views': views = 2
    if what == 'seed': seed = 1
    store_features(other, images, tmp_path/'f.npy', views, seed)
    found = load_features(tmp_path/'f.npy')
    torch.testing.assert_close(found[:, 0].float(), embed(Features(other), images), rtol=2e-3, atol=2e-3)
    assert found.shape == (8, 1 + views, 512) and left.exists()


def test_features_that_16_bits_do_not_hold(frozen, tmp_path):
    class Loud(torch.nn.Module):
        out_features = 2
        def forward(self, x): return x.mean((1, 2, 3))[:, None].expand(-1, 2)*1e6
    with pytest.raises(ValueError, match='features of images 0 to 7 are not finite, or beyond'):
        store_features(Encoder(Loud, 2), PHOTOS[:8], tmp_path/'f.npy')


def test_a_file_that_holds_no_features(tmp_path):
    with pytest.raises(FileNotFoundError, match='store_features makes it'): load_features(tmp_path/'f.npy')
    np.save(tmp_path/'f.npy', np.zeros((2, 3), np.float16))
    with pytest.raises(ValueError, match=r'float16 \(2, 3\), and no features'): load_features(tmp_path/'f.npy')


def test_training_on_features_begins_at_the_features(stored):
    "All of them: the same distances as of the centred features, by the definition; fewer: the leading ones."
    x = stored[:, 0].double()
    x = x - x.mean(0)
    whole, short = features_encoder(stored), features_encoder(stored, 8)
    expected = torch.cdist(F.normalize(x, dim=1), F.normalize(x, dim=1)).float()
    torch.testing.assert_close(torch.cdist(embed(whole, stored), embed(whole, stored)), expected, rtol=0, atol=2e-3)
    axes = torch.linalg.svd(x, full_matrices=False).Vh[:8].float()
    torch.testing.assert_close((short.head.weight @ axes.T).abs(), torch.eye(8), rtol=0, atol=2e-3)
    assert not short.head.bias.any() and short.backbone.scale.item() == pytest.approx(x.norm(dim=1).mean().item())
    assert same(short, features_encoder(stored, 8))
    other = features_encoder(stored, 8, address=(1,))
    assert torch.equal(other.head.weight, short.head.weight) # the start is the same, what is learned on top is not
    assert not torch.equal(other.backbone.down.weight, short.backbone.down.weight)
    with pytest.raises(ValueError, match='at most the 512'): features_encoder(stored, 513)


@pytest.mark.parametrize('name, changes', [
    ('pretrained', {}), ('simclr', {}), ('stml', {}), ('stml', dict(view='plain')), ('plm', {}),
    ('plm', dict(similarity='distance')), ('plm', dict(refresh='kept'))])
def test_every_method_trains_on_stored_features(stored, tmp_path, name, changes):
    constants = replace((CONSTANTS | {'pretrained': PretrainedConstants()})[name], **changes)
    shared = TrainConstants(**TINY.model_dump() | dict(epochs=2, batch_size=24, crop=None))
    encoder = features_encoder(stored, 8)
    began = copy.deepcopy(encoder)
    val = stored[:12, :1], torch.arange(12) % 4
    log = train(METHODS[name](encoder, constants, 0), stored, val, shared, tmp_path)
    assert same(began, encoder) == (name == 'pretrained') and 'val_recall_at_1' in log[-1]
    assert torch.equal(encoder.backbone.mean, began.backbone.mean) # no parameter


@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_images_are_embedded_as_their_stored_features(stored, precision):
    frozen, trained = new_encoder(TINY), features_encoder(stored, 8)
    torch.nn.init.normal_(trained.backbone.up.weight, std=0.1, generator=generator_at('trained'))
    if precision == 'bf16': frozen.mixed = True
    before = copy.deepcopy(frozen)
    whole = join_frozen(frozen, trained)
    apart = (embed(whole, PHOTOS) - embed(trained, stored)).norm(dim=1).max()
    assert apart < (0.01 if precision == 'float32' else 0.3)
    with torch.no_grad(): whole.backbone.net.up.weight.zero_()
    assert same(frozen, before) and trained.backbone.up.weight.any() # both stay as they are
    with pytest.raises(ValueError, match='makes 512 features, and 100'):
        join_frozen(frozen, Encoder(lambda: FeatureNet(100), 8))


def test_images_are_not_features():
    with pytest.raises(ValueError, match=r'FeatureNet takes 6 features.*\(2, 3, 4, 4\).*join_frozen'):
        Encoder(lambda: FeatureNet(6), 2)(torch.zeros(2, 3, 4, 4))


def test_killed_between_the_last_block_and_the_name(frozen, tmp_path, monkeypatch):
    "All features are there, and only the name is missing: nothing is left to compute."
    few, out = PHOTOS[:16], tmp_path/'f.npy'
    store_features(frozen, few, tmp_path/'whole.npy', 2, block=8)
    def kill(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', kill)
        with pytest.raises(KeyboardInterrupt): store_features(frozen, few, out, 2, block=8)
    store_features(frozen, few, out, 2, block=8)
    assert torch.equal(load_features(out), load_features(tmp_path/'whole.npy'))
    with pytest.raises(ValueError, match='views must be 0 or more, got -1'): store_features(frozen, few, out, -1)


@pytest.mark.parametrize('dim, k, ridge', [(6, 5, 0.1), (12, 1, 0.5), (3, 20, 0.01)])
def test_the_head_of_neighbors_by_the_loop(dim, k, ridge):
    "Covariance of differences pair by pair, its root by scipy. Only distances count, up to a common scale."
    x = torch.randn(60, 1, 12, generator=generator_at('head'))*torch.linspace(3, 0.5, 12)
    pca = PCA(dim, svd_solver='full').fit(x[:, 0].double().numpy())
    y = pca.transform(x[:, 0].double().numpy())
    unit, C = y/np.linalg.norm(y, axis=1, keepdims=True), np.zeros((dim, dim))
    for i in range(60):
        for j in sorted(set(range(60)) - {i}, key=lambda j: ((unit[i] - unit[j])**2).sum())[:k]:
            C += np.outer(y[j] - y[i], y[j] - y[i])
    expected = torch.from_numpy(y @ np.linalg.inv(sqrtm(C + ridge*np.trace(C)/dim*np.eye(dim))))
    e = principal_head(Encoder(lambda: FeatureNet(12), dim), x, kind='neighbors', neighbors=k, ridge=ridge)
    z, head = embed(e, x).double(), e.head(x[:, 0]).double()
    torch.testing.assert_close(z @ z.T, F.normalize(expected) @ F.normalize(expected).T, atol=1e-4, rtol=0)
    assert head.norm().item() == pytest.approx(np.linalg.norm(y), rel=1e-4) # as long as the components


def test_a_head_of_neighbors_needs_neighbors():
    x = torch.randn(5, 1, 8, generator=generator_at('few'))
    with pytest.raises(ValueError, match='5 neighbours need 6 photos, got 5'): features_encoder(x, 2, kind='neighbors')
    with pytest.raises(ValueError, match="unknown kind of head 'neighbours'. Did you mean 'neighbors'"):
        features_encoder(x, 2, kind='neighbours')
    few = torch.randn(10, 1, 30, generator=generator_at('few')) # more numbers than photos: silent axes stay finite
    assert embed(features_encoder(few, 20, kind='neighbors'), few).isfinite().all()
    double = few[[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]] # all neighbours are copies: their differences are zero
    assert embed(features_encoder(double, 4, kind='neighbors'), double).isfinite().all()


def test_images_that_are_all_the_same_have_no_components():
    with pytest.raises(ValueError, match='all images have the same features'): features_encoder(torch.ones(5, 1, 8), 2)
