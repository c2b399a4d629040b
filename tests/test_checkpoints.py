"""Checkpoints that are cut off, damaged, foreign, or hold code."""
import http.server
import os
import pickle
import re
import threading
import zipfile
from functools import partial
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger

from mmpsw import checkpoints
from mmpsw.commands import average_checkpoints, checks, options, train
from mmpsw.commands import test as test_command


class Evil:
    """A pickle that would make a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder), )


def save(path, iteration, **other):
    torch.save(
        dict(other, meta=dict(iter=iteration, epoch=1),
             state_dict=dict(w=torch.randn(1000)),
             message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.], [1])))
             ), path)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])


def change_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the largest tensor
    path.write_bytes(data)


# Reading


def test_what_is_cut_off_anywhere_or_something_else_is_refused(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    save(path, 1, optimizer={})
    checks.check_checkpoint(str(path), resume=True)
    good = path.read_bytes()
    for data in [*(good[:int(share * len(good))] for share in
                   (0, 0.01, 0.5, 0.9, 0.999)),
                 b'hello', b'\x80\x04garbage', b'PK\x03\x04']:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="epoch_1.pth' .*no checkpoint"):
            checks.check_checkpoint(str(path))


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, zipped):
    path, made = tmp_path / 'epoch_1.pth', tmp_path / 'made'
    content = dict(meta=dict(iter=1), state_dict=Evil(made))
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match='is not loaded|cannot be read'):
        checkpoints.read(path)
    assert not made.exists()


def test_methods_of_mmengine_lead_nowhere_else(tmp_path):
    """getattr is what mmengine's own data need, and what attacks need."""
    path = tmp_path / 'epoch_1.pth'

    class Climbs:

        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    torch.save(dict(state_dict=Climbs()), path)
    with pytest.raises(ValueError, match="asks for '__init__' of"):
        checkpoints.read(path)


def test_what_is_allowed_stays_allowed(tmp_path):
    """onedl-mmengine allows some of it for a load, and then takes it away."""
    torch.save(dict(loss=HistoryBuffer([1.], [1])), tmp_path / 'log.pth')
    checkpoints.allow_resume()
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray, getattr,
                                           np.dtype, type(np.dtype('f8'))]):
        pass
    loaded = torch.load(tmp_path / 'log.pth', weights_only=True)
    assert loaded['loss'].mean() == 1


PLAIN = {  # what data sets have for metainfo, mmpose's among them
    **{f'palette of {dtype}': np.array([[1, 2], [3, 4]], dtype)
       for dtype in 'uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16'
                    ' float32 float64 longdouble complex64 bool'.split()},
    'names': np.array(['cat', 'dog']), 'bytes': np.array([b'cat']),
    'day': np.datetime64('2026-11-30'), 'one': np.uint8(3),
    'name': np.str_('cat'), 'path': Path('data/a.txt'),
    'set': {1, 2}, 'settings': Config(dict(a=dict(b=[dict(c=1)]))).a,
}


@pytest.mark.parametrize('name', PLAIN)
def test_plain_data_in_a_data_sets_metainfo_is_read(name, tmp_path):
    path, value = tmp_path / 'epoch_1.pth', PLAIN[name]
    torch.save(dict(meta=dict(dataset_meta=dict(it=value)), state_dict={}),
               path)
    read = checkpoints.read(path)['meta']['dataset_meta']['it']
    assert type(read) is type(value)
    if isinstance(value, np.ndarray):
        assert read.dtype == value.dtype
    assert np.array_equal(read, value)


@pytest.mark.parametrize('value', [
    np.array([None]), np.zeros(2, [('a', 'O')]), np.zeros(2, [('a', 'i4')])])
def test_arrays_that_hold_objects_are_refused(value, tmp_path):
    """numpy trusts a pickle that says what their bytes point at."""
    torch.save(dict(it=value), tmp_path / 'epoch_1.pth')
    with pytest.raises(ValueError, match='asks for code to be run'):
        checkpoints.read(tmp_path / 'epoch_1.pth')


def test_who_trusts_a_file_can_read_it(tmp_path, monkeypatch):
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=Evil(tmp_path / 'made')), path)
    name = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    with pytest.raises(ValueError, match=f'set {name}=1'):
        checkpoints.read(path)
    monkeypatch.setenv(name, '1')
    with checkpoints.data_only():
        checkpoints.read(path)
    assert (tmp_path / 'made').exists()


