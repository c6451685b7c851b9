"Every method through the one loop: repeatable, interruptible, fair, and clear about what went wrong."
import copy
import numpy as np, pytest, torch
from plm import methods, sampling, training
from plm.core import generator_at
from plm.encoder import Encoder, embed
from plm.images import Augment
from plm.methods import (METHODS, PLM, DistanceAlone, PLMConstants, PretrainedConstants, SimCLRConstants,
                         STMLConstants, describe_pieces, train)
from plm.pretraining import new_encoder
from plm.sampling import NeighborhoodBatches
from plm.training import TrainConstants

CONSTANTS = {
    'simclr': SimCLRConstants(lr=1e-3, temperature=0.1),
    'stml': STMLConstants(lr=1e-3, sigma=3., delta=1., k=3, gamma=0.9, wide=16, view='augmented'),
    'plm': PLMConstants(
        lr=1e-3, k=4, m=2, T=0.9, max_neighbors=11, similarity='piecewise', n_alpha=4., n_beta=0.5, delta=2.,
        n_proxies=5, terms=['point', 'proxy', 'neighborhood'], gamma=0.9, n_views=1,
        view='plain', refresh='full')}
SHARED = TrainConstants(backbone='convnet', weights='none', dim=8, crop=None, precision='float32', norm='moving',
                        epochs=3, batch_size=24)


def replace(constants, **changes): return type(constants)(**constants.model_dump() | changes)


def pictures(n, *address):
    return torch.randint(0, 256, (n, 1, 24, 24), generator=generator_at('pictures', n, *address), dtype=torch.uint8)


IMAGES, VAL = pictures(50), (pictures(12, 'val'), torch.arange(12) % 4)
COLUMNS = {'epoch', 'images_seen', 'val_recall_at_1', 'loss'}
PIECES, PROXIES = {'piece_size', 'piece_purity', 'piece_quality'}, {'proxy_moved', 'proxy_used', 'proxy_distance'}
by_method = pytest.mark.parametrize('name', CONSTANTS)


def start(): return Encoder(dim=8)


def run(name, scratch, seed=0, shared=SHARED, images=IMAGES, encoder=None, val=VAL, **changes):
    "Encoder and log of a whole run from the same start."
    encoder = encoder or start()
    method = METHODS[name](encoder, replace(CONSTANTS[name], **changes), seed)
    return encoder, train(method, images, val, shared, scratch)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "Method -> encoder and log of a run that nobody interrupted; each is trained once."
    return {name: run(name, tmp_path_factory.mktemp('undisturbed')) for name in CONSTANTS}


@by_method
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(name, tmp_path, undisturbed):
    encoder, log = undisturbed[name]
    torch.manual_seed(123) # nobody asks the global generator
    again, log_again = run(name, tmp_path)
    assert same(encoder, again) and log == log_again
    other, log_other = run(name, tmp_path, seed=1)
    assert not same(encoder, other) and log_other != log
    assert not list(tmp_path.iterdir()) # a finished run leaves nothing behind


@by_method
def test_training_moves_the_encoder_and_tells_about_it(name, undisturbed):
    encoder, log = undisturbed[name]
    assert not same(encoder, start())
    assert [row['epoch'] for row in log] == [0, 1, 2, 3] and [row['images_seen'] for row in log] == [0, 48, 96, 144]
    assert 'loss' not in log[0] and all(0 <= row['val_recall_at_1'] <= 1 for row in log)
    terms = {'simclr': {'nt_xent'}, 'stml': {'contrastive', 'contrastive_wide', 'distillation'},
             'plm': {'point', 'proxy', 'neighborhood'}}[name]
    for row in log[1:]:
        assert row.keys() == COLUMNS | terms | (PIECES | PROXIES if name == 'plm' else set())
        assert abs(row['loss'] - sum(row[t] for t in terms)) < 1e-4
    assert log[-1]['loss'] < log[1]['loss']


