#!/usr/bin/env bash
# Trains one model with all CUDA devices of this node, or with PROCESSES processes on its CPU.
# Usage: torchrun.sh CONFIG [ARGUMENTS OF `irepa train`]
#
# On several nodes, replace --standalone by
#   --nnodes N --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29400
# and run the same command on each.

set -euo pipefail

config=${1:?"usage: torchrun.sh CONFIG [ARGUMENTS]"}
shift

# torchrun starts all processes again if one ends early; --resume continues from the newest checkpoint then.
exec torchrun --standalone --no-python --nproc-per-node "${PROCESSES:-gpu}" --max-restarts "${RESTARTS:-3}" \
    irepa train "$config" --resume "$@"
