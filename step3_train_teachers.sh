#!/usr/bin/env bash
# Step 3: one teacher for each base model and fold, trained on the rows of the other folds.
#   PROFILE=llama3-8b sbatch --array=0-4 step3_train_teachers.sh        TEACHER_FOLDS=0,1 SKIP_QWEN=1 bash step3_train_teachers.sh
# Writes model_save/NAME_fold_K_lora (adapter) and, as TEACHER_MERGE says, model_save/NAME_fold_K (merged).
# Any setting of `python scripts/train_teachers.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=teachers
#SBATCH --output=logs/%x_%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=160G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" step3_train_teachers || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

# An array task, or FOLD, trains its own fold; without either, one after the other.
export TEACHER_FOLDS=${TEACHER_FOLDS:-${FOLD:-${SLURM_ARRAY_TASK_ID:-}}}
part fold "$TEACHER_FOLDS"
log "train teachers${TEACHER_FOLDS:+ of fold $TEACHER_FOLDS}"
launch scripts/train_teachers.py "$@"
