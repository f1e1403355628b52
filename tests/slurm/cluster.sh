#!/usr/bin/env bash
# A real Slurm on this one machine, thrown away afterwards: two nodes n1 and n2, as root, without systemd or accounting.
#   tests/slurm/cluster.sh up DIR && export SLURM_CONF=DIR/slurm.conf        tests/slurm/cluster.sh down DIR
#   stop-controller | start-controller | restart-controller DIR    slurmctld dies and comes back; jobs run on meanwhile
#   kill-node | start-node DIR N      node N loses power (its jobs too) and is switched on again
#   install                           the Debian packages, where root and apt are; `up` does this by itself
# Everything lies in DIR, on ports that are free; several clusters live side by side. Exit code 77: it cannot be here.
set -euo pipefail

: "${CLUSTER_NODES:=2}" "${CLUSTER_CPUS:=8}" "${CLUSTER_MEMORY_MB:=8000}" # of each node, however few there are
: "${CLUSTER_GRES=gpu:1}"        # of each node, for scheduling only; empty: a cluster that knows no gres
: "${CLUSTER_PREEMPTION:=0}"     # 1: jobs of a second partition, urgent, requeue those of main
: "${CLUSTER_GRACE:=1}"          # seconds that a preempted job runs on before Slurm signals its script and takes its nodes
: "${CLUSTER_JOB_REQUEUE:=1}"    # may jobs be requeued that say nothing about it
: "${CLUSTER_KILL_WAIT:=5}"      # seconds between SIGTERM and SIGKILL at the end of a job's time
: "${CLUSTER_CRED_EXPIRE:=5}"    # seconds that a requeued job waits at least; 5 is the least that Slurm takes
: "${CLUSTER_NODE_TIMEOUT:=10}"  # seconds of silence after which a node is down
: "${CLUSTER_MIN_JOB_AGE:=86400}" # seconds that the controller remembers an ended job
: "${CLUSTER_EXTRA:=}"           # more lines for slurm.conf
: "${CLUSTER_OWNER:=}"           # process id: when that process is gone, however it ended, the cluster goes too

PATH=$PATH:/usr/sbin:/sbin

usage() { sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2; }
verb=${1:-}
readonly UNAVAILABLE=77 lock=${TMPDIR:-/tmp}/arena-distill-test-cluster.lock

# Packages

unavailable() { echo "no test cluster: $*" >&2 && exit "$UNAVAILABLE"; }

installed() { type -P munged slurmctld slurmd sbatch srun scontrol >/dev/null; }

install_packages() {
  installed && return
  [ "$(id -u)" = 0 ] || unavailable "Slurm is not installed, and only root can -> sudo apt-get install munge slurmctld slurmd slurm-client"
  type -P apt-get >/dev/null || unavailable "Slurm is not installed, and apt-get is not here -> install munge, slurmctld, slurmd, sbatch"
  local said
  exec 8>"$lock.apt" && flock 8 # of several test processes, one installs
  # RUNLEVEL=1: the packages do not start services of their own
  installed || { said=$(export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 && apt-get -qq update 8>&- 2>&1 &&
    apt-get -qq install --no-install-recommends munge slurmctld slurmd slurm-client 8>&- 2>&1) && installed; } ||
    unavailable "apt-get cannot install munge slurmctld slurmd slurm-client: $(tail -n 1 <<<"${said:-}")"
  exec 8>&-
}

# Processes

# alive FILE NAME: whether the process whose number is in FILE still is one of that name.
alive() { [ -s "$1" ] && [ "$(cat "/proc/$(<"$1")/comm" 2>/dev/null)" = "$2" ] && ! gone "$(<"$1")"; }

# within SECONDS COMMAND…: until it succeeds.
within() {
  local tenths=$(($1 * 10))
  shift
  until "$@"; do
    ((tenths-- > 0)) || return 1
    sleep 0.1
  done
}

gone() { [ -z "$({ tr -d '\0' <"/proc/$1/cmdline"; } 2>/dev/null)" ]; } # a zombie has no command line

