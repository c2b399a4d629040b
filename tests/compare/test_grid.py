"""The grid: its commands, its folder, and what an interruption leaves."""
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from mmpsw.commands import compare, train
from mmpsw.compare import grid as grids
from mmpsw.compare import training
from mmpsw.compare.comparison import read, read_plan
from mmpsw.datasets.digits import generate

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/study/resnet18_digits.py'
SMALL = ('train_dataloader.dataset.indices=64',
         'val_dataloader.dataset.indices=64', 'val_dataloader.num_workers=0',
         'val_dataloader.persistent_workers=False')


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(CHECKOUT)


def grid_of(tmp_path, *argv, config=CONFIG):
    return compare.make_grid(compare.parse_args(
        ['run', config, '--work-dir', str(tmp_path / 'work'), *argv]))


def validated(folder, *steps, stamp='20260101_000000'):
    """What a training leaves: validation points, and checkpoints."""
    data = folder / stamp / 'vis_data'
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
    assert grid.host(grids.Cell('ema', 3)) == grids.Cell('baseline', 3)
    host = grid.command(grids.Cell('baseline', 3))
    assert host[9:12] == ['--ride-along', 'ema', work_dir]
    assert command[-1] == 'train_cfg.max_epochs=2'
    assert grid.max_steps() == 2


def test_checkpoints_are_where_and_what_a_continuation_needs(tmp_path):
    hook = 'default_hooks.checkpoint'
    grid = grid_of(tmp_path, '--cfg-options', f'{hook}.out_dir=there',
                   f'{hook}.filename_tmpl=model_{{}}.pth',
                   f'{hook}.save_optimizer=False')
    command = grid.command(grid.cells[0])
    own = [word for word in command if word in (
        f'{hook}.out_dir=None', f'{hook}.filename_tmpl=None',
        f'{hook}.save_optimizer=True')]
    assert len(own) == 3


def test_what_torchrun_says_below_an_error_is_left_out(tmp_path):
    log = tmp_path / 'seed_0.log'
    torchrun = 'torch/distributed/elastic/multiprocessing/api.py'
    log.write_text('error: lrr is no setting\n'
                   f'W1 {torchrun}:1012] Sending process 7 closing signal\n'
                   f'E1 {torchrun}:986] failed (exitcode: 2) local_rank: 0\n'
                   + 20 * '=====\n')
    assert training._lines(log) == ['error: lrr is no setting']


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


def test_what_rides_along_goes_on_from_a_point_that_both_have(tmp_path):
    """A kill may come between the validations of the two."""
    grid = grid_of(tmp_path, '--arms', 'baseline', 'psw')
    host, guest = grid.cells
    assert grid.host(guest) == host
    validated(grid.run_dir(host), 1, 2)
    # Begun after it, or left out once: a run of its own.
    assert grid.host(guest) is None and grid.done(host) == 2
    validated(grid.run_dir(guest), stamp='20260101_000000')
    assert grid.host(guest) is None and '--ride-along' not in grid.command(
        host)
    validated(grid.run_dir(guest), 1, stamp='20260102_000000')
    assert grid.host(guest) == host and grid.done(host) == 1
    words = grid.command(host)
    assert words[words.index('--resume') + 1].endswith('epoch_1.pth')
    assert words[words.index('--ride-along') + 1] == 'psw'
    grid.log(guest).touch()  # it has one of its own
    assert grid.host(guest) is None and grid.done(host) == 2


def test_a_config_that_has_psw_is_no_baseline(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        f"_base_ = '{CHECKOUT / CONFIG}'\n"
        "optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', "
        "psw=dict(type='PSWA', write_back=False))\n"
        "custom_hooks = [dict(type='mmpsw.PSWHook')]\n")
    generate(Path('data/digits'))
    with pytest.raises(ValueError, match='psw itself.*give the stock config'):
        compare.prepare(grid_of(tmp_path, '--arms', 'baseline', 'pswa',
                                config=str(path)))


