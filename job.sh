#!/usr/bin/env bash
# Quick baseline: one student trained on votes, calibrated, scored on held-out rows, and used on the test file.
#   TRAIN_CSV=votes.csv TEST_CSV=pairs.csv sbatch job.sh        RUN=quick bash job.sh --student-epochs 1
# Any setting of `python main.py --help` may be given as a flag or as an environment variable.
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

case " $* " in
*" --help "* | *" -h "*) exec python main.py --help ;;
*" --mode"*) echo "error: job.sh sets --mode itself" >&2 && exit 2 ;;
esac
log "train"
python main.py --mode student-train "$@"
log "calibrate"
python main.py --mode student-calibrate "$@"
log "score the holdout"
python main.py --mode student-eval-holdout "$@"
log "predict the test file"
python main.py --mode student-infer "$@"
