"""Several processes on a CPU: the same weights everywhere, faults, resuming.

Each launch costs seconds, so one run is looked at by several tests.
"""
import copy
import subprocess
import sys
import time

import pytest
import torch
from launching import CONFIG, DIST_TRAIN, ROOT, environment
from reference import Reference
from several_processes import SHARDED, InAnyProcess
from toy import Points, Toy, runner

from mmpsw.commands import train
from mmpsw.commands.launch import has_accelerator
from mmpsw.runtime.resume import fit_to_epoch_length

pytestmark = pytest.mark.skipif(
    has_accelerator(), reason='about machines without accelerator')

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('distributed')
    (folder / 'toy.py').write_text(CONFIG)
    return folder


def launch(*argv, command=DIST_TRAIN, device='cpu'):
    """Run ``tools/dist_train.sh``, or another command."""
    return subprocess.run(
        [*command, *map(str, argv)], env=environment(device),
        capture_output=True, text=True, timeout=300, check=False)


def dist_train(folder, processes, work_dir, *argv):
    result = launch(folder / 'toy.py', processes, '--work-dir',
                    folder / work_dir, *argv)
    assert result.returncode == 0, result.stderr
    return recorded(folder / work_dir, processes)


def recorded(work_dir, processes):
    return [torch.load(work_dir / f'rank{rank}.pt', weights_only=True)
            for rank in range(processes)]


@pytest.fixture(scope='module')
def two(folder):
    return dist_train(folder, 2, 'two')


@pytest.fixture(scope='module')
def three(folder, two):
    """Goes on after the second of four epochs, with three processes."""
    return dist_train(folder, 3, 'three', '--resume',
                      folder / 'two' / 'iter_6.pth')


@pytest.fixture(scope='module')
def others(tmp_path_factory, device):
    """All the runs of several_processes.py."""
    folder = tmp_path_factory.mktemp('others')
    script = ROOT / 'tests' / 'several_processes.py'
    torchrun = (sys.executable, '-m', 'torch.distributed.run')
    result = launch('--standalone', '--nproc-per-node', 2, script, folder,
                    command=torchrun, device=device)
    assert result.returncode == 0, result.stderr
    return folder


def by_hand(processes, epochs, checkpoint=None):
    """Distributed data parallel with PSWA in one process, obviously.

    Yields what rank 0 holds, and how many samples, after each iteration.
    """
    models = [Toy() for _ in range(processes)]
    momentum = [torch.zeros_like(p) for p in models[0].parameters()]
    generator = torch.Generator().manual_seed(3)
    begin = 0
    if checkpoint is not None:
        for model in models:
            model.load_state_dict(checkpoint['state_dict'])
        state = checkpoint['optimizer']
        momentum = [s['momentum_buffer'] for s in state['state'].values()]
        generator.set_state(checkpoint['psw']['']['generator'])
        begin = checkpoint['meta']['epoch'] + 1  # saved as its last iteration
    steps = 24 // 4 // processes
    draws = [torch.rand((), generator=generator, dtype=torch.float64) < 0.7
             for _ in range(begin, epochs) for _ in range(steps)]
    references = [Reference(steps, steps, draw=iter(draws).__next__)
                  for _ in models]
    data = Points()
    for epoch in range(begin, epochs):
        order = torch.randperm(
            24, generator=torch.Generator().manual_seed(epoch))
        for step in range(steps):
            for rank, model in enumerate(models):
                batch = order[rank::processes][4 * step:][:4]
                model.zero_grad()
                model(data.x[batch], data.y[batch],
                      mode='loss')['loss'].backward()
            descend(models, momentum)
            resample(models, references)
            yield (copy.deepcopy(models[0].state_dict()),
                   len(references[0].samples))


@torch.no_grad()
def descend(models, momentum):
    """SGD with the mean of the processes' gradients."""
    for i, column in enumerate(zip(*(m.parameters() for m in models))):
        grad = sum(p.grad for p in column) / len(column)
        momentum[i] = 0.9 * momentum[i] + grad
        for p in column:
            p -= 0.05 * momentum[i]


def resample(models, references):
    """Of the means of the processes, the mean is written back to all."""
    live = [[t for t in model.state_dict().values() if t.is_floating_point()]
            for model in models]
    means = [r.step(tensors) for r, tensors in zip(references, live)]
    if means[0] is not None:
        for tensors, of_ranks in zip(zip(*live), zip(*means)):
            for tensor in tensors:
                tensor.copy_(sum(of_ranks) / len(of_ranks))


