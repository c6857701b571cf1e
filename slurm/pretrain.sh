#!/usr/bin/env bash
# Pre-train on a cluster, from the shards that slurm/prepare_data.sh made:
#     sbatch slurm/pretrain.sh                                           the paper's run, 2 nodes x 8 GPUs, in runs/gpt1
#     sbatch --job-name=big --nodes=4 slurm/pretrain.sh model.preset=1.3b optim.lr=1e-4        runs/big, big-JOBID.log
#     sbatch --nodes=2-4 slurm/pretrain.sh                               what is free; other numbers after a requeue
#     GPT1_TASKS_PER_NODE=1 sbatch --gpus-per-node=0 slurm/pretrain.sh --deepspeed_config ds_configs/cpu.json    CPUs
# Arguments go to gpt1_ds/train.py, the last one counts. Stops with a checkpoint before the time limit or on preemption,
# is queued again, and resumes where it was. To stop for good: scontrol update JobId=N Requeue=0; scancel -s USR1 N
#SBATCH --job-name=gpt1-pretrain
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --mincpus=32
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit with sbatch, from the project folder}"
. slurm/env.sh

name=()
[ "$SLURM_JOB_NAME" = gpt1-pretrain ] || name=(run.name="$SLURM_JOB_NAME")
train_ranks python gpt1_ds/train.py --deepspeed_config ds_configs/zero2_bf16.json "${name[@]}" "${cache[@]}" "$@"
