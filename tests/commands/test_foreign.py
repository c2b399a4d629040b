"""Somebody's own project: mmdet's tools/train.py as it is, and two lines."""
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
THEIRS = f'''
_base_ = '{ROOT}/configs/study/retinanet_r18_digits.py'
train_cfg = dict(max_epochs=2)
train_dataloader = dict(batch_size=2, dataset=dict(indices=16))
val_dataloader = dict(dataset=dict(indices=4))
default_hooks = dict(checkpoint=dict(interval=1))
'''
OURS = '''
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=dict(type='PWALKS', last=0.25))
custom_hooks = [dict(type='mmpsw.PSWHook')]
'''  # noqa: E501 - as README.md has it


def stock_train(*argv):
    """mmdet's own tools/train.py; what it printed."""
    script = Path(find_spec('mmdet').origin).parent / '.mim/tools/train.py'
    run = subprocess.run([sys.executable, str(script), *argv],
                         capture_output=True, text=True,
                         env={'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1',
                              'CUDA_VISIBLE_DEVICES': ''})
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout + run.stderr


def test_two_lines_average_and_resume(folder):
    pytest.importorskip('mmdet')
    Path('mine.py').write_text(THEIRS + OURS)
    said = stock_train('mine.py')
    assert 'psw: weights resampled at iteration 16 (PWALKS)' in said
    # Stock mmengine 0.10 alone resumes nothing with torch >= 2.6.
    resume = ('--resume', 'work_dirs/mine/epoch_1.pth', '--work-dir')
    stock_train('mine.py', *resume, 'again')
    whole, resumed = (
        torch.load(f'{run}/epoch_2.pth', weights_only=False)
        for run in ('work_dirs/mine', 'again'))
    for name, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][name]), name
    assert resumed['psw']['']['resamplings'] == 2
    # Without PSW one import is enough; the averaging's state is left out.
    Path('stock.py').write_text(
        THEIRS + "custom_imports = dict(imports=['mmpsw.runtime'])\n")
    stock_train('stock.py', *resume, 'stock')
    stock = torch.load('stock/epoch_2.pth', weights_only=False)
    assert stock['meta']['iter'] == 16 and 'psw' not in stock