def assert_by_hand(record, *args, start):
    """The numbers of rank 0, after each iteration."""
    expected = dict(enumerate(by_hand(*args), start))
    assert record.keys() == expected.keys()
    for iteration, (model, samples) in expected.items():
        assert record[iteration]['samples'] == samples
        torch.testing.assert_close(record[iteration]['model'], model)


def assert_same(ranks, *iterations):
    """What was resampled is the same on all ranks, bit for bit."""
    for iteration in iterations:
        first, *rest = (rank[iteration] for rank in ranks)
        assert first['samples'] == 0 and first['resamplings'] > 0
        for other in rest:
            assert_equal(other, first)


def assert_equal(one, other):
    assert one['samples'] == other['samples']
    for name, value in one['model'].items():
        assert torch.equal(value, other['model'][name]), name
    for a, b in zip(one['average'], other['average'], strict=True):
        assert torch.equal(a, b)


# The same everywhere


def test_two_processes(two):
    assert_same(two, 3, 6, 9, 12)
    assert [two[0][i]['samples'] for i in two[0]] == [
        two[1][i]['samples'] for i in two[1]]
    # between, each process has batch-norm statistics of its own
    assert not torch.equal(*(r[5]['model']['net.1.running_mean']
                             for r in two))
    assert_by_hand(two[0], 2, 4, start=1)


@pytest.mark.parametrize('run', ['average', 'recalibrate', 'psw'])
def test_weights_and_buffers(others, run):
    ranks = recorded(others / run, 2)
    if run != 'psw':  # its live statistics are not resampled
        return assert_same(ranks, 3, 6)
    for iteration in (3, 6):
        a, b = (rank[iteration]['average'] for rank in ranks)
        assert len(a) == 8 and all(map(torch.equal, a, b))


# Resuming


@pytest.mark.parametrize('buffers', ['average', 'recalibrate'])
def test_resuming_with_as_many_processes(others, buffers):
    """Weights are exact; statistics if they are recalibrated."""
    ranks = recorded(others / f'{buffers}_resumed', 2)
    whole = recorded(others / buffers, 2)[0][6]
    assert_same(ranks, 6)
    assert list(ranks[0]) == [5, 6]
    end = ranks[0][6]
    assert end['resamplings'] == whole['resamplings'] == 2
    for name, value in whole['model'].items():
        if 'running' in name and buffers == 'average':
            # mmengine saves those of rank 0 for all, in a period as well
            torch.testing.assert_close(
                end['model'][name], value, rtol=0.1, atol=0.1)
        else:
            assert torch.equal(end['model'][name], value), name


def test_resuming_with_more_processes(folder, three):
    """Iteration 6 of 12 becomes 4 of 8; a period is still an epoch."""
    assert_same(three, 6, 8)
    assert_by_hand(three[0], 3, 4, load(folder / 'two' / 'iter_6.pth'),
                   start=5)
    assert three[0][8]['resamplings'] == 4


def test_resuming_with_one_process(folder, three, monkeypatch):
    """Iteration 5 of 8 becomes 15 of 24, in the middle of an epoch."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ROOT / 'tests')
    saved = load(folder / 'three' / 'iter_5.pth')
    argv = ['toy.py', '--work-dir', 'one', '--resume', 'three/iter_5.pth']
    assert train.main(argv) == 0
    [record] = recorded(folder / 'one', 1)
    assert list(record) == list(range(16, 25))
    assert [record[i]['resamplings'] for i in (17, 18, 23, 24)] == [2, 3, 3, 4]
    before = saved['psw']['']['samples']
    assert before == three[0][5]['samples']
    assert record[16]['samples'] - before in (0, 1)


def load(path):
    return torch.load(path, weights_only=True)


def test_places_in_epochs_of_other_lengths(tmp_path):
    """12 iterations in an epoch before, 6 here."""
    epochs = runner(tmp_path)

    def converted(iteration, run=epochs):
        checkpoint = dict(
            meta=dict(epoch=iteration // 12, iter=iteration),
            message_hub=dict(runtime_info=dict(max_epochs=3, max_iters=36)))
        for _ in range(2):  # the second time changes nothing
            fit_to_epoch_length(checkpoint, run)
        return checkpoint['meta']['iter']

    assert list(map(converted, (0, 11, 12, 13, 14, 24))) == [0, 5, 6, 6, 7, 12]
    iterations = runner(tmp_path, train_cfg=dict(
        by_epoch=False, max_iters=36))
    assert converted(13, iterations) == 13


# Faults


def test_a_rank_that_is_killed_ends_the_job(folder, two):
    """By kill -9, while the others wait for it in a resampling."""
    start = time.monotonic()
    result = launch(folder / 'toy.py', 2, '--work-dir', folder / 'killed',
                    '--cfg-options', 'custom_hooks.1.type=Kill')
    assert result.returncode == 1
    assert 'Signal 9 (SIGKILL)' in result.stderr
    assert time.monotonic() - start < 120
    saved = folder / 'killed' / 'iter_2.pth'  # the period ends with 3
    assert (folder / 'killed' / 'last_checkpoint').read_text() == str(saved)
    assert not saved.with_name('iter_3.pth').exists()
    for name, value in load(saved)['state_dict'].items():
        assert torch.equal(value, two[0][2]['model'][name])


def test_sync_buffers_hook_finds_nothing_to_do(others):
    """At a period's end the buffers of all ranks are the same already."""
    for plain, synced in zip(recorded(others / 'average', 2),
                             recorded(others / 'synced', 2)):
        for name, value in plain[6]['model'].items():
            assert torch.equal(value, synced[6]['model'][name]), name


