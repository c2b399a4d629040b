"""The quickstart: its plan, its folders, its trainings, and a small whole."""
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpsw.commands import quickstart as qs
from mmpsw.datasets.digits import generate

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(CHECKOUT)


def plan_of(*argv):
    return qs.make_plan(qs.parse_args(argv))


def test_the_arms_differ_in_nothing_but_psw(tmp_path):
    plan = plan_of('--work-dir', str(tmp_path), '--seed', '3', '--psw', 'pswa')
    assert list(plan.arms) == ['baseline', 'pswa', 'control']
    common = [
        'python', 'tools/train.py', 'configs/det/retinanet_r18_digits.py',
        '--work-dir'
    ]
    assert plan.command('baseline') == [
        *common, f'{tmp_path}/baseline', '--seed', '3'
    ]
    assert plan.command('pswa') == [
        *common, f'{tmp_path}/pswa', '--seed', '3', '--psw', 'pswa'
    ]
    assert plan.command('control') == [
        *common, f'{tmp_path}/control', '--seed', '3', '--psw', 'pswa',
        '--cfg-options', 'optim_wrapper.psw.write_back=False'
    ]


def test_a_training_goes_on_from_its_last_validated_epoch(tmp_path):
    plan = plan_of('--work-dir', str(tmp_path), '--psw', 'pswa')
    validated(plan.arm_dir('pswa'), 3)
    at = plan.command('pswa').index('--resume')
    assert plan.command('pswa')[at + 1] == f'{tmp_path}/pswa/epoch_3.pth'
    assert '--resume' not in plan.command('baseline')


def test_a_training_without_a_whole_epoch_starts_anew(tmp_path):
    plan = plan_of('--work-dir', str(tmp_path))
    plan.arm_dir('baseline').mkdir()
    assert '--overwrite' in plan.command('baseline')


def test_short_shortens_each_arm_and_leaves_the_control_out():
    plan = plan_of('--short', '--psw', 'pswm')
    assert list(plan.arms) == ['baseline', 'pswm']
    assert plan.epochs == 2
    for arm in plan.arms:
        assert plan.command(arm)[-2:] == [
            '--cfg-options', 'train_cfg.max_epochs=2'
        ]


def test_from_another_folder_the_commands_still_lead_to_the_files(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = plan_of().command('baseline')
    assert Path(command[1]) == CHECKOUT / 'tools/train.py'
    assert Path(command[2]).is_file()


def test_an_unknown_technique_is_an_error_of_one_line(capsys):
    assert qs.main(['--psw', 'pswx']) == 2
    error = capsys.readouterr().err
    assert "psw 'pswx' is neither a technique nor a file" in error
    assert error.count('\n') == 1


def test_a_fragment_may_not_take_an_arms_name(tmp_path):
    fragment = tmp_path / 'control.py'
    fragment.write_text("psw = dict(type='PSWA')")
    with pytest.raises(ValueError, match="another arm is called 'control'"):
        plan_of('--psw', str(fragment))


def test_folders_of_an_experiment(tmp_path):
    base = tmp_path / 'deep' / 'quickstart'
    mine, other = dict(seed=0), dict(seed=1)
    assert qs.take_work_dir(base, mine) == base
    assert qs.take_work_dir(base, mine) == base
    assert qs.take_work_dir(base, other).name == 'quickstart_2'
    assert qs.take_work_dir(base, mine, fresh=True).name == 'quickstart_3'
    assert qs.take_work_dir(base, other).name == 'quickstart_2'
    assert qs.take_work_dir(base, mine) == base


@pytest.mark.parametrize('name', ['notes.txt', 'quickstart.json'])
def test_a_folder_of_something_else_is_left_alone(tmp_path, name):
    base = tmp_path / 'mine'
    base.mkdir()
    (base / name).write_text('precious')
    assert qs.take_work_dir(base, dict(seed=0)) == tmp_path / 'mine_2'
    assert [path.name for path in base.iterdir()] == [name]
    assert (base / name).read_text() == 'precious'


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path):
    base = tmp_path / 'mine'
    base.write_text('precious')
    assert qs.take_work_dir(base, dict(seed=0)) == tmp_path / 'mine_2'
    assert base.read_text() == 'precious'


def validated(folder, epochs):
    """A work directory as mmengine leaves it after some epochs."""
    scalars = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    scalars.parent.mkdir(parents=True)
    scalars.with_name('config.py').write_text('')
    lines = [dict(loss=1.0, iter=1, step=1)]
    lines += [dict(acc=0.1, step=epoch) for epoch in range(1, epochs + 1)]
    scalars.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_finished_trainings_are_not_started_again(tmp_path, capsys):
    plan = plan_of('--work-dir', str(tmp_path))
    for arm in plan.arms:
        validated(plan.arm_dir(arm), plan.epochs)
    qs.train_all(plan)
    printed = capsys.readouterr().out
    assert printed.count('finished already') == 3
    assert '$ python' not in printed
    assert not plan.log('baseline').exists()


