#!/usr/bin/env bash
# Every fold in one job, one after the other (job_distill.sh), and their ensemble (step9_eval.sh).
#   RUN=x sbatch job_distill_all_in_one.sh        RUN=x USE_WEIGHTED=1 bash job_distill_all_in_one.sh
# Writes what those write, and ends with sub/RUN_final_ensemble.csv. Flags go to main.py.
#SBATCH --job-name=distill-all
#SBATCH --output=logs/%x_%j.out
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gres=gpu:1

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
folds=$(setting CV_NUM_FOLDS 5)
[[ $folds =~ ^[1-9][0-9]*$ && $folds -ge 2 ]] || { echo "error: CV_NUM_FOLDS=$folds: is no number of folds -> 2 or more" >&2 && exit 2; }
for ((fold = 0; fold < folds; fold++)); do
  FOLD=$fold bash job_distill.sh "$@"
done
bash step9_eval.sh
