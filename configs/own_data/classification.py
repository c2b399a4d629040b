# A folder of images for each class: data/mine/train/cat, data/mine/train/dog,
# ..., and the same in data/mine/val.
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
data_root = 'data/mine'

# Accuracy among the best 1; the stock 5 needs five classes.
topk = (1, )
model = dict(head=dict(num_classes=2, topk=topk))
data_preprocessor = dict(num_classes=2)
# _delete_: ImageNet's settings, such as split, are not those of a folder.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline=_base_.train_pipeline))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val',
        pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=topk)
test_evaluator = val_evaluator
