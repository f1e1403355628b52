#!/usr/bin/env bash
# Every fold in one job, one after the other (job_distill.sh), and their ensemble (step9_eval.sh).
#   RUN=x sbatch job_distill_all_in_one.sh        RUN=x USE_WEIGHTED=1 bash job_distill_all_in_one.sh
# Writes what those write, and ends with sub/RUN_final_ensemble.csv. Flags go to main.py.
#SBATCH --job-name=distill-all
#SBATCH --output=logs/%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" job_distill_all_in_one || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

every_fold "$@"
for ((fold = 0; fold < n_folds; fold++)); do
  FOLD=$fold supervise bash job_distill.sh "$@"
done
supervise bash step9_eval.sh