def test_mmengines_own_default_hooks_are_enough(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = '{CHECKOUT / CONFIG}'\n"
                    'default_hooks = dict(_delete_=True)\n')
    generate(Path('data/digits'))
    assert compare.main([
        'run', str(path), '--arms', 'pswa', '--metric', 'accuracy/top1',
        '--work-dir', str(tmp_path / 'work'), '--cfg-options',
        'train_cfg.max_epochs=1', *SMALL]) == 0
    assert (tmp_path / 'work/pswa/seed_0/epoch_1.pth').is_file()


def test_fragments_joined_by_plus_are_one_arm(tmp_path):
    mine = tmp_path / 'My+Own.py'
    mine.write_text('')
    grid = grid_of(tmp_path, '--arms', 'pwalks+ema', str(mine))
    assert list(grid.arms) == ['pwalks+ema', 'my+own']
    words = [grid.command(cell) for cell in grid.cells]
    assert words[0][3:7] == ['--with', 'pwalks', 'ema', '--seed']
    assert words[1][3:6] == ['--with', str(mine), '--seed']


def record(grid):
    with grids.hold(grid.work_dir):
        grids.record(grid)
    return json.loads((grid.work_dir / 'comparison.json').read_text())


def test_arms_and_seeds_are_added_to_the_same_experiment(tmp_path):
    record(grid_of(tmp_path, '--arms', 'baseline', '--seeds', '0'))
    saved = record(grid_of(tmp_path, '--arms', 'pswa', '--seeds', '1'))
    assert list(saved['arms']) == ['baseline', 'pswa']
    assert saved['seeds'] == [0, 1]


@pytest.mark.parametrize('other, said', [
    (('--cfg-options', 'train_cfg.max_epochs=3'), 'cfg_options differ'),
    (('--amp', ), 'flags differ'),
    (('--gpus-per-run', '2'), 'processes differ'),
    (('--arms', '{arm}'), 'the arm mine differ'),
    (None, 'something else'),
])
def test_another_experiment_is_refused_in_its_folder(tmp_path, other, said):
    arm = tmp_path / 'mine.py'
    arm.write_text("psw = dict(type='PSWA', period=3)\n")
    if other:
        grid = grid_of(tmp_path, '--arms', 'baseline', str(arm))
        record(grid)
        validated(grid.run_dir(grid.cells[0]), 1)
    else:
        (tmp_path / 'work').mkdir()
        (tmp_path / 'work' / 'mine.txt').write_text('mine')
    before = {path: path.read_bytes()
              for path in (tmp_path / 'work').glob('*.*')}
    arm.write_text("psw = dict(type='PSWA', period=2)\n")
    grid = grid_of(tmp_path, *(text.format(arm=arm) for text in other or ()))
    with pytest.raises(ValueError, match=said):
        record(grid)
    assert before == {path: path.read_bytes()
                      for path in (tmp_path / 'work').glob('*.*')}


def test_a_comparison_in_which_nothing_was_validated_may_become_another(
        tmp_path):
    """It failed: the user mends an option, and gives the command again."""
    grid = grid_of(tmp_path, '--arms', 'baseline', 'pswa')
    record(grid)
    validated(grid.run_dir(grid.cells[0]))
    mended = grid_of(tmp_path, '--arms', 'pswa', '--cfg-options',
                     'train_cfg.max_epochs=3')
    saved = record(mended)
    assert list(saved['arms']) == ['pswa']
    assert saved['cfg_options'] == {'train_cfg.max_epochs': '3'}


def test_two_comparisons_in_one_folder_are_refused(tmp_path):
    """In four of ten trials they made two folders of one."""
    grid = grid_of(tmp_path)
    with grids.hold(grid.work_dir):
        with pytest.raises(ValueError, match='is in use'):
            record(grid)
    record(grid)


def test_a_run_that_outlives_its_comparison_holds_the_folder(tmp_path):
    """Its GPU is taken, so that --jobs would be exceeded."""
    grid = grid_of(tmp_path)
    with grids.hold(grid.work_dir) as lock:
        run = subprocess.Popen([sys.executable, '-c', 'import time; '
                                'time.sleep(60)'], pass_fds=[lock])
    with pytest.raises(ValueError, match='a run that outlived a killed one'):
        record(grid)
    run.kill()
    run.wait()
    record(grid)


