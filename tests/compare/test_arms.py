"""Which arms and seeds are found where, and what is said of the others."""
import pytest
from compare.work_dirs import grid, trained

from mmpsw.compare.arms import find_baseline, is_grid, read_arms


def shape(arms):
    """{arm: {seed: values}}."""
    return {arm.name: {run.seed: run.values for run in arm.runs}
            for arm in arms}


def notes(arms):
    return [note for arm in arms for note in arm.notes]


CURVES = {'pswa': {0: [1., 2.], 1: [3., 4.]},
          'baseline': {0: [5., 6.], 1: [7., 8.]}}


def test_a_grid_is_read_in_the_order_of_its_list(tmp_path):
    arms = read_arms([grid(tmp_path, CURVES)])
    assert shape(arms) == CURVES
    assert [arm.name for arm in arms] == ['pswa', 'baseline']
    assert notes(arms) == []
    assert is_grid(tmp_path)


def test_without_a_list_the_baseline_is_first(tmp_path):
    grid(tmp_path, {'ema': {10: [1.], 9: [1.]}, **CURVES,
                    'control': {2: [1.]}})
    (tmp_path / 'comparison.json').unlink()
    (tmp_path / 'report').mkdir()
    arms = read_arms([tmp_path])
    assert [arm.name for arm in arms] == ['baseline', 'control', 'ema', 'pswa']
    assert [run.seed for run in arms[2].runs] == [9, 10]  # as numbers


def test_an_arm_beside_the_list_is_read_too(tmp_path):
    grid(tmp_path, CURVES, arms=['baseline'], seeds=[0])
    assert shape(read_arms([tmp_path])) == CURVES


def test_what_is_planned_and_missing_is_named(tmp_path):
    work = grid(tmp_path, CURVES, arms=['baseline', 'pswa', 'swa'],
                seeds=[0, 1, 2])
    arms = read_arms([work])
    assert shape(arms) == {**CURVES, 'swa': {}}
    text = notes(arms)
    assert text[0] == 'baseline: seed_2 was not trained yet.'
    assert 'swa: seed_0, seed_1, seed_2 were not trained yet.' in text
    assert 'swa has no curve yet, and is not in the table.' in text


def test_unfinished_runs_are_left_out_where_others_are_finished(tmp_path):
    trained(tmp_path / 'a' / 'seed_0', [1., 2., 3.], 0)
    trained(tmp_path / 'a' / 'seed_1', [1., 2.], 1, epochs=3)
    trained(tmp_path / 'b' / 'seed_0', [1., 2.], 0, epochs=3)
    arms = read_arms([tmp_path])
    assert shape(arms) == {'a': {0: [1., 2., 3.]}, 'b': {0: [1., 2.]}}
    assert notes(arms) == [
        'a, seed 1, was validated last at epoch 2 of 3; it is left out, as '
        'others of its arm are finished.',
        'b, seed 0, was validated last at epoch 2 of 3; its last point counts '
        'as its final one.',
    ]


def test_plain_work_dirs_keep_their_order_and_names(tmp_path):
    one, two = (trained(tmp_path / name, [1.]) for name in ('z', 'a'))
    assert list(shape(read_arms([one, two]))) == ['z', 'a']
    assert not is_grid(one)


def test_a_folder_of_work_dirs_is_a_grid_without_seeds(tmp_path):
    for name in ('pswa', 'baseline'):
        trained(tmp_path / name, [1.])
    assert list(shape(read_arms([tmp_path]))) == ['baseline', 'pswa']


def test_names_join_seeds(tmp_path):
    for seed in (0, 1):
        trained(tmp_path / f'run{seed}', [float(seed)], seed)
    grid(tmp_path / 'g', CURVES)
    arms = read_arms([f'mine={tmp_path}/run0', f'theirs={tmp_path}/g/pswa',
                      f'mine={tmp_path}/run1'])
    assert shape(arms) == {'mine': {0: [0.], 1: [1.]},
                           'theirs': CURVES['pswa']}