def test_what_rides_along_is_the_same_everywhere(others):
    a, b = (torch.load(others / 'riding' / f'beside{rank}.pt',
                       weights_only=True)[''] for rank in (0, 1))
    assert a['resamplings'] == 2
    for name, value in a['previous'].items():
        assert torch.equal(value, b['previous'][name]), name


def test_all_processes_recalibrate_on_batches_of_their_own(others):
    """Statistics of twice the batches: not those of any process alone."""
    saved = recorded(others / 'recalibrate', 2)[0][6]['model']
    model = Toy()
    model.load_state_dict(saved)
    found = []
    for rank in (0, 1):
        seed = 2 * 2 + rank  # the second resampling, of two processes
        order = torch.Generator().manual_seed(seed)
        order = torch.randperm(24, generator=order).split(4)
        found.append(torch.stack([
            model.net[0](Points().x[i]).detach().var(0)
            for i in order]).mean(0))
    torch.testing.assert_close(saved['net.1.running_var'],
                               (found[0] + found[1]) / 2)
    assert not torch.allclose(found[0], found[1])


# Sharded weights


@pytest.fixture(scope='module')
def shards(others):
    return [torch.load(others / 'shards' / f'rank{rank}.pt',
                       weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize('name', SHARDED)
def test_sharded_weights_are_averaged_as_whole_ones(shards, name):
    """fully_shard (FSDP2) on two processes, against one without shards."""
    whole = list(InAnyProcess(name).train(*range(1, 13)))
    for rank in shards:
        for one, sharded in zip(whole, rank[name]['whole'], strict=True):
            torch.testing.assert_close(sharded['live'], one['live'],
                                       rtol=0, atol=1e-6)
            torch.testing.assert_close(sharded['shown'], one['shown'],
                                       rtol=0, atol=1e-6)
            assert sharded['shift'] == pytest.approx(one['shift'], abs=1e-7)
    assert all(one['shift'] > 0 for one in whole[3::4])


@pytest.mark.parametrize('name', SHARDED)
def test_sharded_weights_resume_inside_of_a_period(shards, name):
    """Through torch.distributed.checkpoint, with the same bits."""
    for rank in shards:
        for whole, resumed in zip(rank[name]['whole'][7:],
                                  rank[name]['resumed'], strict=True):
            for part in ('live', 'shown'):
                for key, value in whole[part].items():
                    assert torch.equal(value, resumed[part][key]), key


def test_all_processes_drop_what_is_not_finite_in_one_shard(shards):
    for rank in shards:
        assert not rank['broken']['applied']
        assert 'its mean is not finite' in rank['broken']['messages'][0]


@pytest.mark.parametrize('case, message', [
    ('fsdp1', 'Parameter 0.weight is part of a FullyShardedDataParallel'),
    ('runner', 'cannot be used with MMFullyShardedDataParallel, because its '
     'checkpoints would lose the average'),
    ('flexible', 'cannot be used with FlexibleRunner with FSDPStrategy, '
     'because its checkpoints would lose the average'),
])
def test_sharded_weights_are_refused(others, case, message):
    """On both processes, and before the first iteration."""
    for rank in (0, 1):
        text = (others / case / f'rank{rank}.txt').read_text()
        assert message in text
