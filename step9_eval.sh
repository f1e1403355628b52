#!/usr/bin/env bash
# Step 9: one submission out of the folds' submissions; with votes at hand how good it is, and the report of the run.
#   RUN=x bash step9_eval.sh                 equal mean
#   RUN=x USE_WEIGHTED=1 sbatch step9_eval.sh    weights from the log loss of each fold's held-out rows
# Reads sub/RUN_student_submission_fold_K.csv of every fold (without folds sub/RUN_final_submission.csv, or
# sub/RUN_student_submission.csv), TEST_CSV, and LABELS_CSV (or FILE_labels.csv beside TEST_CSV=FILE.csv).
# Writes sub/RUN_final_ensemble.csv, sub/RUN_evaluation.json and model_save/RUN/report.html.
#SBATCH --job-name=ensemble
#SBATCH --output=logs/%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=00:30:00
#SBATCH --cpus-per-task=1
#SBATCH --mem=8G

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" step9_eval || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

case " $* " in
*" --help "* | *" -h "*) exec python scripts/ensemble_run.py --help ;;
*" --run"* | *" --output-dir"*) refuse "say which run by RUN and OUTPUT_DIR: the evaluation and the report need them too" ;;
esac
run=$(setting RUN)
log "ensemble"
work scripts/ensemble_run.py "$@"
log "evaluate, and report"
work scripts/evaluate.py --submission "$(setting OUTPUT_DIR .)/sub/${run:+${run}_}final_ensemble.csv"
work scripts/report.py
