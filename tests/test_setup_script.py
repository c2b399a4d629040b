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
# What a machine without Python and compiler still has.
PROGRAMS = ('awk bash cat cp cut dirname env find flock grep head ls mkdir '
            'mktemp mv nproc rm sed sha256sum sleep tail tee uname')
STAMP = '.mmpsw-stamp'


class Machine:
    """A machine that holds only the named programs.

    Args:
        folder: Where its programs and its environment go.
    """

    def __init__(self, folder: Path) -> None:
        self.bin, self.venv = folder / 'bin', folder / 'venv'
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

    def setup(self, *args: str, script: Path = ROOT / 'tools/setup.sh',
              **env: str) -> subprocess.CompletedProcess:
        """Runs the script here."""
        return subprocess.run(['bash', str(script), *args],
                              env={**self.env, **env},
                              stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=120)

    def stops(self, *args: str, **env: str) -> str:
        """Runs the script; returns the sentence with which it stops."""
        result = self.setup(*args, **env)
        assert result.returncode == 1
        said = re.findall(r'^\[mmpsw\] Stopped: (.*)$', result.stderr, re.M)
        assert len(said) == 1, result.stderr
        return said[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_python(machine: Machine) -> None:
    said = machine.stops()
    assert 'Python 3.10, 3.11 or 3.12 with its module venv' in said
    assert '(none of them runs)' in said
    assert os.listdir(machine.venv) == [STAMP]


@pytest.mark.parametrize('patch, found', [
    ('import sys; sys.version_info = (3, 9, 18)', '3.9'),
    ('import sys; sys.version_info = (3, 13, 0)', '3.13'),
    ('import sys; sys.modules["ensurepip"] = None',
     '{}.{} without the module venv'.format(*sys.version_info)),
])
def test_a_python_that_does_not_do(machine, patch, found) -> None:
    machine.program('python3', 'exit 127')  # a shim: passed over
    machine.python('python3.11', patch)
    assert f'(python3.11 is {found})' in machine.stops()


def test_only_the_named_python_is_tried(machine: Machine) -> None:
    machine.python('python3')
    assert 'tried python3.99 ' in machine.stops(PYTHON='python3.99')


@pytest.mark.parametrize('compiler, reason', [
    (None, 'c++: command not found'),
    ('echo "cannot find crt1.o" >&2; exit 1', 'cannot find crt1.o'),
])
def test_no_compiler(machine, compiler, reason) -> None:
    """It is looked for before torch is downloaded."""
    machine.python('python3')
    if compiler:
        machine.program('c++', compiler)
    said = machine.stops()
    assert 'mmcv has to be compiled' in said and said.endswith(reason)


def test_an_interrupted_set_up_starts_over(machine: Machine) -> None:
    machine.python('python3')
    (machine.venv / 'half-made').mkdir(parents=True)
    (machine.venv / STAMP).touch()
    assert 'mmcv has to be compiled' in machine.stops()
    assert not (machine.venv / 'half-made').exists()
    assert (machine.venv / STAMP).read_text() == ''


def test_somebody_elses_folder_is_left_alone(machine: Machine) -> None:
    machine.python('python3')
    machine.venv.mkdir()
    (machine.venv / 'precious').write_text('mine')
    assert 'was not made by this script' in machine.stops()
    assert os.listdir(machine.venv) == ['precious']


def test_check_changes_nothing(machine: Machine) -> None:
    assert 'not up to date' in machine.stops('--check')
    assert not machine.venv.exists()
    assert 'unknown option --chekc' in machine.stops('--chekc')
    said = machine.stops(MMPSW_STACK='onedll')
    assert said == 'MMPSW_STACK=onedll is unknown: use openmmlab or onedl'


def test_a_second_set_up_waits_for_the_first(machine: Machine) -> None:
    machine.venv.mkdir()
    holder = subprocess.Popen(
        ['flock', machine.venv / STAMP, 'sh', '-c', 'echo held; sleep 2'],
        stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b'held\n'
    start = time.monotonic()
    result = machine.setup()
    assert time.monotonic() - start > 1
    holder.wait()
    assert 'is at work' in result.stdout


def test_nothing_is_done_twice_until_the_pins_change(machine, tmp_path):
    copy = tmp_path / 'checkout'
    (copy / 'tools').mkdir(parents=True)
    for name in ('tools/setup.sh', 'tools/requirements.txt', 'setup.py',
                 'tools/requirements_openmmlab.txt',
                 'tools/requirements_onedl.txt'):
        shutil.copy(ROOT / name, copy / name)
    (machine.venv / 'bin').mkdir(parents=True)
    (machine.venv / 'bin/python').symlink_to(sys.executable)
    # The stamp that the script itself would write at its end
    script = copy / 'tools/setup.sh'
    functions = script.read_text().partition('\nmain "$@"')[0]
    stamp = tmp_path / 'stamp.sh'
    stamp.write_text(functions.replace('${BASH_SOURCE[0]}', str(script)) +
                     '\nnew_stamp >"$stamp"\n')
    assert machine.setup(script=stamp).returncode == 0
    start = time.monotonic()
    result = machine.setup(script=script)
    assert time.monotonic() - start < 3
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
    assert machine.setup('--check', script=script).returncode == 0
    assert machine.setup('--check', script=script, FORCE_CUDA='1').returncode
    assert machine.setup('--check', script=script, MMPSW_STACK='onedl'
                         ).returncode
    with open(copy / 'tools/requirements.txt', 'a') as pins:
        pins.write('another==1.0\n')
    assert machine.setup('--check', script=script).returncode == 1
