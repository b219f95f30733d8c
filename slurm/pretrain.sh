#!/usr/bin/env bash
# Train a recipe, one rank per GPU; save and requeue when the cluster wants the machine back.
#
#   sbatch slurm/pretrain.sh --recipe scenes
#   sbatch --nodes=4 --time=2-00:00:00 --account=mine slurm/pretrain.sh --recipe scenes
#
# Everything after the script goes to `python -m pipelines.pretrain`. An option of sbatch wins over
# its line here. On CPUs: `--gpus-per-node=0 --ntasks-per-node=<ranks>`.
#
#SBATCH --job-name=xdec-pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -euo pipefail

# SLURM also tells this shell that the job ends; it must outlive the ranks to read their code
trap ':' TERM

cd "${XDEC_HOME:-$SLURM_SUBMIT_DIR}"
# shellcheck source=slurm/env.sh
source slurm/env.sh
xdec_set_master

restarts="${SLURM_RESTART_COUNT:-0}"
echo "pretrain: job $SLURM_JOB_ID, start $((restarts + 1)), $SLURM_NTASKS ranks on $SLURM_JOB_NODELIST"

# no --kill-on-bad-exit: it would kill the ranks that leave a moment after the first 75
code=0
srun --kill-on-bad-exit=0 --wait="$XDEC_RANK_GRACE" \
    "${xdec_python[@]}" -m pipelines.pretrain "$@" || code=$?

case "$code" in
75 | 5) ;; # saved and wants to go on, or hung: a new start may help
*)
    echo "pretrain: finished with code $code; not requeued"
    exit "$code"
    ;;
esac

if ((restarts >= XDEC_MAX_REQUEUES)); then
    echo "pretrain: code $code after $restarts requeues, the limit is XDEC_MAX_REQUEUES=$XDEC_MAX_REQUEUES." \
        "Submit again to continue from the last checkpoint." >&2
    exit "$code"
fi
echo "pretrain: code $code, requeue $((restarts + 1)) of at most $XDEC_MAX_REQUEUES"
if ! scontrol requeue "$SLURM_JOB_ID"; then
    echo "pretrain: not requeued from here: either SLURM does it already (preemption," \
        "scontrol requeue), or it is not allowed. Submit again to continue." >&2
fi
exit "$code"
