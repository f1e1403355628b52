#!/usr/bin/env bash
# Step 9: one submission out of the folds' submissions.
#   RUN=x bash step9_eval.sh                 equal mean
#   RUN=x USE_WEIGHTED=1 sbatch step9_eval.sh    weights from the log loss of each fold's held-out rows
# Reads sub/RUN_student_submission_fold_K.csv of every fold (without folds sub/RUN_final_submission.csv, or
# sub/RUN_student_submission.csv), writes sub/RUN_final_ensemble.csv.
#SBATCH --job-name=ensemble
#SBATCH --output=logs/%x_%j.out
#SBATCH --time=00:30:00
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G

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
if ! compgen -G "${prefix}student_submission_fold_*.csv" >/dev/null; then # no folds: the one that there is
  for one in "${prefix}final_submission.csv" "${prefix}student_submission.csv"; do
    [ -f "$one" ] || continue
    log "no folds; the submission is $one"
    exec python scripts/ensemble_submissions.py "${prefix}final_ensemble.csv" "$one"
  done
fi
log "ensemble of the folds"
python scripts/ensemble_from_cv.py "${prefix}final_ensemble.csv" --run "$run" --output-dir "$output" \
  --weights "$weights" "$@"
