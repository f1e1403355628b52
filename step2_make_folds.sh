#!/usr/bin/env bash
# Step 2: divide the base rows into folds by prompt, and write what each fold trains on and what it holds out.
#   sbatch step2_make_folds.sh        TRAIN_CSV=votes.csv EXTRA_DATA=data/ultrafeedback.csv RUN=x bash step2_make_folds.sh
# Writes data/processed_data/folds_5_seed42.json and data/fold_data/fold_K_{train,val}.csv; with SCRATCH_BASE a copy there.
# Any setting of `python scripts/make_folds.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=folds
#SBATCH --output=logs/%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=00:30:00
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" step2_make_folds || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

log "make folds"
work scripts/make_folds.py "$@"