@by_method
@pytest.mark.parametrize('steps', [1, 2, 3, 6]) # in the first epoch, at its end, in the second epoch, at the last step
def test_an_interrupted_run_ends_as_if_nothing_had_happened(name, steps, tmp_path, undisturbed, monkeypatch, capsys):
    kind, done = METHODS[name], []
    original = kind.after_step

    def after_step(self):
        original(self)
        done.append(1)
        if len(done) == steps: raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(kind, 'after_step', after_step)
        with pytest.raises(KeyboardInterrupt): run(name, tmp_path)
    finished = (steps - 1)//2 # two steps an epoch
    assert len(list(tmp_path.iterdir())) == (finished > 0)
    capsys.readouterr()
    with monkeypatch.context() as m:
        count = []
        m.setattr(kind, 'after_step', lambda self: (original(self), count.append(1)))
        encoder, log = run(name, tmp_path)
    assert len(count) == 6 - 2*finished # what was done is not done again
    assert (f'resuming after epoch {finished} of 3' in capsys.readouterr().out) == (finished > 0)
    assert same(encoder, undisturbed[name][0]) and log == undisturbed[name][1]
    assert not list(tmp_path.iterdir())


@by_method
def test_a_run_killed_between_two_epochs_can_be_killed_again(name, tmp_path, undisturbed, monkeypatch):
    save = training.save_state
    def and_die(state, path): save(state, path); raise KeyboardInterrupt
    monkeypatch.setattr(training, 'save_state', and_die)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt): run(name, tmp_path)
    monkeypatch.setattr(training, 'save_state', lambda *_: pytest.fail('there is nothing left to do'))
    encoder, log = run(name, tmp_path) # all epochs are done, only the goodbye was missing
    assert same(encoder, undisturbed[name][0]) and log == undisturbed[name][1]


@by_method
def test_every_method_has_the_same_budget(name, tmp_path):
    "Images through the trained backbone in training mode are `images_seen`; momentum encoders and val do not count."
    encoder, seen = start(), []
    def count(module, inputs, _):
        if module is encoder.backbone and module.training: seen.append(len(inputs[0]))
    encoder.backbone.register_forward_hook(count)
    _, log = run(name, tmp_path, encoder=encoder)
    assert seen == [24]*6 and sum(seen) == log[-1]['images_seen']


def interrupted(name, scratch, monkeypatch, **changes):
    "Leave a state behind after the first epoch."
    save = training.save_state
    def and_die(state, path): save(state, path); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(training, 'save_state', and_die)
        with pytest.raises(KeyboardInterrupt): run(name, scratch, **changes)
    return next(scratch.iterdir())


@pytest.mark.parametrize('changes', [
    dict(temperature=0.2), dict(seed=1), dict(images=pictures(50, 'others')), dict(shared=replace(SHARED, epochs=4))])
def test_the_state_of_another_run_is_left_alone(changes, tmp_path, undisturbed, monkeypatch, capsys):
    file = interrupted('simclr', tmp_path, monkeypatch, **changes)
    before = file.read_bytes()
    encoder, _ = run('simclr', tmp_path)
    assert 'resuming' not in capsys.readouterr().out
    assert same(encoder, undisturbed['simclr'][0]) and file.read_bytes() == before


def test_other_start_weights_are_another_run(tmp_path, monkeypatch, capsys):
    interrupted('simclr', tmp_path, monkeypatch)
    run('simclr', tmp_path, encoder=Encoder(dim=8, address=(9,)))
    assert 'resuming' not in capsys.readouterr().out


@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'not a state'])
def test_a_damaged_state_is_named(damage, tmp_path, monkeypatch):
    file = interrupted('simclr', tmp_path, monkeypatch)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f'{file.name} cannot be read as a saved state.*Delete it'):
        run('simclr', tmp_path)


