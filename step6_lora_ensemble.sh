#!/usr/bin/env bash
# Step 6: the adapters and heads of all folds averaged into one, and that merged into the base model.
#   PROFILE=gemma2-9b sbatch step6_lora_ensemble.sh        AVERAGE_METHOD=mean bash step6_lora_ensemble.sh
# Writes model_save/[RUN/]avg_lora and model_save/[RUN/]final_merged_model, each with the proof that it is right.
# Any setting of `python scripts/average_students.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=average
#SBATCH --output=logs/%x_%j.out
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is found by where it was submitted from.
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(dirname "$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=//p')")"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" || { echo "error: cannot find the repository -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

log "average the folds' students, and merge"
python scripts/average_students.py "$@"
