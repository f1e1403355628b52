#!/usr/bin/env bash
# Step 4: each fold's teacher scores exactly the rows that it never saw; then the out-of-fold table, validated.
#   PROFILE=llama3-8b sbatch step4_infer_teacher_logits.sh        INFER_MODELS=llama3-8b bash step4_infer_teacher_logits.sh
#   INFER_TRAIN_SHARDS=8 sbatch --array=0-7 step4_infer_teacher_logits.sh      eight jobs share the work of every fold
# Writes model_save/teacher_logits/NAME_fold_K/teacher_{logits,probs}_fold_K.npy and model_save/teacher_logits/oof_probs.parquet.
# Any setting of `python scripts/infer_teachers.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=oof
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

# An array task does its part of every fold if there are shards, else its own fold.
if [ -n "$(setting INFER_TRAIN_SHARDS)" ]; then
  export INFER_TRAIN_SHARD_ID=${INFER_TRAIN_SHARD_ID:-${SLURM_ARRAY_TASK_ID:-}}
else
  export INFER_FOLDS=${INFER_FOLDS:-${SLURM_ARRAY_TASK_ID:-}}
fi
log "score held-out rows${INFER_TRAIN_SHARD_ID:+, part $INFER_TRAIN_SHARD_ID}${INFER_FOLDS:+, folds $INFER_FOLDS}"
python scripts/infer_teachers.py "$@"
