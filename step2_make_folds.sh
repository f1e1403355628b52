#!/usr/bin/env bash
# Step 2: divide the base rows into folds by prompt, and write what each fold trains on and what it holds out.
#   sbatch step2_make_folds.sh        TRAIN_CSV=votes.csv EXTRA_DATA=data/ultrafeedback.csv RUN=x bash step2_make_folds.sh
# Writes data/processed_data/folds_5_seed42.json and data/fold_data/fold_K_{train,val}.csv; with SCRATCH_BASE a copy there.
# Any setting of `python scripts/make_folds.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=folds
#SBATCH --output=logs/%x_%j.out
#SBATCH --time=00:30:00
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G

# Under sbatch this file is a copy in a spool directory: the repository is found by where it was submitted from.
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(dirname "$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=//p')")"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" || { echo "error: cannot find the repository -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

log "make folds"
python scripts/make_folds.py "$@"
