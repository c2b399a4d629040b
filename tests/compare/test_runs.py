"""Work directories: one that mmengine itself wrote, and some by hand."""
import time

import pytest
import torch
from compare.work_dirs import session, train_line, trained, val_line
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner

from mmpsw.checkpoints import allow_resume
from mmpsw.compare.runs import (
    Arm,
    Run,
    check_comparable,
    paired_runs,
    read_run,
    validated_steps,
)

VALUES = [0.25, 0.75, 0.5, 0.875]


@MODELS.register_module()
class CompareToyModel(BaseModel):

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'loss':
            return dict(loss=((self.weight - inputs)**2).mean())
        return [inputs]


@DATASETS.register_module()
class CompareToyData(torch.utils.data.Dataset):

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return dict(inputs=torch.ones(1), data_samples=index)


@METRICS.register_module()
class CompareToyMetric(BaseMetric):
    """Says VALUES, one after the other, beginning where it is told."""

    default_prefix = 'toy'

    def __init__(self, first):
        super().__init__()
        self.values = iter(VALUES[first:])

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(error=1.0, acc=next(self.values))


def train(work_dir, epochs, first=0, **others):
    loader = dict(
        dataset=dict(type='CompareToyData'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=2,
        collate_fn=dict(type='default_collate'),
        num_workers=0)
    cfg = Config(
        dict(
            model=dict(type='CompareToyModel'),
            work_dir=str(work_dir),
            randomness=dict(seed=7),
            train_dataloader=loader,
            val_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            val_evaluator=dict(type='CompareToyMetric', first=first),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(
                    type='CheckpointHook', interval=1, save_best='toy/acc')),
            experiment_name=f'{work_dir}{first}',
            **others))
    Runner.from_cfg(cfg).train()


@pytest.mark.parametrize('hierarchy', [False, True])
def test_reads_what_mmengine_writes(tmp_path, hierarchy):
    train(tmp_path, 3, log_processor=dict(log_with_hierarchy=hierarchy))
    run = read_run(tmp_path, name='mine')
    assert run.name == 'mine'
    assert run.metric == 'toy/acc'  # save_best's, although error comes first
    assert run.higher_is_better
    assert run.unit == 'epoch'
    assert run.points == ((1, 0.25), (2, 0.75), (3, 0.5))
    assert 0 < run.time_per_iter < 1
    assert (run.seed, run.max_steps, run.finished) == (7, 3, True)
    assert run.logged == ('toy/error', 'toy/acc')
    assert Config.fromfile(run.config_path).train_cfg.max_epochs == 3
    assert validated_steps(tmp_path) == [1, 2, 3]


def test_joins_a_run_that_mmengine_resumed(tmp_path):
    allow_resume()
    train(tmp_path, 2)
    time.sleep(1.1)  # mmengine's directories are named by the second
    train(tmp_path, 4, first=2, resume=True)
    assert read_run(tmp_path).points == tuple(enumerate(VALUES, start=1))


def test_the_name_is_the_directorys_by_default(tmp_path):
    session(tmp_path / 'pswa', '1', [train_line(1), val_line(1, mIoU=2.0)])
    assert read_run(tmp_path / 'pswa').name == 'pswa'


def test_the_newest_of_unrelated_runs_counts(tmp_path):
    session(tmp_path, '20260101_000000',
            [train_line(1), val_line(1, acc=1.0), val_line(2, acc=2.0)])
    session(tmp_path, '20260102_000000', [train_line(1), val_line(1, acc=3.0)])
    assert read_run(tmp_path).points == ((1, 3.0), )


def test_a_resumed_session_replaces_what_came_after_its_checkpoint(tmp_path):
    session(tmp_path, '1', [train_line(1)] +
            [val_line(step, acc=float(step)) for step in (1, 2, 3)])
    session(tmp_path, '2', [train_line(9), val_line(2, acc=20.0)],
            config='resume = True')
    assert read_run(tmp_path).points == ((1, 1.0), (2, 20.0))


