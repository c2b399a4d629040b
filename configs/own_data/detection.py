# Boxes in COCO's format: data/mine/train.json, data/mine/val.json, and the
# images that they name, in data/mine/images.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
data_root = 'data/mine/'
# Names of the files' categories, letter by letter. Those that are not here are
# left out.
metainfo = dict(classes=('cat', 'dog'))

model = dict(bbox_head=dict(num_classes=2))
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='train.json',
        # Images without a box are left out, as stock has it. To keep them:
        # filter_cfg=dict(filter_empty_gt=False).
        data_prefix=dict(img='images/')))
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='val.json',
        data_prefix=dict(img='images/')))
test_dataloader = val_dataloader
# The evaluator reads the file by itself.
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator
