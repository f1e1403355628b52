#!/usr/bin/env bash
# Step 9: one submission out of the folds' submissions.
#   RUN=x bash step9_eval.sh                 equal mean
#   RUN=x USE_WEIGHTED=1 sbatch step9_eval.sh    weights from the log loss of each fold's held-out rows
# Reads sub/RUN_student_submission_fold_K.csv of every fold, writes sub/RUN_final_ensemble.csv.
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
weights=equal
if [ "$(setting USE_WEIGHTED 0)" = 1 ]; then weights=auto; fi
log "ensemble of the folds"
python scripts/ensemble_from_cv.py "$output/sub/${run:+${run}_}final_ensemble.csv" --run "$run" --output-dir "$output" \
  --weights "$weights" "$@"
