#!/usr/bin/env bash
# Submits every fold as a task of one array (job_distill.sh), then their ensemble (step9_eval.sh) for when all are done.
#   RUN=x USE_WEIGHTED=1 sbatch distill_all_folds.sh        RUN=x bash distill_all_folds.sh        (both need Slurm)
# If a fold fails, the ensemble is cancelled; the same command then does what is missing. Flags go to main.py.
#SBATCH --job-name=distill-submit
#SBATCH --output=logs/%x_%j.out
#SBATCH --time=00:05:00
#SBATCH --cpus-per-task=1
#SBATCH --mem=1G

# Under sbatch this file is a copy in a spool directory: the repository is found by where it was submitted from.
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(dirname "$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=//p')")"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" || { echo "error: cannot find the repository -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

unset STUDENT_OUTPUT_MODEL_DIR STUDENT_SUBMISSION_PATH # the ensemble looks for the default places
case " $* " in
*" --help "* | *" -h "*) exec python main.py --help ;;
*" --mode"* | *" --run"* | *" --output-dir"* | *" --cv-"* | *" --student-output-"* | *" --student-submission-"*)
  echo "error: say where and how many by RUN, OUTPUT_DIR and CV_NUM_FOLDS alone: the ensemble needs them too" >&2 && exit 2 ;;
esac
number=$(setting CV_NUM_FOLDS 5)
[[ $number =~ ^[1-9][0-9]*$ && $number -ge 2 ]] || { echo "error: CV_NUM_FOLDS=$number: is no number of folds -> 2 or more" >&2 && exit 2; }
command -v sbatch >/dev/null || { echo "error: no Slurm here (sbatch) -> bash job_distill_all_in_one.sh" >&2 && exit 2; }
unset FOLD CV_FOLD_IDX # each task takes its own
folds=$(sbatch --parsable --array="0-$((number - 1))" job_distill.sh "$@")
ensemble=$(sbatch --parsable --dependency="afterok:${folds%%;*}" --kill-on-invalid-dep=yes step9_eval.sh)
log "submitted the folds as job ${folds%%;*} and their ensemble as job ${ensemble%%;*} (squeue --me; logs/)"
