#!/usr/bin/env bash
# Step 8: calibrated probabilities for the test rows, averaged over both orders and several lengths.
#   RUN=x TTA_LENGTHS=512,1024 sbatch step8_infer_tta.sh      MODEL_DIR=model_save/distilled_x_fold_0 bash step8_infer_tta.sh
# Writes sub/[RUN_]final_submission.{csv,logits.parquet,manifest.json}. A killed job goes on from what is finished.
# Any setting of `python scripts/student_gptq_infer.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=infer-tta
#SBATCH --output=logs/%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=06:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" step8_infer_tta || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

run=$(setting RUN)
merged=$(setting OUTPUT_DIR .)/model_save/${run:+$run/}final_merged_model
head_dir=$(setting HEAD_DIR "$(setting MODEL_DIR "$merged")")    # whose head the predicting model must have
head_out=$(setting HEAD_OUT "$head_dir/classifier_head.pt") # where it is exported to
calibration=$(setting CALIB_JSON)                             # default: calibration.json of the model that predicts

if [ -d "$head_dir" ] || [ -n "$(setting HEAD_DIR)" ]; then
  log "export the head of $head_dir"
  work scripts/export_classifier_head.py --model-dir "$head_dir" --out "$head_out"
  set -- --head-path "$head_out" "$@"
fi
log "predict"
work scripts/student_gptq_infer.py ${calibration:+--temperature-json "$calibration"} "$@"
