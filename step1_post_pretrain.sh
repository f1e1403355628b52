#!/usr/bin/env bash
# Step 1: LoRA post-pretraining of the base models on extra preference data (UT_DATA), and merging.
#   PROFILE=llama3-8b sbatch step1_post_pretrain.sh        RUN_STAGE=llama LLAMA_BASE=path/to/model bash step1_post_pretrain.sh
# Writes model_save/post_pretrain_{llama,qwen,gemma}_lora and, merged, model_save/post_pretrain_{llama,qwen,gemma}.
# Any setting of `python scripts/post_pretrain.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=post-pretrain
#SBATCH --output=logs/%x_%j.out
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=160G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is found by where it was submitted from.
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(dirname "$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=//p')")"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" || { echo "error: cannot find the repository -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

if [ "${PROFILE:-}" = tiny ]; then
  log "tiny checkpoints"
  python scripts/make_tiny_models.py --texts "$(setting TINY_TEXTS)" --out-dir model_save/tiny \
    --families "$(setting TINY_FAMILIES)" --pretrain-epochs "$(setting TINY_PRETRAIN_EPOCHS)"
fi
log "post-pretrain"
launch scripts/post_pretrain.py "$@"
