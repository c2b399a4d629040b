"""The page and its files, and the command that writes them."""
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from compare.work_dirs import grid, trained, val_line

from mmpsw.commands import compare
from mmpsw.compare.comparison import read
from mmpsw.compare.plots import plot_curves, save
from mmpsw.compare.report import write_report
from mmpsw.compare.table import long

CURVES = {'baseline': {0: [1., 3.], 1: [2., 4.]},
          'pswa': {0: [2., 4.], 1: [3., 5.]}}
FILES = {'index.html', 'table.md', 'points.csv', 'curves.png',
         'differences.png'}


class Page(HTMLParser):
    """The cells, links and tags of a page; it must be well-formed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.links, self.rows = [], set(), [], []
        self.text = path.read_text(encoding='utf-8')
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key in ('src', 'href')]
        if tag not in ('meta', 'img', 'source'):
            self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {'td', 'th'} & set(self.open):
            self.rows[-1][-1] += data


def write(paths, out, **keys):
    c = read(paths)
    return write_report(long(c), c.baseline, out, c=c, **keys)


def report(capsys, *argv):
    compare.report(compare.parse_args(['report', *map(str, argv)]))
    return capsys.readouterr().out


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A whole grid in the current folder."""
    monkeypatch.chdir(tmp_path)
    grid(tmp_path / 'work', CURVES, cfg_options={'train_cfg.max_epochs': 2})
    return tmp_path / 'work'


def test_an_earlier_report_is_not_replaced_by_a_shorter_one(work, capsys):
    report(capsys, 'work')
    before = (work / 'report/index.html').read_bytes()
    with pytest.raises(ValueError, match='shorter one.*--out'):
        report(capsys, 'work/report')
    assert (work / 'report/index.html').read_bytes() == before
    assert 'page:   again/' in report(capsys, 'work/report', '--out', 'again')


def test_a_grid_gets_its_report_beside_its_arms(work, capsys):
    out = report(capsys, 'work')
    files = {path: path.read_bytes() for path in (work / 'report').iterdir()}
    assert {path.name for path in files} == FILES
    assert 'page:   work/report/index.html' in out.splitlines()
    # pswa is one better everywhere: differences 1 and 1.
    assert '+1.00 +- 0.00' in out
    assert re.search(r'pswa +2 +4.50 \+- 0.71', out)
    points = pd.read_csv(work / 'report' / 'points.csv')
    finals = points[points.step == 2].groupby('arm').value.agg(list)
    assert finals.to_dict() == {'baseline': [3., 4.], 'pswa': [4., 5.]}
    assert out.startswith('At the end, pswa is 1.0 +- 0.0 points above')
    report(capsys, 'work')  # the same runs, the same report
    assert files == {path: path.read_bytes() for path in files}


def test_the_page_shows_the_table_and_needs_nothing_else(work, capsys):
    path = next((work / 'pswa' / 'seed_0').rglob('config.py'))
    path.write_text(path.read_text() + "psw = dict(type='PSWA')\n")
    report(capsys, 'work', '--title', 'A <b>title</b> & "more"')
    page = Page(work / 'report' / 'index.html')
    assert 'script' not in page.tags and 'link' not in page.tags
    assert 'b' not in page.tags
    assert 'A &lt;b&gt;title&lt;/b&gt; &amp; &#34;more&#34;' in page.text
    assert {link.partition(':')[0] for link in page.links} == {'data'}
    (row, ) = [row for row in page.rows if row[0] == 'pswa']  # one table
    assert row[1:4] == ['2', '4.50 ± 0.71', '+1.00 ± 0.00']
    # What was found, the differences, the curves, and then the table.
    found, pictures, table = (page.text.index(text) for text in (
        'At the end, pswa is 1.0 ± 0.0 points above the baseline.',
        'alt="Differences of baseline, pswa;', '<table>'))
    assert found < pictures < page.text.index('alt="Curves') < table
    assert '<td class="better">+1.00' in page.text
    assert '    PyTorch: 2.11' in page.text
    assert ('python tools/compare.py run configs/cls/toy.py --arms baseline '
            'pswa --seeds 0 1 --work-dir work --cfg-options '
            'train_cfg.max_epochs=2') in page.text
    assert '<span class="added">+psw.type = &#39;PSWA&#39;</span>' in page.text
    assert 'class="removed"' not in page.text


