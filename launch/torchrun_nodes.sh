#!/usr/bin/env bash
# Trains on several machines under torchrun. Start this script on each machine with equal arguments.
#
#   HEAD_NODE=host0 NODES=2 launch/torchrun_nodes.sh PROCESSES [OVERRIDES]
#   HEAD_NODE=host0 NODES=2 launch/torchrun_nodes.sh 4 run_dir=/shared/runs/1 pipeline.stages=8
#
# HEAD_NODE: name or address of the machine that hosts the rendezvous.
# NODES: number of machines. PROCESSES: processes per machine; NODES x PROCESSES = P x R.
# PORT: a free port of HEAD_NODE (default 29500). TORCHRUN: the program (default torchrun).
# GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME: the network interface, if the default is wrong.
#
# All machines need the same version of dglpipe, the same data, and run_dir on a common file system,
# because each process writes the files of its own stages.
# Tested: the test suite runs it as two "machines" on one. Not run on several machines.
set -euo pipefail

if (($# < 1)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]] || [[ -z ${HEAD_NODE:-} || -z ${NODES:-} ]]; then
  echo "usage: HEAD_NODE=HOST NODES=N $0 PROCESSES [OVERRIDES]" >&2
  exit 2
fi
processes=$1
shift
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${TORCHRUN:-torchrun}" \
  --nnodes="$NODES" --nproc-per-node="$processes" --max-restarts=0 \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD_NODE:${PORT:-29500}" \
  --rdzv-id="${RUN_ID:-dglpipe}" \
  -m dglpipe train "$@"
