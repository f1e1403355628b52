#!/usr/bin/env bash
# Step 1: LoRA post-pretraining of the base models on extra preference data (UT_DATA), and merging.
#   PROFILE=llama3-8b sbatch step1_post_pretrain.sh        RUN_STAGE=llama LLAMA_BASE=path/to/model bash step1_post_pretrain.sh
# Writes model_save/post_pretrain_{llama,qwen,gemma}_lora and, merged, model_save/post_pretrain_{llama,qwen,gemma}.
# Any setting of `python scripts/post_pretrain.py --help` may be given as a flag or as an environment variable.
#SBATCH --job-name=post-pretrain
#SBATCH --output=logs/%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=160G
#SBATCH --gres=gpu:1

# Under sbatch this file is a copy in a spool directory: the repository is where that came from, or the submitter was.
# (Elsewhere: sbatch --chdir=REPOSITORY …, as without a logs/ where it starts Slurm writes no output at all.)
submitted=${SLURM_JOB_ID:+$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' | head -n 1)}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${REPO_ROOT:-}" "${submitted%/*.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
  [ -f "$repo/scripts/stage.sh" ] && break
done
source "$repo/scripts/stage.sh" step1_post_pretrain || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

if [ "${PROFILE:-}" = tiny ]; then
  log "tiny checkpoints"
  work scripts/make_tiny_models.py --texts "$(setting TINY_TEXTS)" --out-dir model_save/tiny \
    --families "$(setting TINY_FAMILIES)" --pretrain-epochs "$(setting TINY_PRETRAIN_EPOCHS)"
fi
log "post-pretrain"
launch scripts/post_pretrain.py "$@"
