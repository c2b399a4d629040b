"""tools/train.py: what its options make of a config, and how it refuses."""
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmpsw import configs
from mmpsw.commands import checks, launch, options, train

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'
RTMDET = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco'
PSPNET = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'
RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k'
CIFAR = 'mmpretrain::resnet/resnet18_8xb16_cifar10'
MAE = 'mmpretrain::mae/benchmarks/vit-large-p16_8xb128'
DEEPSPEED = f'{MAE}-ds-coslr-50e_in1k'
FSDP = f'{MAE}-fsdp-coslr-50e_in1k'
CLS = str(CONFIGS / 'study' / 'resnet18_digits.py')
DET = str(CONFIGS / 'study' / 'retinanet_r18_digits.py')
SEG = str(CONFIGS / 'study' / 'fpn_r18_digits.py')
SMALL = [
    '--cfg-options', 'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0', 'test_dataloader.num_workers=0',
    'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1',
    'train_dataloader.dataset.indices=16', 'val_dataloader.dataset.indices=4'
]
EPOCHS = [*SMALL, 'train_cfg.max_epochs=2']
ITERS = [
    *SMALL, 'train_cfg.max_iters=8', 'train_cfg.val_interval=4',
    'default_hooks.checkpoint.interval=4'
]


def build(*argv):
    return train.build_config(train.parse_args(argv))


def run(*argv):
    return train.main([str(arg) for arg in argv])


def logs(work_dir):
    return '\n'.join(path.read_text() for path in work_dir.rglob('*.log'))


needs_cpu = pytest.mark.skipif(
    launch.has_accelerator(), reason='about machines without accelerator')


# What the options make of a config


def test_without_options_a_stock_config_stays_as_it_is():
    cfg = build(RETINANET)
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert 'custom_hooks' not in cfg and not cfg.get('resume')
    assert cfg.work_dir == './work_dirs/retinanet_r50_fpn_1x_coco'


def test_the_methods_are_in_the_work_dirs_name(tmp_path):
    mine = tmp_path / 'Mine.py'
    mine.write_text("psw = dict(type='PSWA')\n")
    prefix = './work_dirs/retinanet_r50_fpn_1x_coco_'
    for argv, name in [(['--with', 'pswa'], 'pswa'),
                       (['--with', mine], 'mine'),
                       (['--with', 'pwalks', 'ema'], 'pwalks_ema'),
                       (['--with', 'pwalks', '--with', 'ema'], 'pwalks_ema'),
                       (['--with', 'pwalks+ema'], 'pwalks_ema'),
                       (['--with', 'PSWA:begin=3'], 'pswa_begin_3'),
                       (['--with', 'baseline'], 'baseline')]:
        assert build(RETINANET, *map(str, argv)).work_dir == prefix + name
    assert build('--work-dir', 'here', '--with', 'pswa',
                 RETINANET).work_dir == 'here'


def test_options_reach_psw_keys_and_stock_keys():
    cfg = build(RTMDET, '--with', 'pwalks', '--cfg-options',
                'optim_wrapper.psw.buffers=keep',
                'optim_wrapper.optimizer.lr=0.5', 'custom_hooks.0.momentum=7')
    assert cfg.optim_wrapper.psw == dict(
        type='PWALKS', last=0.25, buffers='keep')
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert [hook.type for hook in cfg.custom_hooks
            ] == ['mmpsw.PSWHook', 'EMAHook', 'PipelineSwitchHook']
    assert cfg.custom_hooks[1].momentum == 7


@pytest.mark.parametrize('config', [RETINANET, PSPNET, RESNET])
def test_amp_with_and_without_psw(config):
    cfg = build(config, '--amp')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    cfg = build(config, '--amp', '--with', 'pswm', '--cfg-options',
                'optim_wrapper.loss_scale=512')
    assert cfg.optim_wrapper.type == 'mmpsw.PSWAmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 512


