"Unit vectors, weights with an address, embedding in blocks, and the average that follows."
import pytest, torch
from torch import nn
from plm.core import generator_at
from plm.encoder import BACKBONES, ConvNet, Encoder, MomentumEncoder, embed


def pictures(n=12): return torch.randint(0, 256, (n, 1, 28, 28), generator=generator_at('pictures', n), dtype=torch.uint8)


def make(address=(0,)): return Encoder('convnet', 8, address)


def step(encoder, seed):
    "What an optimiser step does to an encoder: weights move, batch statistics are renewed."
    encoder.train()
    encoder(pictures()[seed % 3:].float()/255)
    with torch.no_grad():
        for i, p in enumerate(encoder.parameters()): p.add_(0.1*torch.randn(p.shape, generator=generator_at(seed, i)))


@pytest.mark.parametrize('backbone, shape, features', [('convnet', (4, 1, 28, 28), 1152), ('resnet18', (2, 1, 64, 48), 512), ('resnet18', (2, 3, 64, 48), 512)])
def test_unit_vectors_come_out(backbone, shape, features):
    encoder = Encoder(backbone, 8)
    assert encoder.head.in_features == features == encoder.backbone.out_features
    z = encoder(torch.rand(shape, generator=generator_at(0)))
    assert z.shape == (shape[0], 8)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(shape[0]))


def test_grey_is_three_equal_channels():
    encoder, x = Encoder('resnet18', 8).eval(), torch.rand(2, 1, 40, 40, generator=generator_at(0))
    torch.testing.assert_close(encoder(x), encoder(x.repeat(1, 3, 1, 1)), rtol=0, atol=1e-3)


def test_backbones():
    assert set(BACKBONES) == {'convnet', 'resnet18', 'resnet50'} and BACKBONES['convnet'] is ConvNet
    with pytest.raises(ValueError, match="unknown backbone 'resnet8'.*'resnet18'"): Encoder('resnet8')


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