# end FILE NAME SIGNAL: that process, and wait until it is gone.
end() {
  alive "$1" "$2" || return 0
  local pid
  pid=$(<"$1")
  kill "-$3" "$pid" 2>/dev/null || true
  within 10 gone "$pid" || { kill -KILL "$pid" && within 5 gone "$pid"; } || true
}

# processes_with VARIABLE=VALUE…: of this cluster and with all of these in their environment.
processes_with() {
  local file found variable
  for file in /proc/[0-9]*/environ; do
    found=$({ tr '\0' '\n' <"$file"; } 2>/dev/null) || continue
    for variable in "SLURM_CONF=$SLURM_CONF" "$@"; do
      grep -qxE "$variable" <<<"$found" || continue 2
    done
    file=${file%/environ}
    echo "${file#/proc/}"
  done
}

kill_all() { # PIDS in one word
  local pid
  for pid in $1; do kill -KILL "$pid" 2>/dev/null || true; done
}

# Daemons

daemon() { "$@" </dev/null >>"$cluster/start.log" 2>&1 9>&-; } # holds neither the caller's pipes nor the lock

free_ports() { # N: the first of N ports in a row on which nothing listens, below those that the kernel gives out
  local first port
  for first in $(shuf -i 2000-3100 | sed 's/$/0/' | head -n 200); do
    for ((port = first; port < first + $1; port++)); do
      if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue 2; fi
    done
    echo "$first" && return
  done
  echo "no free ports between 20000 and 31009" >&2 && return 1
}

write_configuration() { # FIRST_PORT
  local host node number=$CLUSTER_NODES
  host=$(hostname -s)
  (umask 077 && head -c 1024 /dev/urandom >"$cluster/munge.key")
  : >"$cluster/gres.conf"
  [ -z "$CLUSTER_GRES" ] || echo "NodeName=n[1-$number] Name=${CLUSTER_GRES%%:*} File=/dev/null" >"$cluster/gres.conf"
  {
    cat <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$1
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$cluster/munge.socket,cred_expire=$CLUSTER_CRED_EXPIRE
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool-%n
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd-%n.pid
SlurmctldLogFile=$cluster/slurmctld.log
SlurmdLogFile=$cluster/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
EnforcePartLimits=ALL
MpiDefault=none
ReturnToService=1
SlurmdTimeout=$CLUSTER_NODE_TIMEOUT
KillWait=$CLUSTER_KILL_WAIT
JobRequeue=$CLUSTER_JOB_REQUEUE
MinJobAge=$CLUSTER_MIN_JOB_AGE
MailProg=/bin/true
CONF
    [ -z "$CLUSTER_GRES" ] || echo "GresTypes=${CLUSTER_GRES%%:*}"
    [ "$CLUSTER_PREEMPTION" = 0 ] || printf '%s\n' PreemptType=preempt/partition_prio PreemptMode=REQUEUE
    [ -z "$CLUSTER_EXTRA" ] || printf '%s\n' "$CLUSTER_EXTRA"
    for ((node = 1; node <= number; node++)); do
      echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$(($1 + node)) CPUs=$CLUSTER_CPUS" \
        "RealMemory=$CLUSTER_MEMORY_MB ${CLUSTER_GRES:+Gres=$CLUSTER_GRES}"
    done
    local grace=
    [ "$CLUSTER_PREEMPTION" = 0 ] || grace="PriorityTier=1 PreemptMode=REQUEUE GraceTime=$CLUSTER_GRACE"
    echo "PartitionName=main Nodes=n[1-$number] Default=YES DefMemPerCPU=500 MaxTime=7-00:00:00 $grace"
    [ "$CLUSTER_PREEMPTION" = 0 ] ||
      echo "PartitionName=urgent Nodes=n[1-$number] DefMemPerCPU=500 MaxTime=7-00:00:00 PriorityTier=10 PreemptMode=OFF"
  } >"$SLURM_CONF"
}

munge_answers() { munge -S "$cluster/munge.socket" -n 2>/dev/null | unmunge -S "$cluster/munge.socket" >/dev/null 2>&1; }
controller_answers() { timeout 5 scontrol ping 2>/dev/null | grep -q 'is UP'; }
nodes_ready() { [ "$(timeout 5 sinfo -h -N -p main -o %T 2>/dev/null | grep -cE '^(idle|mixed|allocated|completing)$')" = "$CLUSTER_NODES" ]; }
queue_empty() { [ -z "$(timeout 5 squeue -h 2>/dev/null)" ]; }

