"""Work directories: one that mmengine itself wrote, and some by hand."""
import math
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
    expected_metric,
    full_name,
    higher_is_better,
    logged_by,
    primary_metric,
    read_run,
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
    run = read_run(tmp_path)
    assert run.validations == {
        step: {'toy/error': 1.0, 'toy/acc': value}
        for step, value in enumerate(VALUES[:3], start=1)
    }
    assert (run.unit, run.seed, run.max_steps) == ('epoch', 7, 3)
    assert 0 < run.time < 1
    assert math.isnan(run.memory)
    assert run.logged == ['toy/error', 'toy/acc']
    assert run.config.train_cfg.max_epochs == 3


def test_joins_a_run_that_mmengine_resumed(tmp_path):
    allow_resume()
    train(tmp_path, 2)
    time.sleep(1.1)  # mmengine's directories are named by the second
    train(tmp_path, 4, first=2, resume=True)
    run = read_run(tmp_path)
    assert [metrics['toy/acc'] for metrics in
            run.validations.values()] == VALUES
    assert [line['iter'] for line in run.training] == [*range(1, 13)]


def values(work_dir, metric='acc'):
    """{step: value} of the run in a work directory."""
    return {step: metrics[metric] for step, metrics
            in read_run(work_dir).validations.items()}


@pytest.mark.parametrize(('second', 'resumed', 'joined'), [
    # what came after the checkpoint is replaced
    ([train_line(9), val_line(2, acc=20.0)], True, {1: 1.0, 2: 20.0}),
    # without a validation, the earlier ones are kept
    ([train_line(9)], True, {1: 1.0, 2: 2.0, 3: 3.0}),
    # a validation alone is no run
    ([val_line(0, acc=5.0)], False, {1: 1.0, 2: 2.0, 3: 3.0}),
    ([train_line(1), val_line(2, acc=20.0)], False, {2: 20.0}),
])
def test_a_resumed_run_is_one(tmp_path, second, resumed, joined):
    session(tmp_path, '1', [train_line(1)] +
            [val_line(step, acc=float(step)) for step in (1, 2, 3)])
    session(tmp_path, '2', second, config=f'resume = {resumed}')
    assert values(tmp_path) == joined


def test_time_is_the_median_without_warming_up(tmp_path):
    times = [9.0, 0.3, 0.1, 0.2, 0.4, 0.5]
    session(tmp_path, '1', [train_line(i, time=t, memory=100 - i)
                            for i, t in enumerate(times)])
    run = read_run(tmp_path)
    assert (run.time, run.memory) == (0.3, 100)


def test_a_single_time_is_better_than_none_and_a_list_is_no_metric(tmp_path):
    line = val_line(1, acc=0.1, per_class=[0.1, 0.2])
    session(tmp_path, '1', [train_line(1, time=0.5), line])
    run = read_run(tmp_path)
    assert (run.time, run.logged) == (0.5, ['acc'])


@pytest.mark.parametrize(('logged', 'save_best', 'metric'), [
    (['acc', 'top'], None, 'acc'),
    (['acc', 'top'], 'top', 'top'),
    (['acc', 'top'], ['other', 'top'], 'top'),
    (['aAcc', 'mIoU'], 'auto', 'mIoU'),
    (['coco/RBC_precision', 'coco/bbox_mAP_50', 'coco/bbox_mAP'], None,
     'coco/bbox_mAP'),
])
def test_the_primary_metric(logged, save_best, metric):
    assert primary_metric(logged, dict(save_best=save_best)) == metric


@pytest.mark.parametrize(('evaluator', 'save_best', 'metric'), [
    (dict(type='CocoMetric', metric='bbox'), None, 'coco/bbox_mAP'),
    ([dict(type='Other'), dict(type='mmseg.IoUMetric')], 'auto', 'mIoU'),
    # SOLO, RPN, DRIVE, and one that logs each class.
    (dict(type='CocoMetric', metric='segm'), None, 'coco/segm_mAP'),
    (dict(type='CocoMetric', metric='proposal_fast'), None, 'coco/AR@1000'),
    (dict(type='CocoMetric', metric='proposal'), None, 'coco/AR@1000'),
    (dict(type='IoUMetric', iou_metrics=['mDice']), None, 'mDice'),
    (dict(type='CocoMetric', classwise=True), None, 'coco/bbox_mAP'),
    (dict(type='Other'), 'psnr', 'psnr'),
    (dict(type='Other'), None, None),
])
def test_the_metric_is_known_before_it_is_logged(evaluator, save_best, metric):
    assert expected_metric(Config(dict(
        val_evaluator=evaluator, default_hooks=dict(
            checkpoint=dict(save_best=save_best))))) == metric


@pytest.mark.parametrize(('metric', 'rule', 'hook', 'higher'), [
    ('val_loss', None, {}, False),
    ('val_loss', 'greater', {}, True),
    ('val_loss', None, dict(save_best='auto', rule='greater'), True),
    ('psnr', None, dict(save_best=['x', 'psnr'], rule=['less', 'greater']),
     True),
    ('acc', None, dict(save_best='other', rule='less'), True),
    ('lvis/bbox_AP', None, {}, True),
    ('coco_panoptic/PQ', None, {}, True),
    ('coco/AR@1000', None, {}, True),
])
def test_a_loss_is_better_when_lower(metric, rule, hook, higher):
    assert higher_is_better(metric, rule, hook) is higher


