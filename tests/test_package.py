"""What is required, imported, packaged, and said about versions."""
import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmpsw import compatibility

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('mmpsw', 'configs', 'tools', 'setup.py', 'pyproject.toml',
           'README.md', 'LICENSE')
# Modules that are called otherwise than the requirement that brings them
BROUGHT_BY = {**compatibility.FAMILIES['openmmlab'], 'PIL': 'matplotlib',
              'cv2': 'mmengine', 'sklearn': 'scikit-learn', 'triton': 'torch',
              'yaml': 'mmengine'}


def run(code, **kwargs):
    return subprocess.run([sys.executable, '-c', code], capture_output=True,
                          text=True, check=True, **kwargs).stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of what is packaged: the checkout is not built in."""
    folder = tmp_path_factory.mktemp('source')
    for name in SOURCES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder)
        else:
            shutil.copytree(ROOT / name, folder / name, symlinks=True)
    return folder


@pytest.fixture(scope='module')
def wheel(source):
    before = sorted(source.rglob('*'))
    subprocess.run([
        sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-index',
        '--no-build-isolation', '-w', source.parent / 'dist', source
    ], check=True, capture_output=True)
    assert sorted(source.rglob('*')) == before  # nothing is left behind
    return zipfile.ZipFile(*(source.parent / 'dist').glob('mmpsw-*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """What PYTHONPATH must be, to have mmpsw installed without ``-e``."""
    folder = tmp_path_factory.mktemp('site')
    wheel.extractall(folder)
    return folder


def requirements(wheel):
    """All that is required, and all that some extra requires."""
    name = next(n for n in wheel.namelist() if n.endswith('/METADATA'))
    lines = re.findall('^Requires-Dist: (.*)$', wheel.read(name).decode(),
                       re.MULTILINE)
    all_of_them = [Requirement(line) for line in lines]
    plain = [one for one in all_of_them if one.marker is None]
    return plain, [one for one in all_of_them if one.marker is not None]


def test_the_wheel_holds_package_configs_and_tools_and_no_results(wheel):
    names = set(wheel.namelist())
    of_package = {str(path.relative_to(ROOT)) for path in
                  (ROOT / 'mmpsw').rglob('*.*') if path.is_file()}
    assert {name for name in of_package
            if not name.endswith(('.pyc', '.md'))} <= names
    kept = [path.relative_to(ROOT) for folder in ('configs', 'tools')
            for path in (ROOT / folder).rglob('*.py')
            if '__pycache__' not in path.parts]
    assert {f'mmpsw/.mim/{path}' for path in kept} <= names
    others = {f'mmpsw/.mim/{name}' for name in (
        'model-index.yml', 'tools/dist_train.sh', 'tools/slurm_train.sh')}
    others |= {f'mmpsw/.mim/{path.relative_to(ROOT)}'
               for folder in ('configs', 'tools')
               for path in (ROOT / folder).rglob('*.md')}
    assert others | {
        'mmpsw/README.md', 'mmpsw/engine/averaging/README.md',
        'mmpsw/py.typed'} <= names
    assert len([n for n in names if '/.mim/' in n]) == len(kept) + len(others)


FOREIGN = """
_base_ = ['mmpretrain::resnet/resnet18_8xb16_cifar10.py',
          'mmpsw::_base_/methods/pwalks.py']
