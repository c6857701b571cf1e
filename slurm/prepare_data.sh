#!/usr/bin/env bash
# Tokenizer, shards and their verification on a cluster:
#     sbatch slurm/prepare_data.sh books=/data/books lm1b=/data/lm1b.tar.gz
#     sbatch --export=ALL,GPT1_CORPORA="books=/data/books lm1b=/data/lm1b.tar.gz" slurm/prepare_data.sh
# Writes tok/ and shards/, where slurm/pretrain.sh looks for them; what is there already is kept.
# Arguments from the first that starts with a dash go to data_prep.build_shards.
#SBATCH --job-name=gpt1-data
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit with sbatch, from the project folder}"
. slurm/env.sh

corpora=()
while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
    corpora+=(--corpus "$1")
    shift
done
if [ ${#corpora[@]} -eq 0 ]; then
    for corpus in ${GPT1_CORPORA:-}; do
        corpora+=(--corpus "$corpus")
    done
fi
if [ ${#corpora[@]} -eq 0 ]; then
    echo "error: no corpus: give NAME=PATH as arguments or in GPT1_CORPORA, such as books=/data/books" >&2
    exit 2
fi

if [ ! -e tok/tokenizer.model ]; then
    srun --nodes=1 --ntasks=1 python -m data_prep.train_tokenizer "${corpora[@]}" \
        --vocab-size "${GPT1_VOCAB_SIZE:-40000}" --out tok
fi
# mpirun starts its ranks through Slurm by itself. Where the site's MPI wants to be started by srun: GPT1_SRUN_MPI=pmix
if [ -n "${GPT1_SRUN_MPI:-}" ]; then
    mpi=(srun --mpi="$GPT1_SRUN_MPI")
else
    mpi=(mpirun -n "$SLURM_NTASKS")
fi
"${mpi[@]}" python -m data_prep.build_shards --tokenizer tok "${corpora[@]}" --out shards "$@"
srun --nodes=1 --ntasks=1 python -m data_prep.verify_shards shards
