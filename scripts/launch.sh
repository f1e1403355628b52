# shellcheck shell=bash
# How a worker is started: in one process, under torchrun with one process a GPU, or so on every node of the job.
# Sourced by stage.sh.

# work WORKER ARGS…: in one process.
work() { supervise python "$@"; }

# launch WORKER ARGS…: in as many processes as this job has GPUs, or as PROCESSES_PER_NODE says, on all of its nodes.
launch() {
  local processes nodes=${SLURM_JOB_NUM_NODES:-1}
  processes=$(setting PROCESSES_PER_NODE "$(visible_gpus)")
  [[ $processes =~ ^[0-9]*$ ]] || refuse "PROCESSES_PER_NODE=$processes: no number of processes -> 1, or the GPUs of a node"
  if [ "${processes:-0}" = 0 ]; then processes=1; fi
  if [ -n "${STAGE_THREADS:-}" ]; then # what the job has is shared out
    local -x OMP_NUM_THREADS=$((STAGE_THREADS > processes ? STAGE_THREADS / processes : 1))
  fi
  if [ "$nodes" -gt 1 ]; then
    launch_on_nodes "$nodes" "$processes" "$@"
  elif [ "$processes" -gt 1 ]; then
    log "$processes processes"
    supervise_several python scripts/torchrun.py --standalone --nproc-per-node="$processes" "$@"
  else
    work "$@"
  fi
}

visible_gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cvE '^(-1|NoDevFiles)?$' || true
  else
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true
  fi
}

# launch_on_nodes NODES PROCESSES WORKER ARGS…: a torchrun on each; they meet on the first, where this script runs.
launch_on_nodes() {
  local nodes=$1 processes=$2 first port
  shift 2
  first=$(address_of "${SLURMD_NODENAME:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}")
  port=$((10000 + SLURM_JOB_ID % 20000)) # below those that kernels give out; no two jobs have the same
  log "$nodes nodes with $processes processes each, which meet at $first:$port"
  # The nodes' torchruns end within moments of each other; what is left after a minute waits for a node that failed.
  # shellcheck disable=SC2016 # SLURM_NODEID is each node's own
  supervise_several srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --export=ALL --kill-on-bad-exit=0 --wait=60 \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    bash -c 'trap "" USR1; exec python scripts/torchrun.py --node-rank="$SLURM_NODEID" "$@"' bash \
    --nnodes="$nodes" --nproc-per-node="$processes" --master-addr="$first" --master-port="$port" "$@"
}

# address_of NODE: its name, if that resolves, else what Slurm itself finds it by.
address_of() {
  local address=$1
  if ! getent hosts "$1" >/dev/null; then
    address=$(scontrol show node "$1" | sed -nE '/^.*NodeAddr=([^ ]+).*$/{s//\1/p;q}')
  fi
  printf '%s' "${address:-$1}"
}
