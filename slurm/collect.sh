#!/usr/bin/env bash
# Writes the tables of a suite, and scores its checkpoints; submitted by python -m gpt1_ds.suite --slurm. By hand:
#     sbatch slurm/collect.sh --table-only --out suites/gpt1
#     sbatch --gpus-per-node=1 slurm/collect.sh --init runs/gpt1 --zero-shot --data tasks
# Arguments go to gpt1_ds/suite.py, which runs as one process.
#SBATCH --job-name=gpt1-collect
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit with sbatch, from the project folder}"
. slurm/env.sh
srun --nodes=1 --ntasks=1 "${container_step[@]}" "${in_container[@]}" python gpt1_ds/suite.py "$@"
