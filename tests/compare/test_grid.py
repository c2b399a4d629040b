"""The grid: its commands, its folder, and what an interruption leaves."""
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from mmpsw.commands import compare
from mmpsw.compare import grid as grids
from mmpsw.compare import training
from mmpsw.compare.comparison import read
from mmpsw.datasets.digits import generate

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/cls/resnet18_digits.py'
SMALL = ('train_dataloader.dataset.indices=64',
         'val_dataloader.dataset.indices=64', 'val_dataloader.num_workers=0',
         'val_dataloader.persistent_workers=False')


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(CHECKOUT)


def grid_of(tmp_path, *argv, config=CONFIG):
    return compare.make_grid(compare.parse_args(
        ['run', config, '--work-dir', str(tmp_path / 'work'), *argv]))


def validated(folder, *steps):
    """What a training leaves: validation points, and checkpoints."""
    data = folder / '20260101_000000' / 'vis_data'
    data.mkdir(parents=True)
    (data / 'config.py').write_text('resume = False\n')
    lines = [dict(loss=1.0, iter=1, step=1)]
    lines += [{'accuracy/top1': 10.0 * step, 'step': step} for step in steps]
    (data / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    for step in steps:
        (folder / f'epoch_{step}.pth').touch()


def test_each_run_is_a_command_that_a_user_would_type(tmp_path):
    grid = grid_of(tmp_path, '--arms', 'baseline', 'ema', '--seeds', '0', '3',
                   '--cfg-options', 'train_cfg.max_epochs=2')
    assert grid.cells == [
        grids.Cell('baseline', 0), grids.Cell('ema', 0),
        grids.Cell('baseline', 3), grids.Cell('ema', 3)
    ]
    command = grid.command(grids.Cell('ema', 3))
    work_dir = f'{tmp_path}/work/ema/seed_3'
    assert command[:9] == [
        'python', 'tools/train.py', CONFIG, '--with', 'ema', '--seed', '3',
        '--work-dir', work_dir
    ]
    assert command[9] == '--cfg-options'
    assert command[-1] == 'train_cfg.max_epochs=2'
    assert grid.max_steps() == 2


def test_the_logs_count_what_the_loop_counts(tmp_path):
    epochs = 'train_cfg.max_epochs=3'
    grid = grid_of(tmp_path, '--cfg-options', epochs)
    assert grid.command(grid.cells[0])[-3:] == [
        'log_processor.by_epoch=True',
        'default_hooks.logger.log_metric_by_epoch=True', epochs]
    iters = tmp_path / 'iters.py'
    iters.write_text(f"_base_ = '{CHECKOUT / CONFIG}'\ntrain_cfg = dict("
                     "_delete_=True, type='IterBasedTrainLoop', max_iters=8)")
    grid = grid_of(tmp_path, config=str(iters))
    assert grid.interval() == 1000
    assert grid.command(grid.cells[0])[-3:] == [
        'log_processor.by_epoch=False',
        'default_hooks.logger.log_metric_by_epoch=False',
        'default_hooks.logger.interval=8']


def test_an_interrupted_run_goes_on_from_its_newest_validated_checkpoint(
        tmp_path):
    grid = grid_of(tmp_path)
    folder = grid.run_dir(grids.Cell('pswa', 0))
    validated(folder, 1, 2)
    # Saved just before a validation that never ended.
    (folder / 'epoch_3.pth').touch()
    command = grid.command(grids.Cell('pswa', 0))
    assert command[9:11] == ['--resume', str(folder / 'epoch_2.pth')]
    for step in (1, 2):  # without a validated one, anew
        (folder / f'epoch_{step}.pth').unlink()
    assert '--overwrite' in grid.command(grids.Cell('pswa', 0))


def test_fragments_joined_by_plus_are_one_arm(tmp_path):
    mine = tmp_path / 'My+Own.py'
    mine.write_text('')
    grid = grid_of(tmp_path, '--arms', 'pwalks+ema', str(mine))
    assert list(grid.arms) == ['pwalks+ema', 'my+own']
    words = [grid.command(cell) for cell in grid.cells]
    assert words[0][3:7] == ['--with', 'pwalks', 'ema', '--seed']
    assert words[1][3:6] == ['--with', str(mine), '--seed']


def test_arms_and_seeds_are_added_to_the_same_experiment(tmp_path):
    grids.claim(grid_of(tmp_path, '--arms', 'baseline', '--seeds', '0'))
    grid = grids.claim(
        grid_of(tmp_path, '--arms', 'pswa', '--seeds', '1'))
    assert grid.work_dir == tmp_path / 'work'
    saved = json.loads((grid.work_dir / 'comparison.json').read_text())
    assert list(saved['arms']) == ['baseline', 'pswa']
    assert saved['seeds'] == [0, 1]


@pytest.mark.parametrize('other', [
    ('--cfg-options', 'train_cfg.max_epochs=3'),
    ('--arms', '{arm}'),
    None,
])
def test_another_experiment_gets_a_folder_of_its_own(tmp_path, other):
    arm = tmp_path / 'pswa.py'
    arm.write_text("psw = dict(type='PSWA', period=2)\n")
    if other:
        grids.claim(grid_of(tmp_path))
    else:  # something else
        (tmp_path / 'work').mkdir()
        (tmp_path / 'work' / 'mine.txt').write_text('mine')
    before = os.listdir(tmp_path / 'work')
    grid = grid_of(tmp_path, *(text.format(arm=arm) for text in other or ()))
    assert grids.claim(grid).work_dir == tmp_path / 'work_2'
    assert os.listdir(tmp_path / 'work') == before


@pytest.mark.parametrize('argv, message', [
    (('--arms', 'baseline', 'pswaa'), "'pswaa'"),
    (('--arms', 'baseline', 'pswa+pswmm'), "'pswmm'"),
    (('--metric', 'psnr'), 'give --rule greater or --rule less'),
    (('--cfg-options', 'val_evaluator.type=Other'), 'give --metric'),
    (('--cfg-options', 'val_evaluator=None'), 'has no val_evaluator'),
    (('--arms', 'pswa', 'configs/_base_/methods/pswa.py'),
     'names an arm twice'),
    (('--seeds', '1', '1'), 'names a seed twice'),
    (('--jobs', '0'), '--jobs 0'),
    (('--arms', 'baseline', 'pswa', '--ride-along'), 'has nothing to do'),
    (('--cfg-options', "visualizer.vis_backends=[]"), 'no LocalVisBackend'),
    (('--arms', 'control+ema'), 'cannot be used together'),
    (('--cfg-options', 'max_epochs'), 'takes key=value'),
    (('--cfg-options', 'train_cfg.max_epochs.x=1'), 'does not fit'),
    (('--cfg-options', 'train_dataloader.dataset.data_root=nowhere'),
     "'nowhere"),
])
def test_bad_input_ends_in_one_line_before_anything_is_written(
        tmp_path, capsys, argv, message):
    work = tmp_path / 'work'
    assert compare.main(['run', CONFIG, '--work-dir',
                         str(work), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not work.exists()


def start(work_dir, *argv, **keys):
    return subprocess.Popen([
        sys.executable, 'tools/compare.py', 'run', CONFIG, '--arms',
        'baseline', 'pswa', '--jobs', '1', '--work-dir', str(work_dir), *argv,
        '--cfg-options', 'train_cfg.max_epochs=3',
        *SMALL
    ], env={**os.environ, 'OMP_NUM_THREADS': '1'}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **keys)


def points(work_dir):
    return (work_dir / 'report' / 'points.csv').read_text()


def sessions(work_dir):
    """How often each run's training was started."""
    return {str(path.relative_to(work_dir)): len(list(path.glob('2*')))
            for path in work_dir.glob('*/seed_?')}


def test_a_killed_grid_ends_as_an_uninterrupted_one(tmp_path):
    """SIGKILL to the whole group, in the middle of the second run."""
    generate(Path('data/digits'))
    whole = tmp_path / 'whole'
    done = start(whole)
    assert 'pswa, seed 0' in done.communicate()[0]
    assert done.returncode == 0

    killed = tmp_path / 'killed'
    process = start(killed, start_new_session=True)
    second = killed / 'pswa' / 'seed_0' / 'epoch_1.pth'
    deadline = time.monotonic() + 300
    while not second.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = sessions(killed)
    output = start(killed).communicate()[0]
    assert output.count('finished already') == 1
    assert points(killed) == points(whole)
    after = sessions(killed)
    assert {name: after[name] - before[name] for name in after} == {
        'baseline/seed_0': 0, 'pswa/seed_0': 1}


def test_a_grid_that_is_ended_ends_its_runs(tmp_path):
    generate(Path('data/digits'))
    process = start(tmp_path)
    lock = tmp_path / 'baseline' / 'seed_0.lock'
    deadline = time.monotonic() + 300
    while not lock.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert 'the same command goes on' in process.communicate()[0]
    assert process.returncode == 130
    with open(lock) as file:  # the run held it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_arms_that_ride_along_get_the_results_of_runs_of_their_own(tmp_path):
    generate(Path('data/digits'))
    tables = []
    for folder, *flag in ('own', ), ('along', '--ride-along'):
        assert compare.main([
            'run', CONFIG, '--arms', 'baseline', 'control', 'ema', '--jobs',
            '2', '--work-dir', str(tmp_path / folder), *flag,
            '--cfg-options', 'train_cfg.max_epochs=2', *SMALL]) == 0
        tables.append(points(tmp_path / folder))
        logs = sorted(p.parent.name for p in (tmp_path / folder).glob(
            '*/seed_0.log'))
        assert logs == (['baseline'] if flag else
                        ['baseline', 'control', 'ema'])
    assert tables[0] == tables[1]
    assert (tmp_path / 'along' / 'ema' / 'seed_0' / 'epoch_2.pth').is_file()
    # Asked for later, when the baseline's run is over: a run of its own.
    assert compare.main([
        'run', CONFIG, '--arms', 'baseline', 'swa', '--ride-along',
        '--work-dir', str(tmp_path / 'along'), '--cfg-options',
        'train_cfg.max_epochs=2', *SMALL]) == 0
    assert (tmp_path / 'along' / 'swa' / 'seed_0.log').is_file()


def test_a_run_of_another_comparison_is_waited_for(tmp_path, capsys):
    grid = grid_of(tmp_path, '--arms', 'baseline', '--cfg-options',
                   'train_cfg.max_epochs=2').with_metric()
    cell = grid.cells[0]
    log = grid.log(cell)
    log.parent.mkdir(parents=True)
    # What the other process holds as long as it lives, and leaves in the end.
    held = os.open(log.with_suffix('.lock'), os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with ThreadPoolExecutor() as pool:
        future = pool.submit(training.train, grid)
        time.sleep(1)
        assert not future.done()
        validated(grid.run_dir(cell), 1, 2)
        os.close(held)
        assert future.result(timeout=60) == []
    printed = capsys.readouterr().out
    assert printed.count('is waited for') == 1 and '$ python' not in printed
    assert not log.exists()


def test_a_run_that_outlives_its_comparison_holds_the_lock(
        tmp_path, monkeypatch):
    grid = grid_of(tmp_path, '--arms', 'baseline').with_metric()
    monkeypatch.setattr(grids.Grid, 'command', lambda *_: [
        'python', '-c', 'import time; time.sleep(60)'])
    with training.Board(grid) as board:
        first, second = (training.Training(grid, grid.cells[0], board)
                         for _ in range(2))
        assert first.start(dict(os.environ))
        assert not second.start(dict(os.environ))
        first.process.kill()
        first.process.wait()
        assert second.start(dict(os.environ))
        second.process.kill()


def test_a_failed_run_does_not_stop_the_others_and_is_named(
        tmp_path, capsys):
    generate(Path('data/digits'))
    arm = tmp_path / 'broken.py'
    arm.write_text("custom_hooks = [dict(type='NoSuchHook')]\n")
    status = compare.main([
        'run', CONFIG, '--arms',
        str(arm), 'baseline', '--work-dir',
        str(tmp_path / 'work'), '--cfg-options', 'train_cfg.max_epochs=1',
        *SMALL
    ])
    captured = capsys.readouterr()
    assert status == 1
    assert 'NoSuchHook' in captured.err
    assert 'failed: broken, seed 0' in captured.err
    assert (tmp_path / 'work' / 'report' / 'points.csv').exists()


def test_the_metric_is_looked_for_after_the_first_validation(tmp_path,
                                                              capsys):
    generate(Path('data/digits'))
    status = compare.main([
        'run', CONFIG, '--arms', 'baseline', 'pswa', '--work-dir',
        str(tmp_path / 'work'), '--jobs', '1', '--metric', 'mAP',
        '--cfg-options', 'train_cfg.max_epochs=50', *SMALL
    ])
    captured = capsys.readouterr()
    assert status == 2
    assert ("baseline, seed 0, was not validated by 'mAP', but by "
            'accuracy/top1; give --metric one of these') in captured.err
    assert 'pswa, seed 0\n$' not in captured.out  # nothing else was begun
    assert not list(tmp_path.rglob('epoch_9.pth'))


@pytest.mark.parametrize(('argv', 'metric', 'rule'), [
    ((), 'accuracy/top1', 'greater'),
    (('--cfg-options', 'default_hooks.checkpoint.save_best=acc/x',
      'default_hooks.checkpoint.rule=less'), 'acc/x', 'less'),
    (('--metric', 'psnr', '--rule', 'greater'), 'psnr', 'greater'),
])
def test_what_is_best_is_kept_for_the_report(tmp_path, argv, metric, rule):
    """The runs' own save_best is taken from them; the grid keeps it."""
    grid = grids.claim(grid_of(tmp_path, *argv).with_metric())
    assert 'default_hooks.checkpoint.save_best=None' in grid.command(
        grid.cells[0])
    saved = json.loads((grid.work_dir / 'comparison.json').read_text())
    assert (saved['metric'], saved['rule']) == (metric, rule)
    run = grid.run_dir(grid.cells[0])
    validated(run, 1)
    for path in run.rglob('scalars.json'):
        path.write_text(path.read_text().replace('accuracy/top1', metric))
    c = read([grid.work_dir])
    assert (c.metric, c.better) == (
        metric, 'higher' if rule == 'greater' else 'lower')


@pytest.mark.parametrize('package', ['scipy', 'tabulate', 'jinja2'])
def test_a_report_that_cannot_be_written_is_told_before_anything_is_trained(
        tmp_path, package):
    code = (f'import sys; sys.modules["{package}"] = None; '
            'from mmpsw.commands import compare; '
            'sys.exit(compare.main(sys.argv[1:]))')
    done = subprocess.run(
        [sys.executable, '-c', code, 'run', CONFIG, '--work-dir',
         str(tmp_path / 'work'), '--cfg-options',
         'train_dataloader.dataset.data_root=nowhere'],
        capture_output=True, text=True)
    assert done.returncode == 2
    assert f'report needs {package}' in done.stderr.splitlines()[-1]
    assert 'mmpsw[tools]' in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'work').exists()


def test_a_run_on_a_cpu_has_one_thread_unless_the_user_says_so(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(6)))
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert training.default_jobs([]) == 6
    assert training.environment(0, [])['OMP_NUM_THREADS'] == '1'
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    assert training.default_jobs([]) == 1
    assert training.environment(0, [])['OMP_NUM_THREADS'] == '4'


def test_runs_share_the_gpus(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert training.default_jobs(['4', '7']) == 2
    found = [training.environment(slot, ['4', '7']) for slot in range(3)]
    assert [env['CUDA_VISIBLE_DEVICES'] for env in found] == ['4', '7', '4']
    assert 'OMP_NUM_THREADS' not in found[0]


def follow(grid, *lines):
    """What the board is told of a log's lines."""
    board = mock.Mock()
    run = training.Training(grid.with_metric(), grid.cells[0], board)
    for line in lines:
        run.read('11/22 16:42:44 - mmengine - INFO - ' + line)
    return ([call.args[1] for call in board.progress.mock_calls],
            [call.args[1:] for call in board.value.mock_calls])


def test_progress_is_read_from_the_log_of_an_epoch_based_loop(tmp_path):
    steps, values = follow(
        grid_of(tmp_path, '--arms', 'baseline'),
        'Epoch(train)  [1][50/80]  lr: 1', 'Epoch(train)  [1][80/80]  lr: 1',
        'Epoch(val) [1][10/16]  eta: 0', 'Epoch(val) [1][16/16]    '
        'accuracy/top1: 12.30  data_time: 0.2  time: 0.5',
        'Epoch(val) [ 2][16/16]    data_time: 0.2  time: 1')
    assert steps == [50 / 80, 1, 1, 2]
    assert values == [(1, 'accuracy/top1 12.30'), (2, 'nothing was measured')]


def test_progress_is_read_from_the_log_of_an_iteration_based_loop(tmp_path):
    grid = grid_of(tmp_path, '--cfg-options', 'train_cfg.max_iters=200',
                   config='configs/seg/fpn_r18_digits.py')
    steps, values = follow(
        grid, 'Iter(train) [ 50/200]  lr: 1', 'Iter(val) [16/16]    '
        'aAcc: 90.1  mIoU: 40.2  mAcc: 50.0  time: 0.5',
        'Iter(train) [150/200]  lr: 1', 'Iter(val) [16/16]    '
        'aAcc: 91.1  mIoU: nan  mAcc: 50.0  time: 0.5')
    # It is validated each 80 iterations.
    assert steps == [50, 80, 150, 160]
    assert values == [(80, 'mIoU 40.2'), (160, 'mIoU nan')]


def test_the_time_left_counts_what_was_done_before_once(tmp_path, capsys):
    grid = grid_of(tmp_path, '--arms', 'baseline', 'pswa', 'pswm',
                   '--cfg-options', 'train_cfg.max_epochs=2')
    bar = training.Board(grid)
    first, second, third = grid.cells
    bar.skip(first, 2)
    bar.skip(second, 1)
    bar.begun -= 10
    bar.progress(second, 2)
    bar.value(second, 2, 'acc 0.5')
    # An epoch took ten seconds, and two are left.
    assert capsys.readouterr().out.splitlines()[-1] == (
        '  pswa, seed 0: epoch 2/2  acc 0.5  (0:00:20 left)')
