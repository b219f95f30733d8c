#!/usr/bin/env bash
# Fine-tune a trained model on one task; save and requeue as pretrain.sh does.
#
#   sbatch slurm/finetune.sh --task refcoco --init-from runs/focal_t
#
# Everything after the script goes to `python -m pipelines.finetune`. An option of sbatch wins over
# its line here. On CPUs: `--gpus-per-node=0 --ntasks-per-node=<ranks>`.
#
#SBATCH --job-name=xdec-finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -euo pipefail

cd "${XDEC_HOME:-$SLURM_SUBMIT_DIR}"
# shellcheck source=slurm/env.sh
source slurm/env.sh
xdec_train finetune "$@"