def test_a_resumed_session_without_validation_keeps_the_earlier(tmp_path):
    session(tmp_path, '1', [train_line(1), val_line(1, acc=1.0)])
    session(tmp_path, '2', [train_line(9)], config='resume = True')
    assert read_run(tmp_path).points == ((1, 1.0), )


def test_a_validation_alone_is_no_run(tmp_path):
    session(tmp_path, '1', [train_line(1), val_line(1, acc=1.0)])
    session(tmp_path, '2', [val_line(0, acc=5.0)])
    assert read_run(tmp_path).points == ((1, 1.0), )


def test_time_is_the_median_without_warming_up(tmp_path):
    times = [9.0, 0.3, 0.1, 0.2, 0.4, 0.5]
    lines = [train_line(i, time=t) for i, t in enumerate(times)]
    session(tmp_path, '1', [*lines, val_line(1, acc=1.0)])
    assert read_run(tmp_path).time_per_iter == 0.3


def test_a_single_time_is_better_than_none(tmp_path):
    lines = [train_line(1, time=0.5, memory=100), train_line(2, memory=90)]
    session(tmp_path, '1', [*lines, val_line(1, acc=1.0)])
    run = read_run(tmp_path)
    assert run.time_per_iter == 0.5
    assert run.memory == 100


def test_time_and_memory_may_lack(tmp_path):
    session(tmp_path, '1', [train_line(1), val_line(1, acc=1.0)])
    run = read_run(tmp_path)
    assert run.time_per_iter is None
    assert run.memory is None


def test_a_validation_without_the_metric_is_no_point(tmp_path):
    lines = [val_line(1), val_line(2, acc=0.5)]
    session(tmp_path, '1', [train_line(1), *lines])
    assert read_run(tmp_path).points == ((2, 0.5), )
    assert validated_steps(tmp_path) == [1, 2]


def test_the_first_metric_is_taken_where_nothing_says_more(tmp_path):
    session(tmp_path, '1', [train_line(1), val_line(1, acc=0.1, top=0.2)])
    assert read_run(tmp_path).metric == 'acc'
    assert read_run(tmp_path, metric='top').points == ((1, 0.2), )


def test_detection_is_judged_by_bbox_map(tmp_path):
    line = {'coco/RBC_precision': 0.3, 'coco/bbox_mAP': 0.1,
            'coco/bbox_mAP_50': 0.2}
    session(tmp_path, '1', [train_line(1), val_line(1, **line)])
    assert read_run(tmp_path).metric == 'coco/bbox_mAP'
    assert read_run(tmp_path, metric='bbox_mAP_50').points == ((1, 0.2), )


def test_segmentation_is_judged_by_miou(tmp_path):
    session(tmp_path, '1', [train_line(1), val_line(8, aAcc=9.0, mIoU=5.0)],
            "default_hooks = dict(logger=dict(log_metric_by_epoch=False))")
    run = read_run(tmp_path)
    assert (run.metric, run.points) == ('mIoU', ((8, 5.0), ))
    assert run.unit == 'iteration'


@pytest.mark.parametrize(('config', 'rule', 'higher'), [
    ('', None, False),
    ('', 'greater', True),
    ("default_hooks = dict(checkpoint=dict(save_best='auto', rule='greater'))",
     None, True),
])
def test_a_loss_is_better_when_lower(tmp_path, config, rule, higher):
    session(tmp_path, '1', [train_line(1), val_line(1, val_loss=3.0)], config)
    assert read_run(tmp_path, rule=rule).higher_is_better is higher


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = session(tmp_path, '1', [train_line(1), val_line(1, acc=1.0)])
    with path.open('a') as file:
        file.write('{"acc": 2.0, "st')
    assert read_run(tmp_path).points == ((1, 1.0), )


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = session(tmp_path, '1', [train_line(1), val_line(1, acc=1.0)])
    path.write_text('{"acc"\n' + path.read_text())
    with pytest.raises(ValueError, match='Line 1 of .*scalars.json'):
        read_run(tmp_path)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(metric='mAP'), r"'mAP' is not one .*\['acc', 'psnr'\]"),
    (dict(metric='psnr'), "rule='greater' or rule='less'"),
    (dict(rule='more'), "'more' is unknown"),
])
def test_wrong_requests_name_what_is_possible(tmp_path, options, message):
    session(tmp_path, '1', [train_line(1), val_line(1, acc=0.1, psnr=20.0)])
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path, **options)


