# Sourced by env.sh: starts the ranks of a job, again in the same allocation where that helps, and else from the queue.
# shellcheck shell=bash disable=SC2154  # env.sh sets in_container and container_step

fail() { echo "error: $2" >&2 && exit "$1"; }

give_up() { rm -f "$GPT1_FAILURES" && fail "$1" "not queued again: $failures of $limit starts without a checkpoint"; }

# Starts in a row that have brought no checkpoint; one that is committed removes the file (gpt1_ds/runs/log.py).
count_failures() { failures=$(cat "$GPT1_FAILURES" 2>/dev/null || echo 0); }

# Whether this allocation can take another start: the time limit is not near, whose warning goes to ranks alone, the
# ranks of the last start are gone, and all nodes answer.
can_start_again() {
    local end waited=0
    end=$(date -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s 2>/dev/null) || end=""  # no limit
    [ -z "$end" ] || [ $((end - $(date +%s))) -gt 600 ] || return 1
    while [[ $(squeue -h -s -j "$SLURM_JOB_ID" -o %i) == *.[0-9]* ]]; do
        [ $((waited += 1)) -le 30 ] || return 1
        sleep 1
    done
    timeout 30 srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 true
}

# Runs "$@" as one rank a task. A start that dies (exit code 5, a signal) is followed by another one in this allocation
# while it can take one. 75 (stopped on request, checkpoint committed), another crash and a lost node queue the job
# again. Both until GPT1_RESTARTS starts (default 3) in a row have brought no checkpoint. Other exit codes end the job.
train_ranks() {
    local code nodes="$SLURM_JOB_NUM_NODES" gpus="${SLURM_GPUS_ON_NODE:-0}" limit="${GPT1_RESTARTS:-3}" tasks failures
    local start="${SLURM_RESTART_COUNT:-0}0"
    # A job that asks for tasks asks for as many after it lost a node: --nodes=MIN-MAX needs them unsaid (Slurm 22.05).
    tasks="${GPT1_TASKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
    [ -z "${SLURM_NTASKS:-}" ] || tasks=$((SLURM_NTASKS / nodes))
    [ $((tasks * nodes)) -eq "${SLURM_NTASKS:-$((tasks * nodes))}" ] ||
        fail 2 "$SLURM_NTASKS tasks do not divide over $nodes nodes; give --nodes and --ntasks-per-node"
    [ "$gpus" -eq 0 ] || [ "$gpus" -eq "$tasks" ] ||
        fail 2 "$tasks tasks on a node of $gpus GPUs; give --ntasks-per-node=$gpus, or --gpus-per-node=$tasks"
    export GPT1_FAILURES="$PWD/$SLURM_JOB_NAME-$SLURM_JOB_ID.failures" MASTER_PORT
    while true; do
        count_failures
        [ "$failures" -lt "$limit" ] || give_up "${code:-5}"
        echo $((failures + 1)) >"$GPT1_FAILURES"  # before the start, so that a node's death counts
        # A port of the job's own, and of each start's, below those the kernel hands out: jobs share nodes, and a start
        # that was killed may hold its port for a while.
        MASTER_PORT=$((20000 + (SLURM_JOB_ID * 100 + start % 100) % 12000)) code=0
        # --kill-on-bad-exit would send the ranks that are about to leave a SIGTERM that hides their codes.
        srun --ntasks-per-node="$tasks" --kill-on-bad-exit=0 --wait=60 \
            "${container_step[@]}" "${in_container[@]}" "$@" || code=$?
        case $code in 0 | 2 | 3 | 4) rm -f "$GPT1_FAILURES" && exit "$code" ;; esac
        count_failures
        [ "$failures" -lt "$limit" ] || give_up "$code"
        if [ "$code" -ne 5 ] && [ "$code" -le 128 ] || ! can_start_again; then break; fi
        echo "exit code $code: starting again on the same nodes in $((2 + 10 * failures)) s" >&2
        sleep $((2 + 10 * failures))
        start=$((start + 1))
    done
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    give_up "$code"
}