def test_an_arm_may_have_a_length_of_its_own(tmp_path):
    """It was over with the others, or begun again each time."""
    arm = tmp_path / 'longer.py'
    arm.write_text('train_cfg = dict(max_epochs=5)\n')
    grid = grid_of(tmp_path, '--arms', 'baseline', str(arm),
                   '--cfg-options', 'train_cfg.val_interval=1')
    grid = replace(grid, options=()).with_metric()
    assert grid.max_steps('longer') == 5
    longer = grids.Cell('longer', 0)
    board = training.Board(grid, grid.cells)
    assert board.bar.tasks[0].total == grid.max_steps('baseline') + 5
    validated(grid.run_dir(longer), 1, 2, 3)
    assert not training.Board(grid, grid.cells).is_over(longer)
    validated(grid.run_dir(longer), 1, 2, 3, 4, 5, stamp='20260102_000000')
    assert training.Board(grid, grid.cells).is_over(longer)


def test_options_given_twice_are_both_used(tmp_path):
    grid = grid_of(tmp_path, '--cfg-options', 'train_cfg.max_epochs=3',
                   '--cfg-options', 'train_cfg.val_interval=3')
    assert (grid.max_steps(), grid.interval()) == (3, 3)


def test_folders_of_what_rides_along_are_taken_as_they_are(tmp_path):
    grid = grid_of(tmp_path / 'a,b 1=[2]x', '--arms', 'baseline',
                   'psw:period=2', '--seeds', '7')
    args = train.parse_args(grid.arguments(grid.cells[0]))
    assert args.work_dir == f'{tmp_path}/a,b 1=[2]x/work/baseline/seed_7'
    assert args.ride_along == [
        ['psw:period=2', f'{tmp_path}/a,b 1=[2]x/work/psw_period_2/seed_7']]
    hook = train.ride_along(args)
    assert hook.folders == {'psw:period=2': Path(args.ride_along[0][1])}
    twice = train.parse_args([CONFIG, *2 * ['--ride-along', 'ema', 'a']])
    with pytest.raises(ValueError, match='names an average twice'):
        train.ride_along(twice)


def test_several_processes_of_a_run_are_started_by_torchrun(tmp_path):
    grid = grid_of(tmp_path, '--arms', 'baseline', '--gpus-per-run', '2',
                   '--amp', '--auto-scale-lr')
    command = grid.command(grid.cells[0])
    assert command[:7] == ['python', '-m', 'torch.distributed.run',
                           '--standalone', '--nproc-per-node', '2',
                           'tools/train.py']
    assert command[-2:] == ['--launcher', 'pytorch']
    args = train.parse_args(command[7:])
    assert args.amp and args.auto_scale_lr and args.launcher == 'pytorch'


