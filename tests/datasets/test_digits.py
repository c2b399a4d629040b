"""The digits data set: the same bytes each time, and labels that are true."""
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scripts import script
from sklearn.datasets import load_digits

from mmpsw.datasets import digits, generate

SMALL = dict(train=12, val=6, size=96, progress=False)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return generate(tmp_path_factory.mktemp('data') / 'digits', **SMALL)


def contents(root):
    """Every file's bytes by its path below ``root``."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob('*') if path.is_file()
    }


def annotations(root, split):
    path = root / f'det/annotations/instances_{split}.json'
    return json.loads(path.read_text())


def samples_of(root, split):
    """Handwritten samples that occur anywhere in a split."""
    scenes = {a['sample'] for a in annotations(root, split)['annotations']}
    singles = {int(p.stem) for p in (root / 'cls' / split).rglob('*.png')}
    return scenes | singles


def test_two_generations_are_equal_to_the_byte(root, tmp_path):
    again = generate(tmp_path / 'again', **SMALL)
    assert contents(again) == contents(root)


def test_scenes_follow_the_seed_and_not_the_count():
    train = digits.load_split('train')

    def first(count, seed):
        return next(digits.scenes_of(train, count, 64, (seed, 0, 0)))[0]

    np.testing.assert_array_equal(first(1, 0), first(5, 0))
    assert (first(1, 0) != first(1, 1)).mean() > 0.5


def test_splits_share_no_handwritten_sample(root):
    train, val = samples_of(root, 'train'), samples_of(root, 'val')
    assert not train & val
    assert train | val == set(range(1797))


def test_split_is_stratified():
    train, val = digits.load_split('train'), digits.load_split('val')
    counts = np.bincount(train.labels), np.bincount(val.labels)
    np.testing.assert_allclose(counts[1] / sum(counts), 0.2, atol=0.006)


def test_labels_are_those_of_scikit_learn(root):
    target = load_digits().target
    for split in ('train', 'val'):
        for single in (root / 'cls' / split).rglob('*.png'):
            assert int(single.parent.name) == target[int(single.stem)]
        for obj in annotations(root, split)['annotations']:
            assert obj['category_id'] == target[obj['sample']]


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_are_tight_around_the_segmentation_map(root, split):
    data = annotations(root, split)
    for image in data['images']:
        name = image['file_name'].removeprefix(f'{split}_')
        seg_map = np.array(Image.open(root / 'seg/ann_dir' / split / name))
        assert seg_map.shape == (image['height'], image['width'])
        for obj in data['annotations']:
            if obj['image_id'] != image['id']:
                continue
            x, y, w, h = obj['bbox']
            # One pixel more on each side, to see that nothing sticks out.
            left, top = max(x - 1, 0), max(y - 1, 0)
            around = seg_map[top:y + h + 1, left:x + w + 1]
            rows, columns = np.nonzero(around == 1 + obj['category_id'])
            assert (columns.min() + left, rows.min() + top) == (x, y)
            assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (w, h)
            assert len(rows) == obj['area'] == np.count_nonzero(around)
            seg_map[y:y + h, x:x + w] = 0
        assert not seg_map.any(), 'a digit without a box'


def test_segmentation_and_detection_show_the_same_scenes(root):
    for split in ('train', 'val'):
        for image in annotations(root, split)['images']:
            name = image['file_name']
            segmented = root / 'seg/img_dir' / split / name.split('_')[1]
            assert (root / 'det/images' / name).read_bytes() == (
                segmented.read_bytes())


def test_pycocotools_reads_the_annotations(root):
    for split in ('train', 'val'):
        coco = COCO(root / f'det/annotations/instances_{split}.json')
        assert len(coco.getImgIds()) == SMALL[split]
        assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(
            '0123456789')
        ids = coco.getAnnIds()
        assert len(ids) == len(set(ids)) == len(
            annotations(root, split)['annotations'])
        # COCOeval takes an id of 0 for "no match".
        assert min(ids) == 1


def test_up_to_date_folder_is_left_alone(root):
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    generate(root, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == before


def test_other_parameters_replace_the_folder(root, tmp_path, monkeypatch):
    # Without the 1797 single digits, which take most of the time.
    monkeypatch.setattr(digits, '_write_singles', lambda *args: None)
    target = generate(tmp_path / 'digits', **SMALL)
    generate(target, **{**SMALL, 'train': 3})
    assert len(annotations(target, 'train')['images']) == 3
    assert len(list((target / 'seg/img_dir/train').iterdir())) == 3
    assert [p.name for p in tmp_path.iterdir()] == ['digits']


@pytest.mark.parametrize('content', [None, '[]', '{"generator": "else"}'])
def test_foreign_folder_is_refused(tmp_path, content):
    (tmp_path / 'precious.txt').write_text('mine')
    if content is not None:
        (tmp_path / 'parameters.json').write_text(content)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match='is not overwritten, because'):
        generate(tmp_path, **SMALL)
    assert contents(tmp_path) == before


def test_foreign_file_is_refused(tmp_path):
    path = tmp_path / 'digits'
    path.write_text('mine')
    with pytest.raises(ValueError, match='is not overwritten, because'):
        generate(path, **SMALL)
    assert path.read_text() == 'mine'


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):

    def full_disk(*args):
        raise OSError('No space left on device')

    monkeypatch.setattr(digits, '_write_singles', full_disk)
    with pytest.raises(OSError, match='No space left'):
        generate(tmp_path / 'digits', **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, value', [('train', 0), ('val', 0),
                                         ('size', 63), ('seed', -1)])
def test_parameter_out_of_range_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f'{name}={value} is out of range'):
        generate(tmp_path / 'digits', **{**SMALL, name: value})


def test_command_says_where_the_data_is(root, capsys):
    main = script('make_digits.py').main
    small = ['--train=12', '--val=6', '--size=96']
    assert main([f'--root={root}', *small]) == 0
    assert capsys.readouterr().out == (
        f'The digits data set is in {root}.\n')
    assert main([f'--root={root.parent}']) == 2
    assert 'is not overwritten' in capsys.readouterr().err
