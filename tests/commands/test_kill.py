"""Runs that are killed at any moment go on exactly."""
import re
import subprocess
import sys
from pathlib import Path


def test_a_short_campaign_of_kills():
    """tests/faults.py says what it does; the long form has 50 runs."""
    faults = Path(__file__).resolve().parents[1] / 'faults.py'
    done = subprocess.run(
        [sys.executable, str(faults), '--runs', '2', '--seed', '1'],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    row = done.stdout.splitlines()[2]
    kills = {where: int(count) for count, where in re.findall(
        r'(\d+) x kill -9 (while it saves|at another moment)', row)}
    assert sum(kills.values()) >= 3
    assert re.search(r'\| 0 \| [\d.]+ \|$', row), row
