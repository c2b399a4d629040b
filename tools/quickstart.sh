#!/usr/bin/env bash
# Sets everything up (tools/setup.sh), then trains a stock detector without
# and with PSW and shows the difference. Arguments go to tools/quickstart.py,
# and paths in them are relative to the checkout:
#
#     bash tools/quickstart.sh --help

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${MMPSW_VENV:-$root/.venv${MMPSW_STACK:+-$MMPSW_STACK}}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac

bash "$root/tools/setup.sh"
cd "$root"
exec "$venv/bin/python" tools/quickstart.py "$@"
