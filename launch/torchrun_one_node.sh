#!/usr/bin/env bash
# Trains on this machine under torchrun.
#
#   launch/torchrun_one_node.sh PROCESSES [OVERRIDES]
#   launch/torchrun_one_node.sh 4 model=cnn6 data=cifar10 data.root=DIR
#
# PROCESSES is P x R: processes of the chain times pipeline.replicas. Without pipeline.stages, each
# process has one stage. The links use NCCL if there is one GPU per process, else gloo.
# `dglpipe train` does the same without torchrun.
#
# TORCHRUN: the program (default torchrun). PORT: a free TCP port (default: a random one).
# GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME: interface of the links (default: loopback).
# Exit status: 0: the run finished; 1: any failure.
#
# Network: torchrun keeps its store on PORT, and no flag binds the store to one interface. With the
# static rendezvous, torchrun unpickles nothing from it, but whoever reaches PORT can read and write
# its keys. `torchrun --standalone` opens two such ports and unpickles. `dglpipe train` opens none.
# Tested: the test suite runs this torchrun line, with two processes on a CPU.
set -euo pipefail

if (($# < 1)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 PROCESSES [OVERRIDES]" >&2
  exit 2
fi
processes=$1
shift
# Without this variable, torchrun prints a warning. pipeline.threads sets the number of threads.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
loopback=lo
[[ $(uname) == Darwin ]] && loopback=lo0
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$loopback}"
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$loopback}"
port=${PORT:-}
# Below the ports that the kernel gives to clients; a port in use accepts a connection.
while [[ -z $port ]] || { [[ -z ${PORT:-} ]] && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }; do
  port=$((20000 + RANDOM % 12000))
done
exec "${TORCHRUN:-torchrun}" \
  --nnodes=1 --node-rank=0 --nproc-per-node="$processes" \
  --rdzv-backend=static --master-addr=127.0.0.1 --master-port="$port" --local-addr=127.0.0.1 \
  -m dglpipe train "$@"