@pytest.mark.parametrize('argv, settings', [
    ([RESNET, '--seed', '7'], dict(randomness=dict(
        seed=7, deterministic=False))),
    ([RETINANET, '--seed', '7', '--cfg-options',
      'randomness.deterministic=True'],
     dict(randomness=dict(seed=7, deterministic=True))),
    ([RETINANET, '--resume', '--cfg-options', 'load_from=mine.pth'],
     dict(resume='newest', load_from='mine.pth')),
    ([RETINANET, '--resume', 'auto'], dict(resume='newest', load_from=None)),
    ([RETINANET, '--from-zoo'], dict(load_from='zoo', resume=False)),
    ([RETINANET, '--seed', '7', '--cfg-options', 'randomness=None'],
     dict(randomness=dict(seed=7))),
    ([RETINANET, '--resume', 'a.pth'], dict(resume=True, load_from='a.pth')),
    ([RETINANET, '--auto-scale-lr'],
     dict(auto_scale_lr=dict(enable=True, base_batch_size=16))),
    ([RETINANET], dict(auto_scale_lr=dict(enable=False, base_batch_size=16))),
])
def test_options_of_a_run(argv, settings):
    cfg = build(*argv)
    assert {key: cfg[key] for key in settings} == settings


def test_dataloaders_get_the_frameworks_defaults():
    loader = build(RESNET).train_dataloader
    assert loader.collate_fn == dict(type='default_collate')
    assert loader.persistent_workers is True
    assert 'collate_fn' not in build(RETINANET).train_dataloader
    loader = build(RETINANET, '--cfg-options',
                   'train_dataloader.num_workers=0').train_dataloader
    assert loader.persistent_workers is False


@needs_cpu
def test_a_distributed_run_fits_a_cpu(monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = build(PSPNET, '--launcher', 'pytorch')
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', device_ids=None,
        broadcast_buffers=False, find_unused_parameters=False)
    assert cfg.model.backbone.norm_cfg.type == 'BN'
    assert cfg.model.decode_head.norm_cfg.type == 'BN'


# How it refuses


