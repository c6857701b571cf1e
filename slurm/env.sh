# Sourced by the batch scripts, in the project's folder: what a job and its ranks need. The one file to edit for a site.
# shellcheck shell=bash disable=SC2034  # the scripts that source this use in_container and cache

# Your site's modules, or an environment other than .venv, go here:
# module load cuda openmpi
# GPT1_CONTAINER: an image FILE.sif for apptainer, or what pyxis takes (enroot's registry#image:tag, or a file .sqsh).
in_container=() container_step=()
case "${GPT1_CONTAINER:-}" in
    "") if [ -d .venv/bin ]; then export PATH="$PWD/.venv/bin:$PATH"; fi ;;
    *.sif) in_container=(apptainer exec --nv --bind "$PWD" "$GPT1_CONTAINER") ;;
    *) container_step=(--container-image="$GPT1_CONTAINER" --container-mounts="$PWD" --container-workdir="$PWD") ;;
esac
# Network interface of NCCL and gloo, where the default route is not the fast one: GPT1_INTERFACE=ib0 sbatch ..
if [ -n "${GPT1_INTERFACE:-}" ]; then
    export NCCL_SOCKET_IFNAME="$GPT1_INTERFACE" GLOO_SOCKET_IFNAME="$GPT1_INTERFACE"
fi
# GPT1_LOCAL_CACHE=1: each node copies the shards it needs, when it needs them, to its own disk.
cache=() scratch="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"
if [ -n "${GPT1_LOCAL_CACHE:-}" ]; then
    cache=(data.shards="file://$PWD/shards" data.cache="$scratch/gpt1-shards-$UID")
fi
# Open MPI refuses root, which a container's user often is.
[ "$EUID" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
umask 077
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
# srun's block distribution puts rank 0 on the first node. A port of the job's own, and of each start's, below those the
# kernel hands out: jobs share nodes, and a killed start may hold its port for a while.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + (SLURM_JOB_ID * 10 + ${SLURM_RESTART_COUNT:-0} % 10) % 12000))
export MASTER_ADDR MASTER_PORT

fail() { echo "error: $2" >&2 && exit "$1"; }

give_up() { rm -f "$GPT1_FAILURES" && fail "$1" "not queued again: $failures of $limit starts without a checkpoint"; }

# Runs "$@" as one rank a task. 75 (stopped on request, checkpoint committed), a crash and a lost node queue the job
# again, until GPT1_RESTARTS starts (default 3) in a row have brought no checkpoint. Any other exit code ends it.
train_ranks() {
    local code=0 nodes="$SLURM_JOB_NUM_NODES" gpus="${SLURM_GPUS_ON_NODE:-0}" limit="${GPT1_RESTARTS:-3}" tasks failures
    # A job that asks for tasks asks for as many after it lost a node: --nodes=MIN-MAX needs them unsaid (Slurm 22.05).
    tasks="${GPT1_TASKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
    [ -z "${SLURM_NTASKS:-}" ] || tasks=$((SLURM_NTASKS / nodes))
    [ $((tasks * nodes)) -eq "${SLURM_NTASKS:-$((tasks * nodes))}" ] ||
        fail 2 "$SLURM_NTASKS tasks do not divide over $nodes nodes; give --nodes and --ntasks-per-node"
    [ "$gpus" -eq 0 ] || [ "$gpus" -eq "$tasks" ] ||
        fail 2 "$tasks tasks on a node of $gpus GPUs; give --ntasks-per-node=$gpus, or --gpus-per-node=$tasks"
    # Counted before the start, so that a node's death counts; a committed checkpoint removes it (gpt1_ds/runs/log.py).
    export GPT1_FAILURES="$PWD/$SLURM_JOB_NAME-$SLURM_JOB_ID.failures"
    failures=$(cat "$GPT1_FAILURES" 2>/dev/null || echo 0)
    [ "$failures" -lt "$limit" ] || give_up 5
    echo $((failures + 1)) >"$GPT1_FAILURES"
    # --kill-on-bad-exit would send the ranks that are about to leave by themselves a SIGTERM that hides their codes.
    srun --ntasks-per-node="$tasks" --kill-on-bad-exit=0 --wait=60 \
        "${container_step[@]}" "${in_container[@]}" "$@" || code=$?
    case $code in 0 | 2 | 3 | 4) rm -f "$GPT1_FAILURES" && exit "$code" ;; esac
    failures=$(cat "$GPT1_FAILURES" 2>/dev/null || echo 0)
    [ "$failures" -lt "$limit" ] && scontrol requeue "$SLURM_JOB_ID" && exit 0
    give_up "$code"
}
