#!/bin/bash
# One run as a Slurm job: `ray symmetric-run` starts Ray on every node and the driver on the first.
#
#   sbatch deploy/slurm.sh configs/laion.yaml run=/shared/runs/laion
#
# The run folder has all state: a job that was preempted, cancelled or reached its time limit resumes when it is
# submitted again, on any number of nodes. Set the lines marked CHANGE. Every node must see this folder and the run's.
#SBATCH --job-name=imagen-ray
#SBATCH --nodes=2               # CHANGE
#SBATCH --gpus-per-node=8       # CHANGE; leave out on nodes without GPUs
#SBATCH --cpus-per-task=96      # CHANGE: the cores of a node
#SBATCH --time=24:00:00         # CHANGE
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300     # seconds before the time limit: the ranks save a checkpoint
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
source .venv/bin/activate       # CHANGE: an environment with imagen-ray, on a disk that every node sees

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
address="$first:$((20000 + SLURM_JOB_ID % 20000))" # a port of its own for each job

# Slurm signals the shell alone (B:), since Ray's processes would end at once. It runs on the first node, as the driver.
stopped=
trap 'stopped=yes; pkill -TERM -u "$(id -u)" -f -- "-m pipeline run.*cluster.address=$address"' TERM
srun --kill-on-bad-exit=1 ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats \
  -- python -m pipeline run "$@" cluster.address="$address" &
step=$!
wait "$step" && status=0 || status=$?
if [ -n "$stopped" ]; then
  wait "$step" || true # the first wait ended with the signal
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