start_controller() {
  alive "$cluster/slurmctld.pid" slurmctld || daemon slurmctld
  within 20 controller_answers
}

start_node() { # N
  mkdir -p "$cluster/spool-n$1"
  alive "$cluster/slurmd-n$1.pid" slurmd || daemon slurmd -N "n$1"
}

kill_node() { # N: first the daemon, so that nobody is told how the jobs ended
  end "$cluster/slurmd-n$1.pid" slurmd KILL
  local pid
  for pid in $(pgrep '^slurmstepd'); do # no variable of theirs names the node, but their log does
    [[ " $(readlink "/proc/$pid/fd/"* 2>/dev/null | tr '\n' ' ')" != *" $cluster/slurmd-n$1.log "* ]] || kill_all "$pid"
  done
  kill_all "$(processes_with "SLURMD_NODENAME=n$1")"
}

# Verbs

up() {
  [ "$(id -u)" = 0 ] || unavailable "only root can start its daemons -> run the tests as root, in a container"
  install_packages
  if alive "$cluster/munged.pid" munged; then echo "export SLURM_CONF=$SLURM_CONF" && return; fi # it is up
  mkdir -p "$cluster/state"
  chmod go-w "$cluster"
  exec 9>"$lock" && flock 9 # two clusters that start at once must not find the same ports free
  local node port
  port=$(free_ports $((CLUSTER_NODES + 1)))
  write_configuration "$port"
  if daemon munged --force --key-file="$cluster/munge.key" --socket="$cluster/munge.socket" \
    --pid-file="$cluster/munged.pid" --log-file="$cluster/munged.log" --seed-file="$cluster/munged.seed" &&
    within 10 munge_answers && start_controller &&
    for ((node = 1; node <= CLUSTER_NODES; node++)); do start_node "$node"; done && within 30 nodes_ready; then
    exec 9>&-
  else
    tail -n 20 "$cluster"/*.log >&2
    down
    return 1
  fi
  if [ -n "$CLUSTER_OWNER" ]; then
    setsid "$BASH" "${BASH_SOURCE[0]}" down-after "$cluster" "$CLUSTER_OWNER" </dev/null >/dev/null 2>&1 &
  fi
  echo "export SLURM_CONF=$SLURM_CONF"
}

down() {
  [ -d "$cluster" ] || return 0
  local file
  if alive "$cluster/slurmctld.pid" slurmctld; then
    timeout 10 scancel --full --signal=KILL --user=root 2>/dev/null || true # at once: no trap asks for another turn
    timeout 10 scancel --user=root 2>/dev/null || true
    within 10 queue_empty || true
  fi
  for file in "$cluster"/slurmd-*.pid; do end "$file" slurmd KILL; done # asked politely, it takes seconds
  end "$cluster/slurmctld.pid" slurmctld TERM
  end "$cluster/munged.pid" munged TERM
  kill_all "$(processes_with 'SLURM_JOB_ID=.+')"
}

case $verb in
install) install_packages && exit ;;
up | down | restart | down-after | stop-controller | start-controller | restart-controller | kill-node | start-node) ;;
*) usage ;;
esac
[ -n "${2:-}" ] || usage
case $verb in
kill-node | start-node | down-after) [[ ${3:-} =~ ^[0-9]+$ ]] || usage ;;
esac

cluster=$(realpath -m "$2")
export SLURM_CONF=$cluster/slurm.conf
case $verb in
up) up ;;
down) down ;;
restart) down && up ;;
down-after) # the owner, or the cluster itself
  while ! gone "$3" && [ -d "$cluster" ] && alive "$cluster/munged.pid" munged; do sleep 1; done
  down
  ;;
stop-controller) end "$cluster/slurmctld.pid" slurmctld KILL ;; # as a crash does: nothing is saved on the way out
start-controller) start_controller ;;
restart-controller) end "$cluster/slurmctld.pid" slurmctld TERM && start_controller ;;
kill-node) kill_node "$3" ;;
start-node) start_node "$3" ;;
esac