def test_names_are_escaped_everywhere(tmp_path):
    name = '<img onerror>&"'
    for seed in (0, 1):
        trained(tmp_path / f'r{seed}', [1.], seed,
                extra='x = "<script>"' if seed else '')
    picture = tmp_path / 'a.png'
    save(plot_curves(long(read([tmp_path / 'r0'])), 'r0'), picture)
    write([f'{name}={tmp_path}/r0', f'b={tmp_path}/r1'], tmp_path / 'out',
          title=name, remarks=['<u>'], commands=['<i>'],
          pictures={name: [picture, picture]})
    page = Page(tmp_path / 'out' / 'index.html')
    assert not {'script', 'u', 'i'} & page.tags
    assert page.text.count('<img') == 3
    assert name in [row[0] for row in page.rows]


def test_worse_differences_are_marked_where_lower_is_better(tmp_path):
    for arm, shift in (('baseline', 0.0), ('pswa', 1.0)):
        for seed in (0, 1):
            trained(tmp_path / arm / f'seed_{seed}', [1.0 + seed + shift],
                    seed, metric='val_loss')
    write([tmp_path], tmp_path / 'report')
    page = (tmp_path / 'report' / 'index.html').read_text()
    assert '<td class="worse">+1.00' in page
    assert '<td class="better">' not in page


def test_points_that_are_not_a_number_and_unknown_seeds(tmp_path):
    trained(tmp_path / 'a', [1., float('nan')])
    write([tmp_path / 'a'], tmp_path / 'report')
    assert (tmp_path / 'report' / 'points.csv').read_text() == (
        'arm,run,seed,unit,step,key,better,value\n'
        'a,0,,epoch,1,acc,higher,1.0\na,0,,epoch,2,acc,higher,\n')


def test_an_earlier_report_is_replaced_and_nothing_else(work, capsys):
    report(capsys, 'work', '--out', 'out')
    (work.parent / 'out' / 'index.html').unlink()  # as in a repository
    report(capsys, 'work', '--out', 'out')
    (work.parent / 'out' / 'thesis.tex').write_text('mine')
    with pytest.raises(ValueError, match=r"'out'.*\(thesis.tex\).*--out"):
        report(capsys, 'work', '--out', 'out')
    other = work.parent / 'site'
    other.mkdir()
    (other / 'index.html').write_text('<title>mine</title>')
    with pytest.raises(ValueError, match='index.html'):
        report(capsys, 'work', '--out', 'site')
    assert (other / 'index.html').read_text() == '<title>mine</title>'
    with pytest.raises(ValueError, match='is a file'):
        report(capsys, 'work', '--out', 'site/index.html')


def test_two_plain_work_dirs(work, capsys):
    trained(work.parent / 'a', [1., 2.], 0)
    trained(work.parent / 'b', [2., 3.], 0)
    out = report(capsys, 'a', 'mine=b')
    assert 'page:   work_dirs/report/index.html' in out
    assert '- Compared with a, the first arm (--baseline names another' in out
    assert 'from which config these runs were started' in out
    text = (work.parent / 'work_dirs/report/index.html').read_text()
    assert '<h1>a, mine</h1>' in text
    assert 'With one seed, any of it may be chance.' in text
    assert 'interval' not in text


def test_an_earlier_report_is_reported_again(work, capsys):
    """Without the runs, and against another arm."""
    report(capsys, 'work')
    for arm in CURVES:
        (work / arm).rename(work / f'gone_{arm}')
    out = report(capsys, 'work/report', '--baseline', 'pswa', '--out', 'new')
    assert out.startswith('At the end, baseline is 1.0 +- 0.0 points below '
                          'pswa.')
    assert 'final - pswa' in out and '- baseline' not in out
    files = [work / 'report' / name for name in ('points.csv', 'curves.png')]
    new = work.parent / 'new'
    assert files[0].read_text() == (new / 'points.csv').read_text()
    assert (new / 'curves.png').read_bytes() != files[1].read_bytes()


