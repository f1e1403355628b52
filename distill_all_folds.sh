#!/usr/bin/env bash
# Submits every fold as a task of one array (job_distill.sh), then their ensemble (step9_eval.sh) for when all are done.
#   RUN=x USE_WEIGHTED=1 sbatch distill_all_folds.sh        RUN=x bash distill_all_folds.sh        (both need Slurm)
# If a fold fails, the ensemble is cancelled; the same command then does what is missing. Flags go to main.py.
#SBATCH --job-name=distill-submit
#SBATCH --output=logs/%x_%j.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --time=00:05:00
#SBATCH --cpus-per-task=1
#SBATCH --mem=1G

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" distill_all_folds || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

every_fold "$@"
command -v sbatch >/dev/null || refuse "no Slurm here (sbatch) -> bash job_distill_all_in_one.sh"
folds=$(sbatch --parsable --array="0-$((n_folds - 1))" job_distill.sh "$@")
ensemble=$(sbatch --parsable --dependency="afterok:${folds%%;*}" --kill-on-invalid-dep=yes step9_eval.sh) ||
  refuse "the folds are job ${folds%%;*}, but Slurm did not take their ensemble -> sbatch step9_eval.sh when they are done"
log "submitted the folds as job ${folds%%;*} and their ensemble as job ${ensemble%%;*} (squeue --me; logs/)"
