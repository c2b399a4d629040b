"""What is said about runs that are not quite comparable."""
import pytest
from compare.work_dirs import grid, trained

from mmpsw.compare.comparison import read
from mmpsw.compare.notes import environment, notes, title
from mmpsw.configs import load_config


def said(*paths):
    return notes(read(paths))


def test_of_a_whole_grid_nothing_is_said(tmp_path):
    one = {'baseline': {0: [1., 2.]}, 'pswa': {0: [1., 2.]}}
    assert said(grid(tmp_path / 'one', one)) == []
    two = {arm: {**runs, 1: [1., 2.]} for arm, runs in one.items()}
    assert said(grid(tmp_path / 'two', two)) == []


@pytest.mark.parametrize(('pswa', 'expected'), [
    ({0: [1., 2.]},
     'pswa has the seeds 0, baseline 0, 1; differences are over the shared '
     'seeds 0.'),
    ({2: [1.], 3: [1.]},
     'pswa has the seeds 2, 3, baseline 0, 1; no seed is shared, so that '
     'differences are those of the means.'),
    ({0: [1.], 1: [1.]},
     'The runs end at different epochs (baseline: 2; pswa: 1): final and '
     'best are not from equally long runs.'),
    ({0: [None, 1.], 1: [1., 2.]},
     'pswa, seed 0, has no acc at epoch 1, where others have.'),
    ({0: [None, 1.], 1: [1., 2.]},
     'area is over the points that all runs have: 2.'),
    ({0: [float('nan'), 1.], 1: [1., 2.]},
     'pswa, seed 0, has acc = nan at epoch 1.'),
    ({0: [None, None, 1.], 1: [None, None, 1.]},
     'There is no area, because no point is shared by all runs.'),
])
def test_each_fault_is_named(tmp_path, pswa, expected):
    grid(tmp_path, {'baseline': {0: [1., 2.], 1: [1., 2.]}, 'pswa': pswa})
    (tmp_path / 'comparison.json').unlink()
    assert expected in said(tmp_path)


def test_other_metrics_are_named(tmp_path):
    trained(tmp_path / 'baseline', [1.], 0)
    path = next(tmp_path.rglob('scalars.json'))
    path.write_text(path.read_text().replace('"acc"', '"loss": 2, "acc"'))
    assert said(tmp_path)[0].startswith('Compared by loss; also logged: acc')


def test_unknown_and_repeated_seeds_are_named(tmp_path):
    trained(tmp_path / 'baseline', [1.])
    for name in ('r1', 'r2'):
        trained(tmp_path / name, [1.], 5)
    found = said(tmp_path / 'baseline', f'x={tmp_path}/r1', f'x={tmp_path}/r2')
    assert found[0].startswith('The seeds of baseline are not known')
    assert found[1].startswith('x has several runs of seed 5')


def test_other_configs_within_an_arm_are_named(tmp_path):
    for seed in (0, 1):
        for arm in ('baseline', 'pswa'):
            extra = f'lr = {seed if arm == "pswa" else 0}'
            trained(tmp_path / arm / f'seed_{seed}', [1.], seed, extra=extra)
    assert said(tmp_path) == ['pswa, seed 1, was trained with another config '
                              "than its arm's first run."]


def test_other_validation_data_are_named(tmp_path):
    for arm in ('baseline', 'pswa'):
        for seed in (0, 1):
            trained(tmp_path / arm / f'seed_{seed}', [1.], seed, extra=(
                'val_dataloader = dict(dataset=dict(type="D", '
                f'data_root="{arm}", ann_file="{arm}/{arm}.json"))'))
    (note, ) = said(tmp_path)
    assert note.startswith('pswa was validated on other data than baseline '
                           '(val_dataloader.dataset: ann_file)')


def test_the_environment_is_read_from_the_log(tmp_path):
    trained(tmp_path / 'a', [1.], 3, torch='2.9')
    lines = environment(read([tmp_path / 'a']).first).splitlines()
    assert (lines[0], lines[-1]) == ('System environment:',
                                     '    GPU number: 1')
    assert '    PyTorch: 2.9' in lines
    next(tmp_path.rglob('*.log')).unlink()
    assert environment(read([tmp_path / 'a']).first) is None


def test_other_environments_are_named_and_other_seeds_are_none(tmp_path):
    for seed in (0, 1):
        trained(tmp_path / 'baseline' / f'seed_{seed}', [1.], seed)
        trained(tmp_path / 'pswa' / f'seed_{seed}', [1.], seed,
                torch=f'2.{11 - seed}')
    (note, ) = said(tmp_path)
    assert ('(baseline, seed 0; baseline, seed 1; pswa, seed 0 | '
            'pswa, seed 1)') in note


def test_whose_time_has_others_in_it(tmp_path):
    work = grid(tmp_path, {'baseline': {0: [1.], 1: [1.]},
                           'psw': {0: [1.], 1: [1.]}}, passengers=['psw'])
    assert said(work) == []  # no time was logged
    for path in work.rglob('scalars.json'):
        path.write_text(path.read_text().replace('"loss"', '"time": 1, "loss"'
                                                 ))
    assert said(work) == ['s/iter of baseline includes what psw took, which '
                          'rode along.']


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    work = grid(tmp_path, {'baseline': {0: [1.], 1: [1.]}})
    path = next((work / 'baseline' / 'seed_1').rglob('scalars.json'))
    path.write_text(path.read_text().replace(
        '"loss": 1.0, "iter": 2', '"loss": NaN, "iter": 2'))
    assert said(work) == ['baseline, seed 1, has a loss that is not finite '
                          'from iteration 2 on: 1 of the 2 that were logged.']


@pytest.mark.parametrize('config, expected', [
    ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
     'RetinaNet (ResNet-50) on coco'),
    ('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
     'PSPHead (ResNetV1c-50) on cityscapes'),
    ('mmpretrain::resnet/resnet18_8xb16_cifar10.py',
     'ResNet_CIFAR-18 on cifar10'),
    ('configs/study/resnet18_sign_digits.py', 'ResNet-18 on sign_digits'),
    ('configs/study/retinanet_r18_digits.py',
     'RetinaNet (ResNet-18) on digits'),
])
def test_a_title_says_what_is_trained_on_what(config, expected):
    assert title(load_config(config)) == expected


def test_a_config_without_model_has_no_title(tmp_path):
    trained(tmp_path / 'a', [1.])
    assert title(read([tmp_path / 'a']).first.config) is None
