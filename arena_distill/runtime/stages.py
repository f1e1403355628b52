"""The one table of stages: what each reads and writes, how it fans out, and what it needs of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ENSEMBLE = "ensemble"
"""Name of the mean over all teachers in step 4's table, and so of no teacher."""

RESERVED_NAMES = (ENSEMBLE, "length", "TF-IDF")
"""Lines of step 4's score table that no teacher may be called."""

FanOut = Literal["fold", "shard"]


@dataclass(frozen=True)
class Stage:
    """One numbered stage. Paths are relative to the repository; ``K`` is a fold, ``NAME`` a teacher."""

    name: str  # also of its script (NAME.sh), and in manifests
    does: str  # one line, as in the README
    worker: str  # Python file that the script calls
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: tuple[str, ...]  # module:class of everything that it can be told
    job_name: str  # of its script in Slurm
    depends_on: tuple[str, ...] = ()
    pairs_with: str = ""  # the stage whose task for a fold is all that the task for the same fold waits for
    fans_out: tuple[FanOut, ...] = ()  # array tasks may each take one
    folds_variable: str = ""  # setting that names the folds to do, where there are folds
    cpus: int = 8
    gpu: bool = True
    memory_gb: int = 16  # of the host
    hours: float = 1.0  # time limit that a first run should ask for
    disk_gb: int = 1  # free space for outputs and checkpoints, for the models of the default profile

    @property
    def script(self) -> str:
        """File that users run."""
        return f"{self.name}.sh"

    @property
    def number(self) -> int:
        """1 to 9: ``stepN_….sh``."""
        return int(self.name.removeprefix("step").partition("_")[0])

    @property
    def cpus_variable(self) -> str:
        """Setting of its threads, which beats ``CPUS_PER_TASK``."""
        return f"STEP{self.number}_CPUS"

    @property
    def sbatch_variable(self) -> str:
        """Setting of further options for its sbatch."""
        return f"STEP{self.number}_SBATCH"


POST_PRETRAIN = Stage(
    name="step1_post_pretrain",
    does="LoRA post-pretraining of each base model on extra preference data, and merging",
    worker="scripts/post_pretrain.py",
    reads=("data/ultrafeedback.csv",),
    writes=("model_save/post_pretrain_{llama,qwen,gemma}_lora", "model_save/post_pretrain_{llama,qwen,gemma}"),
    settings=("arena_distill.training.post_pretrain_settings:PostPretrainSettings",),
    job_name="post-pretrain",
    memory_gb=160,
    hours=24,
    disk_gb=300,
)
MAKE_FOLDS = Stage(
    name="step2_make_folds",
    does="folds, stratified by vote and grouped by prompt; extra data only in train parts",
    worker="scripts/make_folds.py",
    reads=("data/train.csv", "EXTRA_DATA"),
    writes=("data/processed_data/folds_5_seed42.json", "data/fold_data/fold_K_{train,val}.csv"),
    settings=("arena_distill.data.fold_settings:FoldSettings",),
    job_name="folds",
    cpus=2,
    gpu=False,
    hours=0.5,
)
TRAIN_TEACHERS = Stage(
    name="step3_train_teachers",
    does="one teacher for each base model and fold, trained on the rows of the other folds",
    worker="scripts/train_teachers.py",
    reads=("data/train.csv", "EXTRA_DATA", "data/processed_data/folds_5_seed42.json", "model_save/post_pretrain_*"),
    writes=("model_save/NAME_fold_K_lora", "model_save/NAME_fold_K"),
    settings=("arena_distill.training.teacher_settings:TeacherSettings",),
    job_name="teachers",
    depends_on=("step1_post_pretrain", "step2_make_folds"),
    fans_out=("fold",),
    folds_variable="TEACHER_FOLDS",
    memory_gb=160,
    hours=24,
    disk_gb=60,
)
INFER_TEACHER_LOGITS = Stage(
    name="step4_infer_teacher_logits",
    does="every teacher scores exactly the rows that it never saw; the out-of-fold table, validated",
    worker="scripts/infer_teachers.py",
    reads=("data/train.csv", "data/processed_data/folds_5_seed42.json", "model_save/NAME_fold_K[_lora]"),
    writes=(
        "model_save/teacher_logits/NAME_fold_K/teacher_{logits,probs}_fold_K.npy",
        "model_save/teacher_logits/oof_probs.parquet",
    ),
    settings=("arena_distill.inference.oof_settings:OofSettings",),
    job_name="oof",
    depends_on=("step3_train_teachers",),
    pairs_with="step3_train_teachers",
    fans_out=("fold", "shard"),
    folds_variable="INFER_FOLDS",
    memory_gb=160,
    hours=12,
)

DISTILL_STUDENT = Stage(
    name="step5_distill_student",
    does="one student for each fold, from votes and the teachers' out-of-fold labels; calibrated on rows it never saw",
    worker="scripts/distill_student.py",
    reads=(
        "data/train.csv",
        "data/processed_data/folds_5_seed42.json",
        "data/fold_data/fold_K_{train,val}.csv",
        "model_save/teacher_logits/oof_probs.parquet",
    ),
    writes=("model_save/distilled_gemma2-9b_fold_K",),
    settings=("arena_distill.training.distill_settings:DistillSettings",),
    job_name="distill",
    depends_on=("step4_infer_teacher_logits",),
    fans_out=("fold",),
    folds_variable="STUDENT_FOLDS",
    memory_gb=64,
    hours=12,
    disk_gb=40,
)

