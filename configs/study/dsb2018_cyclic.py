# Four passes from a trained model (load_from), the rate annealed from the
# config's to a hundredth of it in each.
_base_ = '../seg/unet_fcn_dsb2018_long.py'
train_cfg = dict(max_iters=4 * 58)
param_scheduler = dict(
    _delete_=True,
    type='CosineRestartLR',
    by_epoch=False,
    end=4 * 58,
    periods=[58] * 4,
    restart_weights=[1] * 4,
    eta_min_ratio=0.01)