def test_the_bar_counts_what_was_done_before_once(capsys):
    # Three arms of two epochs: one finished, one interrupted after an epoch.
    bar = qs._Progress(total=6, done=3)
    bar.started -= 10
    bar.for_arm(2, done_before=1)(2.0, '0.5')
    assert bar.done == 4
    # An epoch took ten seconds, and two are left.
    assert capsys.readouterr().out == (
        '  epoch  2/2  coco/bbox_mAP 0.5  (20 s left)\n')
    bar.for_arm(2, done_before=0)(0.5, None)
    assert bar.done == 4.5


def python(program):
    return ['python', '-c', program]


LOG = r'''
print('11/22 16:42:44 - mmengine - INFO - Epoch(train)  [1][50/80]  lr: 1')
print('11/22 16:42:44 - mmengine - INFO - Epoch(train)  [1][80/80]  lr: 1')
print('11/22 16:44:48 - mmengine - INFO - Epoch(val) [1][10/16]  eta: 0')
print('11/22 16:44:48 - mmengine - INFO - Epoch(val) [1][16/16]    '
      'coco/bbox_mAP: 0.1230  coco/bbox_mAP_50: 0.2  time: 0.5')
print('11/22 16:44:48 - mmengine - INFO - Epoch(val) [ 2][16/16]    time: 1')
'''


def test_progress_is_read_from_mmengines_log(tmp_path):
    log, told = tmp_path / 'train.log', []
    qs.start_training(python(LOG), log, lambda *news: told.append(news))
    assert told == [
        (0.9 * 50 / 80, None),
        (0.9, None),
        (1.0, '0.1230'),
        (2.0, 'not measured: no box was found'),
    ]
    assert len(log.read_text().splitlines()) == 5
    qs.start_training(python(LOG), log, lambda *news: None)
    assert len(log.read_text().splitlines()) == 10


def test_a_training_that_fails_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / 'train.log'
    program = "for i in range(99): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(qs.TrainingError) as error:
        qs.start_training(python(program), log, lambda *news: None)
    message = str(error.value)
    assert 'exit status 3' in message
    assert str(log) in message
    assert re.findall(r'line \d+', message) == [
        f'line {i}' for i in range(84, 99)
    ]
    assert log.read_text().startswith('line 0\n')


def test_an_interrupted_quickstart_leaves_no_training_behind(tmp_path):
    program = ('import os, time\n'
               "print('pid', os.getpid(), 'Epoch(val) [1][1/1]', flush=True)\n"
               'time.sleep(600)')

    def interrupt(*news):
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        qs.start_training(python(program), tmp_path / 'log', interrupt)
    assert time.monotonic() - started < 60
    pid = (tmp_path / 'log').read_text().split()[1]
    assert not Path('/proc', pid).exists()


@pytest.mark.parametrize(('seconds', 'text'), [
    (8.4, '8 s'), (59.6, '1 min 00 s'), (605, '10 min 05 s')
])
def test_durations(seconds, text):
    assert qs._duration(seconds) == text


def test_a_small_quickstart_ends_with_table_plot_and_picture(
        tmp_path, capsys, monkeypatch):
    # Threads only wait for each other on so little work.
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    generate(tmp_path / 'digits', train=8, val=4, size=64, progress=False)
    config = Config.fromfile('configs/det/retinanet_r18_digits.py')
    annotations = f'{tmp_path}/digits/det/annotations/instances_val.json'
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].dataset.data_root = f'{tmp_path}/digits/det/'
        config[loader].num_workers = 0
        config[loader].persistent_workers = False
    config.val_evaluator.ann_file = annotations
    config.test_evaluator.ann_file = annotations
    # Untrained scores are about 0.01.
    config.model.test_cfg.score_thr = 0.0
    config.train_cfg.max_epochs = 1
    config.dump(tmp_path / 'small.py')
    plan = qs.Plan(
        config=str(tmp_path / 'small.py'),
        arms=dict(baseline=(), pswa=('--psw', 'pswa')),
        epochs=1,
        seed=0,
        work_dir=tmp_path)
    qs.train_all(plan)
    qs.show(plan)
    printed = capsys.readouterr().out
    assert printed.count('epoch  1/1  coco/bbox_mAP') == 2
    for arm in plan.arms:
        assert re.search(rf'^  {arm} +0\.\d+ ', printed, re.MULTILINE)
        assert re.search(rf'^\| {arm} +\| 0\.\d+ ',
                         (tmp_path / 'comparison.md').read_text(),
                         re.MULTILINE)
    for name in ('curves.png', 'detections.png'):
        assert str(tmp_path / name) in printed
        assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')
    assert 'psw/samples' in plan.log('pswa').read_text()


def test_the_tool_is_thin_and_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, 'tools/quickstart.py', '--help'],
        capture_output=True, text=True, check=True)
    assert '--short' in done.stdout
