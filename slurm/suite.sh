#!/usr/bin/env bash
# One run of a suite: an element of the job array that the suite submits, here on one node of 8 GPUs each.
#     python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 rte --seeds 1 2 3 --slurm -- --nodes=1
# Options behind `--` go to sbatch. The array takes the list of runs: in line K the name of run K and the arguments of
# gpt1_ds/finetune.py, with tabs between. Stops, is queued again and resumes like slurm/pretrain.sh.
#SBATCH --job-name=gpt1-suite
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --mincpus=32
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submitted by python -m gpt1_ds.suite --slurm, from the project folder}"
runs="$1" out="$2"

IFS=$'\t' read -ra words < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$runs")
log="$out/logs/${words[0]}"
exec >>"$log.log" 2>&1
echo "element  ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID on $SLURM_JOB_NODELIST" # gpt1_ds/runs/suite_slurm.py reads it
trap 'echo $? >"$log.exit"' EXIT
. slurm/env.sh
train_ranks python gpt1_ds/finetune.py "${words[@]:1}"
