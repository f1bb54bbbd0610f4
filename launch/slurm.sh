#!/usr/bin/env bash
#SBATCH --job-name=dglpipe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=TERM@90
#SBATCH --requeue
#
# Trains in a SLURM job: one torchrun per node, one process per GPU.
#
#   sbatch --nodes=2 --gpus-per-node=4 launch/slurm.sh [OVERRIDES]
#   sbatch launch/slurm.sh run_dir=/shared/runs/1 pipeline.stages=8 checkpoint.every=500
#
# Submit this script from the checkout, in the environment that has dglpipe. run_dir has to be on a
# file system of all nodes.
#
# 90 seconds before the time limit SLURM sends SIGTERM. The processes then write a checkpoint and stop,
# and summary.json says "preempted". With resume=auto and run_dir=... among the OVERRIDES this script
# then queues the job again, and the run continues. Without, submit the same command with resume=auto.
#
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
status=0
srun --kill-on-bad-exit=1 launch/torchrun_nodes.sh "$processes" "$@" || status=$?

run_dir="" resumes=false
for word in "$@"; do
  [[ $word == run_dir=* ]] && run_dir=${word#run_dir=}
  [[ $word == resume=auto ]] && resumes=true
done
# torchrun makes status 1 of any status of a worker, so the summary tells.
if ((status)) && $resumes && grep -q '"status": "preempted"' "$run_dir/summary.json" 2>/dev/null; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
