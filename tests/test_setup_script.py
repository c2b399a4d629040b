"""What tools/setup.sh says and leaves behind when it can't go on.

The script itself runs, on machines that lack something: a PATH that holds
only some programs, an interpreter that reports another version.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'tools' / 'setup.sh'
# What a machine without Python and compiler still has.
PROGRAMS = ('awk basename bash cat cp cut dirname env find flock grep head '
            'mkdir mktemp mv nproc rm sed sha256sum sleep tail tr uname wc')


class Machine:
    """A machine that holds only the named programs.

    Args:
        folder: Where its programs and its environment go.
    """

    def __init__(self, folder: Path) -> None:
        self.bin = folder / 'bin'
        self.venv = folder / 'venv'
        self.env = {
            'PATH': str(self.bin),
            'HOME': str(folder),
            'MMPSW_VENV': str(self.venv),
            'PIP_NO_INDEX': '1',  # no network: these tests take seconds
        }
        self.bin.mkdir()
        for name in PROGRAMS.split():
            (self.bin / name).symlink_to(shutil.which(name))

    def program(self, name: str, text: str) -> None:
        """Adds a program, a shell script with this text."""
        path = self.bin / name
        path.write_text(f'#!/bin/sh\n{text}\n')
        path.chmod(0o755)

    def python(self, name: str, patch: str = '') -> None:
        """Adds a real interpreter in which ``patch`` has run."""
        folder = self.bin / f'{name}-patch'
        folder.mkdir()
        (folder / 'sitecustomize.py').write_text(patch)
        base = Path(sys.base_prefix) / 'bin' / 'python{}.{}'.format(
            *sys.version_info)
        self.program(name, f'PYTHONPATH={folder} exec {base} "$@"')

    def setup(self, *args: str, **env: str) -> subprocess.CompletedProcess:
        """Runs the script here."""
        return subprocess.run(
            ['bash', str(SCRIPT), *args],
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120)

    def left(self) -> set[str]:
        """Returns what is in the environment's folder, but for the lock."""
        found = os.listdir(self.venv) if self.venv.exists() else []
        return set(found) - {'.mmpsw-lock'}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def reason(result: subprocess.CompletedProcess) -> str:
    """Returns the one sentence with which the script stopped."""
    assert result.returncode == 1
    lines = re.findall(r'^\[mmpsw\] Stopped: (.*)$', result.stderr, re.M)
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_no_python(machine: Machine) -> None:
    said = reason(machine.setup())
    assert 'Python 3.10, 3.11 or 3.12 is needed' in said
    assert 'none of them runs' in said
    assert machine.left() == set()


@pytest.mark.parametrize('version', ['(3, 9, 18)', '(3, 13, 0)'])
def test_wrong_python_is_named(machine: Machine, version: str) -> None:
    machine.python('python3', f'import sys; sys.version_info = {version}')
    said = reason(machine.setup())
    major_minor = '.'.join(re.findall(r'\d+', version)[:2])
    assert f'python3 is {major_minor}' in said
    assert machine.left() == set()


def test_shim_that_fails_is_passed_over(machine: Machine) -> None:
    machine.program('python3', 'echo "command not found" >&2; exit 127')
    machine.python('python3.11', 'import sys; sys.version_info = (3, 9, 1)')
    assert '(python3.11 is 3.9)' in reason(machine.setup())


def test_only_the_named_python_is_tried(machine: Machine) -> None:
    machine.python('python3')
    said = reason(machine.setup(PYTHON='python3.99'))
    assert 'tried python3.99 ' in said


def test_no_venv_module(machine: Machine) -> None:
    machine.python('python3', 'import sys; sys.modules["ensurepip"] = None')
    said = reason(machine.setup())
    assert 'has no venv module' in said
    assert 'python{}.{}-venv'.format(*sys.version_info) in said
    assert machine.left() == set()


