#!/usr/bin/env bash
# Step 6: the adapters and heads of all folds averaged into one, and that merged into the base model.
#   PROFILE=gemma2-9b sbatch step6_lora_ensemble.sh        AVERAGE_METHOD=mean bash step6_lora_ensemble.sh
# Writes model_save/[RUN/]avg_lora and model_save/[RUN/]final_merged_model, each with the proof that it is right.
# Any setting of `python scripts/average_students.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=average
#SBATCH --output=logs/%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" step6_lora_ensemble || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

log "average the folds' students, and merge"
work scripts/average_students.py "$@"
