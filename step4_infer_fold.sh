#!/usr/bin/env bash
# Step 4 for one fold; the last fold to finish makes the out-of-fold table.
#   FOLD=0 sbatch step4_infer_fold.sh        sbatch --array=0-4 step4_infer_fold.sh
#SBATCH --job-name=oof-fold
#SBATCH --output=logs/%x_%A_%a.out
#SBATCH --time=12:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=160G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is found by where it was submitted from.
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(dirname "$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=//p')")"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" || { echo "error: cannot find the repository -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

export INFER_FOLDS=${FOLD:-${SLURM_ARRAY_TASK_ID:-}}
[ -n "$INFER_FOLDS" ] || { echo "error: FOLD is not set -> FOLD=0 sbatch step4_infer_fold.sh" >&2 && exit 2; }
log "score the rows of fold $INFER_FOLDS"
python scripts/infer_teachers.py "$@"
