# Sourced by the batch scripts, in the project's folder: what a job and its ranks need. The one file to edit for a site.
# shellcheck shell=bash disable=SC2034  # the scripts that source this use in_container, container_step and cache

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
# srun's block distribution puts rank 0 on the first node.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
. slurm/starts.sh
