"""tools/analysis/equal_time.py: curves where each arm's step has its cost."""
import pandas as pd
import pytest
from scripts import script

times = script('analysis/equal_time.py')


def test_a_curve_is_drawn_against_steps_and_seconds():
    points = pd.DataFrame(
        [(arm, seed, step, seed + step / 100) for arm in ('a', 'b')
         for seed in (0, 2) for step in (100, 200)],
        columns=['arm', 'seed', 'step', 'value'])
    steps, seconds = times.draw(points, dict(a=0.5, b=2.), 'x').axes
    drawn = [[line.get_xydata().tolist() for line in panel.get_lines()]
             for panel in (steps, seconds)]
    assert drawn[0] == [[[100, 2], [200, 3]]] * 2
    assert drawn[1] == [[[50, 2], [100, 3]], [[200, 2], [400, 3]]]


@pytest.mark.parametrize('unit, words', [
    ('epoch', 'counts epochs'), (None, 'points.csv.*does not exist')])
def test_what_is_no_report_is_refused(tmp_path, unit, words):
    if unit:
        (tmp_path / 'points.csv').write_text('arm,seed,step,value\na,0,1,2\n')
        (tmp_path / 'table.csv').write_text(f'arm,unit\na,{unit}\n')
    with pytest.raises(ValueError, match=words):
        times.run('x.py', tmp_path, 2)