"""


@pytest.mark.parametrize('how', ['installed', 'checkout'])
def test_a_foreign_config_inherits_our_fragment(how, installed, tmp_path):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'foreign.py').write_text(FOREIGN)
    site = installed if how == 'installed' else ROOT
    printed = run(
        'import mmpsw.configs\n'
        'from mmengine.config import Config\n'
        'from mmpsw.engine.averaging.settings import PSWSettings\n'
        'cfg = Config.fromfile("foreign.py")\n'
        'technique = PSWSettings.from_config(cfg.psw).technique\n'
        'print(mmpsw.__file__, technique, cfg.model.backbone.type)',
        cwd=tmp_path, env={'PYTHONPATH': str(site)})
    assert printed.split() == [
        str(site / 'mmpsw/__init__.py'), 'PWALKS(last=0.25)', 'ResNet_CIFAR'
    ]


@pytest.mark.parametrize('command', ['train', 'test', 'compare'])
def test_an_installed_command_says_how_it_is_used(command, installed,
                                                  tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', f'mmpsw.commands.{command}', '--help'],
        cwd=tmp_path, env={'PYTHONPATH': str(installed)},
        capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, '')
    assert f'usage: {command}.py' in result.stdout


@pytest.mark.parametrize('name, says', [
    ('train', 'usage: mmpsw train '), ('test', 'usage: mmpsw test '),
    ('compare', 'usage: mmpsw compare '), ('average', 'usage: mmpsw average '),
    (None, 'usage: mmpsw train|test|compare|average ')])
def test_one_name_for_all_commands(name, says, installed, wheel, tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'mmpsw', *([name] if name else []), '--help'],
        cwd=tmp_path, env={'PYTHONPATH': str(installed)},
        capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout.startswith(says)
    script = next(n for n in wheel.namelist() if n.endswith('points.txt'))
    assert 'mmpsw = mmpsw.__main__:main' in wheel.read(script).decode()


def test_a_command_that_there_is_not(installed, tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'mmpsw', 'trian'], cwd=tmp_path,
        env={'PYTHONPATH': str(installed)}, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ''
    assert result.stderr.startswith('usage: mmpsw train|test|')


def test_the_description_links_to_no_file_of_a_checkout(wheel):
    """Who reads it elsewhere has none."""
    name = next(n for n in wheel.namelist() if n.endswith('/METADATA'))
    text = wheel.read(name).decode()
    links = re.findall(r'\]\(([^)]*)\)', text)
    assert all(link.startswith(('http', '#')) for link in links)
    assert 'mmpsw: the average of each epoch' in text


def test_what_is_imported_is_declared(wheel):
    plain, extra = requirements(wheel)
    declared = {canonicalize_name(one.name) for one in plain + extra}
    missing = {}
    for path in (ROOT / 'mmpsw').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.split('.')[0] for name in names}:
                bringer = canonicalize_name(BROUGHT_BY.get(name, name))
                if (name not in sys.stdlib_module_names | {'mmpsw'} and
                        bringer not in declared):
                    missing.setdefault(name, []).append(path.name)
    assert missing == {}


def test_what_is_required_without_an_extra(wheel):
    plain, extra = requirements(wheel)
    required = {one.name: one.specifier for one in plain}
    # what a comparison needs, and what the package checks
    assert {'jinja2', 'matplotlib', 'pandas', 'scipy', 'tabulate'} <= set(
        required)
    assert required['torch'] == compatibility.SUPPORTED['torch']
    # of two families a user has one
    assert not {one.name for one in plain if 'mm' in one.name}
    for family, names in compatibility.FAMILIES.items():
        brought = {one.name: one.specifier for one in extra
                   if one.marker.evaluate(dict(extra=family))}
        assert set(names.values()) <= set(brought)
        below = compatibility.SUPPORTED['mmengine'].split(',')[1]
        assert below in str(brought[names['mmengine']])


@pytest.mark.parametrize('family', compatibility.FAMILIES)
def test_the_pins_are_what_setup_requires(wheel, family):
    """Who takes our pins gets no environment that setup.py refuses."""
    text = (ROOT / 'tools/requirements.txt').read_text() + '\n'
    text += (ROOT / f'tools/requirements_{family}.txt').read_text()
    built = re.findall('Built from source: (.*)', text)
    lines = [*text.splitlines(), *built]
    pins = [Requirement(line) for line in lines if re.match(r'\w', line)]
    plain, extra = requirements(wheel)
    for one in plain + extra:
        for pin in pins:
            if canonicalize_name(pin.name) == canonicalize_name(one.name):
                version = str(pin.specifier).removeprefix('==')
                assert one.specifier.contains(version), (one, pin)
    pinned = {canonicalize_name(pin.name) for pin in pins}
    assert {canonicalize_name(one.name) for one in plain} <= pinned
    assert set(compatibility.FAMILIES[family].values()) <= pinned


def test_the_core_imports_nothing_of_openmmlab():
    code = 'import sys, mmpsw.methods.averaging; print(*sys.modules)'
    modules = run(code).split()
    assert 'mmpsw.methods.averaging.resampler' in modules
    assert not [m for m in modules if m.startswith(('mmengine', 'mmcv'))]
    assert 'mmpsw.engine' not in modules


def test_classes_come_from_the_top_when_asked_for():
    code = ('import sys, mmpsw\n'
            'before = {*sys.modules}\n'
            'from mmpsw import PWALKS, PeriodicResampler\n'
            'plain = {*sys.modules}\n'
            'from mmpsw import PSWHook, SafeSavingHook, checkpoints, engine\n'
            'assert not hasattr(mmpsw, "PSWHok")\n'
            'assert mmpsw.PSWOptimWrapper is engine.PSWOptimWrapper\n'
            'print("torch" in before, "mmengine" in plain)\n'
            'print(PWALKS.__module__, PSWHook.__module__)')
    assert run(code).split() == [
        'False', 'False', 'mmpsw.methods.averaging.techniques',
        'mmpsw.engine.averaging.hook']


def test_the_engine_needs_no_torchvision(tmp_path):
    """torch and mmengine are enough for the two lines."""
    code = ("""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torchvision", "mmcv", "mmdet"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import toy
run = toy.trained('run', dict(type='PWALKS', last=0.25))
run = toy.trained('run', dict(type='PWALKS', last=0.25),
                  resume_from='run/iter_12.pth')
