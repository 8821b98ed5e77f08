"""What all rules share: the validated study and its file names; no science."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from microclip import paths, processes, runtime, settings, study
from microclip.data.public import sources
from microclip.text import descriptions

DECLARED = [os.path.relpath(path) for path in workflow.configfiles]
NAMED = DECLARED + (["--config"] if workflow.config_settings.config else [])
try:
    # Of a repeated key Snakemake keeps the last value, and says nothing.
    if workflow.is_main_process:
        for path in DECLARED:
            settings.read_yaml(Path(path))
    STUDY = study.load(config, f"the study ({' and '.join(NAMED)})")
except settings.SettingsError as error:
    raise WorkflowError(f"microclip: {error}")

STUDY_NAME = STUDY.settings.study
PLAN = STUDY.plan()
PLANNED = PLAN.as_dict()  # plain values, for digests
PUBLISHED = runtime.content(paths.project_root() / "config" / "published")
# Snakemake formats the path of a rule's conda file, so braces in a folder's name are doubled.
ENVIRONMENT = str(Path(workflow.basedir, "environment.yml"))
ENVIRONMENT = ENVIRONMENT.replace("{", "{{").replace("}", "}}")
HAS_GPU = STUDY.settings.device != "cpu" and bool(runtime.visible_gpus())
# A number of jobs in a queue is given only where jobs go elsewhere. `workflow.local_exec` is known
# once the Snakefile has been read, too late for its rules.
IS_CLUSTER = workflow.nodes is not None
# 0 for local jobs without a GPU, so that only CPUs limit their number. A value and not a function,
# which Snakemake would ask once a job. A login node need not have what the others have.
GPU_SLOTS = int(HAS_GPU or (IS_CLUSTER and STUDY.settings.device != "cpu"))


def runs_at_once():
    """How many runs may be adapted at a time: on this machine, or in a cluster's queue."""
    if IS_CLUSTER:
        return workflow.nodes
    limit = workflow.global_resources.get("gpu") if HAS_GPU else None
    n_gpus = workflow.cores if limit is None else limit.value
    return max(1, min(workflow.cores or 1, n_gpus or 1))


N_JOBS = runs_at_once()
# A cluster sends SIGTERM to all processes of a job. Its shell must wait for the verb, which saves
# what it has, and the log must take the verb's last lines.
PREFIX = (
    "set -euo pipefail; trap : HUP QUIT TERM;"
    " logged() {{ trap '' HUP QUIT TERM; exec tee -i \"$1\"; }}; "
)
# Environment variables rather than parameters: they do not change results, so they must not
# make Snakemake repeat a job.
if workflow.remote_exec:
    # On a cluster's node. The job may use the cores that it was given, however many there are;
    # Snakemake writes their number into this variable of each job.
    PREFIX += "export MICROCLIP_THREADS=$OMP_NUM_THREADS; "
elif not IS_CLUSTER:
    os.environ.setdefault("MICROCLIP_THREADS", str(max(1, runtime.n_cpus() // N_JOBS)))
shell.prefix(PREFIX)
os.environ.update(
    PATH=os.pathsep.join(
        dict.fromkeys([str(Path(sys.executable).parent), *os.get_exec_path()])
    ),
    MICROCLIP_STUDY=STUDY_NAME,
    MICROCLIP_DEVICE=STUDY.settings.device,
    MICROCLIP_EVALUATE_EVERY=str(STUDY.settings.evaluate_every),
    MICROCLIP_JOBS=(workflow.remote_exec and os.environ.get("MICROCLIP_JOBS"))
    or str(N_JOBS),
    MICROCLIP_MIRROR=processes.ELSEWHERE if workflow.remote_exec else "workflow",
    MICROCLIP_ZERO_SHOT_GATE=os.environ.get("MICROCLIP_ZERO_SHOT_GATE")
    or STUDY.settings.gate,
)
CONSTRAINTS = {
    "study": "[A-Za-z0-9._-]+",
    "table": "[A-Za-z0-9._-]+",
    "figure": "[A-Za-z0-9._-]+",
    "seed": "[0-9]+",
    **{
        field: "|".join(name.replace(".", "[.]") for name in STUDY.names(field))
        for field in ("dataset", "backbone", "descriptions", "method", "variant")
    },
}
SCORES = [str(spec.folder / paths.RUN_SCORES) for spec in STUDY.runs]
TABLES = expand(
    paths.TABLE, study=STUDY_NAME, table=PLAN.tables, format=["csv", "md", "tex"]
)
FIGURES = expand(
    paths.FIGURE, study=STUDY_NAME, figure=PLAN.figures, format=["pdf", "png", "csv"]
)
LEDGER = expand(paths.LEDGER, study=STUDY_NAME, format=["csv", "md"])
REPORT = [
    path.format(study=STUDY_NAME)
    for path in (paths.ALL_TABLES, paths.PAGE, paths.STUDY_MIRRORED)
]
MISSING = sources.notice(
    [settings.load_dataset(name) for name in STUDY.names("dataset")]
    if workflow.is_main_process  # not by each job again
    else []
)
UNDESCRIBED = descriptions.notice(
    (settings.load_dataset(name), settings.load_descriptions(author))
    for name, author in dict.fromkeys((s.dataset, s.descriptions) for s in STUDY.runs)
    if workflow.is_main_process
)
SLOW = (
    runtime.slow_precision(STUDY.settings.precision, STUDY.settings.device)
    if workflow.is_main_process
    else ""
)
for line in filter(None, (MISSING, UNDESCRIBED, SLOW)):
    logger.info(line)