def test_no_training_at_all(tmp_path):
    encoder = start()
    log = train(METHODS['pretrained'](encoder, PretrainedConstants()), IMAGES, VAL, SHARED, tmp_path)
    assert same(encoder, start()) and len(log) == 1 and log[0]['epoch'] == log[0]['images_seen'] == 0
    assert not list(tmp_path.iterdir())


@by_method
def test_too_few_images(name, tmp_path):
    with pytest.raises(ValueError, match='there are 23 train images, fewer than train.batch_size = 24'):
        run(name, tmp_path, images=IMAGES[:23])


@by_method
def test_just_enough_images(name, tmp_path):
    assert run(name, tmp_path, images=IMAGES[:24], shared=replace(SHARED, epochs=1))[1][-1]['images_seen'] == 24


@by_method
def test_a_loss_that_is_not_finite_stops_the_run(name, tmp_path, monkeypatch):
    kind = METHODS[name]
    original = kind.step
    monkeypatch.setattr(kind, 'step', lambda *args: {k: v*float('nan') for k, v in original(*args).items()})
    with pytest.raises(FloatingPointError, match='loss is nan in epoch 1.*learning rate'): run(name, tmp_path)


@by_method
def test_a_learning_rate_that_explodes_is_named(name, tmp_path):
    with pytest.raises((FloatingPointError, ValueError), match='learning rate'): run(name, tmp_path, lr=1e30)


def test_plm_without_proxies_and_without_selection(tmp_path):
    _, log = run('plm', tmp_path, n_proxies=0, T=None)
    assert log[-1].keys() == COLUMNS | {'point'} | PIECES and log[-1]['loss'] < log[1]['loss']
    assert all(row['piece_size'] == 11 for row in log) # everybody else of the 12 val images


def test_what_the_log_says_of_pieces_and_proxies(undisturbed):
    log = undisturbed['plm'][1]
    assert log[0]['proxy_moved'] == 0 and log[-1]['proxy_moved'] > log[1]['proxy_moved'] > 0
    for row in log:
        assert row['proxy_used'] in (0.2, 0.4, 0.6, 0.8, 1) and 0 < row['proxy_distance'] < 2
        assert 2 <= row['piece_size'] <= 11
        assert 0.9 - 1e-6 <= row['piece_quality'] <= 1 and 0 <= row['piece_purity'] <= 1


