# An image and a map of class numbers of the same name: data/mine/images/train,
# data/mine/maps/train, and the same with val.
_base_ = 'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py'
data_root = 'data/mine'
metainfo = dict(
    classes=('background', 'cat', 'dog'),  # of the numbers 0, 1, 2
    palette=[[0, 0, 0], [220, 20, 60], [0, 128, 255]])
# The number of pixels that are neither learned nor counted. What pads an
# image must be one of them: set all four if your void label is not 255.
void = 255
crop_size = (512, 512)

model = dict(
    data_preprocessor=dict(size=crop_size, seg_pad_val=void),
    decode_head=dict(num_classes=3, ignore_index=void),
    auxiliary_head=dict(num_classes=3, ignore_index=void))
# True where 0 is the void label and 1 the first class: it becomes 255, and 1
# becomes 0. A stock pipeline may have it too (ADE20K's), and must say the
# same as the data set.
reduce_zero_label = False
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=reduce_zero_label),
    dict(type='RandomResize', scale=crop_size, ratio_range=(0.5, 2.0),
         keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75,
         ignore_index=void),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=reduce_zero_label),
    dict(type='PackSegInputs')
]
# _delete_: Cityscapes' class has its own suffixes and classes.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='BaseSegDataset',
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='images/train', seg_map_path='maps/train'),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        reduce_zero_label=reduce_zero_label,
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='BaseSegDataset',
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='images/val', seg_map_path='maps/val'),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        reduce_zero_label=reduce_zero_label,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ignore_index=void)
test_evaluator = val_evaluator
# Iterations, not epochs: 160,000 in the stock schedule.
train_cfg = dict(max_iters=4000, val_interval=400)
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=4000,
         by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=400))
