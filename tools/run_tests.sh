#!/usr/bin/env bash
# Sets everything up (tools/setup.sh), then runs the tests, as many at once as
# there are cores. Arguments go to pytest, and paths in them are relative to
# the checkout:
#
#     bash tools/run_tests.sh -x -k pswa
#     bash tools/run_tests.sh -n 0 --pdb      one after the other

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${MMPSW_VENV:-$root/.venv${MMPSW_STACK:+-$MMPSW_STACK}}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac

bash "$root/tools/setup.sh"
cd "$root"
# The tests' models are so small that more threads only wait for each other,
# all the more where other work shares the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# A file's tests stay together, because they share what its fixtures train.
cores=$(env -u OMP_NUM_THREADS nproc)   # nproc itself obeys it
exec "$venv/bin/python" -m pytest tests -n "$cores" --dist loadfile "$@"
