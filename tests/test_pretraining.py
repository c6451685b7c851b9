"Pre-training with labels: repeatable, counted, and clear about what went wrong."
import pytest, torch
from plm.core import generator_at
from plm.encoder import Encoder
from plm.pretraining import PretrainConstants, new_encoder, pretrain
from plm.training import TrainConstants

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