def refusal(capsys, *argv):
    """The one line that a command ends with."""
    assert run(*argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ')
    return lines[0]


@pytest.mark.parametrize('argv, message', [
    (['mmdet::retinanet/retinanet_r50_fpn_1x_coc'], 'did you mean'),
    (['nowhere.py'], 'does not exist'),
    ([RETINANET, '--with', 'pwalk'], "did you mean 'pwalks'"),
    ([PSPNET, '--auto-scale-lr'], 'auto_scale_lr.base_batch_size'),
    ([RETINANET, '--launcher', 'pytorch'], 'tools/dist_train.sh'),
    ([RETINANET, '--resume', 'no.pth'], "checkpoint 'no.pth' does not exist"),
    ([RETINANET, '--resume', '.'], "checkpoint '.' is a folder"),
    ([RETINANET, '--cfg-options', 'param_schedular=None'],
     "a Runner has; did you mean 'param_scheduler'?"),
    ([RETINANET, '--work-dir', 'file'], 'is a file'),
    ([RTMDET, '--cfg-options', 'custom_hooks.9.a=1'], '--cfg-options'),
    ([RETINANET, '--with', 'pswa', '--cfg-options',
      'optim_wrapper.type=ApexOptimWrapper'], 'ApexOptimWrapper'),
    ([RETINANET, '--with', 'pwalks'],
     "train_dataloader.dataset: 'data/coco/annotations/instances_train2017."
     "json' and 'data/coco/train2017/' do not exist; put the data set at "
     "data_root='data/coco/'"),
    ([PSPNET], "data_root='data/cityscapes/'"),
    (['mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512'],
     'train_dataloader.dataset.datasets.0.data_root=FOLDER'),
    ([RESNET], "data_root='data/imagenet'"),
    ([DEEPSPEED, '--with', 'pswa'],
     'FlexibleRunner with DeepSpeedStrategy, because its checkpoints'),
    ([FSDP, '--with', 'pwalks'],
     'FlexibleRunner with FSDPStrategy, because its checkpoints'),
    ([FSDP, '--cfg-options', 'optim_wrapper.type=mmpsw.PSWOptimWrapper'],
     'FlexibleRunner with FSDPStrategy'),
    ([RETINANET, '--with', 'pswa', 'pwalks'],
     "'pswa' and 'pwalks' cannot be used together, because both set psw"),
    (['by_hand.py'],
     'optim_wrapper.psw.write_back=False and EMAHook cannot be used together'),
    ([RETINANET, '--with', 'ema', 'swa'], 'EMAHook and EpochAverageHook'),
    ([RESNET, '--with', 'psw', 'schedule_free'],
     'psw.write_back=False and ScheduleFreeHook'),
    ([RETINANET, '--with', 'pswa', 'ema', '--cfg-options',
      'optim_wrapper.psw.evaluate=average'],
     "psw.evaluate='average' and EMAHook"),
    ([RETINANET, '--with', 'pwalks', '--cfg-options',
      'optim_wrapper.psw.last=2.5'], 'psw: last=2.5'),
    ([RETINANET, '--cfg-options', 'optim_wrapper.psw.x=1'],
     "optim_wrapper.psw cannot be used with optim_wrapper.type='Optim"),
    ([RETINANET, '--cfg-options',
      'optim_wrapper.type=mmpsw.PSWOptimWrapper'], 'needs optim_wrapper.psw'),
    pytest.param([RETINANET, '--launcher', 'slurm'],
                 'needs accelerators', marks=needs_cpu),
    pytest.param([RETINANET, '--amp'], "optim_wrapper.type='AmpOptimWrapper' "
                 '(mixed precision) needs an accelerator, but torch sees none;'
                 ' leave out --amp, or train --with psw', marks=needs_cpu),
    pytest.param(['mmdet::retinanet/retinanet_r50_fpn_amp-1x_coco'],
                 "use optim_wrapper.type='OptimWrapper', without loss_scale",
                 marks=needs_cpu),
])
def test_one_line_before_anything_is_made(argv, message, tmp_path, capsys,
                                          monkeypatch):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'by_hand.py').write_text(f"""
_base_ = '{RTMDET}.py'
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper',
                     psw=dict(type='PSWA', write_back=False))
custom_hooks = [dict(type='mmpsw.PSWHook'), dict(type='EMAHook')]
""")
    monkeypatch.chdir(tmp_path)
    for name in ('RANK', 'LOCAL_RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    assert message in refusal(capsys, *argv)
    assert {path.name for path in tmp_path.iterdir()} == {'file',
                                                          'by_hand.py'}


@needs_cpu
@pytest.mark.parametrize('argv', [
    ['--amp', '--with', 'pwalks', *EPOCHS],
    ['--with', 'psw', *EPOCHS,
     'optim_wrapper.type=mmpsw.PSWAmpOptimWrapper'],
], ids=['option', 'config'])
def test_ours_trains_on_a_cpu_in_bfloat16(argv, folder):
    assert run(CLS, '--work-dir', 'run', *argv, 'train_cfg.max_epochs=1') == 0
    log = logs(Path('run'))
    assert 'PSWAmpOptimWrapper' in log and 'psw/samples' in log


def test_a_loader_of_its_own_files_may_lack_them(folder):
    checks.check_data(build(CIFAR), 'train', 'val')
    cfg = build(CIFAR, '--cfg-options',
                'train_dataloader.dataset.download=False')
    with pytest.raises(FileNotFoundError, match='data/cifar10'):
        checks.check_data(cfg, 'train')


def test_the_validation_data_is_looked_for_too(folder, capsys):
    line = refusal(capsys, DET, '--cfg-options',
                   'val_evaluator.ann_file=data/no.json')
    assert "val_evaluator: 'data/no.json' does not exist" in line
    line = refusal(capsys, DET, '--cfg-options',
                   'val_dataloader.dataset.data_prefix.img=pictures/')
    assert "val_dataloader.dataset: 'data/digits/det/pictures/'" in line


@pytest.mark.parametrize('argv, message', [
    ([RETINANET, '--cfg-options', 'lr'], "takes key=value, but got 'lr'"),
    ([RETINANET, '--seed', '-1'], '-1 is not an integer >= 0'),
    ([RETINANET, '--seed', str(2**32)], 'NumPy takes less than 2 ** 32'),
    (['--with', 'psw'], 'a CONFIG is required'),
    ([], 'a CONFIG is required'),
])
def test_a_wrong_option(argv, message, capsys):
    with pytest.raises(SystemExit) as info:
        run(*argv)
    assert info.value.code == 2
    assert message in capsys.readouterr().err


def test_the_methods_are_listed(capsys):
    with pytest.raises(SystemExit) as info:
        run('--with', 'list')
    assert info.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert sorted(names) == sorted(configs.known_methods())
    assert names[:2] == ['psw', 'extend'] and names[-1] == 'sparsity'
    assert 'mean of each epoch' in lines[0]


@pytest.mark.parametrize('option, message', [
    ('optim_wrapper.psw.lsat=3', 'lsat'),
    ('optim_wrapper.psw.period=0', 'period'),
    ('train_cfg=None', 'train_dataloader, train_cfg'),
])
def test_a_wrong_value_found_while_building(option, message, folder, capsys):
    line = refusal(capsys, CLS, '--with', 'pswa', *EPOCHS, option)
    assert message in line


def test_a_bug_keeps_its_traceback(folder):
    with pytest.raises(TypeError):
        run(CLS, *EPOCHS, 'train_cfg.no_such_argument=1')


def command(code, path, monkeypatch):
    """A command of ours, whose code is in this file."""
    monkeypatch.setattr(options, '_OURS', (f'{path.parent}/ours', ))
    path.write_text(code)
    return lambda: runpy.run_path(str(path))


RAISE = """
if True:
    raise ValueError(
        'a wrong value')
"""


@pytest.mark.parametrize('code', [
    "int('x')", "'ab'.index('c')", 'a, b = 1, 2, 3', "open('/')"])
def test_an_accident_inside_of_ours_is_a_bug(code, tmp_path, monkeypatch):
    with pytest.raises((ValueError, OSError)) as info:
        options.report_errors(command(code, tmp_path / 'ours.py',
                                      monkeypatch))
    assert info.traceback[-1].path == tmp_path / 'ours.py'


def test_what_is_raised_on_purpose_is_a_sentence(tmp_path, capsys,
                                                 monkeypatch):
    ours = command(RAISE, tmp_path / 'ours.py', monkeypatch)
    assert options.report_errors(ours) == 2
    assert capsys.readouterr().err == 'error: a wrong value\n'
    with pytest.raises(ValueError):
        options.report_errors(command(RAISE, tmp_path / 'elsewhere.py',
                                      monkeypatch))

    def registry():  # older mmengine puts the class's name in front
        try:
            ours()
        except ValueError as error:
            raise type(error)(f'class A: {error}')  # noqa: B904

    assert options.report_errors(registry) == 2
    assert capsys.readouterr().err == 'error: class A: a wrong value\n'


@pytest.mark.parametrize('work_dir', ['/proc/run', 'file/run'])
def test_a_work_dir_that_cannot_be_written(work_dir, folder, capsys):
    Path('file').write_text('')
    line = refusal(capsys, CLS, '--work-dir', work_dir, *EPOCHS)
    assert re.fullmatch(
        f"error: --work-dir '{work_dir}' cannot be written, because the "
        "system says '[A-Z][a-z ]+'; give another folder", line)


def test_what_rides_along_overwrites_nothing(folder, capsys):
    Path('own').mkdir()
    Path('own', 'epoch_2.pth').write_text('mine')
    line = refusal(capsys, CLS, '--ride-along', 'ema', 'own', *EPOCHS)
    assert "'own' holds checkpoints of an earlier run (epoch_2.pth)" in line


@pytest.mark.parametrize('argv, message', [
    (['ema', 'a', '--ride-along', 'psw', 'b/../a'],
     "folder 'b/../a' is the work dir, or anoth"),
    (['ema', 'run', '--work-dir', './run'],
     "folder 'run' is the work dir, or"),
    (['ema', 'a', '--cfg-options', 'val_dataloader=None', 'val_cfg=None',
      'val_evaluator=None'], 'the config has no val_dataloader'),
])
def test_each_that_rides_along_has_a_folder_of_its_own(argv, message, folder,
                                                       capsys):
    line = refusal(capsys, CLS, '--ride-along', *argv)
    assert message in line
    assert not Path('a').exists() and not Path('run').exists()


def test_the_command_itself(tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'train.py', RETINANET, '--with',
         'pwalks'],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith('error: train_dataloader.dataset: ')
    assert 'data/coco' in result.stderr and 'Traceback' not in result.stderr
    assert not (tmp_path / 'work_dirs').exists()


# Training


@pytest.mark.parametrize('config, small, first, last', [
    (CLS, EPOCHS, 'epoch_1.pth', 'epoch_2.pth'),
    (DET, EPOCHS, 'epoch_1.pth', 'epoch_2.pth'),
    (SEG, ITERS, 'iter_4.pth', 'iter_8.pth'),
], ids=['cls', 'det', 'seg'])
def test_training_resuming_and_refusing(config, small, first, last, folder,
                                        capsys, monkeypatch):
    # On a GPU a bilinear upsampling has other bits each time.
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')
    argv = [config, '--with', 'pwalks', '--seed', '1', *small]
    work_dir = folder / 'work_dirs' / f'{Path(config).stem}_pwalks'
    assert run(*argv) == 0
    assert 'psw/shift' in logs(work_dir)
    whole = torch.load(work_dir / last, weights_only=True)['state_dict']

    def times():
        return {path: path.stat().st_mtime_ns for path in work_dir.iterdir()}

    before = times()
    line = refusal(capsys, *argv)
    assert '--resume' in line and '--overwrite' in line
    assert before == times()

    (work_dir / last).unlink()
    assert run(*argv, '--resume') == 0
    again = torch.load(work_dir / last, weights_only=True)['state_dict']
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert f'/{first}, the newest readable checkpoint' in logs(work_dir)


class PressCtrlC(Hook):
    """In the second of two epochs of four iterations."""

    def after_train_iter(self, runner, batch_idx, **kwargs):
        if runner.iter == 5:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c(folder, capsys, monkeypatch):
    monkeypatch.setitem(HOOKS.module_dict, 'PressCtrlC', PressCtrlC)
    # A shell's background jobs ignore it, and so would these tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Path('press.py').write_text("custom_hooks = [dict(type='PressCtrlC')]")
    argv = [CLS, '--with', 'pwalks', '--work-dir', 'run', *EPOCHS]
    assert run(*argv[:3], '--with', 'press.py', *argv[3:]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        'interrupted at iteration 5; --resume continues')
    assert run(*argv, '--resume') == 0
    assert Path('run/epoch_2.pth').is_file()


def test_a_stock_run_resumes_and_is_overwritten_when_asked(folder):
    argv = [CLS, '--work-dir', 'run', *EPOCHS]
    assert run(*argv) == 0
    Path('run/epoch_2.pth').unlink()
    assert run(*argv, '--resume', 'run/epoch_1.pth') == 0
    assert Path('run/epoch_2.pth').is_file()
    Path('run/epoch_1.pth').write_bytes(b'old')
    assert run(*argv) == 2
    assert Path('run/epoch_1.pth').read_bytes() == b'old'
    assert run(*argv, '--overwrite') == 0
    assert 'state_dict' in torch.load('run/epoch_1.pth', weights_only=True)


def test_a_config_is_not_replaced_by_what_a_run_makes_of_it(folder, capsys):
    Path('mine.py').write_text(f"_base_ = '{CLS}'\n")
    line = refusal(capsys, 'mine.py', '--work-dir', '.', *EPOCHS)
    assert 'is the folder of the config' in line
    assert Path('mine.py').read_text() == f"_base_ = '{CLS}'\n"


def test_checkpoints_in_another_folder_are_protected_too(folder, capsys):
    Path('there/run').mkdir(parents=True)
    Path('there/run/epoch_1.pth').write_bytes(b'old')
    line = refusal(capsys, CLS, '--work-dir', 'run', '--cfg-options',
                   'default_hooks.checkpoint.out_dir=there')
    assert "'there/run' holds checkpoints of an earlier run" in line


def test_a_best_that_is_not_logged_is_refused_at_once(folder, capsys):
    line = refusal(capsys, CLS, '--cfg-options',
                   'default_hooks.checkpoint.save_best=mIoU')
    assert "save_best='mIoU'" in line and 'give one of accuracy/top1' in line


def test_resuming_elsewhere_protects_the_work_dir(folder, capsys):
    Path('run').mkdir()
    Path('run/epoch_1.pth').write_bytes(b'old')
    Path('other.pth').write_bytes(b'other')
    line = refusal(capsys, CLS, '--work-dir', 'run', '--resume', 'other.pth')
    assert 'epoch_1.pth' in line
