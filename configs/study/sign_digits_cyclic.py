# Five epochs from a trained model (load_from), the rate annealed from the
# stock one to a hundredth of it in each.
_base_ = '../cls/resnet18_sign_digits_long.py'
train_cfg = dict(max_epochs=5)
param_scheduler = dict(
    _delete_=True,
    type='CosineRestartLR',
    by_epoch=False,
    end=5 * 87,
    periods=[87] * 5,
    restart_weights=[1] * 5,
    eta_min_ratio=0.01)
