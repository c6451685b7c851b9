"Unit vectors, weights with an address, embedding in blocks, and the average that follows."
import pytest, torch
from torch import nn
from plm.core import generator_at
from plm.encoder import ConvNet, Encoder, MomentumEncoder, embed


class Tiny(nn.Sequential):
    "A backbone for colour of any size."
    out_features = 8
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def pictures(n=12):
    return torch.randint(0, 256, (n, 1, 28, 28), generator=generator_at('pictures', n), dtype=torch.uint8)


def make(address=(0,)): return Encoder(dim=8, address=address)


def step(encoder, seed):
    "What an optimiser step does to an encoder: weights move, batch statistics are renewed."
    encoder.train()
    encoder(pictures()[seed % 3:].float()/255)
    with torch.no_grad():
        for i, p in enumerate(encoder.parameters()): p.add_(0.1*torch.randn(p.shape, generator=generator_at(seed, i)))


# ---- the encoder

@pytest.mark.parametrize('backbone, shape, features', [(ConvNet, (4, 1, 28, 28), 1152), (Tiny, (2, 3, 20, 17), 8)])
def test_unit_vectors_come_out(backbone, shape, features):
    encoder = Encoder(backbone, 8)
    assert encoder.head.in_features == features == encoder.backbone.out_features
    z = encoder(torch.rand(shape, generator=generator_at(0)))
    assert z.shape == (shape[0], 8)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(shape[0]))


@pytest.mark.parametrize('shape, words', [((2, 3, 28, 28), 'convnet takes grey images.*choose another backbone'),
                                          ((2, 1, 64, 28), 'convnet takes')])
def test_images_that_convnet_cannot_take(shape, words):
    with pytest.raises(ValueError, match=words): Encoder(dim=8)(torch.zeros(shape))


@pytest.mark.parametrize('block', [None, 3])
def test_stored_features_are_embedded_by_the_plain_one(block):
    class Flat(nn.Identity): out_features = 6
    encoder, x = Encoder(Flat, 4, crop=16), torch.randn(10, 3, 6, generator=generator_at('stored')).half()
    expected = torch.nn.functional.normalize(torch.stack([encoder.head(row[0].float()) for row in x]), dim=1)
    torch.testing.assert_close(embed(encoder, x, block), expected.detach())
    torch.testing.assert_close(encoder.features(x[:, 0].float()), x[:, 0].float()) # nothing to cut a centre from


@pytest.mark.parametrize('wrong', ['resnet18', None, ConvNet()])
def test_a_backbone_is_a_function_that_makes_one(wrong):
    with pytest.raises(TypeError, match='(?s)backbone must be a function.*ConvNet.*build_encoder'): Encoder(wrong)


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


def test_the_centre_is_cut_out():
    x = torch.rand(2, 3, 41, 50, generator=generator_at(1))
    whole, cut = Encoder(Tiny, 8).eval(), Encoder(Tiny, 8, crop=32).eval()
    centre = x[:, :, 4:36, 9:41]
    with torch.no_grad(): assert torch.equal(cut(x), whole(centre)) and torch.equal(cut(centre), whole(centre))
    with pytest.raises(ValueError, match='41 x 31 pixels, fewer than crop = 32.*lower train.crop'): cut(x[..., :31])


def test_names_of_precision_and_norm():
    with pytest.raises(ValueError, match="unknown precision 'fp16'"): Encoder(precision='fp16')
    with pytest.raises(ValueError, match="unknown norm 'stil'.*'still'"): Encoder(norm='stil')


def test_still_statistics_survive_training_and_copying():
    e = Encoder(Tiny, 8, norm='still')
    slow_one = MomentumEncoder(e)
    before = {name: v.clone() for name, v in e.state_dict().items() if 'running' in name}
    opt = torch.optim.SGD(e.parameters(), lr=0.1)
    for _ in range(2):
        e.train()(torch.rand(4, 3, 32, 32))[:, 0].sum().backward()
        opt.step()
        slow_one.update(e)
    now, slow = e.state_dict(), slow_one.encoder.state_dict()
    assert len(before) == 2 and all(torch.equal(now[k], v) and torch.equal(slow[k], v) for k, v in before.items())
    assert not torch.equal(e.backbone[1].weight, Encoder(Tiny, 8).backbone[1].weight)
    Encoder(Tiny, 8).load_state_dict(e.state_dict()) # the names are those of any encoder