print(run.iter)
""")
    assert run(code, cwd=tmp_path, env={
        'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'}).split()[-1] == '24'


@pytest.mark.parametrize('tool', ['train', 'test', 'average_checkpoints',
                                  'compare'])
def test_help_does_not_wait_for_torch(tool):
    modules = run('import sys\n'
                  f'from mmpsw.commands.{tool} import main\n'
                  'try: main(["--help"])\n'
                  'except SystemExit: print(*sys.modules)').split()
    assert '--help' in modules  # the help was printed
    # without torch, which importing mmpsw alone does not bring either
    assert f'mmpsw.commands.{tool}' in modules and 'torch' not in modules


def test_a_type_imports_itself():
    code = ('from mmengine.registry import *\n'
            'for registry, name in [(DATASETS, "NoisyLabels"),\n'
            '                       (OPTIM_WRAPPERS, "PSWOptimWrapper"),\n'
            '                       (HOOKS, "PSWHook")]:\n'
            '    print(registry.get(f"mmpsw.{name}").__module__)')
    assert run(code).split()[-3:] == [  # onedl-mmdetection says something
        'mmpsw.datasets.label_noise', 'mmpsw.engine.averaging.optim_wrapper',
        'mmpsw.engine.averaging.hook'
    ]


def pretend(monkeypatch, **versions):
    """Only these distributions are installed; onedl_x stands for onedl-x."""

    def version(name):
        try:
            return versions[name.replace('-', '_')]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, 'version', version)


@pytest.mark.parametrize('versions, check, message', [
    (dict(torch='2.5.1'), compatibility.check_torch,
     "torch 2.5.1, but >=2.6,<3: pip install 'torch>=2.6,<3'"),
    (dict(mmengine='0.9.1'), compatibility.check_mmengine,
     "mmengine 0.9.1, but >=0.10.2,<0.11: pip install "
     "'mmengine>=0.10.2,<0.11'"),
    (dict(onedl_mmengine='0.11.0'), compatibility.check_mmengine,
     "onedl-mmengine 0.11.0, but >=0.10.2,<0.11: pip install "
     "'onedl-mmengine>=0.10.2,<0.11'"),
])
def test_versions_that_are_not_supported(monkeypatch, versions, check,
                                         message):
    pretend(monkeypatch, **versions)
    with pytest.raises(ImportError) as error:
        check()
    assert str(error.value) == f'mmpsw does not support {message}'


@pytest.mark.parametrize('version', ['2.6.0', '2.11.0+cu130', '2.12.0a0'])
def test_versions_that_are_supported(monkeypatch, version):
    pretend(monkeypatch, torch=version, onedl_mmengine='0.10.12')
    compatibility.check_torch()
    compatibility.check_mmengine()


def test_both_families_at_once(monkeypatch):
    pretend(monkeypatch, mmengine='0.10.7', mmcv='2.1.0', onedl_mmcv='2.3.6')
    with pytest.raises(ImportError) as error:
        compatibility.check_mmengine()
    assert str(error.value) == (
        "mmpsw finds mmcv and onedl-mmcv, which overwrite each other's files, "
        'because both are imported as mmcv: pip uninstall --yes mmcv '
        'onedl-mmcv, and then pip install one of them')


def test_no_mmengine(tmp_path):
    """The first line of every command says so."""
    code = ('import sys; sys.modules["mmengine"] = None\n'
            'import mmpsw.commands.train')
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == (
        'ImportError: mmpsw needs mmengine, and finds none: pip install '
        "'mmengine>=0.10.2,<0.11', or, of the maintained forks, pip install "
        "'onedl-mmengine>=0.10.2,<0.11'")


@pytest.mark.parametrize('installed, said', [
    (dict(mmengine='0.10.7'), 'mmsegmentation'),
    (dict(onedl_mmengine='0.10.12'), 'onedl-mmsegmentation'),
    ({}, 'mmsegmentation'),
])
def test_what_pip_calls_a_framework(monkeypatch, installed, said):
    pretend(monkeypatch, **installed)
    assert compatibility.distribution('mmseg') == said


def test_an_mmcv_that_was_built_for_another_torch(monkeypatch, tmp_path):
    """A shared library without what Python looks for, as one with a symbol
    that torch lacks, is found and does not load."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()
    (tmp_path / 'mmcv/_ext.so').write_bytes(b'not a library')
    code = ('from mmpsw.commands import options\n'
            'from mmpsw.compatibility import check_operations\n'
            'raise SystemExit(options.report_errors(check_operations))')
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True,
        env={'PYTHONPATH': f'{tmp_path}:{ROOT}'})
    name = compatibility.distribution('mmcv')
    version = importlib.metadata.version(name)
    assert result.returncode == 2
    (line, ) = result.stderr.splitlines()
    assert line.startswith(f'error: {name} {version} was built for another '
                           'torch than torch ')
    assert line.endswith(
        f'_ext.so: file too short): pip install --force-reinstall --no-deps '
        f'--no-build-isolation --no-cache-dir --no-binary {name} '
        f'{name}=={version} builds it for this one')
