#!/usr/bin/env bash
# Tokenizer, shards and their verification on a cluster:
#     sbatch slurm/prepare_data.sh books=/data/books lm1b=/data/lm1b.tar.gz
#     GPT1_CORPORA="books=/data/books lm1b=/data/lm1b.tar.gz" sbatch slurm/prepare_data.sh
# Writes tok/ and shards/, where slurm/pretrain.sh looks for them. What is there already is kept.
# From the first argument that starts with a dash on, all arguments go to data_prep.build_shards.
# GPT1_VOCAB_SIZE is the number of pieces of the tokenizer (default 40000).
#SBATCH --job-name=gpt1-data
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --requeue
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
    fail 2 "no corpus: give NAME=PATH, such as books=/data/books, or set GPT1_CORPORA"
fi

ranks=("${container_step[@]}" "${in_container[@]}" python)
one=(srun --nodes=1 --ntasks=1 "${ranks[@]}")
if [ ! -e tok/tokenizer.model ]; then
    vocab_size=${GPT1_VOCAB_SIZE:-40000}
    "${one[@]}" -m data_prep.train_tokenizer "${corpora[@]}" --vocab-size "$vocab_size" --out tok
fi
# srun starts the ranks if the site's MPI knows one of Slurm's PMIs, which is tried here; otherwise
# mpirun does.
mpi=(mpirun -n "$SLURM_NTASKS" "${in_container[@]}" python)
probe="from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.size != 2)"
for pmi in ${GPT1_SRUN_MPI:-pmix pmi2}; do
    if srun --mpi="$pmi" --ntasks=2 "${ranks[@]}" -c "$probe" &>/dev/null; then
        mpi=(srun --mpi="$pmi" "${ranks[@]}")
        break
    fi
done
echo "MPI ranks are started by: ${mpi[*]}"
"${mpi[@]}" -m data_prep.build_shards --tokenizer tok "${corpora[@]}" --out shards "$@"
"${one[@]}" -m data_prep.verify_shards shards
