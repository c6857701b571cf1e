#!/usr/bin/env bash
# Pre-train on a cluster, from the shards that slurm/prepare_data.sh made:
#     sbatch slurm/pretrain.sh                                                     the paper's run, 2 nodes x 8 GPUs
#     sbatch --nodes=4 slurm/pretrain.sh --config my.yaml optim.lr=1e-4            arguments go to gpt1_ds/train.py
#     sbatch --ntasks-per-node=1 --gpus-per-node=0 slurm/pretrain.sh --deepspeed_config ds_configs/cpu.json
# Stops with a checkpoint before the time limit or on preemption, requeues itself, and resumes where it was.
#SBATCH --job-name=gpt1-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit with sbatch, from the project folder}"
. slurm/env.sh

train_ranks python gpt1_ds/train.py --deepspeed_config ds_configs/zero2_bf16.json "$@"
