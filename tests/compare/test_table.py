"""What the tables say about curves worked out by hand."""
import pytest

from mmpsw.compare import table
from mmpsw.compare.runs import Arm, Run


def run(*values, **others):
    points = tuple(enumerate(values, start=1))
    return Run('run', 'coco/bbox_mAP', points, **others)


BASELINE = Arm('baseline', (run(0.1, 0.5, 0.4, time_per_iter=0.2), ))
BETTER = Arm('pswa', (run(0.5, 0.6, 0.6, time_per_iter=0.21), ))
WORSE = Arm('a [red] arm', (run(0.3), ))




def test_text_of_one_seed():
    lines = table.as_text([BASELINE, BETTER, WORSE], 'baseline').splitlines()
    words = [line.split() for line in lines]
    assert words[2] == [
        'baseline', '0.500', '0.400', '2', '0.0500', '0.200', '1.00x'
    ]
    assert words[3] == [
        'pswa', '0.600', '0.600', '1', '0.0000', '0.210', '1.05x'
    ]
    # Never as good, a single point, no time logged; no markup is read.
    assert words[4] == ['a', '[red]', 'arm', '0.300', '0.300', *'----']


def test_text_is_plain_and_aligned():
    text = table.as_text([BASELINE, BETTER, WORSE], 'baseline')
    assert text.isascii()
    assert '\x1b' not in text
    header, rule, *rows = text.splitlines()
    assert set(rule) <= set(' -')
    assert {len(row) for row in rows} == {len(header)}


def test_text_of_one_seed_fits_a_terminal():
    text = table.as_text([BASELINE, BETTER], 'baseline')
    assert max(map(len, text.splitlines())) < 80


def test_markdown():
    header, rule, *rows = table.as_markdown([BASELINE, BETTER],
                                            'baseline').splitlines()
    assert [cell.strip() for cell in header.strip('|').split('|')] == [
        'arm', 'best', 'final', 'epochs to match', 'drop/epoch', 's/iter',
        'rel. time'
    ]
    assert set(rule) <= set('|-:')
    assert rows[1].strip('|').split('|')[1].strip() == '0.600'


def test_several_seeds_show_spread_and_difference():
    baseline = Arm('baseline', (run(10.0), run(20.0), run(30.0)))
    arm = Arm('pswa', (run(11.0), run(22.0), run(33.0)))
    row = table.as_text([baseline, arm], 'baseline').splitlines()[3]
    # best: 22 with sd 11; the difference: 2 +- 4.3027 / sqrt(3)
    assert '22.00 +- 11.00' in row
    assert row.count('+2.00 +- 2.48') == 2


def test_memory_is_shown_where_it_was_logged():
    arms = [Arm('a', (run(0.1, memory=1500.0), )), Arm('b', (run(0.1), ))]
    lines = table.as_text(arms, 'a').splitlines()
    assert 'memory (MB)' in lines[0]
    assert lines[2].split()[-1] == '1500'
    assert lines[3].split()[-1] == '-'


def test_iterations_are_named():
    arm = Arm('a', (run(0.1, 0.2, unit='iteration'), ))
    header = table.as_text([arm], 'a').splitlines()[0]
    assert 'iterations to match' in header
    assert 'drop/validation' in header


def test_an_unknown_baseline_names_the_arms():
    with pytest.raises(ValueError, match=r"'ema'.*\['baseline', 'pswa'\]"):
        table.as_text([BASELINE, BETTER], 'ema')


@pytest.mark.parametrize(('other', 'message'), [
    (Arm('b', ()), "'b' has no run"),
    (Arm('b', (Run('r', 'mIoU', ((1, 1.0), )), )), 'metrics differ'),
    (Arm('b', (run(0.1, unit='iteration'), )), 'steps differ'),
    (Arm('b', (run(0.1), run(0.2))), 'numbers of seeds differ'),
])
def test_arms_that_mean_something_else_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        table.as_text([BASELINE, other], 'baseline')
