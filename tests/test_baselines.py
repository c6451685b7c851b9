"""The two baselines against their slow twins, on degenerate batches, and on what they refuse."""
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn.functional import normalize
import reference_baselines as slow
from plm.baselines import STMLLoss, SimCLRLoss, contextual_similarity, relaxed_contrastive

def random(seed): return torch.Generator().manual_seed(seed)
def rows(n, d, seed, dtype=torch.float64): return normalize(torch.randn(n, d, generator=random(seed), dtype=dtype))
def images(n, views=2): return torch.arange(n)//views

@settings(max_examples=50, deadline=None)
@given(st.integers(3, 24), st.integers(2, 12), st.integers(1, 3), st.sampled_from([0.1, 3., 50.]), st.data(),
       st.integers(0, 999))
def test_similarity_is_the_formula(n, d, views, sigma, data, seed):
    k = data.draw(st.integers(1, n - 1))
    t, index = 3*rows(n, d, seed), images(n, views)[torch.randperm(n, generator=random(seed))]
    w = contextual_similarity(t, index, sigma, k)
    assert (w - slow.contextual_similarity(t, index, sigma, k)).abs().max() < 1e-10
    assert torch.equal(w, w.T) and w.min() >= 0 and w.max() <= 1 + 1e-12

def test_similarity_at_the_size_of_a_batch():
    t, index = rows(60, 32, 0), images(60)
    assert (contextual_similarity(t, index) - slow.contextual_similarity(t, index)).abs().max() < 1e-10

def test_separate_classes_are_seen():
    label = torch.arange(40)//10 # 4 far classes of 5 images with 2 views: context 1 inside, 0 across
    t = normalize(torch.eye(4, 8).double()[label] + 0.01*rows(40, 8, 1))
    w = contextual_similarity(t, images(40))
    inside = label[:, None] == label
    assert w[inside].min() > 0.99 and w[~inside].max() < 0.5*torch.tensor(-2/3).exp() + 0.02

def test_views_of_an_image_are_neighbours_wherever_they_lie():
    t = rows(20, 4, 2)
    t[1] = -t[0] # the two views of image 0 on opposite sides
    w, alone = contextual_similarity(t, images(20), k=2), contextual_similarity(t, torch.arange(20), k=2)
    assert w[0, 1] > 0.5 and alone[0, 1] < 0.3

def test_similarity_carries_no_gradient():
    t = rows(12, 4, 3).requires_grad_()
    assert not contextual_similarity(t, images(12), k=3).requires_grad

@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.integers(1, 12), st.sampled_from([0.5, 1., 2.]), st.booleans(), st.integers(0, 999))
def test_relaxed_contrastive_is_the_formula(n, d, delta, duplicate, seed):
    z = rows(n, d, seed)
    if duplicate: z[0] = z[-1]
    w = torch.rand(n, n, dtype=torch.float64, generator=random(seed))
    assert abs(relaxed_contrastive(z, w, delta).item() - slow.relaxed_contrastive(z, w, delta)) < 1e-10

@settings(max_examples=25, deadline=None)
@given(st.integers(4, 12), st.integers(2, 10), st.integers(2, 16), st.integers(0, 999))
def test_stml_is_the_formula(pairs, d, wide, seed):
    n, constants = 2*pairs, dict(sigma=2, delta=0.8, k=3)
    batch = rows(n, d, seed), rows(n, wide, seed + 1), rows(n, wide, seed + 2), images(n)
    fast, plain = STMLLoss(**constants)(*batch), slow.stml(*batch, **constants)
    assert fast.keys() == plain.keys()
    for name in plain: assert abs(fast[name].item() - plain[name]) < 1e-10, name

def test_stml_defaults_are_the_published_ones():
    z, z_wide, t, index = rows(40, 16, 0), rows(40, 32, 1), rows(40, 32, 2), images(40)
    fast, plain = STMLLoss()(z, z_wide, t, index), slow.stml(z, z_wide, t, index, sigma=3, delta=1, k=5)
    for name in plain: assert abs(fast[name].item() - plain[name]) < 1e-10, name

def test_gradients_are_right():
    w = contextual_similarity(rows(8, 5, 0), images(8), k=3)
    assert torch.autograd.gradcheck(lambda z: relaxed_contrastive(z, w), rows(8, 3, 1).requires_grad_())
    t, wide = rows(8, 5, 0), rows(8, 5, 2)
    def distillation(z): return STMLLoss(k=2)(z, wide, t, images(8))['distillation']
    assert torch.autograd.gradcheck(distillation, rows(8, 3, 1).requires_grad_())

def test_distillation_moves_the_narrow_head_only():
    z, wide, t = rows(20, 4, 0).requires_grad_(), rows(20, 8, 1).requires_grad_(), rows(20, 8, 2).requires_grad_()
    losses = STMLLoss()(z, wide, t, images(20))
    losses['distillation'].backward(retain_graph=True)
    assert z.grad.abs().sum() > 0 and wide.grad is None
    sum(losses.values()).backward()
    assert wide.grad.abs().sum() > 0 and t.grad is None