def test_pictures_are_drawn_for_both_widths_and_only_tables_scroll(work,
                                                                   capsys):
    report(capsys, 'work')
    text = (work / 'report' / 'index.html').read_text()
    assert text.count('<source media="(max-width: 640px)"') == 2
    assert text.count('<div class="scroll">\n<table>') == text.count(
        '<table>') == 2


def test_the_quickstarts_boxes_are_on_the_page(work, capsys):
    report(capsys, 'work')
    page = work / 'report' / 'index.html'
    assert 'What the detectors find' not in page.read_text()
    for name in ('detections.png', 'detections_narrow.png'):
        save(plot_curves(long(read([work])), 'baseline'), work / name)
    report(capsys, 'work')
    assert 'What the detectors find</h2>' in page.read_text()


def test_an_arm_that_rides_along_differs_by_its_fragment(tmp_path, capsys,
                                                         monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid(tmp_path / 'work', CURVES, passengers=['pswa'], settings={
        'pswa': "custom_hooks = [dict(type='mmpsw.PSWHook')]"})
    report(capsys, 'work')
    text = (tmp_path / 'work' / 'report' / 'index.html').read_text()
    assert '<summary>pswa: evaluated beside the baseline&#39;s run' in text
    assert '<span class="added">+custom_hooks = [dict(type=' in text


def test_the_zoos_number_is_shown_with_its_links(work, capsys):
    for path in work.rglob('config.py'):
        path.write_text(path.read_text() + (
            "model = dict()\n"
            "val_dataloader = dict(dataset=dict(type='CIFAR10', "
            "data_root='elsewhere', split='test'))\n"))
    for path in work.rglob('scalars.json'):
        path.write_text(path.read_text().replace('acc', 'accuracy/top1'))
    out = report(capsys, 'work', '--config',
                 'mmpretrain::resnet/resnet18_8xb16_cifar10.py')
    assert 'publishes Top 1 Accuracy 94.82' in out
    # 3.5 and 4.5 at the end
    assert re.search(r'baseline .* -91.32', out)
    assert re.search(r'pswa .* -90.32', out) and 'arm - zoo' in out
    page = Page(work / 'report' / 'index.html')
    assert '94.82' in page.text
    assert [link for link in page.links if link.startswith('https://github')]
    assert 'The model differs from the published one' in page.text


def test_what_differs_from_the_published_training_is_the_first_note(
        tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = 'The batch is 2; the published training has 16.'
    grid(tmp_path / 'work', CURVES, published=[sentence])
    assert f'notes:\n- {sentence}\n' in report(capsys, 'work')
    page = (tmp_path / 'work' / 'report' / 'index.html').read_text()
    assert f'<li>{sentence}</li>' in page


def test_a_validation_before_training_is_drawn_and_is_no_result(tmp_path):
    trained(tmp_path / 'a', [1., 2.], 0)
    path = next((tmp_path / 'a').rglob('scalars.json'))
    path.write_text(json.dumps(val_line(0, acc=9.)) + '\n' + path.read_text())
    numbers = write([tmp_path / 'a'], tmp_path / 'report')
    assert list(numbers['mean'])[:2] == [2., 2.]  # final and best
    assert '2 (1.00)' in (tmp_path / 'report' / 'table.md').read_text()
    assert 'a,0,0,epoch,0,acc,higher,9.0\n' in (
        tmp_path / 'report' / 'points.csv').read_text()


def test_a_wrong_config_is_an_error(work, capsys):
    with pytest.raises(ValueError, match='does not exist'):
        report(capsys, 'work', '--config', 'absent.py')
    out = report(capsys, 'work')  # the grid's own may lie elsewhere
    assert "left out: config 'configs/cls/toy.py' does not exist" in out
