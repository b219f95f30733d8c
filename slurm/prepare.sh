#!/usr/bin/env bash
# Prepare one data set by all elements of an array, or several, one by each element.
#
#   sbatch --array=0-7 slurm/prepare.sh coco --root data/coco --out shards/coco --protect paper
#   sbatch --array=1-2 slurm/prepare.sh data/jobs.txt
#
# First way: the words after `python -m pipelines.prepare`. Each element packs its part of the shards
# and the last one to finish joins them; submit the same again after a failure.
# Second way: line n of the file holds such words for element n, for example
#   vg --root data/vg --out shards/vg --protect paper --protect-root data/coco
#   scenes --out data/scenes
# Finished shards are kept, so a line that is done costs seconds and a preempted one continues.
#
#SBATCH --job-name=xdec-prepare
#SBATCH --array=1
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

set -euo pipefail

cd "${XDEC_HOME:-$SLURM_SUBMIT_DIR}"
# shellcheck source=slurm/env.sh
source slurm/env.sh

if (($# == 0)); then
    echo "prepare: needs the words of \`pipelines.prepare\`, or one file with such words on each" \
        "line; got nothing" >&2
    exit 2
fi
part=()
if (($# == 1)) && [[ -f "$1" ]]; then
    mapfile -t lines <"$1"
    index="${SLURM_ARRAY_TASK_ID:-1}"
    if ((index < 1 || index > ${#lines[@]})) || [[ -z "${lines[index - 1]// /}" ]]; then
        echo "prepare: array element $index needs line $index of $1, which has ${#lines[@]}." \
            "Use --array=1-${#lines[@]}." >&2
        exit 2
    fi
    read -ra words <<<"${lines[index - 1]}"
else
    words=("$@")
    count="${SLURM_ARRAY_TASK_COUNT:-1}"
    index="$(((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0}) / ${SLURM_ARRAY_TASK_STEP:-1}))"
    if ((count > 1)); then
        # as many shards as elements at least, or some would have nothing to do
        part=(--part "$index/$count" --min-shards "$count")
    fi
fi
# a node without task affinity shows all its cores to a job that may use few
workers=(--workers "${SLURM_CPUS_PER_TASK:-1}")
case "${words[0]}" in
    verify | stats | preview | sources) workers=() ;;
esac
if [[ "${words[0]}" == scenes || "${#workers[@]}" == 0 ]] && ((${#part[@]} > 0)); then
    echo "prepare: ${words[0]} cannot be shared by the elements of an array; submit one." >&2
    exit 2
fi
srun "${xdec_python[@]}" -m pipelines.prepare "${words[0]}" "${workers[@]}" "${part[@]}" \
    "${words[@]:1}"