def test_a_dry_run_shows_the_commands_and_makes_nothing(tmp_path, capsys):
    generate(Path('data/digits'))
    assert compare.main([
        'run', '--arms', 'baseline', 'psw', 'pswa', CONFIG, '--work-dir',
        str(tmp_path / 'work'), '--gpus-per-run', '2', '--dry-run']) == 0
    printed = capsys.readouterr().out
    assert printed.count('torch.distributed.run') == 2
    assert f'--ride-along psw {tmp_path}/work/psw/seed_0' in printed
    assert "psw: evaluated beside the baseline's runs" in printed
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('argv, message', [
    (('--arms', 'baseline', 'pswaa'), "'pswaa'"),
    (('--arms', 'baseline', 'pswa+pswmm'), "'pswmm'"),
    (('--metric', 'psnr', '--cfg-options',
      'val_evaluator.type=Other'), 'give --rule greater or --rule less'),
    (('--cfg-options', 'val_evaluator.type=Other'), 'give --metric'),
    (('--cfg-options', 'val_evaluator=None'), 'has no val_evaluator'),
    (('--arms', 'pswa', 'configs/_base_/methods/pswa.py'),
     'names an arm twice'),
    (('--arms', '{tmp}/hook.py'), 'its hook cannot be built: '),
    (('--arms', 'psw', 'pswa:write_back=False'),
     "because 'pswa:write_back=False' is 'psw'"),
    (('--arms', 'baseline', '{tmp}/report.py'), "'report' is the report here"),
    (('--arms', '{tmp}/baseline.py'), "'baseline' is a known method here"),
    (('--metric', 'mAP'), 'give one of accuracy/top1'),
    (('--cfg-options', 'train_cfg=None'), 'does not say how long to train'),
    (('--seeds', '1', '1'), 'names a seed twice'),
    (('--cfg-options', "visualizer.vis_backends=[]"), 'no LocalVisBackend'),
    (('--arms', 'psw+ema'), 'cannot be used together'),
    (('--cfg-options', 'max_epochs'), 'takes key=value'),
    (('--cfg-options', 'train_cfg.max_epochs.x=1'), 'does not fit'),
    (('--cfg-options', 'train_dataloader.dataset.data_root=nowhere'),
     "'nowhere"),
])
def test_bad_input_ends_in_one_line_before_anything_is_written(
        tmp_path, capsys, argv, message):
    (tmp_path / 'hook.py').write_text(
        "custom_hooks = [dict(type='NoSuchHook')]")
    (tmp_path / 'report.py').write_text("psw = dict(type='PSWA')")
    (tmp_path / 'baseline.py').write_text('train_cfg = dict(max_epochs=2)')
    work = tmp_path / 'work'
    assert compare.main(['run', CONFIG, '--work-dir', str(work), *(
        word.format(tmp=tmp_path) for word in argv)]) == 2
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
    """The validations, without what the runs took."""
    text = (work_dir / 'report' / 'points.csv').read_text()
    return [line for line in text.splitlines()
            if not {'time', 'memory'} & set(line.split(','))]


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
    log = tmp_path / 'baseline' / 'seed_0.log'
    deadline = time.monotonic() + 300
    while not log.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert 'the same command continues' in process.communicate()[0]
    assert process.returncode == 130
    with grids.hold(tmp_path):  # the run held it too
        pass


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_a_run_is_begun_leaves_no_run(
        tmp_path, monkeypatch, number):
    """The process is there, but nobody has its number yet."""
    before = signal.signal(number, signal.default_int_handler)
    grid = grid_of(tmp_path, '--seeds', '0', '1', '--arms', 'pswa')
    begun = []

    class Interrupted(subprocess.Popen):

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            begun.append(self)
            signal.raise_signal(number)

    monkeypatch.setattr(training.subprocess, 'Popen', Interrupted)
    try:
        with grids.hold(grid.work_dir) as lock:
            with pytest.raises(KeyboardInterrupt, match='continues'):
                training.train(grid.with_metric(), 2 * [dict(os.environ)],
                               lock)
        with grids.hold(grid.work_dir):
            assert len(begun) == 1
    finally:
        signal.signal(number, before)
        for process in begun:
            process.kill()


def test_arms_that_ride_along_get_the_results_of_runs_of_their_own(tmp_path):
    generate(Path('data/digits'))
    small = ['--cfg-options', 'train_cfg.max_epochs=2', *SMALL]
    tables = []
    for folder, arms in (('own', ['psw', 'ema']),
                         ('along', ['baseline', 'psw', 'ema'])):
        work = tmp_path / folder
        assert compare.main(['run', CONFIG, '--arms', *arms, '--work-dir',
                             str(work), *small]) == 0
        tables.append({arm: read([work]).points.query('arm == @arm').value
                       .to_list() for arm in ('psw', 'ema')})
        logs = sorted(path.parent.name for path in work.glob('*/seed_0.log'))
        assert logs == (['baseline'] if folder == 'along' else
                        ['ema', 'psw'])
    assert tables[0] == tables[1]
    own, along = tmp_path / 'own', tmp_path / 'along'
    for arm in ('psw', 'ema'):
        one, other = (torch.load(
            work / arm / 'seed_0' / 'epoch_2.pth',
            weights_only=False)['state_dict'] for work in (own, along))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_plan(along)['passengers'] == ['psw', 'ema']
    # Asked for later, when the baseline's run is over: a run of its own.
    assert compare.main(['run', CONFIG, '--arms', 'baseline', 'swa',
                         '--work-dir', str(along), *small]) == 0
    assert (along / 'swa' / 'seed_0.log').is_file()
    assert read_plan(along)['passengers'] == ['psw', 'ema']


