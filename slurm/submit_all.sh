#!/usr/bin/env bash
# Data, pre-training and fine-tuning as one chain of jobs, each beginning when the one before it has succeeded:
#     slurm/submit_all.sh books=/data/books lm1b=/data/lm1b.tar.gz
#     GPT1_PRETRAIN="--config my.yaml optim.lr=1e-4" slurm/submit_all.sh --partition=gpu --nodes=4 -- books=/data/books
# Options before `--` go to every sbatch, the rest to slurm/prepare_data.sh; GPT1_PRETRAIN and GPT1_FINETUNE hold the
# arguments of the other two. GPT1_SUITE="--tasks sst2 rte --seeds 1 2 3" puts a suite in the place of
# slurm/finetune.sh: a job, which submits the job array of gpt1_ds/suite.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

options=() data=("$@")
for word in "$@"; do
    if [ "$word" = -- ]; then
        data=("${@:${#options[@]}+2}")
        break
    fi
    options+=("$word")
done
[ $# -eq ${#options[@]} ] && options=() # no `--`: all are the data's
read -ra pretrain <<<"${GPT1_PRETRAIN:-}"
read -ra finetune <<<"${GPT1_FINETUNE:-}"
read -ra suite <<<"${GPT1_SUITE:-}"

submit() { # DEPENDENCY SCRIPT ARGUMENTS..
    sbatch --parsable --kill-on-invalid-dep=yes ${1:+--dependency=afterok:$1} "${options[@]}" "${@:2}" | cut -d ';' -f 1
}

first=$(submit "" slurm/prepare_data.sh "${data[@]}")
second=$(submit "$first" slurm/pretrain.sh "${pretrain[@]}")
last=(slurm/finetune.sh "${finetune[@]}")
if [ ${#suite[@]} -gt 0 ]; then
    last=(--nodes=1 --ntasks-per-node=1 slurm/collect.sh --init runs/gpt1 "${suite[@]}" --slurm -- "${options[@]}")
fi
third=$(submit "$second" "${last[@]}")
echo "$first $second $third"
