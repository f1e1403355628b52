"""What ``./pipeline.sh`` can be told: which stages, folds and families, where they run, and how many at once."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from arena_distill.data.fold_numbers import fold_numbers, folds_list
from arena_distill.runtime.run_settings import RunSettings
from arena_distill.runtime.stages import STAGES

FAMILIES = ("llama", "qwen", "gemma")
NUMBERS = tuple(stage.number for stage in STAGES.values())


def _families(text: str) -> str:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in FAMILIES]:
        raise ValueError(f"unknown family {unknown[0]!r}: use {', '.join(FAMILIES)}, or several with commas between")
    return ",".join(dict.fromkeys(names))


def _steps(text: str) -> str:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isascii() or not part.isdecimal() or int(part) not in NUMBERS]:
        raise ValueError(f"there is no step {wrong[0]!r}: use numbers from {NUMBERS[0]} to {NUMBERS[-1]}, such as 7,8")
    return ",".join(dict.fromkeys(str(int(part)) for part in parts))


class PipelineSettings(RunSettings):
    """The whole chain. What a single stage can be told is its own, by environment or profile."""

    model_config = SettingsConfigDict(
        # The short flags are what users type; as variables FROM or JOBS could be anybody's.
        cli_shortcuts={
            f"pipeline-{name}": name
            for name in ("slurm", "from", "to", "folds", "families", "skip", "dry-run", "jobs", "sbatch", "json")
        },
    )
    owned_prefixes: ClassVar[tuple[str, ...]] = ("PIPELINE_",)

    profile: str = Field("", description="conf/profiles/NAME.env, or a file that ends in .env")
    n_folds: int = Field(5, ge=2, le=100, description="parts that the base rows are divided into")
    infer_train_shards: int = Field(1, ge=1, le=4096, description="step 4: tasks that share the work of every fold")

    pipeline_slurm: bool = Field(False, description="submit to Slurm instead of running here")
    pipeline_from: int = Field(NUMBERS[0], ge=NUMBERS[0], le=NUMBERS[-1], description="first step")
    pipeline_to: int = Field(NUMBERS[-1], ge=NUMBERS[0], le=NUMBERS[-1], description="last step")
    pipeline_skip: Annotated[str, AfterValidator(_steps)] = Field("", description="steps to leave out, such as 7,8")
    pipeline_folds: Annotated[str, AfterValidator(folds_list)] = Field(
        "all", description="folds of steps 3 to 5: all, or numbers such as 0,1"
    )
    pipeline_families: Annotated[str, AfterValidator(_families)] = Field(
        "",
        description="teachers' families, comma list of llama, qwen, gemma; default: as RUN_STAGE and SKIP_… say; an "
        "encoder (ENCODER_FT_BASE) is a teacher besides",
    )
    pipeline_dry_run: bool = Field(False, description="say what would be done; with --slurm ask sbatch --test-only")
    pipeline_jobs: int = Field(
        0, ge=0, le=1024, description="tasks at once on this machine; 0: as many as fill its cores, one with a GPU"
    )
    pipeline_sbatch: str = Field("", description="more options for every sbatch; STEP3_SBATCH: for step 3's")
    pipeline_json: bool = Field(False, description="status, preflight: one document for programs instead of a table")
    cpus_per_task: int = Field(
        0, ge=0, le=4096, description="threads of a task; 0: as its script asks for; STEP3_CPUS: of step 3's"
    )

    @model_validator(mode="after")
    def _consistent(self) -> PipelineSettings:
        if self.pipeline_from > self.pipeline_to:
            raise ValueError(f"--from {self.pipeline_from} is after --to {self.pipeline_to}: nothing would run")
        if not self.numbers:
            raise ValueError(f"--skip {self.pipeline_skip} leaves no step from {self.pipeline_from} on")
        if beyond := [fold for fold in self.fold_numbers if fold >= self.n_folds]:
            raise ValueError(
                f"--folds: with N_FOLDS={self.n_folds} the folds are 0 … {self.n_folds - 1}, not {beyond[0]}"
            )
        return self

    @property
    def numbers(self) -> list[int]:
        """Steps to run."""
        skipped = {int(number) for number in self.pipeline_skip.split(",") if number}
        return [n for n in NUMBERS if self.pipeline_from <= n <= self.pipeline_to and n not in skipped]

    @property
    def fold_numbers(self) -> list[int]:
        """Folds of the stages that fan out."""
        return sorted(fold_numbers(self.pipeline_folds, self.n_folds))

    @property
    def families(self) -> list[str]:
        """Families asked for; empty: as the stages' own settings say."""
        return [name for name in self.pipeline_families.split(",") if name]
