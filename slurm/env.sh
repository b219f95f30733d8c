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

# where remote shards (protocol://...) are kept, bounded by data.cache_gib: the disk of the node, which
# needs no network and is nobody else's; some clusters name it for the job
export XDEC_DATA_CACHE="${XDEC_DATA_CACHE:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/xdecoder-shards-$UID}"

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

# that dump is written on a time-out, beside what the rank was doing
export TORCH_NCCL_DUMP_ON_TIMEOUT="${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}"

# Left alone, because a wrong value is worse than none:
#   NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME   the interface: set it when the first collective hangs
#   NCCL_IB_HCA                              the adapters: set it where some are for storage only
#   NCCL_IB_DISABLE=1, NCCL_P2P_DISABLE=1    only to find out which path is broken
#   NCCL_ALGO, NCCL_PROTO                    NCCL measures and chooses by message size

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

# The name of this job for scontrol. Of an array it is the element's: the job id of the last element
# is also the name of the whole array.
xdec_job() {
    if [[ -n "${SLURM_ARRAY_JOB_ID:-}" ]]; then
        echo "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    else
        echo "$SLURM_JOB_ID"
    fi
}

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

# Tell the trainer when this job ends and how long a process lives after TERM. It is asked anew at
# every start, here and not in the ranks: a container has no scontrol.
xdec_set_limits() {
    local facts
    facts="$(scontrol show job "$(xdec_job)" -o)" || facts=""
    if [[ "$facts" =~ \ EndTime=([0-9T:-]+) ]]; then
        SLURM_JOB_END_TIME="$(date --date="${BASH_REMATCH[1]}" +%s)"
        export SLURM_JOB_END_TIME
    fi
    facts="$(scontrol show config)" || facts=""
    if [[ "$facts" =~ KillWait[[:space:]]*=[[:space:]]*([0-9]+) ]]; then
        export XDEC_KILL_WAIT="${XDEC_KILL_WAIT:-${BASH_REMATCH[1]}}"
    fi
}

# Whether the cluster has ended this job: scancel, preemption, scontrol requeue. Then it has decided
# about a requeue itself. At the time limit it has ended the job too, but never requeues.
xdec_was_ended() {
    local facts
    facts="$(scontrol show job "$(xdec_job)" -o)" || return 1
    [[ "$facts" =~ JobState=([A-Z_]+) && "${BASH_REMATCH[1]}" != RUNNING ]] &&
        ((${SLURM_JOB_END_TIME:-0} == 0 || $(date +%s) < SLURM_JOB_END_TIME))
}

# Whether every node of this job still runs what it is given. SLURM itself takes minutes to miss a
# node, while the ranks on the others fail within seconds.
xdec_nodes_answer() {
    [[ "${SLURM_NNODES:-1}" == 1 ]] ||
        timeout "$XDEC_RANK_GRACE" srun --overlap --ntasks-per-node=1 --ntasks="$SLURM_NNODES" true
}

# Leave with the code of the ranks, and have the job requeued where that may help.
# xdec_leave VERB CODE
xdec_leave() {
    local verb="$1" code="$2" restarts="${SLURM_RESTART_COUNT:-0}"
    case "$code" in
    75 | 5) ;; # saved and wants to go on, or hung: a new start may help
    0 | 2 | 3 | 4 | 6 | 130) # finished, or a mistake that would come back
        echo "$verb: finished with code $code; not requeued"
        exit "$code"
        ;;
    *)
        if xdec_nodes_answer; then
            echo "$verb: failed with code $code while all nodes answer; not requeued"
            exit "$code"
        fi
        echo "$verb: code $code, and a node does not answer"
        ;;
    esac
    if xdec_was_ended; then
        echo "$verb: code $code; the cluster has ended this job and decides about its requeue"
        exit "$code"
    fi
    if ((restarts >= XDEC_MAX_REQUEUES)); then
        echo "$verb: code $code after $restarts requeues, the limit is" \
            "XDEC_MAX_REQUEUES=$XDEC_MAX_REQUEUES. Submit again to continue from the last" \
            "checkpoint." >&2
        exit "$code"
    fi
    echo "$verb: code $code, requeue $((restarts + 1)) of at most $XDEC_MAX_REQUEUES"
    if ! scontrol requeue "$(xdec_job)"; then
        echo "$verb: not requeued: the cluster refused. Submit again to continue." >&2
    fi
    exit "$code"
}

# Train on all ranks of this job, then leave as their code asks for.
# xdec_train VERB WORDS...
xdec_train() {
    local verb="$1" code=0
    shift
    if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
        echo "$verb: the elements of an array would share one run folder; got element" \
            "$SLURM_ARRAY_TASK_ID. Use \`python -m pipelines.submit $verb --sweep PATH=A,B\`." >&2
        exit 2
    fi
    # SLURM also tells this shell that the job ends; it must outlive the ranks to read their code
    trap ':' TERM
    xdec_set_master
    xdec_set_limits
    echo "$verb: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1))," \
        "$SLURM_NTASKS ranks on $SLURM_JOB_NODELIST"
    # no --kill-on-bad-exit: it would kill the ranks that leave a moment after the first 75
    srun --kill-on-bad-exit=0 --wait="$XDEC_RANK_GRACE" \
        "${xdec_python[@]}" -m "pipelines.$verb" "$@" || code=$?
    xdec_leave "$verb" "$code"
}
