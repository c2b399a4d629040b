# Half of the channels and no workers, so that two CPU cores can train many:
# what the comparisons are made with.
_base_ = './resnet18_sign_digits.py'
model = dict(backbone=dict(stem_channels=32, base_channels=32),
             head=dict(in_channels=256))
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
