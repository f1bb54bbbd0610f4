#!/usr/bin/env bash
# Trains on several machines under torchrun. Start this script on each machine with equal arguments.
#
#   HEAD_NODE=host0 NODES=2 launch/torchrun_nodes.sh PROCESSES [OVERRIDES]
#   HEAD_NODE=host0 NODES=2 launch/torchrun_nodes.sh 4 run_dir=/shared/runs/1 pipeline.stages=8
#   HEAD_NODE=10.0.0.1 LOCAL_ADDR=10.0.0.2 NODE_RANK=1 NODES=2 launch/torchrun_nodes.sh 4 run_dir=/shared/1
#
# HEAD_NODE: name or address of the machine that hosts the rendezvous.
# NODES: number of machines. PROCESSES: processes per machine; NODES x PROCESSES = P x R.
# PORT: a free port of HEAD_NODE (default 29500). TORCHRUN: the program (default torchrun).
# GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME: the network interface of the links. Name the private one.
# LOCAL_ADDR: address of this machine on the private network (default: its host name).
# NODE_RANK: number of this machine, from 0; 0 on HEAD_NODE. If it is set on all machines, the
# rendezvous is static: nothing that comes over the network is unpickled.
#
# Network: HEAD_NODE listens on PORT, on all its interfaces; without NODE_RANK, a second store listens
# on a random port. Without NODE_RANK, torchrun unpickles what it reads from PORT: whoever reaches that
# port can run code on all machines. All machines that reach the ports have to be trusted; see
# docs/guide/machines.md.
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
if [[ -n ${NODE_RANK:-} ]]; then
  rendezvous=(--rdzv-backend=static --node-rank="$NODE_RANK"
    --master-addr="$HEAD_NODE" --master-port="${PORT:-29500}")
else
  rendezvous=(--rdzv-backend=c10d --rdzv-endpoint="$HEAD_NODE:${PORT:-29500}")
fi
if [[ -n ${LOCAL_ADDR:-} ]]; then
  rendezvous+=(--local-addr="$LOCAL_ADDR")
fi
exec "${TORCHRUN:-torchrun}" \
  --nnodes="$NODES" --nproc-per-node="$processes" --max-restarts=0 \
  "${rendezvous[@]}" --rdzv-id="${RUN_ID:-dglpipe}" \
  -m dglpipe train "$@"
