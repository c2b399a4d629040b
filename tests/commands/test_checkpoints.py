"""Checkpoints that are cut off, foreign, or hold code."""
import os
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from mmpsw.commands import checkpoints, checks


class Evil:
    """A pickle that would make a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder), )


def save(path, iteration):
    torch.save(
        dict(meta=dict(iter=iteration, epoch=1),
             state_dict=dict(w=torch.randn(1000)),
             message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.], [1])))
             ), path)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.9, 0.999])
def test_what_is_cut_off_anywhere_is_refused(tmp_path, share):
    path = tmp_path / 'epoch_1.pth'
    save(path, 1)
    assert checkpoints.why_unreadable(path) is None
    cut(path, share)
    with pytest.raises(ValueError, match='is cut off or no checkpoint|is no'):
        checks.check_checkpoint(str(path))


@pytest.mark.parametrize('data', [b'hello', b'\x80\x04garbage', b'PK\x03\x04'])
def test_something_else_is_refused(tmp_path, data):
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checkpoint '.*epoch_1.pth'"):
        checks.check_checkpoint(str(path))


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, zipped):
    path, made = tmp_path / 'epoch_1.pth', tmp_path / 'made'
    content = dict(meta=dict(iter=1), state_dict=Evil(made))
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match='asks for code to be run'):
        checks.check_checkpoint(str(path))
    assert not made.exists()


def config(work_dir):
    return Config(dict(work_dir=str(work_dir), resume=True, load_from=None))


def test_the_newest_that_can_be_read_is_resumed_from(tmp_path):
    for iteration in (9, 10, 11, 12):
        save(tmp_path / f'iter_{iteration}.pth', iteration)
    cut(tmp_path / 'iter_12.pth', 0.7)
    (tmp_path / 'iter_11.pth').write_bytes(pickle.dumps(Evil(tmp_path / 'x')))
    save(tmp_path / 'best_mIoU_iter_13.pth', 13)  # without an optimizer
    cfg = config(tmp_path)
    checks.find_resume_point(cfg)
    assert cfg.load_from == str(tmp_path / 'iter_10.pth')
    _, skipped = checkpoints.newest_readable(tmp_path)
    assert 'iter_11.pth' in skipped[0] and 'iter_12.pth' in skipped[1]
    assert not (tmp_path / 'x').exists()


def test_where_all_can_be_read_mmengine_chooses(tmp_path):
    save(tmp_path / 'iter_1.pth', 1)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1.pth'))
    cfg = config(tmp_path)
    checks.find_resume_point(cfg)
    assert cfg.load_from is None
    # Killed between the first checkpoint and the file that names it.
    (tmp_path / 'last_checkpoint').unlink()
    checks.find_resume_point(cfg)
    assert cfg.load_from == str(tmp_path / 'iter_1.pth')
    checks.find_resume_point(config(tmp_path / 'nothing'))


def test_where_none_can_be_read_nothing_is_overwritten(tmp_path):
    save(tmp_path / 'iter_1.pth', 1)
    cut(tmp_path / 'iter_1.pth', 0.5)
    with pytest.raises(ValueError, match='no checkpoint in .* can be read'):
        checks.find_resume_point(config(tmp_path))
