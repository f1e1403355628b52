#!/usr/bin/env bash
# Step 9: one submission out of the folds' submissions; with votes at hand how good it is, and the report of the run.
#   RUN=x bash step9_eval.sh                 equal mean
#   RUN=x USE_WEIGHTED=1 sbatch step9_eval.sh    weights from the log loss of each fold's held-out rows
# Reads sub/RUN_student_submission_fold_K.csv of every fold (without folds sub/RUN_final_submission.csv, or
# sub/RUN_student_submission.csv), TEST_CSV, and LABELS_CSV (or FILE_labels.csv beside TEST_CSV=FILE.csv).
# Writes sub/RUN_final_ensemble.csv, sub/RUN_evaluation.json and model_save/RUN/report.html.
#SBATCH --job-name=ensemble
#SBATCH --output=logs/%x_%j.out
#SBATCH --time=00:30:00
#SBATCH --cpus-per-task=1
#SBATCH --mem=8G

# Under sbatch this file is a copy in a spool directory: the repository is found by where it was submitted from.
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(dirname "$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=//p')")"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" || { echo "error: cannot find the repository -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

run=$(setting RUN)
output=$(setting OUTPUT_DIR .)
case $(setting USE_WEIGHTED 0) in
1 | true | yes) weights=auto ;;
0 | false | no) weights=equal ;;
*) echo "error: USE_WEIGHTED is 1 or 0, not $(setting USE_WEIGHTED)" >&2 && exit 2 ;;
esac
prefix=$output/sub/${run:+${run}_}
ensemble=${prefix}final_ensemble.csv
expected=() # the ids that every member must have; without a test file those of the first
if [ -n "$(setting TEST_CSV)" ]; then expected=(--test-csv "$(setting TEST_CSV)"); fi

one= # no folds: the one submission that there is
if ! compgen -G "${prefix}student_submission_fold_*.csv" >/dev/null; then
  for file in "${prefix}student_submission.csv" "${prefix}final_submission.csv"; do
    if [ -f "$file" ]; then one=$file; fi
  done
elif [ -f "${prefix}final_submission.csv" ]; then
  log "the folds' submissions are used, and ${prefix}final_submission.csv is not; the mean of both:" \
    "python scripts/ensemble_submissions.py OUT $ensemble ${prefix}final_submission.csv"
fi
if [ -n "$one" ]; then
  log "no folds; the submission is $one"
  if [ "$weights" = auto ]; then log "note: USE_WEIGHTED weighs folds, and there are none"; fi
  python scripts/ensemble_submissions.py "$ensemble" "$one" "${expected[@]}" "$@"
else
  log "ensemble of the folds"
  python scripts/ensemble_from_cv.py "$ensemble" --run "$run" --output-dir "$output" --weights "$weights" \
    "${expected[@]}" "$@"
fi
python scripts/evaluate.py --submission "$ensemble"
python scripts/report.py --run "$run" --output-dir "$output"
