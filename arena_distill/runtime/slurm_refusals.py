"""What ``sbatch`` says when it does not take a job, and which of our settings answers it.

The messages are those of Slurm 22.05, most of them provoked on a cluster without accounting. Those of accounting
(``AccountingStorageEnforce``: account, QOS, policy) are from the table of messages in Slurm's own library, where they
have not changed since. Other versions and a site's own ``job_submit`` plugin may say something else: then the words
stand for themselves, with the settings that sbatch takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Answer:
    said: str  # regular expression, in any case
    settings: tuple[str, ...]  # whose present values are shown
    advice: str


_MORE = 'PIPELINE_SBATCH="--option=value" (all stages) or STEPN_SBATCH (stage N)'
_OF_OPTION = {
    "time": "SBATCH_TIMELIMIT",
    "mem": "SBATCH_MEM_PER_NODE",
    "mem-per-cpu": "SBATCH_MEM_PER_CPU",
    "cpus-per-task": "CPUS_PER_TASK",
    "exclusive": "SBATCH_EXCLUSIVE",
    "signal": "SBATCH_SIGNAL",
    "open-mode": "SBATCH_OPEN_MODE",
    "gres": "SBATCH_GRES",
    "gpus": "SBATCH_GPUS",
}

_ANSWERS = (
    _Answer(
        r"invalid partition|no partition specified",
        ("SBATCH_PARTITION",),
        "set SBATCH_PARTITION to a partition of this cluster; sinfo -s lists them",
    ),
    _Answer(
        r"required partition not available|user's group not permitted|requested nodes not in this partition",
        ("SBATCH_PARTITION",),
        "set SBATCH_PARTITION to a partition that is up and open to you; sinfo -s lists them",
    ),
    _Answer(
        r"invalid account",
        ("SBATCH_ACCOUNT", "SBATCH_PARTITION"),
        "set SBATCH_ACCOUNT to an account of yours that this partition takes (SBATCH_PARTITION); "
        "sacctmgr show associations user=$USER lists them",
    ),
    _Answer(
        r"invalid qos",
        ("SBATCH_QOS", "SBATCH_ACCOUNT"),
        "set SBATCH_QOS to a quality of service that your account has; "
        "sacctmgr show associations user=$USER format=account,partition,qos lists them",
    ),
    _Answer(
        r"violates accounting/qos policy|breached requested qos",
        ("SBATCH_QOS", "SBATCH_TIMELIMIT", "SBATCH_MEM_PER_NODE", "CPUS_PER_TASK"),
        "stay within the limits of your account: a smaller SBATCH_TIMELIMIT, SBATCH_MEM_PER_NODE or CPUS_PER_TASK, "
        "fewer jobs at once (--folds, --from, --to), or another SBATCH_QOS or SBATCH_ACCOUNT",
    ),
    _Answer(
        r"invalid generic resource|trackable resource|invalid gres",
        ("SBATCH_GRES", "SBATCH_GPUS"),
        "set SBATCH_GRES=none on a cluster without gres, or to what it calls its GPUs; sinfo -o %G tells",
    ),
    _Answer(
        r"memory specification can not be satisfied|memory required by task|invalid memory specification",
        ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU"),
        "set SBATCH_MEM_PER_NODE to what a node of the partition has; sinfo -o '%P %m' tells, in MB",
    ),
    _Answer(
        r"more processors requested|cpu count specification",
        ("CPUS_PER_TASK", "SBATCH_PARTITION"),
        "set CPUS_PER_TASK (or STEPN_CPUS for stage N) to what a node of the partition has; sinfo -o '%P %c' tells",
    ),
    _Answer(
        r"time limit is invalid",
        ("SBATCH_TIMELIMIT", "SBATCH_PARTITION"),
        "set SBATCH_TIMELIMIT to no more than the partition allows (sinfo -o '%P %l' tells), or choose another "
        "SBATCH_PARTITION; a job that runs into its limit saves its work and goes on in a new one",
    ),
    _Answer(
        r"invalid job array specification",
        ("INFER_TRAIN_SHARDS", "N_FOLDS", "SBATCH_ARRAY_INX"),
        "the array is larger than this cluster's MaxArraySize (scontrol show config tells): fewer INFER_TRAIN_SHARDS, "
        "or fewer folds at once with --folds",
    ),
    _Answer(
        r"requested node configuration is not available|requested partition configuration not available",
        ("SBATCH_GRES", "CPUS_PER_TASK", "SBATCH_MEM_PER_NODE", "SBATCH_CONSTRAINT", "SBATCH_PARTITION"),
        "no node of the partition has all that is asked for: set SBATCH_GRES, CPUS_PER_TASK, SBATCH_MEM_PER_NODE or "
        "SBATCH_CONSTRAINT to what sinfo -o '%P %G %c %m %f' shows, or choose another SBATCH_PARTITION",
    ),
    _Answer(
        r"node count specification",
        ("SBATCH_PARTITION",),
        "set STEPN_SBATCH=--nodes=1 for stage N, or choose a larger SBATCH_PARTITION",
    ),
    _Answer(r"invalid feature", ("SBATCH_CONSTRAINT",), "set SBATCH_CONSTRAINT to a feature; sinfo -o %f lists them"),
    _Answer(r"reservation", ("SBATCH_RESERVATION",), "set SBATCH_RESERVATION to one of yours, or to nothing"),
    _Answer(r"wckey", ("SBATCH_WCKEY",), "set SBATCH_WCKEY to one of yours"),
    _Answer(
        r"invalid node name|invalid license|job dependency problem",
        ("PIPELINE_SBATCH",),
        "mend the option in PIPELINE_SBATCH, or in STEPN_SBATCH of this stage",
    ),
    _Answer(
        r"unrecognized option|invalid option --",
        ("PIPELINE_SBATCH",),
        "this Slurm does not know the option: if it is yours, take it out of PIPELINE_SBATCH or STEPN_SBATCH; if it is "
        "ours, this Slurm is too old for the chain: submit the stages one by one with sbatch",
    ),
    _Answer(
        r"unable to contact slurm controller|socket timed out|communication connection|standby mode|"
        r"rate limit exceeded|zero bytes were transmitted|connection (timed out|reset|refused)|unreachable",
        (),
        "the controller does not answer: wait until scontrol ping says UP and give the command again",
    ),
    _Answer(
        r"authentication|munge",
        (),
        "this machine cannot prove who you are to Slurm (munge): use a login node of the cluster, or tell its admins",
    ),
    _Answer(
        r"configuration source|process configuration file|clustername needs",
        ("SLURM_CONF",),
        "Slurm's configuration is not found: use a login node of the cluster, or set SLURM_CONF",
    ),
    _Answer(
        r"maxjobcount|job queue full|temporarily unable to accept",
        (),
        "the cluster's queue is full: give the command again later",
    ),
)


def advice(said: str, environment: Mapping[str, str]) -> str:
    """What to do, with the present values of the settings concerned.

    Args:
        said: sbatch's own words.
        environment: that it was called with.
    """
    for answer in _ANSWERS:
        if re.search(answer.said, said, re.IGNORECASE):
            return answer.advice + _now(answer.settings, environment)
    if option := re.search(r"Invalid (?:numeric value \S+ for )?--([a-z-]+)", said):
        setting = _OF_OPTION.get(option[1])
        return f"mend --{option[1]}: {setting or _MORE}" + _now((setting,) if setting else (), environment)
    return f"mend it, or see what sbatch is given: SBATCH_* variables, {_MORE}" + _now(_given(environment), environment)


def _given(environment: Mapping[str, str]) -> Sequence[str]:
    return [name for name in sorted(environment) if name.startswith("SBATCH_") or name == "PIPELINE_SBATCH"]


def _now(names: Sequence[str], environment: Mapping[str, str]) -> str:
    given = [f"{name}={environment[name]}" for name in names if environment.get(name)]
    return f" (now {', '.join(given)})" if given else ""
