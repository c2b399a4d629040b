#!/usr/bin/env bash
# Trains on several GPUs (or CPU processes) of one machine or more:
#   bash tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
# On several machines, on each: NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash tools/dist_train.sh CONFIG PROCESSES [options]" >&2
    exit 2
fi
CONFIG=$1
PROCESSES=$2
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
PORT=${PORT:-29500}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
ROOT=$(cd "$(dirname "$0")/.." && pwd)

PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="$NNODES" \
    --node-rank="$NODE_RANK" \
    --master-addr="$MASTER_ADDR" \
    --master-port="$PORT" \
    --nproc-per-node="$PROCESSES" \
    "$ROOT/tools/train.py" "$CONFIG" --launcher pytorch "${@:3}"
