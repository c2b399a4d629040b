"""Every hook of ours in a run that only validates or tests."""
import pytest
import torch
from toy import LENGTH, Error, Points, Toy, runner, trained

HOOKS = [
    dict(type='mmpsw.PSWHook'),
    dict(type='mmpsw.RandomStateHook'),
    dict(type='mmpsw.SafeSavingHook'),
    dict(type='mmpsw.SparsityHook', target=0.6),
    dict(type='mmpsw.MagnitudePruningHook', target=0.5),
    dict(type='mmpsw.OrthogonalHook'),
    dict(type='mmpsw.LpSGDHook'),
    dict(type='mmpsw.GradientPruningHook', rate=0.9),
    dict(type='mmpsw.ScheduleFreeHook'),
    dict(type='mmpsw.LookaheadHook'),
    dict(type='mmpsw.SwitchEMAHook'),
    dict(type='mmpsw.EpochAverageHook', last=2,
         ema_type='mmpsw.LatestWeightAverage'),
]


@pytest.mark.parametrize('hook', HOOKS, ids=lambda hook: hook['type'])
def test_the_loaded_weights_are_seen(tmp_path, hook):
    trained(tmp_path / 'stock', validate=False, checkpoint=dict(interval=4))
    path = tmp_path / 'stock/epoch_4.pth'
    model, points = Toy(), Points()
    model.load_state_dict(torch.load(path, weights_only=False)['state_dict'])
    with torch.no_grad():
        error = (model.eval().net(points.x) - points.y).square().mean().item()
    loader = dict(batch_size=LENGTH, num_workers=0, dataset=points,
                  collate_fn=dict(type='default_collate'),
                  sampler=dict(type='DefaultSampler', shuffle=False))
    alone = runner(tmp_path / 'alone', hooks=[hook], load_from=str(path),
                   batch_size=LENGTH, test_cfg=dict(), test_dataloader=loader,
                   test_evaluator=[Error()])
    for found in (alone.val(), alone.test()):
        assert found['error'] == pytest.approx(error, rel=1e-5)
