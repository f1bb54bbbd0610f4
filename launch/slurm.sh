#!/usr/bin/env bash
#SBATCH --job-name=dglpipe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#
# Trains in a SLURM job: a torchrun on every node, a process a GPU.
#
#   sbatch --nodes=2 --gpus-per-node=4 launch/slurm.sh [OVERRIDES]
#   sbatch launch/slurm.sh run_dir=/shared/runs/1 pipeline.stages=8 checkpoint.every=500
#
# Submit it from the checkout, in the environment that has dglpipe; run_dir has to lie on a file
# system that all nodes see. After a time limit, submit the same command again with
# resume=auto: it goes on from the last complete checkpoint.
# PROCESSES: processes a node (default: its GPUs). PORT: see launch/torchrun_nodes.sh.
# Not tested on a cluster. The suite runs it with a stand-in for srun and scontrol.
set -euo pipefail

# SLURM runs a copy of this file from elsewhere; the checkout is where it was submitted.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export HEAD_NODE=${nodes%%$'\n'*}
export NODES=$SLURM_JOB_NUM_NODES
export RUN_ID=$SLURM_JOB_ID
# Two jobs that share a node need ports of their own.
export PORT=${PORT:-$((29500 + SLURM_JOB_ID % 1000))}
processes=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}

cd "$SLURM_SUBMIT_DIR"
exec srun --kill-on-bad-exit=1 launch/torchrun_nodes.sh "$processes" "$@"