def test_a_failed_run_does_not_stop_the_others_and_is_named(
        tmp_path, capsys):
    generate(Path('data/digits'))
    arm = tmp_path / 'broken.py'
    arm.write_text('model = dict(head=dict(in_channels=7))\n')
    status = compare.main([
        'run', CONFIG, '--arms',
        str(arm), 'baseline', '--work-dir',
        str(tmp_path / 'work'), '--cfg-options', 'train_cfg.max_epochs=1',
        *SMALL
    ])
    captured = capsys.readouterr()
    assert status == 1
    assert 'mat1 and mat2 shapes' in captured.err
    assert 'broken, seed 0 failed: RuntimeError: mat1' in captured.out
    assert 'failed: broken, seed 0' in captured.err
    assert (tmp_path / 'work' / 'report' / 'points.csv').exists()


def test_a_baseline_that_cannot_begin_ends_the_comparison(tmp_path, capsys):
    """A label out of bounds had all arms trained and fail one by one."""
    generate(Path('data/digits'))
    status = compare.main([
        'run', CONFIG, '--arms', 'baseline', 'ema', 'pswa', 'pswm', '--jobs',
        '1', '--work-dir', str(tmp_path / 'work'), '--cfg-options',
        'model.head.in_channels=7', *SMALL])
    captured = capsys.readouterr()
    assert status == 1
    assert 'baseline, seed 0 failed: RuntimeError: mat1 and' in captured.out
    assert 'Nothing else is begun' in captured.out
    assert captured.out.count('$ python') == 1
    assert 'failed: baseline, seed 0; ema, seed 0.' in captured.err


def test_a_metric_that_nobody_knows_is_looked_for_after_the_first_validation(
        tmp_path):
    grid = grid_of(tmp_path, '--metric', 'psnr', '--rule', 'greater',
                   '--cfg-options', 'val_evaluator.type=Other')
    run = mock.Mock(grid=grid.with_metric(), cell=grid.cells[0])
    with pytest.raises(ValueError, match="not validated by 'psnr', but by "
                       'mse, ssim; give --metric one of these'):
        training.Training._value(run, dict(step=1, time=3, mse=1, ssim=2))


@pytest.mark.parametrize(('argv', 'metric', 'rule'), [
    ((), 'accuracy/top1', 'greater'),
    (('--cfg-options', 'default_hooks.checkpoint.save_best=acc/x',
      'default_hooks.checkpoint.rule=less'), 'acc/x', 'less'),
    (('--metric', 'top5', '--rule', 'less', '--cfg-options',
      'val_evaluator.topk=(1,5)'), 'top5', 'less'),
])
def test_what_is_best_is_kept_for_the_report(tmp_path, argv, metric, rule):
    """The runs' own save_best is taken from them; the grid keeps it."""
    grid = grid_of(tmp_path, *argv).with_metric()
    record(grid)
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


def test_a_process_on_a_cpu_has_one_thread_unless_the_user_says_so(
        monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(6)))
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    room = training.slots([])
    assert [env['OMP_NUM_THREADS'] for env in room] == ['1'] * 6
    assert len(training.slots([], processes=2)) == 3
    assert len(training.slots([], processes=8)) == 1
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    room = training.slots([])
    assert [env['OMP_NUM_THREADS'] for env in room] == ['4']
    assert len(training.slots([], jobs=3)) == 3


