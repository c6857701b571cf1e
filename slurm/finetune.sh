#!/usr/bin/env bash
# Fine-tune one task on a cluster, from the pre-training run runs/gpt1:
#     sbatch slurm/finetune.sh task.data=/data/glue/SST-2                          SST-2, 2 nodes x 8 GPUs, in runs/sst2
#     sbatch --job-name=rte-7 slurm/finetune.sh --config gpt1_ds/configs/finetune_rte.yaml run.seed=7
# Arguments go to gpt1_ds/finetune.py, the last one counts. Stops, is queued again and resumes like slurm/pretrain.sh.
#SBATCH --job-name=gpt1-finetune
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --mincpus=32
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit with sbatch, from the project folder}"
. slurm/env.sh

name=()
[ "$SLURM_JOB_NAME" = gpt1-finetune ] || name=(run.name="$SLURM_JOB_NAME")
train_ranks python gpt1_ds/finetune.py --deepspeed_config ds_configs/zero2_bf16.json \
    --config gpt1_ds/configs/finetune_sst2.yaml init.checkpoint=runs/gpt1 "${name[@]}" "$@"
