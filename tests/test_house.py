"""The order of the rooms: imports go down only, and siblings are alike."""
import ast
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each room imports from those before it. '' is mmpsw/__init__.py.
ROOMS = ('version', 'compatibility', '', 'methods', 'registry', 'checkpoints',
         'models', 'runtime', 'engine', 'configs', 'zoo', 'datasets',
         'compare', 'commands', '__main__')
TECHNIQUES = sorted(
    path.stem for path in (ROOT / 'mmpsw' / 'methods').iterdir()
    if not path.name.startswith('_'))
# What is named otherwise than its technique: a family has several fragments.
FRAGMENTS = {'averaging': ('pswa', 'pwalks', 'pswm', 'psw')}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


FILES = {module_name(path): path for path in (ROOT / 'mmpsw').rglob('*.py')}


def imported(name, path):
    """The modules of mmpsw that one imports, also late, in functions."""
    package = name if path.stem == '__init__' else name.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name('.' * node.level + (node.module or ''),
                                package)
            # `from package import name`: a module, or something in one
            found = [f'{base}.{alias.name}' for alias in node.names]
            found = [one if one in FILES else base for one in found]
        else:
            continue
        yield from (one for one in found if one.split('.')[0] == 'mmpsw')


GRAPH = {name: set(imported(name, path)) for name, path in FILES.items()}
GRAPH['mmpsw'].clear()  # what it hands out is imported when it is asked for


def room(module):
    return (module.split('.') + [''])[1]


def test_every_room_has_its_place():
    assert {room(name) for name in FILES} <= set(ROOMS)


@pytest.mark.parametrize('name', ROOMS)
def test_imports_go_down(name):
    below = ROOMS[:ROOMS.index(name) + 1]
    climbing = [(module, target) for module, targets in GRAPH.items()
                for target in targets
                if room(module) == name and room(target) not in below]
    assert climbing == []


def test_there_is_no_circle():
    TopologicalSorter(GRAPH).prepare()


@pytest.mark.parametrize('name', TECHNIQUES)
def test_a_technique_has_one_name_in_every_room(name):
    engine, tests = ROOT / 'mmpsw/engine', ROOT / 'tests/methods'
    assert (engine / name).is_dir() or (engine / f'{name}.py').is_file()
    assert (tests / name).is_dir() or (tests / f'test_{name}.py').is_file()
    for fragment in FRAGMENTS.get(name, (name, )):
        assert (ROOT / f'configs/_base_/methods/{fragment}.py').is_file()
