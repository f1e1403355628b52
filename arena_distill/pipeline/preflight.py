"""``./pipeline.sh preflight``: everything that can be checked before anything queues.

What it does: reads the settings of all stages, the data, the models' files, tokenizers and sizes, the disks, the
memory of GPUs or machine, and asks Slurm what it would say of each job. What it doesn't: load a model, import torch,
fetch or write anything (but a file in scratch, which goes again), or see what only compute nodes see.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from arena_distill.pipeline.command_line import parse
from arena_distill.pipeline.machine import cores
from arena_distill.pipeline.plan import Plan, family_variables, make_plan
from arena_distill.pipeline.preflight_chain import Chain
from arena_distill.pipeline.preflight_cluster import CLUSTER, check_cluster
from arena_distill.pipeline.preflight_contradictions import contradictions
from arena_distill.pipeline.preflight_data import DATA, check_data
from arena_distill.pipeline.preflight_disk import DISK, check_disk
from arena_distill.pipeline.preflight_downgrade import find_downgrades
from arena_distill.pipeline.preflight_finding import Finding, as_json, as_table, exit_code, guarded
from arena_distill.pipeline.preflight_inputs import INPUTS, check_inputs, finished_stages
from arena_distill.pipeline.preflight_labels import LABELS, check_labels
from arena_distill.pipeline.preflight_machines import read_nodes
from arena_distill.pipeline.preflight_memory import MEMORY, check_memory
from arena_distill.pipeline.preflight_models import MODELS, Models, find_models
from arena_distill.pipeline.preflight_outputs import OUTPUTS, check_outputs
from arena_distill.pipeline.preflight_paths import PLACES, SOFTWARE, check_places, check_software
from arena_distill.pipeline.preflight_settings import (
    SETTINGS,
    Settled,
    pipeline_error,
    read_all,
    read_script_settings,
    settle,
)
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.pipeline.variables import environment_of
from arena_distill.runtime import slurm
from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.settings import PROFILE_VARIABLE

JSON_FLAG = "--json"
TOPICS = [
    topic.name for topic in (SETTINGS, SOFTWARE, PLACES, DATA, INPUTS, OUTPUTS, MODELS, LABELS, DISK, MEMORY, CLUSTER)
]
"""Groups, in the order in which they are shown."""

_JSON_HELP = f"preflight {JSON_FLAG}: one document for programs, instead of a table"


def preflight(argv: Sequence[str], description: str = "") -> int:
    """The command: checks what a run with these flags would meet, and prints it.

    Args:
        argv: flags of ``./pipeline.sh``, and ``--json`` for a document instead of a table.
        description: first lines of ``--help``.

    Returns:
        0: nothing has to be fixed (there may be warnings); 2: a setting has; 3: something else has.
    """
    words = [word for word in argv if word != JSON_FLAG]
    profile, words = _take_profile(words)
    found: list[Finding] = []
    with environment_of({}):
        try:
            settled = settle(os.environ, profile)
            found += settled.findings
            _become(settled.variables)
            settings = parse(words, f"{description}\n{_JSON_HELP}".strip())
        except SettingsError as error:  # without these nothing else can be said
            found.append(pipeline_error(error))
        else:
            found += _check(settings, replace(settled, variables=dict(os.environ)))
    return _show(found, JSON_FLAG in argv)


def run_preflight(settings: PipelineSettings, environment: Mapping[str, str], *, as_document: bool = False) -> int:
    """The same for settings that are read already.

    Args:
        settings: of the pipeline.
        environment: as the stages will have it; its PROFILE is read.
        as_document: print JSON.
    """
    with environment_of({}):
        settled = settle(environment)
        _become(settled.variables)
        os.environ.update(family_variables(settings))
        found = [*settled.findings, *_check(settings, replace(settled, variables=dict(os.environ)))]
    return _show(found, as_document)


def _check(settings: PipelineSettings, settled: Settled) -> Iterator[Finding]:
    """Every check, in the order in which its results are of use. ``os.environ`` holds what the stages will see."""
    on_slurm, answers = _where(settings)
    chain = Chain(settings, settled.variables, settled.profile, on_slurm, answers)
    read, wrong = read_all(chain)
    chain = replace(chain, read=read)
    yield from wrong
    yield from guarded(SETTINGS, "scripts", lambda: read_script_settings(chain))
    yield from guarded(SETTINGS, "across stages", lambda: contradictions(chain))
    plan, problem = _plan(chain)
    if plan is not None:
        chain = replace(chain, plan=plan)
    elif problem is not None and all(finding.level == "ok" for finding in wrong):
        yield problem  # else it says again what was said
    planned = chain
    yield from guarded(SOFTWARE, "software", lambda: check_software(planned))
    yield from guarded(PLACES, "places", lambda: check_places(planned))
    yield from guarded(DATA, "data", lambda: check_data(planned))
    done: list[int] = []
    yield from guarded(INPUTS, "what is done", lambda: _note(done, finished_stages(planned)))
    finished = frozenset(done)
    yield from guarded(INPUTS, "earlier steps", lambda: check_inputs(planned, finished))
    yield from guarded(OUTPUTS, "directories", lambda: check_outputs(planned, finished))
    yield from _check_models(planned, finished)
    yield from guarded(CLUSTER, "Slurm", lambda: check_cluster(planned))


def _check_models(chain: Chain, done: frozenset[int]) -> Iterator[Finding]:
    """What depends on which models the chain starts from."""
    nodes = read_nodes() if chain.slurm_answers else []
    lesser: dict[str, str] = {}
    yield from guarded(MEMORY, "AUTO_DOWNGRADE", lambda: find_downgrades(chain, nodes, lesser))
    taken = replace(chain, downgrades=lesser)
    looked: list[Models] = []
    yield from guarded(MODELS, "models", lambda: _look(taken, looked))
    models = looked[0] if looked else Models({}, {}, ())
    yield from guarded(LABELS, "label tokens", lambda: check_labels(models))
    yield from guarded(DISK, "disk", lambda: check_disk(taken, models, done, nodes))
    yield from guarded(MEMORY, "memory", lambda: check_memory(taken, models, done, nodes))


def _look(chain: Chain, looked: list[Models]) -> Iterable[Finding]:
    looked.append(find_models(chain))
    return looked[0].findings


def _note(done: list[int], numbers: Iterable[int]) -> Iterable[Finding]:
    done += numbers
    return ()


def _plan(chain: Chain) -> tuple[Plan | None, Finding | None]:
    try:
        return make_plan(chain.settings, cores=None if chain.on_slurm else cores()), None
    except SettingsError as error:
        return None, pipeline_error(error)


def _where(settings: PipelineSettings) -> tuple[bool, bool]:
    """Whether the chain is to be submitted, and whether Slurm answers.

    It is submitted if that was said; if nothing was, wherever a Slurm answers that we are no job of.
    """
    said = "pipeline_slurm" in settings.model_fields_set
    if (said and not settings.pipeline_slurm) or (not said and os.environ.get("SLURM_JOB_ID")):
        return False, False
    answers = slurm.available()
    return said or answers, answers


def _take_profile(words: Sequence[str]) -> tuple[str, list[str]]:
    """The profile that the command line names, and the other words."""
    profile, rest = "", []
    skip = False
    for word, after in pairwise([*words, ""]):
        if skip:
            skip = False
        elif word == "--profile":
            profile, skip = after, True
        elif word.startswith("--profile="):
            profile = word.partition("=")[2]
        else:
            rest.append(word)
    return profile, rest


def _become(variables: Mapping[str, str]) -> None:
    """Make these the environment. The profile is among them, so nobody need read it again."""
    os.environ.clear()
    os.environ.update({name: value for name, value in variables.items() if name != PROFILE_VARIABLE})


def _show(found: Sequence[Finding], as_document: bool) -> int:
    found = sorted(found, key=lambda finding: TOPICS.index(finding.topic))
    print(as_json(found) if as_document else as_table(found))
    return exit_code(found)
