#!/usr/bin/env bash
# One fold: distil a student from votes and teachers, calibrate it, predict the test file.
#   FOLD=3 RUN=x sbatch job_distill.sh        RUN=x sbatch --array=0-4 job_distill.sh        FOLD=3 bash job_distill.sh
# Writes model_save/RUN/student_distilbert_fold_K and sub/RUN_student_submission_fold_K.csv. The teachers are all that
# step 4 wrote (DISTILL_TEACHERS names others). Any setting of `python main.py --help` may be given likewise.
#SBATCH --job-name=distill-fold
#SBATCH --output=logs/%x_%A_%a.out
#SBATCH --time=08:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is found by where it was submitted from.
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(dirname "$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=//p')")"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" || { echo "error: cannot find the repository -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

export CV_FOLD_IDX=${FOLD:-${SLURM_ARRAY_TASK_ID:-${CV_FOLD_IDX:-}}}
case " $* " in
*" --help "* | *" -h "*) exec python main.py --help ;;
*" --mode"* | *" --cv-fold-idx"*) echo "error: job_distill.sh sets --mode itself, and --cv-fold-idx by FOLD" >&2 && exit 2 ;;
esac
[ -n "$CV_FOLD_IDX" ] || { echo "error: FOLD is not set -> FOLD=3 RUN=x sbatch job_distill.sh" >&2 && exit 2; }
log "distil the student of fold $CV_FOLD_IDX"
launch main.py --mode student-distill-train "$@"
log "calibrate"
python main.py --mode student-calibrate "$@"
log "predict the test file"
python main.py --mode student-infer "$@"