def test_a_run_that_was_never_validated_is_an_error(tmp_path):
    session(tmp_path, '1', [train_line(1)])
    with pytest.raises(ValueError, match='no validation metric'):
        read_run(tmp_path)
    assert validated_steps(tmp_path) == []


def test_validations_without_any_metric_are_an_error(tmp_path):
    trained(tmp_path, [None, None])
    with pytest.raises(ValueError, match='its 2 validations logged no metric'):
        read_run(tmp_path)


@pytest.mark.parametrize('folder', ['', 'absent'])
def test_a_directory_without_a_run_is_an_error(tmp_path, folder):
    with pytest.raises(ValueError, match='There is no training run'):
        read_run(tmp_path / folder)
    assert validated_steps(tmp_path / folder) == []


def test_comparable_arms_pass(tmp_path):
    session(tmp_path, '1', [train_line(1), val_line(1, acc=1.0)])
    run = read_run(tmp_path)
    check_comparable([Arm('a', (run, )), Arm('b', (run, ))])


@pytest.mark.parametrize(('folder', 'seed', 'found'), [
    ('any', 3, 3), ('seed_4', None, 4), ('seed_4', 3, 3), ('any', None, None),
])
def test_the_configs_seed_comes_before_the_folders(tmp_path, folder, seed,
                                                   found):
    assert read_run(trained(tmp_path / folder, [1.0], seed)).seed == found


def test_a_run_that_was_interrupted_is_not_finished(tmp_path):
    run = read_run(trained(tmp_path, [0.1, 0.2], epochs=3))
    assert (run.max_steps, run.finished) == (3, False)


def test_a_config_whose_imports_are_not_installed_can_be_read(tmp_path):
    trained(tmp_path, [1.0], extra="custom_imports = dict(imports=['no_one'])")
    assert read_run(tmp_path).points == ((1, 1.0), )


# Training 25 iterations, validating after every 10 and at the end, with the
# LoggerHook's default: every validation says step 0.
ITERATIONS = 'train_cfg = dict(max_iters=25, val_interval=10)'


@pytest.mark.parametrize('logged', [[5, 10, None, 15, 20, None, 25, None],
                                    [7, None, 14, None, 21, None]])
def test_validations_of_an_iteration_based_loop_get_its_iterations(
        tmp_path, logged):
    values = iter([1.0, 2.0, 3.0])
    lines = [train_line(i) if i else val_line(0, acc=next(values))
             for i in logged]
    session(tmp_path, '1', lines, ITERATIONS)
    run = read_run(tmp_path)
    assert run.points == ((10, 1.0), (20, 2.0), (25, 3.0))
    assert (run.unit, run.max_steps) == ('iteration', 25)


def test_a_resumed_iteration_based_loop_goes_on_counting(tmp_path):
    session(tmp_path, '1', [train_line(10), val_line(0, acc=1.0)], ITERATIONS)
    session(tmp_path, '2', [train_line(20), val_line(0, acc=2.0)],
            ITERATIONS + "\nresume = True")
    assert read_run(tmp_path).points == ((10, 1.0), (20, 2.0))


def test_runs_of_equal_seeds_are_pairs():
    def arm(name, *seeds):
        return Arm(name, tuple(Run(f'{name}{i}', 'acc', ((1, 1.0), ), seed=s)
                               for i, s in enumerate(seeds)))

    pairs = paired_runs(arm('a', 2, 0, None, 5, 2), arm('b', 0, 2, 2, None))
    assert [(a.name, b.name) for a, b in pairs] == [
        ('a0', 'b1'), ('a1', 'b0'), ('a4', 'b2')
    ]
