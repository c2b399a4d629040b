"""The quickstart: what it compares, and a small whole."""
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpsw.commands import compare
from mmpsw.commands import quickstart as qs
from mmpsw.compare import grid as grids
from mmpsw.compare.runs import logged_by, read_run
from mmpsw.datasets.digits import generate

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(CHECKOUT)


def grid_of(*argv):
    return qs.make_grid(qs.parse_args(argv))


def test_the_arms_differ_in_nothing_but_the_arm(tmp_path):
    grid = grid_of('--work-dir', str(tmp_path), '--seed', '3', '--with',
                   'pswm')
    assert list(grid.arms) == ['baseline', 'pswm', 'pswa']
    commands = [grid.command(cell) for cell in grid.cells]
    for arm, command in zip(grid.arms, commands):
        assert command[command.index('--seed') + 1] == '3'
        assert command[command.index('--with') + 1] == arm
    plain = [[word for word in command if not any(
        arm in word for arm in grid.arms)] for command in commands]
    assert plain[0] == plain[1] == plain[2]


def test_what_we_recommend_rides_along():
    grid = grid_of()
    assert list(grid.arms) == ['baseline', 'psw', 'pswa']
    assert grid.passengers == ('psw', )
    assert list(grid_of('--with', 'pswa').arms) == ['baseline', 'pswa', 'psw']


def test_short_shortens_each_arm_and_leaves_the_third_out():
    grid = grid_of('--short', '--with', 'pswm')
    assert list(grid.arms) == ['baseline', 'pswm']
    assert grid.max_steps() == 2


def test_from_another_folder_the_commands_still_lead_to_the_files(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = grid_of()
    command = grid.command(grid.cells[0])
    assert Path(command[1]) == CHECKOUT / 'tools/train.py'
    assert Path(command[2]).is_file()


def test_an_unknown_technique_is_an_error_of_one_line(capsys):
    assert qs.main(['--with', 'pswx']) == 2
    error = capsys.readouterr().err
    assert "'pswx'" in error and 'did you mean' in error
    assert error.count('\n') == 1


def test_a_fragment_may_not_take_an_arms_name(tmp_path):
    fragment = tmp_path / 'pswa.py'
    fragment.write_text("psw = dict(type='PSWA')")
    with pytest.raises(ValueError, match="'pswa' is a known method here"):
        grid_of('--with', str(fragment))


def test_a_small_quickstart_ends_with_table_plot_and_picture(
        tmp_path, capsys, monkeypatch):
    # Threads only wait for each other on so little work.
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    generate(tmp_path / 'digits', train=8, val=4, size=64, progress=False)
    config = Config.fromfile('configs/study/retinanet_r18_digits.py')
    annotations = f'{tmp_path}/digits/det/annotations/instances_val.json'
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].dataset.data_root = f'{tmp_path}/digits/det/'
    config.val_evaluator.ann_file = annotations
    config.test_evaluator.ann_file = annotations
    metrics = logged_by(config)
    # Untrained scores are about 0.01.
    config.model.test_cfg.score_thr = 0.0
    config.train_cfg.max_epochs = 1
    config.train_dataloader.batch_size = 4  # two updates: one is no mean
    config.dump(tmp_path / 'small.py')
    grid = compare.train_grid(
        grids.Grid(
            config=str(tmp_path / 'small.py'),
            arms=dict(baseline='baseline', pswa='pswa'),
            seeds=(0, ),
            work_dir=tmp_path / 'work'))
    compare.report_on(grid)
    picture = qs.draw_picture(grid)
    assert metrics == read_run(grid.run_dir(grid.cells[0])).logged
    printed = capsys.readouterr().out
    assert 'baseline, seed 0: epoch 1/1  coco/bbox_mAP' in printed
    assert 'pswa, seed 0: epoch 1/1  coco/bbox_mAP' in printed
    for path in (picture, tmp_path / 'work/report/curves.png'):
        assert path.read_bytes().startswith(b'\x89PNG')
    assert str(tmp_path / 'work/report/curves.png') in printed
    table = (tmp_path / 'work/report/table.md').read_text()
    assert '| baseline' in table and '| pswa' in table
    log = grid.log(grids.Cell('pswa', 0)).read_text()
    assert 'psw/samples' in log


def test_the_tool_is_thin_and_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, 'tools/quickstart.py', '--help'],
        capture_output=True, text=True, check=True)
    assert '--short' in done.stdout