LORA_ENSEMBLE = Stage(
    name="step6_lora_ensemble",
    does="the folds' adapters and heads averaged into one, merged into the base; both proved on real rows",
    worker="scripts/average_students.py",
    reads=("model_save/distilled_gemma2-9b_fold_K", "data/test.csv"),
    writes=("model_save/avg_lora", "model_save/final_merged_model"),
    settings=("arena_distill.conversion.average_settings:AverageSettings",),
    job_name="average",
    depends_on=("step5_distill_student",),
    memory_gb=64,
    hours=4,
    disk_gb=60,
)
QUANTIZE = Stage(
    name="step7_quantize_gptq",
    does="8-bit (or 4-bit) weights by GPTQ, int8 for encoders; refused if held-out log loss suffers",
    worker="scripts/quantize_gptq_calibrated.py",
    reads=("model_save/final_merged_model", "CALIB_CSV", "data/test.csv"),
    writes=("model_save/final_quantized_model",),
    settings=("arena_distill.conversion.quantize_settings:QuantizeSettings",),
    job_name="quantize",
    depends_on=("step6_lora_ensemble",),
    memory_gb=64,
    hours=6,
    disk_gb=30,
)
INFER_TTA = Stage(
    name="step8_infer_tta",
    does="calibrated probabilities for the test rows, averaged over both orders and several lengths",
    worker="scripts/student_gptq_infer.py",
    reads=("model_save/final_quantized_model", "data/test.csv"),
    writes=("sub/RUN_final_submission.csv", "sub/RUN_final_submission.logits.parquet"),
    settings=("arena_distill.inference.predict_settings:PredictSettings",),
    job_name="infer-tta",
    depends_on=("step7_quantize_gptq",),
    memory_gb=64,
    hours=6,
)
EVAL = Stage(
    name="step9_eval",
    does="one submission out of the folds' submissions (or step 8's); with votes at hand its evaluation; the report",
    worker="scripts/ensemble_run.py",
    reads=("sub/RUN_student_submission_fold_K.csv", "sub/RUN_final_submission.csv"),
    writes=("sub/RUN_final_ensemble.csv", "sub/RUN_evaluation.json", "model_save/RUN/report.html"),
    settings=(
        "arena_distill.evaluation.ensemble_settings:EnsembleSettings",
        "arena_distill.evaluation.evaluation_settings:EvaluationSettings",
        "arena_distill.report.report_settings:ReportSettings",
    ),
    job_name="ensemble",
    depends_on=("step8_infer_tta",),
    cpus=1,
    gpu=False,
    memory_gb=8,
    hours=0.5,
)

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        POST_PRETRAIN,
        MAKE_FOLDS,
        TRAIN_TEACHERS,
        INFER_TEACHER_LOGITS,
        DISTILL_STUDENT,
        LORA_ENSEMBLE,
        QUANTIZE,
        INFER_TTA,
        EVAL,
    )
}
"""In the order in which they run."""

SETTINGS_CLASSES = (
    *(settings for stage in STAGES.values() for settings in stage.settings),
    "arena_distill.training.student_settings:StudentSettings",
    "arena_distill.pipeline.settings:PipelineSettings",
)
"""Everything that a profile may set, by module and class, and below what is read without one."""

SBATCH_VARIABLES = tuple(
    f"SBATCH_{name}"
    for name in (
        *("ACCOUNT", "ACCTG_FREQ", "BATCH", "BURST_BUFFER", "CLUSTERS", "CLUSTER_CONSTRAINT", "CONSTRAINT"),
        *("CONTAINER", "CORE_SPEC", "CPUS_PER_GPU", "CPU_FREQ_REQ", "DEBUG", "DELAY_BOOT", "DISTRIBUTION", "ERROR"),
        *("EXCLUSIVE", "GET_USER_ENV", "GPUS", "GPUS_PER_NODE", "GPUS_PER_SOCKET", "GPUS_PER_TASK", "GPU_BIND"),
        *("GPU_FREQ", "GRES", "GRES_FLAGS", "HINT", "IGNORE_PBS", "INPUT", "MEM_BIND", "MEM_PER_CPU", "MEM_PER_GPU"),
        *("MEM_PER_NODE", "NETWORK", "NO_KILL", "OPEN_MODE", "OUTPUT", "OVERCOMMIT", "PARTITION", "POWER", "PROFILE"),
        *("QOS", "REQUEUE", "REQ_SWITCH", "RESERVATION", "SIGNAL", "SPREAD_JOB", "THREADS_PER_CORE", "THREAD_SPEC"),
        *("TIMELIMIT", "USE_MIN_NODES", "WAIT4SWITCH", "WAIT_ALL_NODES", "WCKEY"),
    )
)
"""What sbatch itself reads (22.05) and a profile may set. Array, export, name and waiting are the pipeline's own."""

RESOURCE_VARIABLES = (
    *SBATCH_VARIABLES,
    *("PIPELINE_SBATCH", "CPUS_PER_TASK", "MAX_REQUEUES", "GRACE", "PROCESSES_PER_NODE", "GPU_MEMORY_GB"),
    *(variable for stage in STAGES.values() for variable in (stage.cpus_variable, stage.sbatch_variable)),
)
"""What says where and with how much a stage runs, and so may differ when a run goes on."""

SCRIPT_VARIABLES = (
    *("TINY_TEXTS", "TINY_FAMILIES", "TINY_PRETRAIN_EPOCHS", "USE_WEIGHTED", "HEAD_DIR", "HEAD_OUT", "CALIB_JSON"),
    *RESOURCE_VARIABLES,
)
"""What the stage scripts and the pipeline read themselves."""


def markdown_table() -> str:
    """The stages as the README shows them."""
    lines = ["| stage | does | writes | array tasks |", "| --- | --- | --- | --- |"]
    for stage in STAGES.values():
        writes = ", ".join(f"`{path}`" for path in stage.writes)
        lines.append(f"| `{stage.script}` | {stage.does} | {writes} | {', '.join(stage.fans_out) or '-'} |")
    return "\n".join(lines)