def test_pieces_of_two_lines_are_pure_and_flat():
    "Two orthogonal lines of a class each: the piece of a point is its line, whole and exactly."
    line = torch.linspace(1, 2, 10)[:, None]
    z = torch.cat([line*torch.eye(3)[:1] , line*torch.eye(3)[1:2] + 9])
    found = describe_pieces(z, torch.arange(20)//10, replace(CONSTANTS['plm'], m=1), 20, n_batches=1)
    assert found == {'piece_size': 9, 'piece_purity': 1, 'piece_quality': pytest.approx(1)}
    assert describe_pieces(z[:3], torch.arange(3)//2, CONSTANTS['plm'], 20) == {} # fewer than a group


def test_the_log_says_how_well_an_index_finds_neighbours(tmp_path, undisturbed, monkeypatch):
    class Indexed(PLM):
        def batches(self, n, batch_size):
            return NeighborhoodBatches(n, batch_size, self.constants.k, self.seed, 2, exact_up_to=100, enough=0.)
    monkeypatch.setitem(METHODS, 'plm', Indexed)
    log = run('plm', tmp_path, shared=replace(SHARED, epochs=2), images=pictures(700))[1]
    assert 'neighbour_recall' not in log[0] and all(0 < row['neighbour_recall'] < 1 for row in log[1:])
    for _, rows in undisturbed.values(): # an exact search has nothing to tell
        assert not any('neighbour_recall' in row for row in rows)


def test_each_term_can_be_left_out(tmp_path, undisturbed):
    terms = ['point', 'proxy', 'neighborhood']
    for left in (['point'], ['proxy'], ['point', 'neighborhood']):
        encoder, log = run('plm', tmp_path, terms=left)
        assert set(log[-1]) & set(terms) == set(left)
        assert log[-1]['loss'] == pytest.approx(sum(log[-1][t] for t in left))
        assert not same(encoder, undisturbed['plm'][0])
    alone, _ = run('plm', tmp_path, n_proxies=0)
    assert same(run('plm', tmp_path, terms=['point'])[0], alone) # proxies without a term change nothing


def test_what_the_estimating_encoder_sees():
    "Plain: the images as they are. Augmented: other views than the trained encoder's (PLM), or the same (STML)."
    for name in ('plm', 'stml'):
        seen, drawn = {}, {}
        for view in ('plain', 'augmented'):
            method = METHODS[name](start(), replace(CONSTANTS[name], view=view), 0)
            slow = method.momentum if name == 'plm' else method.teacher
            slow.register_forward_hook(lambda m, inputs, _: seen.__setitem__(view, inputs[0]))
            drawn[view] = views = []
            def augment(images, g):
                views.append(images.float()/255 + 0.001*(len(views) + 1))
                return views[-1]
            method.step(IMAGES[:12], torch.arange(12), augment, None)
        assert torch.equal(seen['plain'], IMAGES[:12].float()/255)
        assert (len(drawn['plain']), len(drawn['augmented'])) == {'plm': (1, 2), 'stml': (2, 2)}[name]
        expected = drawn['augmented'][1] if name == 'plm' else torch.cat(drawn['augmented'])
        assert torch.equal(seen['augmented'], expected)


def test_val_labels_decide_nothing(tmp_path, undisturbed):
    encoder = start()
    _, log = run('plm', tmp_path, encoder=encoder, val=(VAL[0], VAL[1].flip(0) // 2))
    assert same(encoder, undisturbed['plm'][0]) and log != undisturbed['plm'][1]


@by_method
def test_every_epoch_has_its_own_batches_and_views(name, tmp_path, monkeypatch):
    kind, batches, views = METHODS[name], [], []
    original = kind.step
    def forward(self, images, index, augment, g):
        assert torch.equal(images, IMAGES[index])
        batches.append(tuple(index.tolist()))
        views.append(g.initial_seed())
        return original(self, images, index, augment, g)
    monkeypatch.setattr(kind, 'step', forward)
    run(name, tmp_path)
    assert len(set(batches)) == 6 and len(set(views)) == 3


def test_proxies_begin_on_the_embeddings_of_the_train_images(tmp_path, monkeypatch):
    given, begin = [], PLM.begin
    monkeypatch.setattr(PLM, 'begin', lambda self, z, g: (given.append(z), begin(self, z, g)))
    run('plm', tmp_path)
    assert len(given) == 1 and torch.equal(given[0], embed(start(), IMAGES))


def test_what_is_kept_is_what_the_steps_have_embedded(tmp_path, monkeypatch, undisturbed):
    """A dictionary holds each image's last embedding by the momentum encoder, from the start or from the last step that
    drew it. Batches are drawn by how it stood when the epoch began, proxies described by how it stood at its end."""
    latest = dict(enumerate(embed(start(), IMAGES)))
    drawn, given, told, batches, methods = [], [], [], [], []
    forward, refresh, describe = PLM.step, NeighborhoodBatches.refresh, PLM.describe
    def step(self, images, index, augment, g):
        drawn.append(index.tolist())
        methods.append(self)
        latest.update(zip(drawn[-1], self.momentum(images.float()/255)))
        return forward(self, images, index, augment, g)
    def stacked(): return torch.stack([latest[i] for i in range(len(IMAGES))])
    def described(self, z):
        told.append((z.clone(), stacked()))
        return describe(self, z)
    def refreshed(self, z, divide=None):
        if len(z) != len(IMAGES): return refresh(self, z) # the pieces of val
        given.append((z, stacked())) # no copy: steps must not change what batches are drawn by
        epoch = NeighborhoodBatches(len(IMAGES), 24, 4)
        epoch.set_epoch(self.epoch)
        refresh(epoch, stacked())
        batches.extend(epoch)
        refresh(self, z)
    with monkeypatch.context() as m:
        m.setattr(sampling, '_block', 8) # searched for in the middle of the epoch, as with many images
        m.setattr(PLM, 'step', step)
        m.setattr(PLM, 'describe', described)
        m.setattr(NeighborhoodBatches, 'refresh', refreshed)
        encoder, _ = run('plm', tmp_path, refresh='kept')
    assert len(given) == 3 and len(told) == 4 and all(torch.equal(a, b) for a, b in given + told)
    assert drawn == batches and torch.equal(methods[-1].kept, stacked())
    for e in range(3): # the test has what it asks about: images drawn twice in an epoch, and not at all
        seen = drawn[2*e] + drawn[2*e + 1]
        assert len(set(seen)) < len(seen) and len(set(seen)) < len(IMAGES)
    assert not same(encoder, undisturbed['plm'][0])


def test_a_killed_run_has_what_it_kept_and_embeds_nothing_again(tmp_path, monkeypatch):
    embedded = []
    def count(encoder, images):
        embedded.append(len(images))
        return embed(encoder, images)
    for module in (training, methods): monkeypatch.setattr(module, 'embed', count)
    encoder, log = run('plm', tmp_path/'undisturbed', refresh='kept')
    assert embedded.count(len(IMAGES)) == 1 # to begin with
    assert embedded.count(len(VAL[0])) == 4 # before training and after each epoch
    interrupted('plm', tmp_path/'killed', monkeypatch, refresh='kept')
    embedded.clear()
    again, log_again = run('plm', tmp_path/'killed', refresh='kept')
    assert same(encoder, again) and log == log_again and len(IMAGES) not in embedded
    embedded.clear()
    run('plm', tmp_path/'full')
    assert embedded.count(len(IMAGES)) == 4 # before training and after each epoch


def test_the_proxies_and_the_average_take_part():
    "One epoch of PLM by hand: proxies begin on the data and move; the average follows."
    encoder = start()
    method = PLM(encoder, CONSTANTS['plm'], 0)
    z = method.estimate(IMAGES)
    method.begin(z, generator_at(0, 'begin'))
    assert (method.proxies.location[:, None] == z).all(2).any(1).all()
    batches = method.batches(len(IMAGES), 24)
    batches.refresh(z)
    before = copy.deepcopy(method)
    opt = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for index in batches:
        sum(method.step(IMAGES[index], torch.tensor(index), Augment(), generator_at(0)).values()).backward()
        opt.step()
        method.after_step()
    assert not torch.equal(method.proxies.location, before.proxies.location)
    assert not torch.equal(method.proxies.free_basis, before.proxies.free_basis)
    slow, was, now = (m.head.weight for m in (method.momentum.encoder, before.encoder, encoder))
    assert 0 < (slow - was).norm() < (now - was).norm()


PHOTOS = torch.randint(0, 256, (24, 3, 36, 36), generator=generator_at('photos'), dtype=torch.uint8)
CUT = replace(SHARED, backbone='resnet18', crop=32, epochs=1, batch_size=12)

def photo_run(tmp_path, images=PHOTOS, val=None, shared=CUT):
    encoder = new_encoder(shared, begin=True)
    return run('plm', tmp_path, 0, shared, images, encoder, val or (PHOTOS[:0], torch.zeros(0)))[::-1]


def test_photos_train_on_crops_without_val_and_from_the_disk_as_from_memory(tmp_path):
    log, encoder = photo_run(tmp_path)
    assert 'val_recall_at_1' not in log[-1] and 'piece_size' not in log[-1] and log[-1]['loss'] > 0
    np.save(tmp_path/'photos.npy', PHOTOS.numpy())
    again, other = photo_run(tmp_path, torch.from_numpy(np.load(tmp_path/'photos.npy', 'c')))
    assert again == log and same(encoder, other)
    seen = photo_run(tmp_path, val=(PHOTOS, torch.arange(24)//4))[0]
    assert 0 <= seen[-1]['val_recall_at_1'] <= 1 and seen[-1]['loss'] == log[-1]['loss'] # val decides nothing


def test_photos_are_seen_in_parts(tmp_path, monkeypatch):
    shapes = []
    forward = Encoder.features
    def features(self, x):
        shapes.append((self.training, tuple(x.shape[2:])))
        return forward(self, x)
    monkeypatch.setattr(Encoder, 'features', features)
    photo_run(tmp_path)
    # views are parts; the momentum encoder gets the whole photo, and cuts out its centre itself
    assert set(shapes) == {(True, (32, 32)), (False, (36, 36))}


@pytest.mark.parametrize('n_proxies', [0, 5])
def test_the_control_knows_distance_alone(n_proxies, tmp_path):
    "The terms by the formulas of docs/method.md in float64, whatever m says; and it trains."
    c = replace(CONSTANTS['plm'], similarity='distance', n_proxies=n_proxies)
    method = DistanceAlone(start(), c, 0).double()
    z, t = (torch.nn.functional.normalize(torch.randn(24, 8, generator=generator_at(s)).double(), dim=1) for s in 'zt')
    terms = method.loss(z, t)
    def term(a, b, u, v, other):
        return sum((c.delta*(1 - (1 + (u[i] - v[j]).norm()/2)**-c.n_alpha) - (a[i] - b[j]).norm())**2
                   for i in range(len(a)) for j in range(len(b)) if other or i != j)
    torch.testing.assert_close(terms['point'], term(z, z, t, t, False)/(24*23), rtol=1e-6, atol=0)
    if n_proxies:
        rho = method.proxies().points
        torch.testing.assert_close(terms['proxy'], term(z, rho, t, rho, True)/(24*5), rtol=1e-6, atol=0)
        assert terms['neighborhood'] == 1
    else: assert list(terms) == ['point']
    with pytest.raises(ValueError, match='similarity must be distance, got piecewise'):
        DistanceAlone.check(CONSTANTS['plm'], SHARED)
    log = run('plm', tmp_path, similarity='distance', n_proxies=n_proxies)[1]
    assert not PIECES & set(log[-1]) and 'val_recall_at_1' in log[-1] and log[-1]['loss'] < log[1]['loss']


def test_half_precision_follows_whole_precision(tmp_path):
    "bf16 on a CPU: the loss of an epoch within 5 % of that of 32 bits, and another number."
    logs = [photo_run(tmp_path, shared=replace(CUT, precision=p))[0] for p in ('float32', 'bf16')]
    a, b = (log[-1]['loss'] for log in logs)
    assert a != b and b == pytest.approx(a, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_follows_the_cpu(tmp_path):
    "The same run on both: losses within 1 %."
    logs = []
    for device in ('cpu', 'cuda'):
        encoder = new_encoder(CUT, begin=True).to(device)
        logs.append(run('plm', tmp_path/device, 0, CUT, PHOTOS, encoder, (PHOTOS, torch.arange(24)//4))[1])
    assert logs[1][-1]['loss'] == pytest.approx(logs[0][-1]['loss'], rel=0.01)


CURE = 'resnet18 on batches of 12 images .*Lower train.batch_size or train.crop, or set train.precision to bf16'

@pytest.mark.parametrize('error, raised, words', [
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'), MemoryError, CURE),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError, CURE),
    (RuntimeError('shapes do not fit'), RuntimeError, 'do not fit')])
def test_a_full_memory_names_the_knobs(tmp_path, monkeypatch, error, raised, words):
    def fail(*_): raise error
    monkeypatch.setattr(Encoder, 'features', fail)
    for val in (None, (PHOTOS, torch.arange(24)//4)): # in a step, and when val is embedded
        with pytest.raises(raised, match=words): photo_run(tmp_path, val=val)
