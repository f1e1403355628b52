#!/usr/bin/env bash
# One fold: distil a student from votes and teachers, calibrate it, predict the test file.
#   FOLD=3 RUN=x sbatch job_distill.sh        RUN=x sbatch --array=0-4 job_distill.sh        FOLD=3 bash job_distill.sh
# Writes model_save/RUN/student_distilbert_fold_K and sub/RUN_student_submission_fold_K.csv. The teachers are all that
# step 4 wrote (DISTILL_TEACHERS names others). Any setting of `python main.py --help` may be given likewise.
#SBATCH --job-name=distill-fold
#SBATCH --output=logs/%x_%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=08:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" job_distill || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

export CV_FOLD_IDX=${FOLD:-${SLURM_ARRAY_TASK_ID:-${CV_FOLD_IDX:-}}}
case " $* " in
*" --help "* | *" -h "*) exec python main.py --help ;;
*" --mode"* | *" --cv-fold-idx"*) refuse "job_distill.sh sets --mode itself, and --cv-fold-idx by FOLD" ;;
esac
[ -n "$CV_FOLD_IDX" ] || refuse "FOLD is not set -> FOLD=3 RUN=x sbatch job_distill.sh"
part fold "$CV_FOLD_IDX"
log "distil the student of fold $CV_FOLD_IDX"
launch main.py --mode student-distill-train "$@"
log "calibrate"
work main.py --mode student-calibrate "$@"
log "predict the test file"
work main.py --mode student-infer "$@"
