# shellcheck shell=bash
# Prologue of every stage script: repository root, site settings, profile, environment, threads, logging, signals.
# Sourced, never run, with the script's name: source "$repo/scripts/stage.sh" step2_make_folds

set -euo pipefail
REPO_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export REPO_ROOT
cd "$REPO_ROOT" || exit 2 # paths in settings are relative to the repository, wherever the job was submitted
mkdir -p logs
case ${1:-} in [a-z]*) stage_name=$1 ;; *) stage_name=$(basename "$0" .sh) ;; esac
stage_part= # _fold_K or _task_K, see part

log() { printf '%s %s: %s\n' "$(date '+%F %T')" "$stage_name$stage_part" "$*"; }
refuse() { echo "error: $*" >&2 && exit 2; } # what is wrong -> what to do

if [ -f conf/cluster.sh ]; then # modules, VENV_DIR, caches, scratch: this site's own
  bash -n conf/cluster.sh || refuse "conf/cluster.sh is no valid bash, and without it jobs would run as if there were none -> mend it"
  trap 'echo "error: conf/cluster.sh ends whatever reads it -> remove the exit in it" >&2' EXIT
  set +eu # module and conda bear neither
  # shellcheck source=/dev/null
  source conf/cluster.sh
  set -eu
  trap - EXIT
fi

# glibc gives large blocks back to the kernel and fetches fresh pages for the next step: a quarter of the time on a CPU.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-4294967296} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4294967296}

given=${VENV_DIR:-}
VENV_DIR=${VENV_DIR:-$REPO_ROOT/.venv}
if [ -x "$VENV_DIR/bin/python" ]; then
  export PATH=$VENV_DIR/bin:$PATH
elif [ -n "$given" ] || ! (cd / && python -c 'import arena_distill' 2>/dev/null); then # here it would find the sources
  refuse "no environment at $VENV_DIR -> run 'make setup', or set VENV_DIR in conf/cluster.sh"
fi

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

# Threads: OMP_NUM_THREADS, else STEP3_CPUS (in step 3), CPUS_PER_TASK, or what Slurm gives; equal threads, equal bytes.
# STAGE_THREADS marks what one of these scripts chose: another that it calls or submits chooses for itself.
set_threads() {
  if [ "${OMP_NUM_THREADS:-}" = "${STAGE_THREADS:-none}" ]; then unset OMP_NUM_THREADS; fi
  unset STAGE_THREADS
  if [ -n "${OMP_NUM_THREADS:-}" ]; then return; fi
  local name number=${stage_name#step} threads=0
  number=${number%%_*}
  for name in "STEP${number}_CPUS" CPUS_PER_TASK SLURM_CPUS_PER_TASK; do
    if [[ $name =~ ^[A-Z0-9_]+$ ]]; then threads=$(setting "$name" 0); fi
    if [ "$threads" != 0 ]; then break; fi
  done
  [[ $threads =~ ^(0|[1-9][0-9]*)$ ]] || refuse "$name=$threads: no number of threads -> give 1 or more"
  if [ "$threads" != 0 ]; then export OMP_NUM_THREADS=$threads STAGE_THREADS=$threads; fi
}

# part fold|task NUMBER: this job does one of several; its progress is told apart. More than one, or none: not so.
part() { if [[ ${2:-} =~ ^[0-9]+$ ]]; then stage_part=_$1_$2; fi; }

# every_fold "$@": what a job of all folds and their ensemble refuses, so that the one finds what the others write.
# Sets n_folds.
every_fold() {
  case " $* " in
  *" --help "* | *" -h "*) exec python main.py --help ;;
  *" --mode"* | *" --run"* | *" --output-dir"* | *" --cv-"* | *" --student-output-"* | *" --student-submission-"*)
    refuse "say where and how many by RUN, OUTPUT_DIR and CV_NUM_FOLDS alone: the ensemble needs them too" ;;
  esac
  n_folds=$(setting CV_NUM_FOLDS 5)
  [[ $n_folds =~ ^[1-9][0-9]*$ && $n_folds -ge 2 ]] || refuse "CV_NUM_FOLDS=$n_folds: is no number of folds -> 2 or more"
  unset STUDENT_OUTPUT_MODEL_DIR STUDENT_SUBMISSION_PATH # the ensemble looks for the default places
  unset FOLD CV_FOLD_IDX                                 # each fold takes its own
}

# shellcheck source=scripts/supervise.sh
source "$REPO_ROOT/scripts/supervise.sh"
# shellcheck source=scripts/launch.sh
source "$REPO_ROOT/scripts/launch.sh"

set_threads
log "on ${SLURMD_NODENAME:-$(hostname -s)}${SLURM_JOB_ID:+, job $job_name}${SLURM_RESTART_COUNT:+, restart $SLURM_RESTART_COUNT}," \
  "$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) cores${OMP_NUM_THREADS:+, $OMP_NUM_THREADS threads}${PROFILE:+, profile $PROFILE}"
