# Sourced by the batch scripts of this folder, in the project's folder: what a job and its ranks need.
# shellcheck shell=bash

# Your site's modules, or an environment other than .venv, go here:
# module load cuda openmpi
if [ -d .venv/bin ]; then
    export PATH="$PWD/.venv/bin:$PATH"
fi
# Network interface of NCCL and gloo, where the default route is not the fast one: sbatch --export=ALL,GPT1_INTERFACE=ib0
if [ -n "${GPT1_INTERFACE:-}" ]; then
    export NCCL_SOCKET_IFNAME="$GPT1_INTERFACE" GLOO_SOCKET_IFNAME="$GPT1_INTERFACE"
fi

umask 077
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# srun does not take it over from sbatch (since Slurm 22.05).
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# srun's block distribution puts rank 0 on the first node; the port is the job's, so that two jobs can share a node.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# Runs "$@" as one rank a task and leaves with its exit code; 75 (stopped on request, checkpoint committed) requeues.
# No --kill-on-bad-exit: its SIGTERM would overwrite the exit codes of ranks that are about to leave by themselves.
train_ranks() {
    local code=0
    srun --kill-on-bad-exit=0 --wait=120 "$@" || code=$?
    if [ "$code" -eq 75 ]; then
        scontrol requeue "$SLURM_JOB_ID"
        exit 0
    fi
    exit "$code"
}
