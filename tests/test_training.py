"The contract of a method, and what the loop says when it cannot go on."
import pytest, torch
import plm.losses
from plm.core import Constants, generator_at
from plm.encoder import Encoder
from plm.training import Method, Run, TrainConstants, fit, memory_advice

IMAGES = torch.randint(0, 256, (50, 1, 24, 24), generator=generator_at('training'), dtype=torch.uint8)
BUDGET = dict(backbone='convnet', weights='none', dim=8, crop=None, precision='float32', norm='moving',
              epochs=2, batch_size=24)
TRAIN = TrainConstants(**BUDGET)


class Pull(Method):
    "The least that a method has to say."
    def step(self, images, index, augment, g):
        return {'pull': (self.encoder(augment(images, g))[:, :1] - 1).square().mean()}


def test_every_hook_but_step_has_a_default(tmp_path):
    method, looked = Pull(Encoder(dim=8), Constants()), []
    def eval_fn():
        looked.append(method.encoder.head.weight.clone())
        return {'looked': len(looked)}
    log = fit(method, IMAGES, Run('pull', TRAIN, 1e-2, scratch=tmp_path), eval_fn)
    epoch = ['epoch', 'images_seen', 'loss', 'pull', 'looked']
    assert [list(row) for row in log] == [['epoch', 'images_seen', 'looked'], epoch, epoch]
    assert [row['looked'] for row in log] == [1, 2, 3] and not torch.equal(looked[0], looked[2])
    assert log[2]['pull'] < log[1]['pull']
    assert [row['images_seen'] for row in log] == [0, 48, 96] and not list(tmp_path.iterdir())


def test_a_method_must_say_its_loss(tmp_path):
    with pytest.raises(NotImplementedError, match='Method must define step'):
        fit(Method(Encoder(dim=8), Constants()), IMAGES, Run('none', TRAIN, 1e-2, scratch=tmp_path))


def test_replicated_parameters_have_a_rate_of_their_own_and_no_decay():
    class WithProxies(Pull):
        def __init__(self, *args):
            super().__init__(*args)
            self.proxies, self.teacher = torch.nn.Linear(8, 5), torch.nn.Linear(8, 2).requires_grad_(False)
        def replicated(self): return list(self.proxies.parameters())
    method = WithProxies(Encoder(dim=8), Constants())
    own, proxies = method.groups(0.1, 10.)
    assert own['lr'] == 0.1 and 'weight_decay' not in own and (proxies['lr'], proxies['weight_decay']) == (10., 0.)
    assert len(own['params']) == len(list(method.encoder.parameters())) and len(proxies['params']) == 2
    assert method.groups(0.1)[1]['lr'] == 0.1


def test_hooks_are_called_in_order(tmp_path):
    calls = []
    class Noted(Pull):
        def batches(self, n, batch_size): calls.append('batches'); return super().batches(n, batch_size)
        def estimate(self, images): calls.append('estimate'); return torch.ones(len(images), 3)
        def begin(self, z, g): calls.append(f'begin {tuple(z.shape)}')
        def after_step(self): calls.append('after_step')
        def describe(self, z): calls.append('describe'); return {'n': float(len(z))}
    log = fit(Noted(Encoder(dim=8), Constants()), IMAGES, Run('noted', TRAIN, 1e-3, scratch=tmp_path))
    epoch = ['after_step', 'after_step', 'estimate', 'describe']
    assert calls == ['batches', 'estimate', 'begin (50, 3)', 'describe', *epoch, *epoch]
    assert all(row['n'] == 50 for row in log)


def test_the_key_the_rate_and_the_code_are_part_of_a_run(tmp_path):
    method, other = Pull(Encoder(dim=8), Constants()), type('Other', (Pull,), {})(Encoder(dim=8), Constants())
    run = dict(name='pull', train=TRAIN, lr=1e-3, scratch=tmp_path)
    def file(**changes): return Run(**run | changes).file(method, IMAGES)
    files = [file(), file(lr=2e-3), file(seed=1), file(key=(1,)), file(train=TrainConstants(**BUDGET | dict(epochs=3)))]
    assert len(set(files)) == 5 and file() == files[0] and files[0].name.startswith('pull-0-')
    other.__class__.__module__ = 'plm.losses' # a method of a module of plm has that module's code
    assert Run(**run).file(other, IMAGES) != files[0]


def test_too_few_images(tmp_path):
    with pytest.raises(ValueError, match='there are 23 train images, fewer than train.batch_size = 24'):
        fit(Pull(Encoder(dim=8), Constants()), IMAGES[:23], Run('pull', TRAIN, 1e-3, scratch=tmp_path))


@pytest.mark.parametrize('change', [
    dict(batch_size=25), dict(epochs=0), dict(dim=0), dict(crop=8), dict(norm='fixed'), dict(precision='fp16')])
def test_budgets_out_of_range(change):
    with pytest.raises(ValueError, match=next(iter(change))): TrainConstants(**BUDGET | change)


def test_a_full_memory_is_named_and_other_errors_stay():
    with pytest.raises(MemoryError, match='convnet on batches of 24 images.*set train.precision to bf16'):
        with memory_advice(TRAIN): raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(RuntimeError, match='shapes'):
        with memory_advice(TRAIN): raise RuntimeError('shapes do not fit')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_not_trained_and_means_of_16_bits_are_not_summed(dtype, tmp_path):
    run = Run('pull', TRAIN, 1e-3, scratch=tmp_path)
    with pytest.raises(ValueError, match='encoder.backbone.0.weight is torch.*set train.precision to bf16'):
        fit(Pull(Encoder(dim=8).to(dtype), Constants()), IMAGES, run)
    class Large(Pull):
        def step(self, *args): return {'pull': super().step(*args)['pull'], 'large': torch.tensor(40_000., dtype=dtype)}
    large = fit(Large(Encoder(dim=8), Constants()), IMAGES, run)[1]['large'] # two steps: 80,000 is no half float
    assert large == pytest.approx(40_000, rel=2e-3)
