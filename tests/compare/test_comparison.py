"""Which arms and seeds are found where, and what is said of the others."""
import pytest
from compare.work_dirs import grid, trained

from mmpsw.compare.comparison import read


def shape(c):
    """{arm: {seed: values}}."""
    return {arm: {run.seed if run.seed is not None else 'none': [
        metrics[c.metric] for metrics in run.validations.values()
        if c.metric in metrics] for run in c.of_arm(arm).source}
            for arm in c.arms}


CURVES = {'pswa': {0: [1., 2.], 1: [3., 4.]},
          'baseline': {0: [5., 6.], 1: [7., 8.]}}


def test_a_grid_is_read_in_the_order_of_its_list(tmp_path):
    c = read([grid(tmp_path, CURVES)])
    assert shape(c) == CURVES
    assert (c.arms, c.baseline) == (['pswa', 'baseline'], 'baseline')
    assert c.notes == []
    assert (c.metric, c.unit, c.better) == ('acc', 'epoch', 'higher')
    assert c.points[['arm', 'seed', 'step', 'value']].values.tolist()[:3] == [
        ['pswa', 0, 1, 1.], ['pswa', 0, 2, 2.], ['pswa', 1, 1, 3.]]


def test_without_a_list_the_baseline_is_first(tmp_path):
    grid(tmp_path, {'ema': {10: [1.], 9: [1.]}, **CURVES,
                    'psw': {2: [1.]}})
    (tmp_path / 'comparison.json').unlink()
    (tmp_path / 'report').mkdir()
    c = read([tmp_path])
    assert c.arms == ['baseline', 'ema', 'psw', 'pswa']
    assert list(c.of_arm('ema').seed) == [9, 10]  # as numbers


def test_what_is_planned_and_missing_is_named(tmp_path):
    work = grid(tmp_path, CURVES, seeds=[0, 1, 2],
                arms={'baseline': 'baseline', 'pswa': 'pswa', 'swa': 'swa'})
    c = read([work])
    assert shape(c) == CURVES
    assert c.notes[0] == 'baseline: seed_2 was not trained yet.'
    assert 'swa: seed_1 was not trained yet.' in c.notes
    assert 'swa has no curve yet, and is not in the table.' in c.notes


def test_the_log_of_a_run_that_failed_is_named(tmp_path):
    work = grid(tmp_path, CURVES, seeds=[0, 1, 2])
    (work / 'baseline' / 'seed_2.log').write_text('Traceback')
    assert read([work]).notes == [
        'pswa: seed_2 was not trained yet.',
        f'baseline: seed_2 has no curve; see {work}/baseline/seed_2.log.']
    for path in work.rglob('scalars.json'):
        path.unlink()
    with pytest.raises(ValueError, match='no curve in .*; see .*seed_2.log'):
        read([work])


def test_unfinished_runs_are_left_out_where_others_are_finished(tmp_path):
    trained(tmp_path / 'a' / 'seed_0', [1., 2., 3.], 0)
    trained(tmp_path / 'a' / 'seed_1', [1., 2.], 1, epochs=3)
    trained(tmp_path / 'b' / 'seed_0', [1., 2.], 0, epochs=3)
    c = read([tmp_path], baseline='a')
    assert shape(c) == {'a': {0: [1., 2., 3.]}, 'b': {0: [1., 2.]}}
    assert c.notes == [
        'a, seed 1, was validated last at epoch 2 of 3; it is left out, as '
        'others of its arm are finished.',
        'b, seed 0, was validated last at epoch 2 of 3; its last point counts '
        'as its final one.',
    ]


def test_a_damaged_run_is_left_out_and_the_start_is_no_point(tmp_path):
    grid(tmp_path, {'baseline': {0: [1., 2.], 1: [3., 4.]}})
    log, = (tmp_path / 'baseline' / 'seed_1').glob('*/vis_data/scalars.json')
    log.write_text('broken\n' + log.read_text())
    log, = (tmp_path / 'baseline' / 'seed_0').glob('*/vis_data/scalars.json')
    log.write_text('{"acc": 0.5, "step": 0}\n' + log.read_text())
    c = read([tmp_path])
    assert list(c.points.value) == [1, 2] and list(c.runs.start) == [0.5]
    note, = (note for note in c.notes if 'seed_1' in note)
    assert note.startswith('baseline: seed_1 is left out, because line 1 of')


