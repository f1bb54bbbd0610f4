#!/usr/bin/env bash
# Trains on this machine under torchrun.
#
#   launch/torchrun_one_node.sh PROCESSES [OVERRIDES]
#   launch/torchrun_one_node.sh 4 model=cnn6 data=cifar10 data.root=DIR
#
# PROCESSES is P x R: stages in processes of their own, times pipeline.replicas. Leave
# pipeline.stages out, and there is a stage a process. With a GPU a process the links run over
# NCCL, else over gloo. `dglpipe train` does the same without torchrun; take this one where
# your tools expect torchrun.
#
# TORCHRUN: the program (default torchrun). Exit status: 0 done, 1 anything else.
# Tested: the suite runs this torchrun line, with two processes on a CPU.
set -euo pipefail

if (($# < 1)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 PROCESSES [OVERRIDES]" >&2
  exit 2
fi
processes=$1
shift
# torchrun would set this to 1 with a warning; pipeline.threads decides in the end.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${TORCHRUN:-torchrun}" --standalone --nproc-per-node="$processes" -m dglpipe train "$@"
