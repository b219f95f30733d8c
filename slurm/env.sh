# shellcheck shell=bash
# Sourced by every script of this folder, on the first node of a job, before any rank starts.
# Each variable keeps the value that it has already: export it, or pass `sbatch --export=ALL,NAME=...`.

# sbatch runs a copy of the script, so its own folder says nothing about where the repository is
export XDEC_HOME="${XDEC_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}"

# the Python of the ranks; inside a container it is the container's own
if [[ -z "${XDEC_PYTHON:-}" && -z "${XDEC_CONTAINER:-}" && -x "$XDEC_HOME/.venv/bin/python" ]]; then
    XDEC_PYTHON="$XDEC_HOME/.venv/bin/python"
fi
export XDEC_PYTHON="${XDEC_PYTHON:-python}"

# path of an Apptainer image (*.sif); empty = no container
export XDEC_CONTAINER="${XDEC_CONTAINER:-}"

# more words for `apptainer exec`, for example "--bind /scratch"
export XDEC_CONTAINER_OPTIONS="${XDEC_CONTAINER_OPTIONS:-}"

# a job that is requeued more often than this has a fault that waiting does not cure
export XDEC_MAX_REQUEUES="${XDEC_MAX_REQUEUES:-50}"

# seconds between the end of the first rank and the end of the step: a dead rank ends its job,
# but a rank that leaves a second later than the others, with the agreed code, is not killed
export XDEC_RANK_GRACE="${XDEC_RANK_GRACE:-60}"

# since 22.05 a step does not inherit --cpus-per-task; without it every rank gets one core
export SRUN_CPUS_PER_TASK="${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-1}}"

# each rank would start a thread per core of the whole node
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

# a log that ends where the job ended, not where the last buffer was full
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"

# compute nodes often have no network: `wandb sync` from a login node later
export WANDB_MODE="${WANDB_MODE:-offline}"

# a weight file that is missing must fail at once, not wait for a connection that never comes
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

# WARN names the peer and the call when a collective fails; INFO fills the log of a long run
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# a failed collective ends the rank, and so the job, instead of hanging until the time limit
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}"

# the last collectives of every rank, dumped when one of them times out
export TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE:-2000}"

# NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, NCCL_IB_HCA are left alone: the right value differs from
# cluster to cluster, and a wrong one is worse than none. Set them when the first collective hangs.

# The command that runs Python, as the array `xdec_python`.
# shellcheck disable=SC2034
xdec_python=("$XDEC_PYTHON")
# shellcheck disable=SC2034
if [[ -n "$XDEC_CONTAINER" ]]; then
    read -ra xdec_options <<<"$XDEC_CONTAINER_OPTIONS"
    # --nv brings the driver in; --pwd keeps relative paths; the repository need not be in the image
    xdec_python=(apptainer exec --nv --bind "$XDEC_HOME" --pwd "$XDEC_HOME"
        "${xdec_options[@]}" "$XDEC_CONTAINER" "$XDEC_PYTHON")
fi

# Set MASTER_ADDR where the name of the first node does not resolve; otherwise the trainer finds
# the first node, and a port that follows from the job id, by itself.
xdec_set_master() {
    local names first facts
    if [[ -n "${MASTER_ADDR:-}" || "${SLURM_NNODES:-1}" == 1 ]]; then
        return 0
    fi
    names="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
    first="${names%%$'\n'*}"
    if getent hosts "$first" >/dev/null; then
        return 0
    fi
    facts="$(scontrol show node "$first" -o)"
    if [[ "$facts" =~ NodeAddr=([^[:space:]]+) ]]; then
        export MASTER_ADDR="${BASH_REMATCH[1]}"
    fi
}
