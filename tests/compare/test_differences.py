"""What counts as a difference between two configs."""
import pytest
from mmengine.config import Config

from mmpsw.compare import differences

OURS = """custom_hooks = [
    dict(type='mmpsw.PSWHook'),
]
load_from = 'b/epoch_7.pth'
model = dict(depth=18)
randomness = dict(
    deterministic=False,
    seed=1)
resume = True
work_dir = 'b'
"""
THEIRS = """load_from = None
model = dict(depth=18)
randomness = dict(
    deterministic=False,
    seed=0)
resume = False
work_dir = 'a'
"""


def saved(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_the_diff_leaves_places_and_seeds_aside(tmp_path):
    ours, theirs = (saved(tmp_path, name, text) for name, text in
                    (('a.py', OURS), ('b.py', THEIRS)))
    lines = differences.unified_diff(ours, theirs, 'psw', 'base').splitlines()
    assert lines[:2] == ['--- base', '+++ psw']
    assert [line for line in lines[3:] if line[0] in '+-'] == [
        '+custom_hooks = [', "+    dict(type='mmpsw.PSWHook'),", '+]'
    ]
    assert differences.unified_diff(theirs, theirs, 'a', 'b') == ''


def test_other_pretrained_weights_are_a_difference(tmp_path):
    one = saved(tmp_path, 'a.py', "load_from = 'a.pth'\nresume = False\n")
    two = saved(tmp_path, 'b.py', 'load_from = None\nresume = False\n')
    assert "+load_from = 'a.pth'" in differences.unified_diff(one, two, 'a', 'b')


def test_other_randomness_is_a_difference(tmp_path):
    one = saved(tmp_path, 'a.py', 'randomness = dict(seed=0, x=1)\n')
    two = saved(tmp_path, 'b.py', 'randomness = dict(seed=1, x=2)\n')
    diff = differences.unified_diff(one, two, 'a', 'b')
    assert '+randomness = dict(seed=..., x=1)' in diff.splitlines()


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
    (dict(indices=10), ['indices']),
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


def test_differing_keys_are_dotted_and_know_no_scope():
    ours = dict(a=dict(b=1, c=(1, 2), type='mmdet.X', _scope_='mmdet'), d=1)
    theirs = dict(a=dict(b=2, c=[1, 2], type='X'), e=None)
    assert differences.differing_keys(ours, theirs) == ['a.b', 'd']
