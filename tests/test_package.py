"""What is required, what is imported, and what is said about versions."""
import importlib.metadata
import subprocess
import sys

import pytest

from mmpsw import compatibility


def run(code):
    return subprocess.run([sys.executable, '-c', code],
                          capture_output=True,
                          text=True,
                          check=True).stdout


def test_setup_requires_what_the_package_checks():
    required = importlib.metadata.requires('mmpsw')
    for package, versions in compatibility.SUPPORTED.items():
        lines = [r for r in required if r.startswith(package)]
        assert len(lines) == 1
        specifiers = lines[0].removeprefix(package).split(',')
        assert set(specifiers) == set(versions.split(','))


def test_the_core_imports_nothing_of_openmmlab():
    code = 'import sys, mmpsw.methods.averaging; print(*sys.modules)'
    modules = run(code).split()
    assert 'mmpsw.methods.averaging.resampler' in modules
    assert not [m for m in modules if m.startswith(('mmengine', 'mmcv'))]
    assert 'mmpsw.engine' not in modules


def test_importing_the_package_is_light():
    code = 'import sys, mmengine, mmpsw; print(*sys.modules)'
    assert 'torch' not in run(code).split()


@pytest.mark.parametrize('tool', ['train', 'test', 'compare'])
def test_help_does_not_wait_for_torch(tool):
    modules = run('import sys\n'
                  f'from mmpsw.commands.{tool} import main\n'
                  'try: main(["--help"])\n'
                  'except SystemExit: print(*sys.modules)').split()
    assert '--help' in modules  # the help was printed
    assert f'mmpsw.commands.{tool}' in modules and 'torch' not in modules


def test_custom_imports_and_names_of_the_package():
    code = ('from mmengine.registry import HOOKS; import mmpsw; '
            'hook = HOOKS.build(dict(type="PSWHook", recalibrate_batches=7)); '
            'print(type(hook), hook.recalibrate_batches)')
    assert run(code) == "<class 'mmpsw.engine.averaging.hook.PSWHook'> 7\n"
    assert 'PSWHook' in run('import mmpsw; print(mmpsw.PSWHook)')
    assert 'PSWHook' in run('from mmengine.registry import HOOKS; '
                            'print(HOOKS.get("mmpsw.PSWHook"))')


@pytest.mark.parametrize('package, version, check', [
    ('torch', '2.0.1', compatibility.check_torch),
    ('mmengine', '0.9.1', compatibility.check_mmengine),
    ('mmengine', '0.11.0', compatibility.check_mmengine),
])
def test_versions_that_are_not_supported(monkeypatch, package, version, check):
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: version)
    with pytest.raises(ImportError) as error:
        check()
    assert str(error.value) == (
        f'mmpsw does not support {package} {version}: install '
        f'{package}{compatibility.SUPPORTED[package]}.')


@pytest.mark.parametrize('version', ['2.1.0', '2.11.0+cu130', '2.12.0a0'])
def test_versions_that_are_supported(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: version)
    compatibility.check_torch()
