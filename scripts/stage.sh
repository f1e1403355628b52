# shellcheck shell=bash
# Prologue of every stage script: repository root, site settings, profile, environment, logging. Sourced, never run.

set -euo pipefail
REPO_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export REPO_ROOT
cd "$REPO_ROOT" # paths in settings are relative to the repository, wherever the job was submitted
mkdir -p logs

# shellcheck source=/dev/null
if [ -f conf/cluster.sh ]; then source conf/cluster.sh; fi # modules, VENV_DIR, caches, scratch: this site's own

# glibc gives large blocks back to the kernel and fetches fresh pages for the next step: a quarter of the time on a CPU.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-4294967296} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4294967296}

VENV_DIR=${VENV_DIR:-$REPO_ROOT/.venv}
if [ -x "$VENV_DIR/bin/python" ]; then
  export PATH=$VENV_DIR/bin:$PATH
elif ! python -c 'import arena_distill' 2>/dev/null; then
  echo "error: no environment at $VENV_DIR -> run 'make setup', or set VENV_DIR in conf/cluster.sh" >&2
  exit 2
fi

stage_name=${SLURM_JOB_NAME:-$(basename "$0" .sh)}
log() { printf '%s %s: %s\n' "$(date '+%F %T')" "$stage_name" "$*"; }

finish() {
  local code=$?
  case $code in
  0) log "done in $SECONDS s" ;;
  *) log "stopped with exit code $code after $SECONDS s" ;;
  esac
}
trap finish EXIT

# The workers read the profile (PROFILE=name, or a file that ends in .env) themselves: flags and variables beat it.
# This is for the few settings that a stage script itself needs: setting NAME [default].
setting() {
  local file=${PROFILE:-}
  if [ -n "$file" ] && [ "${file%.env}" = "$file" ]; then file=conf/profiles/$file.env; fi
  local line=
  if [ -n "$file" ] && [ -f "$file" ]; then line=$(grep -E "^(export +)?$1 *=" "$file" | tail -n 1 || true); fi
  line=${line#*=}
  line=${line%%[[:space:]]#*}
  line=$(sed -E "s/^[[:space:]]+|[[:space:]]+\$//g; s/^([\"'])(.*)\1\$/\2/" <<<"$line") # quotes, as in any .env file
  printf '%s' "${!1:-${line:-${2:-}}}"
}

visible_gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l
  else
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true
  fi
}

# launch WORKER ARGS…: the worker in one process, or under torchrun with one process a GPU, on every node of the job.
launch() {
  local gpus nodes=${SLURM_JOB_NUM_NODES:-1}
  gpus=${PROCESSES_PER_NODE:-$(visible_gpus)}
  if [ "$nodes" -gt 1 ]; then
    log "$nodes nodes with ${gpus:-1} processes each"
    srun --ntasks="$nodes" --ntasks-per-node=1 torchrun --nnodes="$nodes" --nproc-per-node="${gpus:-1}" \
      --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \
      --rdzv-endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29500" "$@"
  elif [ "${gpus:-0}" -gt 1 ]; then
    log "$gpus processes"
    torchrun --standalone --nproc-per-node="$gpus" "$@"
  else
    python "$@"
  fi
}

log "on $(hostname -s)${SLURM_JOB_ID:+, job $SLURM_JOB_ID}, $(nproc) cores${PROFILE:+, profile $PROFILE}"