def test_compiler_that_fails(machine: Machine) -> None:
    machine.python('python3')
    machine.program('gcc', 'exit 0')
    machine.program('g++', 'echo "cannot find crt1.o" >&2; exit 1')
    said = reason(machine.setup())
    # Without headers the test stops earlier, and rightly.
    assert 'cannot find crt1.o' in said or 'headers of this Python' in said
    assert machine.left() == set()


def test_unfinished_set_up_is_not_trusted(machine: Machine) -> None:
    """It starts over, and stops because mmcv can't be compiled here."""
    machine.python('python3')
    machine.venv.mkdir()
    (machine.venv / '.mmpsw-unfinished').touch()
    (machine.venv / 'half-made').mkdir()
    said = reason(machine.setup())
    assert 'mmcv has to be compiled, and gcc with g++ is missing' in said
    assert machine.left() == set()


def test_somebody_elses_folder_is_left_alone(machine: Machine) -> None:
    machine.python('python3')
    machine.venv.mkdir()
    (machine.venv / 'precious').write_text('mine')
    said = reason(machine.setup())
    assert 'was not made by this script' in said
    assert (machine.venv / 'precious').read_text() == 'mine'
    assert os.listdir(machine.venv) == ['precious']


def test_check_changes_nothing(machine: Machine) -> None:
    result = machine.setup('--check')
    assert result.returncode == 1
    assert 'not up to date' in result.stdout
    assert not machine.venv.exists()


def test_unknown_option(machine: Machine) -> None:
    assert 'unknown option --chekc' in reason(machine.setup('--chekc'))


@pytest.mark.skipif(
    shutil.which('flock') is None, reason='the lock needs flock')
def test_second_set_up_waits_for_the_first(machine: Machine) -> None:
    machine.venv.mkdir()
    lock = machine.venv / '.mmpsw-lock'
    holder = subprocess.Popen(
        ['flock', str(lock), 'sh', '-c', 'echo held; exec sleep 2'],
        stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b'held\n'
    start = time.monotonic()
    result = machine.setup()
    assert time.monotonic() - start > 1
    holder.wait()
    assert 'is at work' in result.stdout
    assert 'Python 3.10, 3.11 or 3.12 is needed' in reason(result)


def own_environment() -> dict[str, str]:
    return {**os.environ, 'MMPSW_VENV': sys.prefix}


def is_up_to_date() -> bool:
    check = ['bash', str(SCRIPT), '--check']
    result = subprocess.run(check, env=own_environment(), capture_output=True)
    return result.returncode == 0


@pytest.mark.skipif(
    not is_up_to_date(), reason='these tests run outside of the set-up')
def test_nothing_is_done_twice() -> None:
    start = time.monotonic()
    result = subprocess.run(
        ['bash', str(SCRIPT)],
        env=own_environment(),
        capture_output=True,
        text=True)
    assert time.monotonic() - start < 3
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


@pytest.mark.skipif(
    not is_up_to_date(), reason='these tests run outside of the set-up')
def test_changed_pins_are_noticed(tmp_path: Path) -> None:
    copy = tmp_path / 'checkout'
    for name in ('tools/setup.sh', 'tools/requirements.txt', 'setup.py',
                 'mmpsw/version.py'):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    venv = copy / '.venv'
    shutil.copytree(
        sys.prefix,
        venv,
        symlinks=True,
        ignore=shutil.ignore_patterns('lib', 'lib64', 'share', 'include'))
    stamp = venv / '.mmpsw-stamp'
    stamp.write_text(stamp.read_text().replace(sys.prefix, str(venv)).replace(
        f'checkout {ROOT}', f'checkout {copy}'))

    def check() -> int:
        command = ['bash', str(copy / 'tools' / 'setup.sh'), '--check']
        env = {k: v for k, v in os.environ.items() if k != 'MMPSW_VENV'}
        return subprocess.run(command, env=env, capture_output=True).returncode

    assert check() == 0
    with open(copy / 'tools' / 'requirements.txt', 'a') as pins:
        pins.write('another==1.0\n')
    assert check() == 1
