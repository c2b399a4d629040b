# Four epochs from a trained model (load_from), the rate annealed from the
# stock one to a hundredth of it in each.
_base_ = '../det/retinanet_r18_bccd_long.py'
train_cfg = dict(max_epochs=4)
param_scheduler = dict(
    _delete_=True,
    type='CosineRestartLR',
    by_epoch=False,
    end=4 * 52,
    periods=[52] * 4,
    restart_weights=[1] * 4,
    eta_min_ratio=0.01)