def test_scale_is_free():
    z, w = rows(15, 6, 0).requires_grad_(), torch.rand(15, 15, dtype=torch.float64)
    loss = relaxed_contrastive(z, w)
    loss.backward()
    assert abs((z*z.grad).sum()) < 1e-12 # no slope along the scale: the row's mean carries its gradient
    assert abs(relaxed_contrastive(100*z, w) - loss) < 1e-10

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kind', ['two copies', 'one place', 'almost one place', 'two places'])
def test_degenerate_batches_have_finite_gradients(kind, dtype):
    z = rows(24, 8, 0, dtype)
    if kind == 'two copies': z[1] = z[0]
    if kind == 'one place': z = z[:1].repeat(24, 1)
    if kind == 'almost one place': z = z[:1] + 1e-7*z
    if kind == 'two places': z = z[:2].repeat(12, 1)
    z = z.requires_grad_()
    losses = STMLLoss()(z, z, z.detach(), images(24))
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values()) and torch.isfinite(z.grad).all()
    w = contextual_similarity(z, images(24))
    assert torch.isfinite(w).all() and w.min() >= 0 and w.max() <= 1.0001

def test_single_precision_is_near_enough():
    z, z_wide, t, index = rows(100, 128, 0), rows(100, 512, 1), rows(100, 512, 2), images(100)
    double, single = STMLLoss()(z, z_wide, t, index), STMLLoss()(z.float(), z_wide.float(), t.float(), index)
    for name in double: assert single[name].dtype == torch.float32 and abs(double[name] - single[name]) < 1e-4

@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 10), st.sampled_from([0.1, 0.5, 2.]), st.integers(0, 999))
def test_simclr_is_the_formula(b, d, temperature, seed):
    z1, z2 = 2*rows(b, d, seed), 3*rows(b, d, seed + 1)
    loss = SimCLRLoss(temperature)(z1, z2)
    assert list(loss) == ['nt_xent'] and abs(loss['nt_xent'].item() - slow.nt_xent(z1, z2, temperature)) < 1e-10

def test_simclr_default_and_gradient():
    z1, z2 = rows(10, 4, 0).requires_grad_(), rows(10, 4, 1).requires_grad_()
    loss = SimCLRLoss()(z1, z2)['nt_xent']
    assert abs(loss.item() - slow.nt_xent(z1.detach(), z2.detach(), 0.1)) < 1e-10
    loss.backward()
    assert z1.grad.abs().sum() > 0 and z2.grad.abs().sum() > 0
    assert not list(SimCLRLoss().parameters()) and not list(STMLLoss().parameters())

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_everything_runs_on_the_gpu():
    z, z_wide, t, index = rows(40, 16, 0), rows(40, 32, 1), rows(40, 32, 2), images(40)
    for loss, inputs in ((STMLLoss(), (z, z_wide, t, index)), (SimCLRLoss(), (z, rows(40, 16, 3)))):
        here, there = loss(*inputs), loss.cuda()(*(x.cuda() for x in inputs))
        for name in here: assert there[name].is_cuda and abs(here[name] - there[name].cpu()) < 1e-10

nan = torch.full((20, 4), float('nan'))
@pytest.mark.parametrize('call, says', [
    (lambda: contextual_similarity(nan, images(20)), 'NaN'),
    (lambda: contextual_similarity(rows(10, 4, 0), images(10)), 'N - 1 = 9'),
    (lambda: contextual_similarity(rows(10, 4, 0), images(10), k=0), 'between 1'),
    (lambda: contextual_similarity(rows(20, 4, 0), images(20), sigma=0), 'sigma'),
    (lambda: contextual_similarity(rows(20, 4, 0), images(20), sigma=-1), 'sigma'),
    (lambda: contextual_similarity(rows(20, 4, 0), images(10)), 'index must have shape'),
    (lambda: contextual_similarity(rows(20, 4, 0)[0], images(20)), 'shape'),
    (lambda: relaxed_contrastive(nan, torch.zeros(20, 20)), 'NaN'),
    (lambda: relaxed_contrastive(rows(20, 4, 0), torch.zeros(20, 19)), 'shape'),
    (lambda: relaxed_contrastive(rows(1, 4, 0), torch.zeros(1, 1)), '2 rows'),
    (lambda: STMLLoss()(nan, rows(20, 4, 0), rows(20, 4, 0), images(20)), 'embeddings z have NaN'),
    (lambda: STMLLoss()(rows(20, 4, 0), nan, rows(20, 4, 0), images(20)), 'z_wide have NaN'),
    (lambda: STMLLoss()(rows(20, 4, 0), rows(20, 4, 0), nan, images(20)), 't have NaN'),
    (lambda: STMLLoss()(rows(20, 4, 0), rows(18, 4, 0), rows(20, 4, 0), images(20)), 'same rows'),
    (lambda: STMLLoss()(rows(10, 4, 0), rows(10, 4, 0), rows(10, 4, 0), images(10)), 'k must'),
    (lambda: STMLLoss(delta=0), 'delta'),
    (lambda: SimCLRLoss(0), 'temperature'),
    (lambda: SimCLRLoss()(rows(4, 3, 0), rows(5, 3, 0)), 'same shape'),
    (lambda: SimCLRLoss()(rows(1, 3, 0), rows(1, 3, 0)), 'at least 2'),
    (lambda: SimCLRLoss()(nan, rows(20, 4, 0)), 'z1 have NaN')])
def test_wrong_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says): call()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_an_embedding_without_a_direction_is_refused(dtype):
    z = rows(6, 4, 0).to(dtype)
    z[2] = 0
    for views in ((z, rows(6, 4, 1).to(dtype)), (rows(6, 4, 1).to(dtype), z)):
        with pytest.raises(ValueError, match='0 in all its numbers: it has no direction'): SimCLRLoss()(*views)