def test_plain_work_dirs_keep_their_order_and_names(tmp_path):
    one, two = (trained(tmp_path / name, [1.]) for name in ('z', 'lr=0.1'))
    c = read([one, two, one])  # a run counts once
    assert shape(c) == {'z': {'none': [1.]}, 'lr=0.1': {'none': [1.]}}
    assert c.notes == ['Compared with z, the first arm (--baseline names '
                       'another).']


def test_names_join_seeds_and_tell_grids_apart(tmp_path):
    for seed in (0, 1):
        trained(tmp_path / f'run{seed}', [float(seed)], seed)
    grid(tmp_path / 'g', CURVES)
    c = read([f'mine={tmp_path}/run0', f'theirs={tmp_path}/g/pswa',
              f'mine={tmp_path}/run1'])
    assert shape(c) == {'mine': {0: [0.], 1: [1.]}, 'theirs': CURVES['pswa']}
    with pytest.raises(ValueError, match=r"called 'pswa'.*NAME=DIR"):
        read([tmp_path / 'g', grid(tmp_path / 'h', CURVES)])
    c = read([tmp_path / 'g', f'old={tmp_path / "h"}'])
    assert c.arms == ['pswa', 'baseline', 'old/pswa', 'old/baseline']


def test_all_arms_are_compared_by_the_first_runs_metric(tmp_path):
    one = trained(tmp_path / 'a', [1.], metric='val_loss')
    other = trained(tmp_path / 'b', [None], metric='val_loss')
    c = read([one, other])
    assert (c.metric, c.better, c.arms) == ('val_loss', 'lower', ['a'])
    assert 'b: b is left out, as it logged no val_loss.' in c.notes
    with pytest.raises(ValueError, match="'mAP' is not what.*val_loss"):
        read([one], metric='mAP')


def test_a_grid_says_by_what_to_compare(tmp_path):
    """The saved configs of its runs do not: their save_best is None."""
    grid(tmp_path, CURVES, metric='acc', rule='less')
    assert (read([tmp_path]).metric, read([tmp_path]).better) == (
        'acc', 'lower')
    assert read([tmp_path], metric='acc', rule='greater').better == 'higher'


def test_a_named_grid_says_it_too(tmp_path):
    for name, metric, rule in ('g', 'acc', 'less'), ('h', 'val_loss', 'less'):
        grid(tmp_path / name, CURVES, metric=metric, rule=rule)
    c = read([f'mine={tmp_path}/g'])
    assert (c.metric, c.better, [*c.plans]) == (
        'acc', 'lower', [f'{tmp_path}/g'])
    with pytest.raises(ValueError, match='give --metric'):
        read([tmp_path / 'g', f'mine={tmp_path}/h'])


def test_a_rule_that_is_not_known_is_asked_for(tmp_path):
    run = trained(tmp_path / 'a', [1.], metric='psnr')
    with pytest.raises(ValueError, match='--rule greater'):
        read([run])
    assert read([run], rule='greater').better == 'higher'


def test_epochs_and_iterations_are_not_compared(tmp_path):
    one = trained(tmp_path / 'a', [1.])
    two = trained(tmp_path / 'b', [1.], extra='train_cfg = dict(max_iters=1)')
    with pytest.raises(ValueError, match='some count epochs'):
        read([one, two])


@pytest.mark.parametrize(('path', 'message'), [
    ('absent', 'is no folder'), ('empty', 'there is no curve in empty'),
    ('x=absent', 'is no folder'), ('young', 'there is no curve in young'),
])
def test_a_path_without_a_curve_is_an_error(tmp_path, monkeypatch, path,
                                            message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    trained(tmp_path / 'young', [None])
    with pytest.raises(ValueError, match=message):
        read([path])


@pytest.mark.parametrize('text', ['{', '{"arms": {"a": "a"}}', '[]',
                                  '{"arms": {"a": "a"}, "seeds": ["x"]}'])
def test_a_broken_list_is_an_error(tmp_path, text):
    grid(tmp_path, CURVES)
    (tmp_path / 'comparison.json').write_text(text)
    with pytest.raises(ValueError, match='comparison.json. cannot be read'):
        read([tmp_path])


def test_the_baseline_may_be_named(tmp_path):
    work = grid(tmp_path, CURVES)
    assert read([work], baseline='pswa').baseline == 'pswa'
    with pytest.raises(ValueError, match="'ema' is not an arm .*baseline"):
        read([work], baseline='ema')
