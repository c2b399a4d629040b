#!/usr/bin/env bash
# Trains on a Slurm cluster:
#   bash tools/slurm_train.sh PARTITION JOB CONFIG WORK_DIR [options]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS say what to ask for.
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: bash tools/slurm_train.sh PARTITION JOB CONFIG WORK_DIR" \
        "[options]" >&2
    exit 2
fi
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
CPUS_PER_TASK=${CPUS_PER_TASK:-5}
ROOT=$(cd "$(dirname "$0")/.." && pwd)

# SRUN_ARGS is a list of options, so it is split at its blanks.
# shellcheck disable=SC2086
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" \
exec srun -p "$1" \
    --job-name="$2" \
    --gres="gpu:$GPUS_PER_NODE" \
    --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="$CPUS_PER_TASK" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$ROOT/tools/train.py" "$3" \
    --work-dir "$4" --launcher slurm "${@:5}"
