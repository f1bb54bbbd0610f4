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
# TORCHRUN: the program (default torchrun). Exit status: 0: the run finished; 1: any failure.
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
exec "${TORCHRUN:-torchrun}" --standalone --nproc-per-node="$processes" -m dglpipe train "$@"
