#!/usr/bin/env bash
# Prepare several data sets at once, one array element per line of a file.
#
#   sbatch --array=1-2 slurm/prepare.sh data/jobs.txt
#
# Line n of the file holds the words after `python -m pipelines.prepare`, for example
#   coco --root data/coco --out data/shards/coco
#   coco --root data/scenes --out data/shards/scenes --split train
# A line that is done already costs seconds; a preempted element starts over.
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

if (($# != 1)) || [[ ! -f "$1" ]]; then
    echo "prepare: needs one file with the words of \`pipelines.prepare\`, a line per array" \
        "element; got: $*" >&2
    exit 2
fi
mapfile -t lines <"$1"
index="${SLURM_ARRAY_TASK_ID:-1}"
if ((index < 1 || index > ${#lines[@]})) || [[ -z "${lines[index - 1]// /}" ]]; then
    echo "prepare: array element $index needs line $index of $1, which has ${#lines[@]}." \
        "Use --array=1-${#lines[@]}." >&2
    exit 2
fi
read -ra words <<<"${lines[index - 1]}"
# a node without task affinity shows all its cores to a job that may use few
workers=()
if [[ "${words[0]}" == scenes || "${words[0]}" == coco ]]; then
    workers=(--workers "${SLURM_CPUS_PER_TASK:-1}")
fi
srun "${xdec_python[@]}" -m pipelines.prepare "${words[0]}" "${workers[@]}" "${words[@]:1}"
