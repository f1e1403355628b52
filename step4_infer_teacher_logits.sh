#!/usr/bin/env bash
# Step 4: each fold's teacher scores exactly the rows that it never saw; then the out-of-fold table, validated.
#   PROFILE=llama3-8b sbatch step4_infer_teacher_logits.sh        INFER_MODELS=llama3-8b bash step4_infer_teacher_logits.sh
#   INFER_TRAIN_SHARDS=8 sbatch --array=0-7 step4_infer_teacher_logits.sh      eight jobs share the work of every fold
# Writes model_save/teacher_logits/NAME_fold_K/teacher_{logits,probs}_fold_K.npy and model_save/teacher_logits/oof_probs.parquet.
# Any setting of `python scripts/infer_teachers.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=oof
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
source "$repo/scripts/stage.sh" step4_infer_teacher_logits || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

# An array task does its part of every fold if there are shards, else its own fold.
if [ "$(setting INFER_TRAIN_SHARDS 1)" != 1 ]; then
  export INFER_TRAIN_SHARD_ID=${INFER_TRAIN_SHARD_ID:-${SLURM_ARRAY_TASK_ID:-}}
  part task "$INFER_TRAIN_SHARD_ID"
else
  export INFER_FOLDS=${INFER_FOLDS:-${FOLD:-${SLURM_ARRAY_TASK_ID:-}}}
  part fold "$INFER_FOLDS"
fi
log "score held-out rows${INFER_TRAIN_SHARD_ID:+, part $INFER_TRAIN_SHARD_ID}${INFER_FOLDS:+, folds $INFER_FOLDS}"
work scripts/infer_teachers.py "$@"
