#!/usr/bin/env bash
# Step 7: 8-bit (or 4-bit) weights by GPTQ, int8 for encoders, proved on held-out rows.
#   PROFILE=gemma2-9b sbatch step7_quantize_gptq.sh        bash step7_quantize_gptq.sh --bits 4 --group-size 64
# Reads model_save/[RUN/]final_merged_model (MODEL_DIR), and texts to calibrate on (CALIB_CSV, data/train.csv).
# Writes model_save/[RUN/]final_quantized_model (OUT_DIR): weights, head, tokenizer, quantization_report.json.
# Any setting of `python scripts/quantize_gptq_calibrated.py --help` may be given as a flag or environment variable.
#SBATCH --job-name=quantize
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
source "$repo/scripts/stage.sh" step7_quantize_gptq || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

log "quantize ${MODEL_DIR:-the merged model${RUN:+ of $RUN}}"
work scripts/quantize_gptq_calibrated.py "$@"
