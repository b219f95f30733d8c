#!/usr/bin/env bash
# Evaluate one checkpoint on several data sets, one array element per data set.
#
#   sbatch --array=0-2 slurm/evaluate.sh runs/scenes data/scenes:val data/photos:test coco-panoptic
#   sbatch --ntasks-per-node=8 --gpus-per-node=8 slurm/evaluate.sh runs/scenes -- --suite zeroshot
#
# The first word is a run or checkpoint folder. Each of the others is a folder, ROOT[:SPLIT] with
# SPLIT=val if absent, or a name of `python -m pipelines.evaluate --list`; without any, the options
# say what is evaluated. Options for `python -m pipelines.evaluate` follow after `--`. Each report
# goes to <checkpoint>/eval/<name or root-split>. An interrupted element goes on from its answers.
#
#SBATCH --job-name=xdec-evaluate
#SBATCH --array=0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

set -euo pipefail

cd "${XDEC_HOME:-$SLURM_SUBMIT_DIR}"
# shellcheck source=slurm/env.sh
source slurm/env.sh
xdec_set_master

if (($# == 0)); then
    echo "evaluate: needs CHECKPOINT [ROOT[:SPLIT] | NAME]... [-- OPTIONS]; got nothing" >&2
    exit 2
fi
checkpoint="$1"
shift
sets=()
while (($# > 0)) && [[ "$1" != -- ]]; do
    sets+=("$1")
    shift
done
if (($# > 0)); then
    shift
fi

index="${SLURM_ARRAY_TASK_ID:-0}"
chosen=()
if ((${#sets[@]} > 0)); then
    if ((index >= ${#sets[@]})); then
        echo "evaluate: array element $index needs a data set; got ${#sets[@]} of them." \
            "Use --array=0-$((${#sets[@]} - 1))." >&2
        exit 2
    fi
    root="${sets[index]%%:*}"
    split="val"
    if [[ "${sets[index]}" == *:* ]]; then
        split="${sets[index]#*:}"
    fi
    if [[ -d "$root" || "${sets[index]}" == *[:/]* ]]; then
        chosen=(--root "$root" --split "$split" --out "$checkpoint/eval/$(basename "$root")-$split")
    else
        chosen=(--dataset "$root" --out "$checkpoint/eval/$root")
    fi
fi
srun "${xdec_python[@]}" -m pipelines.evaluate --checkpoint "$checkpoint" "${chosen[@]}" "$@"