def test_a_metric_may_be_named_by_its_last_part():
    logged = ['coco/bbox_mAP_50', 'coco/bbox_mAP', 'voc/bbox_mAP']
    assert full_name('bbox_mAP', logged) == 'coco/bbox_mAP'
    assert full_name('voc/bbox_mAP', logged) == 'voc/bbox_mAP'
    assert full_name('mAP', logged) is None


def test_half_a_line_at_the_end_is_left_out_and_an_error_before(tmp_path):
    path = session(tmp_path, '1', [train_line(1), val_line(1, acc=1.0)])
    whole = path.read_text()
    path.write_text(whole + '{"acc": 2.0, "st')
    assert values(tmp_path) == {1: 1.0}
    path.write_text('{"acc"\n' + whole)
    with pytest.raises(ValueError, match='line 1 of .*scalars.json'):
        read_run(tmp_path)


def test_what_is_not_utf_8_is_a_sentence(tmp_path):
    path = session(tmp_path, '1', [train_line(1), val_line(1, acc=1.0)])
    whole = path.read_bytes()
    path.write_bytes(b'\xff\xfe\x00\n' + whole)
    with pytest.raises(ValueError, match='line 1 of .* is no JSON'):
        read_run(tmp_path)
    path.write_bytes(whole)
    path.with_name('config.py').write_bytes(b'a = "\xff"')
    with pytest.raises(ValueError, match='config.py. cannot be read'):
        read_run(tmp_path)


@pytest.mark.parametrize(('evaluator', 'names'), [
    (dict(type='CocoMetric', metric=['bbox', 'segm'], metric_items=['mAP']),
     ['coco/bbox_mAP', 'coco/segm_mAP']),
    (dict(type='CocoMetric', classwise=True), []),
    (dict(type='CocoMetric', metric='proposal_fast', proposal_nums=(1, 9)),
     ['coco/AR@1', 'coco/AR@9']),
    (dict(type='mmseg.IoUMetric', iou_metrics=['mIoU']),
     ['aAcc', 'mIoU', 'mAcc']),
    ([dict(type='Accuracy', topk=(1, 5)), dict(type='Accuracy', prefix='b')],
     ['accuracy/top1', 'accuracy/top5', 'b/top1']),
    ([dict(type='Accuracy'), dict(type='Other')], []),
])
def test_names_are_known_before_anything_is_logged(evaluator, names):
    assert logged_by(Config(dict(val_evaluator=evaluator))) == names


def test_a_detector_that_finds_nothing_has_a_map_of_zero(tmp_path):
    session(tmp_path, '1', [train_line(1), val_line(1), train_line(2),
                            val_line(2, **{'coco/bbox_mAP': 0.5})],
            "val_evaluator = dict(type='CocoMetric')")
    assert values(tmp_path, 'coco/bbox_mAP') == {1: 0.0, 2: 0.5}


@pytest.mark.parametrize(('folder', 'seed', 'found'), [
    ('any', 3, 3), ('seed_4', None, 4), ('seed_4', 3, 3), ('any', None, None),
])
def test_the_configs_seed_comes_before_the_folders(tmp_path, folder, seed,
                                                   found):
    assert read_run(trained(tmp_path / folder, [1.0], seed)).seed == found


def test_a_config_whose_imports_are_not_installed_can_be_read(tmp_path):
    trained(tmp_path, [1.0], extra="custom_imports = dict(imports=['no_one'])")
    assert values(tmp_path) == {1: 1.0}


# Training 25 iterations, validating after every 10 and at the end, with the
# LoggerHook's default: every validation says step 0.
ITERATIONS = 'train_cfg = dict(max_iters=25, val_interval=10)'


@pytest.mark.parametrize('logged', [[5, 10, None, 15, 20, None, 25, None],
                                    [7, None, 14, None, 21, None]])
def test_validations_of_an_iteration_based_loop_get_its_iterations(
        tmp_path, logged):
    found = iter([1.0, 2.0, 3.0])
    lines = [train_line(i) if i else val_line(0, acc=next(found))
             for i in logged]
    session(tmp_path, '1', lines, ITERATIONS)
    assert values(tmp_path) == {10: 1.0, 20: 2.0, 25: 3.0}
    run = read_run(tmp_path)
    assert (run.unit, run.max_steps) == ('iteration', 25)


def test_iterations_that_are_logged_are_taken(tmp_path):
    session(tmp_path, '1', [train_line(8), val_line(8, mIoU=5.0)], ITERATIONS
            + '\ndefault_hooks = dict(logger=dict(log_metric_by_epoch=False))')
    assert values(tmp_path, 'mIoU') == {8: 5.0}


def test_a_resumed_iteration_based_loop_goes_on_counting(tmp_path):
    session(tmp_path, '1', [train_line(10), val_line(0, acc=1.0)], ITERATIONS)
    session(tmp_path, '2', [train_line(20), val_line(0, acc=2.0)],
            ITERATIONS + "\nresume = True")
    assert values(tmp_path) == {10: 1.0, 20: 2.0}
