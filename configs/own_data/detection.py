# Boxes in COCO's format: data/mine/train.json, data/mine/val.json, and the
# images that they name, in data/mine/images.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
data_root = 'data/mine/'
# The names of the files' categories, letter by letter. Others are left out.
metainfo = dict(classes=('cat', 'dog'))

model = dict(bbox_head=dict(num_classes=2))
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        # True, the stock value, leaves out images without a box.
        filter_cfg=dict(filter_empty_gt=False)))
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