def test_still_statistics_stay_with_several_gpus():
    f = nn.SyncBatchNorm.convert_sync_batchnorm(Encoder(Tiny, 8, norm='still')).train()
    norms = [m for m in f.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 1 and not any(m.training for m in norms) and f.training


# ---- embedding

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


def test_blocks_of_large_photos_are_small_and_change_nothing():
    images = torch.randint(0, 256, (5, 3, 40, 40), generator=generator_at(3), dtype=torch.uint8)
    encoder, seen = Encoder(Tiny, 8, crop=32), []
    torch.testing.assert_close(embed(encoder, images), embed(encoder, images, block=2))
    encoder.backbone.register_forward_hook(lambda *call: seen.append(len(call[-1])))
    embed(encoder, torch.zeros(1, 3, 2400, 2400, dtype=torch.uint8).expand(3, -1, -1, -1)) # 17 million numbers each
    assert seen == [1, 1, 1]


def test_embedding_shows_a_bar_when_asked(capsys):
    embed(make(), pictures(), 6)
    assert capsys.readouterr().err == ''
    embed(make(), pictures(), 6, desc='looking')
    assert 'looking' in capsys.readouterr().err


def test_broken_weights_are_found():
    encoder = make()
    with torch.no_grad(): encoder.head.weight[0, 0] = float('nan')
    with pytest.raises(ValueError, match='12 of 12 rows.*learning rate'): embed(encoder, pictures())


# ---- the momentum encoder

@pytest.mark.parametrize('gamma', [0., 0.3, 0.9, 1.])
def test_the_average_against_a_loop(gamma):
    "φ ← γφ + (1−γ)θ in float64, for weights and BatchNorm's running statistics alike; its counter is copied."
    encoder = make()
    average = MomentumEncoder(encoder, gamma)
    slow = {k: v.double() if v.is_floating_point() else v.clone() for k, v in encoder.state_dict().items()}
    for seed in range(4):
        step(encoder, seed)
        average.update(encoder)
        for k, v in encoder.state_dict().items():
            slow[k] = gamma*slow[k] + (1 - gamma)*v.double() if v.is_floating_point() else v.clone()
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


class Jump(nn.Module):
    "A weight and a buffer that begin at 0, and jump to 1."
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.register_buffer('mean', torch.zeros(3))
        self.register_buffer('constant', torch.ones(3), persistent=False)
    def jump(self):
        for t in (self.w, self.mean): t.data.fill_(1.)
        return self


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('when', ['before', 'after'])
def test_the_average_moves_in_every_precision(dtype, when):
    "5,000 steps of one thousandth go 0.993 of the way, even if a module that holds the average is changed to 16 bits."
    theta = Jump()
    if when == 'before': theta.to(dtype)
    phi = MomentumEncoder(theta, 0.999)
    if when == 'after': nn.ModuleList([theta, phi]).to(dtype)
    theta.jump()
    for _ in range(5000): phi.update(theta)
    wide = torch.promote_types(dtype, torch.float32)
    for t in (phi.encoder.w, phi.encoder.mean):
        assert t.dtype == wide
        torch.testing.assert_close(t.detach().float(), torch.full((3,), 1 - 0.999**5000), rtol=0, atol=1e-4)
    assert torch.equal(phi.encoder.constant, torch.ones(3, dtype=wide)) and theta.w.dtype == dtype


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_the_average_of_an_encoder_of_16_bits_embeds(dtype):
    encoder = make().to(dtype)
    average, x = MomentumEncoder(encoder, 0.9), pictures().float()/255
    assert {t.dtype for t in average.state_dict().values()} == {torch.float32, torch.int64}
    z = average(x)
    assert z.dtype == torch.float32 and torch.equal(average(x.to(dtype)), average(x.to(dtype).float()))
    torch.testing.assert_close(z, make().eval()(x), rtol=0, atol=0.02)
    torch.testing.assert_close(embed(average.encoder, pictures()), z)
    assert {p.dtype for p in encoder.parameters()} == {dtype} # the encoder itself is left alone


class Shared(nn.Module):
    "One weight and one buffer, each under two names."
    def __init__(self):
        super().__init__()
        self.a, self.b = Jump(), Jump()
        self.b.w, self.b.mean = self.a.w, self.a.mean


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('move', [False, True])
def test_what_is_shared_takes_one_step(dtype, move):
    theta = Shared().to(dtype)
    phi = MomentumEncoder(theta, 0.9)
    if move: phi.double() # this gives each of two modules a buffer of its own
    theta.a.jump()
    theta.b.mean.fill_(1.)
    for _ in range(3): phi.update(theta)
    for t in phi.state_dict().values(): torch.testing.assert_close(t.float(), torch.full((3,), 1 - 0.9**3))
    assert phi.encoder.a.w is phi.encoder.b.w


@pytest.mark.parametrize('change', [lambda e: setattr(e, 'more', nn.Parameter(torch.ones(1))),
                                    lambda e: delattr(e, 'w'), lambda e: setattr(e, 'w', nn.Parameter(torch.zeros(1)))])
def test_an_encoder_that_has_changed_is_not_averaged(change):
    theta = Jump()
    phi = MomentumEncoder(theta, 0.9)
    change(theta)
    with pytest.raises(ValueError, match=r'(more|w) of the encoder was added, removed or resized'): phi.update(theta)
    assert torch.equal(phi.encoder.w, torch.zeros(3)) and torch.equal(phi.encoder.mean, torch.zeros(3))
