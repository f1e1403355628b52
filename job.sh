#!/usr/bin/env bash
# Quick baseline: one student trained on votes, calibrated, scored on held-out rows, and used on the test file.
#   sbatch job.sh        bash job.sh        STUDENT_EPOCHS=1 RUN=quick sbatch job.sh
# Any setting of `python main.py --help` may be given as an environment variable.
# On a cluster without GPUs: SBATCH_GRES=none sbatch job.sh
#SBATCH --job-name=student
#SBATCH --output=logs/%x_%j.out
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is found by where it was submitted from.
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(dirname "$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=//p')")"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" || { echo "error: cannot find the repository -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

log "train"
python main.py --mode student-train
log "calibrate"
python main.py --mode student-calibrate
log "score the holdout"
python main.py --mode student-eval-holdout
log "predict the test file"
python main.py --mode student-infer
