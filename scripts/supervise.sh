# shellcheck shell=bash
# One command at a time, in the background and watched, so that the script hears signals while the command works.
#   USR1 (Slurm, before the time limit), TERM (preemption, scancel, kill): the command is told to save and to stop, and
#   the script ends with 75: a Slurm job requeues itself; elsewhere the same command goes on.
#   INT (Ctrl-C): the script ends with 130.
# Sourced by stage.sh.
# shellcheck disable=SC2154 # stage_name and stage_part are its own

job_name=${SLURM_JOB_ID:-}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then # its last task has the number of the whole array for a job id
  job_name=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi
stop_file=$REPO_ROOT/logs/.stop-${job_name:-$(hostname -s)}-$$ # on a disk that every node sees
grace=$(setting GRACE 240)                                     # seconds to save; USR1 comes 300 before the time limit
watched=                                                       # process number of the command that runs
watched_several=                                               # it is several processes, told by the stop file
asked=                                                         # the signal that came
interrupted=                                                   # a signal came since we began to wait
deadline=                                                      # when the command is ended, on the clock of SECONDS

# supervise COMMAND ARGS…: its exit code; 75 if it was asked to stop before its end.
supervise() {
  if [ -n "$asked" ]; then exit 75; fi # nothing begins any more
  name_progress_file
  rm -f "$stop_file"
  unset STOP_FILE
  if [ -n "$watched_several" ]; then export STOP_FILE=$stop_file; fi
  (
    trap - INT QUIT                                     # bash has its background ignore them
    if [ -n "$watched_several" ]; then trap '' USR1; fi # torchrun would die of it
    exec "$@"
  ) <&0 &
  watched=$!
  if [ -n "$asked" ]; then stop "$asked"; fi # it came before there was anyone to tell
  local code=0
  interrupted=yes
  while [ -n "$interrupted" ]; do # a signal ends the waiting, not the command
    interrupted=
    code=0
    wait "$watched" 2>/dev/null || code=$? # without bash saying of what the command died
  done
  watched=
  if [ -e "$stop_file" ] && [ -z "$asked" ]; then asked=TERM; fi # by one of the processes, or by hand
  if [ "$asked" = INT ]; then exit 130; fi
  if [ -n "$asked" ] && [ "$code" != 0 ] && { [ "$code" -gt 128 ] || [ -n "$watched_several" ]; }; then
    code=75 # ended by the signal, or with the code of whichever of several went first
  fi
  return "$code"
}

# supervise_several COMMAND ARGS…: for torchrun and srun.
supervise_several() {
  local code=0
  watched_several=yes
  supervise "$@" || code=$?
  watched_several=
  return "$code"
}

# stop SIGNAL: pass it on, and see that the command ends in time.
stop() {
  interrupted=yes
  if [ "$asked" != INT ]; then asked=$1; fi
  if [ -z "$watched" ]; then
    if [ "$1" = INT ]; then exit 130; fi
    return 0
  fi
  local seconds
  case $1 in
  INT) seconds=10 ;;
  USR1) seconds=$grace ;;
  *) seconds=$(before_killed) ;;
  esac
  if [ -z "$deadline" ] || ((SECONDS + seconds < deadline)); then deadline=$((SECONDS + seconds)); fi
  if [ "$1" = INT ]; then
    if gone_by $((SECONDS + 2)); then return 0; fi # the terminal told it, as it told us
    kill -s INT "$watched" 2>/dev/null || true
  else
    log "asked to stop ($1); $((deadline - SECONDS)) s to save"
    tell "$1"
  fi
  until gone_by $((SECONDS + 5)); do
    if ((SECONDS >= deadline)); then
      log "not ended in time, killed; what it had saved stays"
      # shellcheck disable=SC2046 # one number a word
      kill -s KILL $(tree_of "$watched") 2>/dev/null || true
      return 0
    fi
    if [ "$1" != INT ]; then tell "$1"; fi # once more: between fork and exec bash loses signals
  done
}

# tell SIGNAL: the command that it is to save and stop; a worker heeds the first that it hears.
tell() {
  if [ -n "$watched_several" ]; then : >"$stop_file" || true; else kill -s "$1" "$watched" 2>/dev/null || true; fi
}

# gone_by TIME: wait until the command has ended, but no longer.
gone_by() {
  while kill -0 "$watched" 2>/dev/null; do
    if ((SECONDS >= $1)) || ((SECONDS >= deadline)); then return 1; fi
    (trap '' TERM && exec sleep 0.2) || true # Slurm's signal is for all processes of a job
  done
}

# before_killed: seconds to save after TERM; Slurm sends it when the job must go, and kills what is left after KillWait.
before_killed() {
  local kill_wait=
  if [ -n "$job_name" ]; then
    kill_wait=$(timeout 5 scontrol show config 2>/dev/null | sed -nE 's/^KillWait *= *([0-9]+).*/\1/p')
    kill_wait=$((${kill_wait:-30} * 5 / 6))
  fi
  echo $((${kill_wait:-grace} < grace ? ${kill_wait:-grace} : grace))
}

# tree_of PID: it, and all processes below it.
tree_of() {
  ps -A -o pid= -o ppid= | awk -v root="$1" '{ above[$1] = $2 }
    END { print root; for (p in above) { a = above[p]; while (a in above && a != root) a = above[a]; if (a == root) print p } }'
}

# name_progress_file: where a worker says how far it is, which ./pipeline.sh status and requeueing read.
name_progress_file() {
  local run
  run=$(setting RUN)
  HEARTBEAT_FILE=$(setting OUTPUT_DIR .)/model_save/${run:+$run/}pipeline/progress/$stage_name$stage_part.json
  export HEARTBEAT_FILE
}

finish() {
  local code=$?
  set +e
  trap '' USR1 TERM HUP # Slurm sends one more when it requeues us
  rm -f "$stop_file"
  case $code in
  0) log "done in $SECONDS s" ;;
  75) log "stopped before the end, with exit code 75 after $SECONDS s" && go_on_later ;;
  *) log "stopped with exit code $code after $SECONDS s" ;;
  esac
  exit "$code"
}

go_on_later() {
  if [ "${SLURM_TASK_PID:-}" != "$$" ]; then # not what sbatch started: called by it, by pipeline.sh, or by hand
    log "the same command goes on from what is saved"
    return
  fi
  name_progress_file
  python -m arena_distill.runtime.requeue --job "$job_name" --most "$(setting MAX_REQUEUES 3)" \
    --progress "$(dirname "$HEARTBEAT_FILE")"
}

[[ $grace =~ ^[0-9]+$ ]] || refuse "GRACE=$grace: no number of seconds -> such as 120"
trap finish EXIT
trap 'stop INT' INT
trap 'stop USR1' USR1
trap 'stop TERM' TERM HUP
