#!/usr/bin/env bash
# Fine-tune every task with every seed, one element of a job array each, from the pre-training run runs/gpt1:
#     sbatch slurm/suite.sh                                                 9 tasks x 3 seeds, in runs/TASK-seed-SEED
#     GPT1_TASKS="rte mrpc" GPT1_SEEDS="1 2" sbatch --array=0-3 --nodes=1 slurm/suite.sh init.checkpoint=runs/big
#     GPT1_TASKS=rte GPT1_ABLATIONS="none no_lm scratch lstm layers-3" sbatch --array=0-14 slurm/suite.sh
# Ablations are those of gpt1_ds/suite.py, in runs/TASK-seed-SEED-ABLATION; the LSTM is runs/lstm.
# A task is a file gpt1_ds/configs/finetune_TASK.yaml; its data lie where that says, below GPT1_TASK_DATA (tasks).
# Arguments go to gpt1_ds/finetune.py. Stops, is queued again and resumes like slurm/pretrain.sh.
#SBATCH --job-name=gpt1-suite
#SBATCH --array=0-26%9
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --mincpus=32
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit with sbatch, from the project folder}"
. slurm/env.sh

read -ra tasks <<<"${GPT1_TASKS:-cola sst2 mrpc stsb qqp qnli rte snli race}"
read -ra seeds <<<"${GPT1_SEEDS:-1 2 3}"
read -ra ablations <<<"${GPT1_ABLATIONS:-none}"
sizes="${#tasks[@]} tasks x ${#seeds[@]} seeds x ${#ablations[@]} ablations"
last=$((${#tasks[@]} * ${#seeds[@]} * ${#ablations[@]} - 1))
array="${SLURM_ARRAY_TASK_MIN:-}-${SLURM_ARRAY_TASK_MAX:-}"
[ "$array" = "0-$last" ] || fail 2 "--array=$array for $sizes; give --array=0-$last"
ablation=${ablations[SLURM_ARRAY_TASK_ID % ${#ablations[@]}]} number=$((SLURM_ARRAY_TASK_ID / ${#ablations[@]}))
task=${tasks[number / ${#seeds[@]}]} seed=${seeds[number % ${#seeds[@]}]}
case $ablation in # as in gpt1_ds/suite.py
    none) how=() ;;
    no_lm) how=(task.lm_coef=0) ;;
    scratch) how=(task.n_transfer=-1) ;;
    lstm) how=(init.checkpoint=runs/lstm) ;;
    layers-*) how=(task.n_transfer="${ablation#layers-}") ;;
    *) fail 2 "GPT1_ABLATIONS names $ablation; choose from: none, no_lm, scratch, lstm, layers-K" ;;
esac
name="$task-seed-$seed"
[ "$ablation" = none ] || name+="-$ablation"
config="gpt1_ds/configs/finetune_$task.yaml"
[ -e "$config" ] || fail 2 "GPT1_TASKS names $task, but there is no $config"
folder=$(sed -n 's/^task:.* data: tasks\/\([^},]*\).*/\1/p' "$config")
train_ranks python gpt1_ds/finetune.py --deepspeed_config ds_configs/zero2_bf16.json --config "$config" \
    init.checkpoint=runs/gpt1 task.data="${GPT1_TASK_DATA:-tasks}/$folder" \
    run.name="$name" run.seed="$seed" "$@" "${how[@]}"
