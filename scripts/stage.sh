# shellcheck shell=bash
# Prologue of every stage script: repository root, site settings, environment, logging. Sourced, never run.

set -euo pipefail
REPO_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export REPO_ROOT
cd "$REPO_ROOT" # paths in settings are relative to the repository, wherever the job was submitted
mkdir -p logs

# shellcheck source=/dev/null
if [ -f conf/cluster.sh ]; then source conf/cluster.sh; fi # modules, VENV_DIR, caches, scratch: this site's own

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
log "on $(hostname -s)${SLURM_JOB_ID:+, job $SLURM_JOB_ID}, $(nproc) cores"