def test_a_folder_whose_name_has_an_equals_sign_is_a_folder(tmp_path):
    folder = trained(tmp_path / 'lr=0.1', [1.])
    assert list(shape(read_arms([folder]))) == ['lr=0.1']


def test_equal_names_are_told_apart_by_the_folder_above(tmp_path):
    one = grid(tmp_path / 'cosine', {'baseline': {0: [1.]}})
    two = trained(tmp_path / 'constant' / 'baseline', [2.], 0)
    assert shape(read_arms([one, two])) == {
        'cosine/baseline': {0: [1.]}, 'constant/baseline': {0: [2.]}}


def test_names_that_stay_equal_are_refused(tmp_path):
    paths = [trained(tmp_path / top / 'x' / 'run', [1.]) for top in 'ab']
    with pytest.raises(ValueError, match=r"called 'x/run'.*NAME=DIR"):
        read_arms(paths)
    assert list(shape(read_arms([paths[0], f'run={paths[1]}']))) == [
        'x/run', 'run'
    ]


def test_a_run_counts_once(tmp_path):
    run = trained(tmp_path / 'a', [1.])
    with pytest.raises(ValueError, match='there twice'):
        read_arms([f'x={run}', f'x={run}/../a'])


def test_all_arms_are_compared_by_the_first_runs_metric(tmp_path):
    one = trained(tmp_path / 'a', [1.], metric='val_loss')
    two = trained(tmp_path / 'b', [2.], metric='val_loss',
                  extra="default_hooks = dict(checkpoint=dict(rule='less', "
                  "save_best='auto'))")
    assert {run.metric for arm in read_arms([one, two])
            for run in arm.runs} == {'val_loss'}
    other = trained(tmp_path / 'c', [3.], metric='acc')
    with pytest.raises(ValueError, match=r"'val_loss' is not.*\['acc'\]"):
        read_arms([one, other])
    with pytest.raises(ValueError, match="'mAP' is not one metric"):
        read_arms([one, two], metric='mAP')


def test_a_grids_run_without_the_metric_is_left_out(tmp_path):
    grid(tmp_path, {'a': {0: [1., 2.], 1: [None, None]}})
    arms = read_arms([tmp_path])
    assert shape(arms) == {'a': {0: [1., 2.]}}
    assert 'a: seed_1 is left out. The run in' in notes(arms)[0]


def test_the_rule_is_passed_on(tmp_path):
    run = trained(tmp_path / 'a', [1.], metric='psnr')
    with pytest.raises(ValueError, match="rule='greater'"):
        read_arms([run])
    assert read_arms([run], rule='greater')[0].runs[0].higher_is_better


@pytest.mark.parametrize(('path', 'message'), [
    ('absent', 'is no folder'), ('empty', 'There is no training run'),
    ('x=absent', 'is no folder'),
])
def test_a_path_without_a_run_is_an_error(tmp_path, monkeypatch, path,
                                          message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=message):
        read_arms([path])


@pytest.mark.parametrize('text', ['{', '{"arms": ["a"]}', '[]',
                                  '{"arms": ["a"], "seeds": ["x"]}'])
def test_a_broken_list_is_an_error(tmp_path, text):
    grid(tmp_path, CURVES)
    (tmp_path / 'comparison.json').write_text(text)
    with pytest.raises(ValueError, match='comparison.json. cannot be read'):
        read_arms([tmp_path])


def test_the_baseline_is_the_one_named_so_or_the_first(tmp_path):
    arms = read_arms([grid(tmp_path / 'g', CURVES, arms=['pswa', 'baseline',
                                                         'ema'])])
    assert find_baseline(arms) == 'baseline'
    assert find_baseline(arms[:1]) == 'pswa'
    assert find_baseline(arms, 'pswa') == 'pswa'
    with pytest.raises(ValueError, match=r"\['pswa', 'baseline'\]"):
        find_baseline(arms, 'ema')  # planned, not trained
