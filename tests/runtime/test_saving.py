"""Saving: the last checkpoint is there whatever happens to the next one."""
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from toy import Points

from mmpsw import checkpoints as files

ROOT = Path(__file__).resolve().parents[2]
ONE = dict(by_epoch=False, interval=1, max_keep_ckpts=1)


class Listing(Hook):
    """What is in the work dir at each write of a checkpoint."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def before_save_checkpoint(self, runner, checkpoint):
        self.seen.append(checkpoints(runner.work_dir))


def checkpoints(work_dir):
    return sorted(path.name for path in Path(work_dir).glob('*.pth'))


def train(work_dir, psw=None, hooks=(), checkpoint=ONE, updates=6):
    """A training of the toy; returns what a write of a checkpoint found."""
    listing = Listing()
    runner = toy.runner(
        work_dir, psw, hooks=[listing, *hooks], checkpoint=checkpoint,
        train_cfg=dict(by_epoch=True, max_epochs=updates // 6))
    runner.train()
    return listing.seen


def test_the_old_checkpoint_goes_when_the_new_one_is_there(tmp_path):
    stock = train(tmp_path / 'stock')
    assert stock == [[]] * 6  # all that there was is removed first
    ours = [[], *[[f'iter_{n}.pth'] for n in range(1, 6)]]
    assert train(tmp_path / 'psw', dict(type='PSWA')) == ours
    added = [dict(type='mmpsw.SafeSavingHook')]
    assert train(tmp_path / 'added', hooks=added) == ours
    for name in ('psw', 'added'):
        files = os.listdir(tmp_path / name)
        assert checkpoints(tmp_path / name) == ['iter_6.pth']
        assert not [file for file in files if 'partial' in file]
        assert (tmp_path / name / 'last_checkpoint').read_text() == str(
            tmp_path / name / 'iter_6.pth')


def test_the_best_one_is_kept_until_there_is_a_better_one(tmp_path):
    keys = dict(interval=1, save_best='error', rule='less', max_keep_ckpts=2)
    seen = train(tmp_path, dict(type='PSWA'), checkpoint=keys, updates=24)
    best = [[name for name in names if name.startswith('best')]
            for names in seen]
    first = next(index for index, names in enumerate(best) if names)
    assert first == 2 and all(len(names) == 1 for names in best[first:])
    assert len(checkpoints(tmp_path)) == 3


def test_the_file_is_what_mmengine_saves(tmp_path):
    train(tmp_path / 'stock')
    train(tmp_path / 'safe', hooks=[dict(type='mmpsw.SafeSavingHook')])
    stock, safe = (torch.load(tmp_path / name / 'iter_6.pth')
                   for name in ('stock', 'safe'))
    assert stock.keys() == safe.keys()
    assert stock['meta'].keys() == safe['meta'].keys()
    for name, tensor in stock['state_dict'].items():
        assert torch.equal(tensor, safe['state_dict'][name])
    info = safe['message_hub']['runtime_info']
    assert info['last_ckpt'] == str(tmp_path / 'safe' / 'iter_6.pth')


class Unknown:
    """What cannot be read back as data."""


class Odd(Points):
    metainfo = dict(it=Unknown())


@pytest.mark.parametrize('dataset, times', [(Odd(), 1), (Points(), 0)])
def test_what_cannot_be_resumed_is_said_at_the_first_save(dataset, times,
                                                          tmp_path, capsys):
    toy.trained(tmp_path, dict(type='PSWA'), dataset=dataset,
                train_cfg=dict(by_epoch=True, max_epochs=1))
    said = [line for line in ''.join(capsys.readouterr()).splitlines()
            if 'will be refused by --resume' in line]
    assert len(said) == times
    assert all('Unknown was not an allowed' in line for line in said)
    assert all(f"'{tmp_path}/iter_1.pth'" in line for line in said)


def test_what_a_killed_save_left_is_no_checkpoint_and_goes(tmp_path):
    (tmp_path / f'.iter_99.pth{files.PARTIAL}').write_bytes(b'half')
    (tmp_path / '.mine.pth.tmp').write_bytes(b'mine')
    train(tmp_path, dict(type='PSWA'))
    hidden = [name for name in os.listdir(tmp_path) if name[0] == '.']
    assert sorted(hidden) == ['.mine.pth.tmp', '.mmpsw.lock']


def test_a_second_process_is_refused_before_it_starts(tmp_path):
    train(tmp_path, dict(type='PSWA'))
    before = os.listdir(tmp_path)
    train(tmp_path, dict(type='PSWA'))  # the same process may go on
    second = subprocess.run(
        [sys.executable, '-c', 'import sys\n'
         'from mmpsw.runtime.saving import hold_work_dir\n'
         'hold_work_dir(sys.argv[1])', str(tmp_path)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True, text=True)
    assert 'because another process is training there' in second.stderr
    assert set(before) <= set(os.listdir(tmp_path))


@pytest.mark.parametrize('number, advice', [
    (errno.ENOSPC, 'make room, and'), (errno.EROFS, 'mend that, and')])
def test_a_save_that_failed_says_what_the_system_said(tmp_path, number,
                                                      advice):
    message = os.strerror(number)
    with pytest.raises(OSError, match=f"'{message}'.*{advice} continue"):
        with files.whole_file(tmp_path / 'a.pth'):
            raise OSError(number, message)


# Processes that end in the middle of saving the fourth checkpoint


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in_the_write():
    put = LocalBackend.put

    def half(self, data, path):
        if 'iter_4' in path:
            put(self, data[:len(data) // 2], path)
            dies()
        put(self, data, path)

    LocalBackend.put = half


def dies_before_the_flush():
    flush = files._flush_to_disk
    files._flush_to_disk = (
        lambda path: dies() if 'iter_4' in path.name else flush(path))


def dies_after_the_renaming():
    replace = os.replace

    def then_dies(old, new):
        replace(old, new)
        if 'iter_4' in str(new):
            dies()

    os.replace = then_dies


def may_write_half():
    """As on a full disk: the system refuses to write more."""
    put = LocalBackend.put

    def limited(self, data, path):
        if 'iter_4' in path:
            limits = (len(data) // 2, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        put(self, data, path)

    LocalBackend.put = limited


ENDS = [dies_in_the_write, dies_before_the_flush, dies_after_the_renaming,
        may_write_half]


def train_in_processes(folder):
    """A process for each of the ends: importing takes longer than all."""
    for end in ENDS:
        if os.fork() == 0:
            end()
            code = 0
            try:
                train(Path(folder, end.__name__), dict(type='PSWA'))
            except OSError as error:
                Path(folder, f'{end.__name__}.txt').write_text(str(error))
                code = 2
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.wait()[1])
        Path(folder, f'{end.__name__}.exit').write_text(str(code))


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ended')
    subprocess.run(
        [sys.executable, '-c', 'import sys, test_saving; '
         'test_saving.train_in_processes(sys.argv[1])', str(folder)],
        # Who has looked for a GPU cannot fork.
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH':
             f'{ROOT}:{ROOT / "tests"}:{ROOT / "tests/runtime"}'},
        check=True, capture_output=True)
    return folder


@pytest.mark.parametrize('end', [end.__name__ for end in ENDS])
def test_the_third_checkpoint_survives_the_fourth(ended, end):
    code = 2 if end == 'may_write_half' else -signal.SIGKILL
    assert (ended / f'{end}.exit').read_text() == str(code)
    after = ['iter_4.pth'] if end == 'dies_after_the_renaming' else []
    assert checkpoints(ended / end) == ['iter_3.pth', *after]
    # mmengine goes on from the file that is named
    named = Path((ended / end / 'last_checkpoint').read_text())
    assert named == ended / end / 'iter_3.pth'
    assert torch.load(named)['meta']['iter'] == 3


def test_a_full_disk_is_named_and_no_half_file_is_left(ended):
    folder = ended / 'may_write_half'
    assert (ended / 'may_write_half.txt').read_text() == (
        f"'{folder / 'iter_4.pth'}' could not be saved, because the system "
        "says 'File too large'; what was saved before it is still there: "
        'make room, and continue with --resume')
    hidden = [name for name in os.listdir(folder) if name[0] == '.']
    assert hidden == ['.mmpsw.lock']


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB, where the user may mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder]
    if shutil.which('mount') is None or subprocess.run(
            mount, capture_output=True, check=False).returncode:
        pytest.skip('mounting a small disk needs root')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)  # its log is open


def test_a_disk_that_is_full(small_disk):
    keep_all = dict(by_epoch=False, interval=1)
    with pytest.raises(OSError, match="says 'No space left on device'"):
        train(small_disk / 'run', dict(type='PSWA'), checkpoint=keep_all)
    saved = checkpoints(small_disk / 'run')
    assert 1 <= len(saved) < 6
    for number, name in enumerate(saved, start=1):
        checkpoint = torch.load(small_disk / 'run' / name)
        assert checkpoint['meta']['iter'] == number