def test_runs_share_the_gpus(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)

    def devices(*args, **keys):
        return [env['CUDA_VISIBLE_DEVICES']
                for env in training.slots(*args, **keys)]

    assert devices(['4', '7']) == ['4', '7']
    assert devices(['4', '7'], jobs=3) == ['4', '7', '4']
    assert devices(list('01234567'), 4) == ['0,1,2,3', '4,5,6,7']
    assert devices(list('01234'), 2) == ['0,1', '2,3']
    assert 'OMP_NUM_THREADS' not in training.slots(['4'])[0]
    with pytest.raises(ValueError, match='torch sees 2; give 2 or less'):
        devices(['4', '7'], 8)


def follow(grid, *lines, arm='baseline'):
    """What the board is told of the lines of a log."""
    cell = grids.Cell(arm, 0)
    board = mock.Mock(pace=0.)
    with mock.patch('subprocess.Popen') as popen:
        popen.return_value.poll.return_value = None
        run = training.Training(grid.with_metric(), cell, board, {})
    folder = grid.run_dir(cell) / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    # In two halves, the first of which ends inside a line.
    for part in (text[:len(text) // 2], text[len(text) // 2:]):
        with open(folder / 'scalars.json', 'a') as file:
            file.write(part)
        assert run.follow() is None
    return ([call.args[1] for call in board.progress.mock_calls],
            [call.args[1:] for call in board.value.mock_calls])


def test_progress_of_an_epoch_based_loop(tmp_path):
    """An epoch's length is known after the first."""
    steps, values = follow(
        grid_of(tmp_path, '--arms', 'baseline'),
        {'accuracy/top1': 1., 'step': 0, 'time': 1},  # --validate-first
        dict(iter=50, epoch=1), dict(iter=80, epoch=1),
        {'accuracy/top1': 12.3, 'step': 1, 'time': 1},
        dict(iter=120, epoch=2), dict(iter=160, epoch=2),
        {'accuracy/top1': 13, 'step': 2})
    assert steps == [0, 0, 0, 1, 1.5, 2, 2]
    assert values == [(0, 'accuracy/top1 1'), (1, 'accuracy/top1 12.3'),
                      (2, 'accuracy/top1 13')]


def test_progress_of_an_iteration_based_loop(tmp_path):
    grid = grid_of(tmp_path, '--arms', 'baseline', '--cfg-options',
                   'train_cfg.max_iters=200',
                   config='configs/study/fpn_r18_digits.py')
    steps, values = follow(
        grid, dict(iter=50), dict(mIoU=40.2, aAcc=90.1, step=80),
        dict(iter=150), dict(mIoU=math.nan, aAcc=91, step=160))
    # It is validated each 80 iterations.
    assert steps == [50, 80, 150, 160]
    assert values == [(80, 'mIoU 40.2'), (160, 'mIoU nan')]


def test_a_detector_that_finds_nothing_has_a_map_of_zero(tmp_path):
    """mmdet logs no metric at all while there is no box."""
    _, values = follow(
        grid_of(tmp_path, '--arms', 'baseline',
                config='configs/study/retinanet_r18_digits.py'),
        dict(iter=8), dict(step=1, time=1, data_time=1))
    assert values == [(1, 'coco/bbox_mAP 0')]


def test_the_time_left_counts_neither_what_was_done_nor_what_rides_along(
        tmp_path, monkeypatch):
    grid = grid_of(tmp_path, '--arms', 'baseline', 'psw', 'pswa', 'pswm',
                   '--cfg-options', 'train_cfg.max_epochs=2')
    own = [cell for cell in grid.cells if grid.host(cell) is None]
    assert [cell.arm for cell in own] == ['baseline', 'pswa', 'pswm']
    validated(grid.run_dir(own[0]), 1, 2)
    validated(grid.run_dir(own[1]), 1)
    now = 100.
    board = training.Board(grid, own)
    board.bar.get_time = lambda: now
    board.bar.tasks[0]._get_time = board.bar.get_time
    with board:
        board.bar.reset(board.task, completed=3, total=6)
        board.progress(own[1], 1.5)
        now += 5
        board.progress(own[1], 2)
        assert board.bar.tasks[0].time_remaining == 20
        now += 20
        board.progress(own[2], 2)
    assert board.bar.finished