def test_a_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    save(path, 1)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('epoch_1/constants.pkl', pickle.dumps(()))
    with pytest.raises(ValueError, match='TorchScript'):
        checkpoints.read(path)


# --resume, which finds a checkpoint by itself


def config(work_dir):
    return Config(dict(work_dir=str(work_dir), resume=True, load_from=None))


def test_the_newest_that_can_be_read_is_resumed_from(tmp_path):
    for iteration in range(7, 14):
        save(tmp_path / f'iter_{iteration}.pth', iteration, optimizer={})
    change_a_byte(tmp_path / 'iter_13.pth')
    cut(tmp_path / 'iter_12.pth', 0.7)
    torch.save(dict(state_dict=Evil(tmp_path / 'x')), tmp_path / 'iter_11.pth')
    torch.save([1], tmp_path / 'iter_10.pth')
    torch.save(dict(w=torch.ones(1)), tmp_path / 'iter_9.pth')
    save(tmp_path / 'best_mIoU_iter_13.pth', 13)  # without an optimizer
    cfg = config(tmp_path)
    checks.find_start(cfg)
    assert cfg.load_from == str(tmp_path / 'iter_8.pth')
    _, skipped = checkpoints.newest_readable(tmp_path)
    named = {re.search(r'iter_\d+', line)[0]: line for line in skipped}
    assert 'is damaged' in named['iter_13']
    assert 'is cut off' in named['iter_12']
    assert 'asks for code' in named['iter_11']
    for other in ('iter_10', 'iter_9'):
        assert 'has no state_dict, meta, message_hub, optimizer' in named[
            other]
    assert len(named) == len(skipped) == 5
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('named', [None, '', 'iter_9.pth', 'iter_14.pth'])
def test_the_newest_is_not_what_last_checkpoint_names(tmp_path, named):
    """A kill between a checkpoint and the file that names it, or in that."""
    save(tmp_path / 'iter_9.pth', 9, optimizer={})
    save(tmp_path / 'epoch_2.pth', 12, optimizer={})
    if named is not None:
        (tmp_path / 'last_checkpoint').write_text(named)
    cfg = config(tmp_path)
    assert checks.find_start(cfg) == [
        f"Resuming from {tmp_path / 'epoch_2.pth'}, the newest readable "
        'checkpoint']
    assert cfg.load_from == str(tmp_path / 'epoch_2.pth')


def test_a_run_that_was_overwritten_is_not_gone_on_with(tmp_path):
    """--overwrite leaves its files, which the new run replaces one by one."""
    old, new = tmp_path / 'epoch_12.pth', tmp_path / 'epoch_3.pth'
    save(old, 12, optimizer={})
    save(new, 3, optimizer={})
    new.touch()
    (tmp_path / 'last_checkpoint').write_text(str(new))
    notes = checks.find_start(config(tmp_path))
    assert notes == [
        f"Skipped: '{old}' is of a run that was overwritten, because it is "
        f"older than '{new}'",
        f'Resuming from {new}, the newest readable checkpoint']


def test_checkpoints_in_another_folder_are_found_by_last_checkpoint(tmp_path):
    """CheckpointHook's out_dir."""
    save(tmp_path / 'epoch_2.pth', 12, optimizer={})
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    cfg = config(work_dir)
    assert checks.find_start(cfg) == [
        f"Nothing is resumed, as '{work_dir}' holds no checkpoint: the run "
        'begins anew']
    assert cfg.load_from is None and cfg.resume is False
    for named, expected in [(str(tmp_path / 'epoch_2.pth'), ) * 2,
                            ('s3://bucket/epoch_2.pth', None)]:
        (work_dir / 'last_checkpoint').write_text(named)
        cfg = config(work_dir)
        checks.find_start(cfg)
        assert cfg.load_from == expected
    (work_dir / 'last_checkpoint').write_text(str(tmp_path / 'gone.pth'))
    with pytest.raises(ValueError, match='gone.pth'):
        checks.find_start(config(work_dir))


