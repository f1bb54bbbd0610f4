#!/usr/bin/env bash
#SBATCH --job-name=dglpipe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#
# Trains in a SLURM job: one torchrun per node, one process per GPU.
#
#   sbatch --nodes=2 --gpus-per-node=4 launch/slurm.sh [OVERRIDES]
#   sbatch launch/slurm.sh run_dir=/shared/runs/1 pipeline.stages=8 checkpoint.every=500
#
# Submit this script from the checkout, in the environment that has dglpipe. run_dir has to be on a
# file system of all nodes. After a time limit, submit the same command again with resume=auto: the
# run continues from its last complete checkpoint.
# PROCESSES: processes per node (default: its GPUs). PORT: see launch/torchrun_nodes.sh.
# Not tested on a cluster. The test suite runs it with a stand-in for srun and scontrol.
set -euo pipefail

# SLURM runs a copy of this file from another folder; the checkout is the folder of submission.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export HEAD_NODE=${nodes%%$'\n'*}
export NODES=$SLURM_JOB_NUM_NODES
export RUN_ID=$SLURM_JOB_ID
# Two jobs on the same node need different ports.
export PORT=${PORT:-$((29500 + SLURM_JOB_ID % 1000))}
processes=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}

cd "$SLURM_SUBMIT_DIR"
exec srun --kill-on-bad-exit=1 launch/torchrun_nodes.sh "$processes" "$@"
