"""The zoos' numbers, as the installed packages ship them."""
import pytest
from mmengine.config import Config

from mmpsw import configs
from mmpsw.compare.zoo_results import NotPublishedError, find_published
from mmpsw.compatibility import distribution

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'


def published(folder, config, metric, trained=None, **options):
    """What the zoo has for a run of ``trained`` (or ``config`` itself)."""
    cfg = Config.fromfile(configs.resolve_config(trained or config))
    cfg.merge_from_dict(options)
    cfg.dump(folder / 'config.py')
    saved = Config.fromfile(folder / 'config.py')
    return find_published(config, saved, metric)


# The numbers are those of the zoos' own README files.
@pytest.mark.parametrize(('config', 'metric', 'value', 'name'), [
    (RETINANET, 'coco/bbox_mAP', 0.365, RETINANET),
    ('configs/det/mask-rcnn_r50_fpn_1x_coco_psw.py', 'coco/segm_mAP',
     0.347, 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
    ('configs/seg/pspnet_r50-d8_4xb4-20k_voc12aug-512x512_psw.py', 'mIoU',
     76.78, 'mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py'),
    ('configs/cls/resnet18_8xb16_cifar10_psw.py', 'accuracy/top1', 94.82,
     'mmpretrain::resnet/resnet18_8xb16_cifar10.py'),
])
def test_numbers_of_the_three_zoos(tmp_path, config, metric, value, name):
    found = published(tmp_path, config, metric)
    assert found.value == pytest.approx(value, abs=1e-9)
    (sentence, ) = found.sentences
    assert f'for {name}, on the same validation data' in sentence
    onedl = 'onedl' in distribution('mmdet')
    # the fork has moved some
    hosts = ('https://download.openmmlab.com/', 'https://mmassets.onedl.ai/')
    assert found.weights_url.startswith(hosts[:1 + onedl])
    owner = 'vbti-development/onedl-' if onedl else 'open-mmlab/mm'
    assert found.config_url.startswith(f'https://github.com/{owner}')
    assert found.config_url.endswith(name.partition('::')[2])


def test_another_place_of_the_data_changes_nothing(tmp_path):
    found = published(tmp_path, RETINANET, 'coco/bbox_mAP', **{
        'val_dataloader.dataset.data_root': '/mnt/coco'})
    assert found.value == 0.365


@pytest.mark.parametrize(('config', 'metric', 'trained', 'reason'), [
    ('configs/study/resnet18_digits.py', 'accuracy/top1', None,
     'stems from no config of a model zoo'),
    (RETINANET, 'coco/bbox_mAP', 'configs/study/retinanet_r18_bccd.py',
     'the validation data are not those of mmdet::retinanet.*ann_file'),
    (RETINANET, 'coco/bbox_mAP_50', None, 'not known what mmdet publishes'),
    (RETINANET, 'coco/segm_mAP', None, 'mmdet publishes no mask AP'),
    ('mmpretrain::xcit/xcit-nano-12-p16_8xb128_in1k.py', 'accuracy/top1',
     None, r'publishes several Top 1 Accuracy .*70.35, 72.36'),
])
def test_what_is_not_certain_is_left_out(tmp_path, config, metric, trained,
                                         reason):
    with pytest.raises(NotPublishedError, match=reason):
        published(tmp_path, config, metric, trained)


def test_a_subset_of_the_data_is_other_data(tmp_path):
    with pytest.raises(NotPublishedError, match='indices'):
        published(tmp_path, RETINANET, 'coco/bbox_mAP', **{
            'val_dataloader.dataset.indices': 100})
