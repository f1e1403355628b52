#!/usr/bin/env bash
# Quick baseline: one student trained on votes, calibrated, scored on held-out rows, and used on the test file.
#   TRAIN_CSV=votes.csv TEST_CSV=pairs.csv sbatch job.sh        RUN=quick bash job.sh --student-epochs 1
# Any setting of `python main.py --help` may be given as a flag or as an environment variable.
# On a cluster without GPUs: SBATCH_GRES=none sbatch job.sh
#SBATCH --job-name=student
#SBATCH --output=logs/%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" job || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

case " $* " in
*" --help "* | *" -h "*) exec python main.py --help ;;
*" --mode"*) refuse "job.sh sets --mode itself" ;;
esac
log "train"
work main.py --mode student-train "$@"
log "calibrate"
work main.py --mode student-calibrate "$@"
log "score the holdout"
work main.py --mode student-eval-holdout "$@"
log "predict the test file"
work main.py --mode student-infer "$@"
