"""What counts as a difference between two configs."""
import pytest
from mmengine.config import Config

from mmpsw.compare import differences

OURS = dict(
    custom_hooks=[dict(type='mmpsw.PSWHook'), dict(type='EMAHook')],
    load_from='b/epoch_7.pth', model=dict(depth=18, out=(1, 2)),
    randomness=dict(deterministic=False, seed=1), resume=True, work_dir='b')
THEIRS = dict(
    custom_hooks=[dict(type='EMAHook')], load_from=None,
    model=dict(depth=18, out=(1, 2)),
    randomness=dict(deterministic=False, seed=0), resume=False, work_dir='a')


def diff(ours, theirs):
    return differences.changed_lines(Config(ours), Config(theirs))


def test_the_diff_leaves_places_and_seeds_aside():
    assert diff(OURS, THEIRS) == ["+custom_hooks[].type = 'mmpsw.PSWHook'"]
    assert diff(THEIRS, OURS) == ["-custom_hooks[].type = 'mmpsw.PSWHook'"]
    assert diff(OURS, OURS) == []


@pytest.mark.parametrize('change', [
    dict(load_from='a.pth'), dict(model=dict(depth=50, out=(1, 2))),
    dict(randomness=dict(deterministic=True, seed=0)), dict(custom_hooks=[]),
])
def test_all_else_is_a_difference(change):
    assert diff({**THEIRS, **change}, THEIRS)


def data(**dataset):
    config = Config(dict(val_dataloader=dict(dataset=dataset)))
    return differences.data_of(config, 'val')


STOCK = dict(type='CocoDataset', data_root='data/coco/',
             ann_file='annotations/val.json', data_prefix=dict(img='val2017/'))


@pytest.mark.parametrize('change', [
    dict(data_root='/mnt/coco', ann_file='/mnt/coco/annotations/val.json'),
    dict(type='mmdet.CocoDataset', _scope_='mmdet'),
    dict(pipeline=[dict(type='Resize')], test_mode=True, backend_args=None),
    dict(data_prefix=dict(img='val2017')),
])
def test_the_same_data_elsewhere_are_the_same(change):
    assert data(**{**STOCK, **change}) == data(**STOCK)


@pytest.mark.parametrize(('change', 'keys'), [
    (dict(ann_file='annotations/mini.json'), ['ann_file']),
    (dict(data_prefix=dict(img='test/')), ['data_prefix.img']),
    (dict(type='VOCDataset'), ['type']),
    (dict(metainfo=dict(classes=('cat', ))), ['metainfo']),
    (dict(indices=10, ann_file=None), ['ann_file', 'indices']),
])
def test_other_data_are_named(change, keys):
    assert differences.differing_keys(data(**{**STOCK, **change}),
                                  data(**STOCK)) == keys


def test_data_in_wrappers_are_compared():
    other = {**STOCK, 'ann_file': 'x.json'}
    wrapped = [data(type='RepeatDataset', times=3, dataset=inner)
               for inner in (STOCK, other)]
    assert differences.differing_keys(*wrapped) == ['dataset.ann_file']
    joined = [data(type='ConcatDataset', datasets=[STOCK, inner])
              for inner in (STOCK, other)]
    assert differences.differing_keys(*joined) == ['datasets']
