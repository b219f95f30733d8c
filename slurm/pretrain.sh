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
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -euo pipefail

cd "${XDEC_HOME:-$SLURM_SUBMIT_DIR}"
# shellcheck source=slurm/env.sh
source slurm/env.sh
xdec_train pretrain "$@"