def test_what_the_config_begins_with_is_kept_where_nothing_is_resumed(
        tmp_path):
    save(tmp_path / 'coco.pth', 3)
    work_dir = tmp_path / 'run'
    cfg = config(work_dir)
    cfg.update(resume=checks.NEWEST, load_from=str(tmp_path / 'coco.pth'))
    checks.check_work_dir(cfg, overwrite=False)
    assert checks.find_start(cfg) == [
        f"Nothing is resumed, as '{work_dir}' holds no checkpoint: the run "
        f"begins anew, from {tmp_path / 'coco.pth'}"]
    assert cfg.load_from == str(tmp_path / 'coco.pth') and not cfg.resume
    work_dir.mkdir()
    save(work_dir / 'epoch_1.pth', 3, optimizer={})
    cfg.resume = checks.NEWEST
    checks.check_work_dir(cfg, overwrite=False)
    checks.find_start(cfg)
    assert cfg.load_from == str(work_dir / 'epoch_1.pth') and cfg.resume


@pytest.mark.parametrize('name', ['~/run/epoch_1.pth', 'link.pth',
                                  'linked/epoch_1.pth', 'run/other.pth'])
def test_a_checkpoint_of_the_work_dir_continues_it(name, tmp_path,
                                                   monkeypatch):
    """By whatever name: from the home folder, or through links."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = tmp_path / 'run'
    run.mkdir()
    save(run / 'epoch_1.pth', 3, optimizer={})
    save(tmp_path / 'elsewhere.pth', 3, optimizer={})
    (tmp_path / 'link.pth').symlink_to(run / 'epoch_1.pth')
    (tmp_path / 'linked').symlink_to(run)
    (run / 'other.pth').symlink_to(tmp_path / 'elsewhere.pth')
    cfg = config(run)
    cfg.load_from = name
    checks.check_work_dir(cfg, overwrite=False)
    cfg.load_from = 'elsewhere.pth'
    with pytest.raises(ValueError, match='add --resume'):
        checks.check_work_dir(cfg, overwrite=False)


def test_the_best_checkpoint_is_no_place_to_resume_from(tmp_path):
    """It has no optimizer, nor what an average keeps there."""
    best = tmp_path / 'best_mIoU_epoch_3.pth'
    save(best, 3)
    with pytest.raises(ValueError, match='from, because it has no optimizer'):
        checks.check_checkpoint(str(best), resume=True)
    checks.check_checkpoint(str(best))
    with pytest.raises(ValueError, match="no checkpoint in '.*' can be resum"):
        checks.find_start(config(tmp_path))


def test_a_resumed_run_has_the_seed_of_its_checkpoint(tmp_path):
    torch.save(dict(meta=dict(iter=1, epoch=1, seed=7), state_dict={},
                    message_hub={}, optimizer={}), tmp_path / 'iter_1.pth')
    cfg = config(tmp_path)
    checks.find_start(cfg)
    assert cfg.randomness.seed == 7
    cfg = config(tmp_path)
    cfg.randomness = dict(seed=3)
    checks.find_start(cfg)
    assert cfg.randomness.seed == 3


# The commands

PSW = ['--with', 'pswm', '--work-dir', 'run']
TESTED = '''
test_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dict(type='faults.Points'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'))
test_cfg = dict()
test_evaluator = dict(type='toy.Error')
'''


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of a toy: its config, and the work dir ``run``."""
    folder = tmp_path_factory.mktemp('trained')
    variant = faults.Variant('toy', keep=2,
                             loop='by_epoch=True, max_epochs=1')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        variant.command(Path(), Path('run'))
        Path('toy.py').write_text(Path('toy.py').read_text() + TESTED)
        # without a seed: a resumed run has to find it
        assert train.main(['toy.py', *PSW]) == 0
    return folder


def make(kind, good):
    """A bad checkpoint, beside the good ones."""
    path = Path('run/bad.pth')
    path.write_bytes(good.read_bytes())
    other = {**torch.load(good), 'state_dict': dict(w=torch.ones(3))}
    {'cut off': lambda: cut(path, 0.5),
     'damaged': lambda: change_a_byte(path),
     'text': lambda: path.write_text('no checkpoint'),
     'list': lambda: torch.save([1, 2], path),
     'code': lambda: torch.save(dict(state_dict=Evil('made')), path),
     'of another model': lambda: torch.save(other, path)}[kind]()
    return str(path)


