#!/usr/bin/env bash
# Step 4 for one fold; the last fold to finish makes the out-of-fold table.
#   FOLD=0 sbatch step4_infer_fold.sh        sbatch --array=0-4 step4_infer_fold.sh
#SBATCH --job-name=oof-fold
#SBATCH --output=logs/%x_%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=12:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=160G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" step4_infer_fold || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

export INFER_FOLDS=${FOLD:-${SLURM_ARRAY_TASK_ID:-}}
[ -n "$INFER_FOLDS" ] || refuse "FOLD is not set -> FOLD=0 sbatch step4_infer_fold.sh"
part fold "$INFER_FOLDS"
log "score the rows of fold $INFER_FOLDS"
work scripts/infer_teachers.py "$@"
