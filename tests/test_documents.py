"""Each link between the documents leads to a file, and to a heading of it."""
import re
from pathlib import Path

import pytest
from scripts import TOOLS, script

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob('*.md'), *(
    path for room in ('configs', 'mmpsw', 'tests', 'tools')
    for path in sorted((ROOT / room).rglob('*.md')))]


def prose(path):
    """A document without its blocks of code, in which # is no heading."""
    return re.sub(r'^ *```.*?^ *```', '', path.read_text(encoding='utf-8'),
                  flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """What GitHub makes of the headings: ``## What it costs`` has
    ``#what-it-costs``, and a second one ``#what-it-costs-1``."""
    found = []
    for heading in re.findall(r'^#{1,6} +(.*?) *$', text, re.MULTILINE):
        shown = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading)
        slug = re.sub(r'[^\w -]', '', shown.lower()).replace(' ', '-')
        count = found.count(slug)
        found.append(f'{slug}-{count}' if count else slug)
    return found


def test_anchors_by_hand():
    assert anchors('# A & b: `c_d`, e.g. "x"\n\n## [Two](x.md)\n### Two\n'
                   'no # heading\n') == ['a--b-c_d-eg-x', 'two', 'two-1']


@pytest.mark.parametrize('path', DOCUMENTS,
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    broken = []
    for link in re.findall(r'\]\(([^)\s]+)\)', re.sub(
            r'`[^`\n]*`', '', prose(path))):
        if re.match(r'\w+:', link):  # the web, which a test does not ask
            continue
        name, _, anchor = link.partition('#')
        target = path.parent / name if name else path
        if not target.exists() or anchor and anchor not in anchors(
                prose(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize('path', DOCUMENTS,
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_commands_name_are_there(path):
    text = path.read_text(encoding='utf-8')
    named = re.findall(r'(?<![\w/.{}*-])(?:configs|mmpsw|tests|tools)/'
                       r'[\w/.-]+\.(?:py|sh|csv|txt)\b', text)
    missing = {name for name in named if not (ROOT / name).exists()
               and 'centralization' not in name}  # an example to follow
    assert not missing


@pytest.mark.parametrize('name', sorted(
    str(path.relative_to(TOOLS)) for path in TOOLS.rglob('*.py')))
def test_every_command_says_how_it_is_used(name, capsys):
    with pytest.raises(SystemExit) as info:
        script(name).main(['--help'])
    assert info.value.code == 0
    assert capsys.readouterr().out.startswith('usage: ')