MESSAGES = {
    'cut off': 'is cut off or no checkpoint',
    'damaged': 'is damaged: ',
    'text': 'no checkpoint',
    'list': 'cannot be resumed from|holds no weights',
    'code': 'asks for code to be run',
    'of another model': 'of another model|lacks ',
}
COMMANDS = {
    'train.py --resume': lambda bad: train.main(
        ['toy.py', *PSW, '--resume', bad]),
    'train.py load_from': lambda bad: train.main(
        ['toy.py', '--work-dir', 'new', '--cfg-options', f'load_from={bad}']),
    'test.py': lambda bad: test_command.main(['toy.py', bad]),
    'average_checkpoints.py': lambda bad: average_checkpoints.main(
        ['run/iter_5.pth', bad, '--out', 'out.pth']),
}


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """The current folder, with the toy's config and a copy of its run."""
    for path in [trained / 'toy.py', *(trained / 'run').glob('*[!0-9]')]:
        if path.is_file():
            new = tmp_path / path.relative_to(trained)
            new.parent.mkdir(exist_ok=True)
            new.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    MMLogger._instance_dict.clear()  # it writes to a stream that is closed
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes()
            for path in Path(folder).glob('*.pth')}


def refusal(capsys, status):
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: '), lines
    return lines[0]


@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize('kind', MESSAGES)
def test_refused_with_a_sentence(kind, command, folder, capsys):
    bad = make(kind, Path('run/iter_6.pth'))
    before = contents('run')
    assert sorted(before) == ['bad.pth', 'iter_5.pth', 'iter_6.pth']
    capsys.readouterr()
    line = refusal(capsys, COMMANDS[command](bad))
    assert re.search(MESSAGES[kind], line), line
    assert 'bad.pth' in line
    assert contents('run') == before
    assert not Path('made').exists() and not Path('out.pth').exists()
    assert not contents('new')
    print(f'\n| {kind} | `{command}` | `{line}` |')


def test_resuming_by_itself_names_what_it_skips(folder, capsys):
    whole = torch.load('run/iter_6.pth')['state_dict']
    make('code', Path('run/iter_6.pth'))
    Path('run/bad.pth').replace('run/iter_6.pth')
    assert train.main(['toy.py', *PSW, '--resume']) == 0
    said = capsys.readouterr()
    said = said.out + said.err
    assert "Skipped: checkpoint 'run/iter_6.pth' is not loaded" in said
    assert 'Resuming from run/iter_5.pth, the newest' in said
    resumed = torch.load('run/iter_6.pth')['state_dict']
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not Path('made').exists()


def test_resuming_by_itself_where_all_are_bad(folder, capsys):
    for path in Path('run').glob('*.pth'):
        cut(path, 0.5)
    before = contents('run')
    line = refusal(capsys, train.main(['toy.py', *PSW, '--resume']))
    assert line.startswith("error: no checkpoint in 'run' can be read: ")
    assert contents('run') == before


def test_weights_that_a_part_of_the_model_begins_with(folder, capsys):
    make('code', Path('run/iter_6.pth'))
    line = refusal(capsys, train.main(
        ['toy.py', '--work-dir', 'new', '--cfg-options',
         'model.init_cfg.type=Pretrained',
         'model.init_cfg.checkpoint=run/bad.pth']))
    assert 'asks for code to be run' in line
    assert not Path('made').exists() and not Path('new').exists()


@pytest.fixture
def address(folder, monkeypatch):
    """Where the current folder's files can be downloaded."""
    monkeypatch.setenv('TORCH_HOME', str(folder / 'home'))

    class Quiet(http.server.SimpleHTTPRequestHandler):

        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_code_in_a_download_is_not_run(folder, address, capsys):
    """torch.hub, which mmengine downloads with, would run it."""
    make('code', Path('run/iter_6.pth'))
    argv = ['toy.py', '--work-dir', 'new', '--cfg-options']
    status = train.main([*argv, f'load_from={address}/run/bad.pth'])
    assert 'asks for code to be run' in capsys.readouterr().err
    assert status == 2 and not Path('made').exists()
    assert train.main([*argv, f'load_from={address}/run/iter_6.pth']) == 0


def test_the_switch_of_torch_is_put_back(monkeypatch):
    name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    monkeypatch.delenv(name, raising=False)
    assert options.report_errors(lambda: os.environ[name]) == 0
    assert name not in os.environ
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(KeyError):
        options.report_errors(lambda: os.environ[name])
