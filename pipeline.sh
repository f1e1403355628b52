#!/usr/bin/env bash
# The whole chain, steps 1 to 9: on this machine, or submitted to Slurm with every dependency at once.
#   RUN=x PROFILE=tiny ./pipeline.sh                 here        RUN=x PROFILE=tiny ./pipeline.sh --slurm      on the cluster
#   ./pipeline.sh status x    cancel x    resume x   preflight   (--help: everything else)
# Writes what the steps write, and model_save/[RUN/]pipeline (jobs, progress), model_save/[RUN/]reproduce.sh.
#SBATCH --job-name=pipeline
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
source "$repo/scripts/stage.sh" pipeline >/dev/null || { echo "error: no repository found -> submit from inside it, or export REPO_ROOT" >&2 && exit 2; }

if [ "${SLURM_TASK_PID:-}" = "$$" ]; then # a job of its own, which requeues itself
  work scripts/pipeline.py "$@"
else
  exec python scripts/pipeline.py "$@" # Ctrl-C is its own to answer: the tasks save first
fi
