#!/usr/bin/env bash
# Step 5: one student for each fold, from votes and the teachers' out-of-fold labels.
#   PROFILE=gemma2-9b sbatch --array=0-4 step5_distill_student.sh        FOLD=2 bash step5_distill_student.sh
# Writes model_save/[RUN/]distilled_NAME_fold_K: adapter, head, tokenizer, calibration, checkpoints.
# Any setting of `python scripts/distill_student.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=distill
#SBATCH --output=logs/%x_%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=12:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" step5_distill_student || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

# FOLD or an array task: that fold; neither: one after the other.
export STUDENT_FOLDS=${STUDENT_FOLDS:-${FOLD:-${SLURM_ARRAY_TASK_ID:-}}}
part fold "$STUDENT_FOLDS"
log "distil${STUDENT_FOLDS:+ the student of fold $STUDENT_FOLDS}"
launch scripts/distill_student.py "$@"
