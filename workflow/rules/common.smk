"""What the rules share: the validated study and its file names; no science."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from microclip import paths, provenance, runtime, settings, study
from microclip.text import descriptions

try:
    STUDY = study.load(config)
except settings.SettingsError as error:
    raise WorkflowError(f"microclip: {error}")

STUDY_NAME = STUDY.settings.study
PLAN = STUDY.plan()
HAS_GPU = STUDY.settings.device != "cpu" and bool(runtime.visible_gpus())
N_JOBS = 1 if HAS_GPU else workflow.cores or 1
N_CPUS = len(os.sched_getaffinity(0))
# What jobs inherit instead of being parameters, since it decides nothing about their results.
os.environ.setdefault("MICROCLIP_THREADS", str(max(1, N_CPUS // N_JOBS)))
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
    MICROCLIP_STUDY=STUDY_NAME,
    MICROCLIP_DEVICE=STUDY.settings.device,
    MICROCLIP_JOBS=str(N_JOBS),
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
    paths.TABLE, study=STUDY_NAME, table=PLAN["tables"], format=["csv", "md", "tex"]
)
FIGURES = expand(
    paths.FIGURE, study=STUDY_NAME, figure=PLAN["figures"], format=["pdf", "png", "csv"]
)
LEDGER = expand(paths.LEDGER, study=STUDY_NAME, format=["csv", "md"])
REPORT = [
    path.format(study=STUDY_NAME)
    for path in (paths.ALL_TABLES, paths.PAGE, paths.STUDY_MIRRORED)
]


def write_plan():
    """Leave the list of runs where jobs and people find it."""
    target = Path(paths.STUDY_PLAN.format(study=STUDY_NAME))
    runtime.write_json(target, PLAN)


def spec_of(wildcards):
    """Return the run that the wildcards name."""
    return study.RunSpec(**{**dict(wildcards), "seed": int(wildcards.seed)})


def run_settings(wildcards):
    """Return the resolved settings of a run as JSON."""
    return STUDY.settings_json(**wildcards)


def run_inputs(wildcards):
    """Return what a run reads: images for a method that looks at them, else frozen embeddings."""
    reads = study.reads_of(wildcards.method)
    return paths.STORE if reads == "images" else paths.FEATURES


def run_weights(wildcards):
    """Return the scores of the run whose weights this one only tests in another way, if any."""
    other = STUDY.trained_by(spec_of(wildcards))
    return [] if other is None else str(other.folder / paths.RUN_SCORES)


def weights_option(wildcards, input):
    """Return the option that names that run's folder."""
    return f"--weights-from {Path(input.weights).parent}" if input.weights else ""


def gpu_slots(wildcards):
    """Return 1; 0 where a local job would find no GPU, so that CPUs alone limit the jobs."""
    return int(HAS_GPU or not workflow.local_exec)


def selection_digest(wildcards):
    """Return what names the part of the study that a table or figure shows."""
    return settings.digest(
        [PLAN["tables"].get(wildcards.get("table")), PLAN["figures"].get(wildcards.get("figure"))]
    )


def report_digest(wildcards):
    """Return what names everything that a study's page tells beside its scores."""
    return settings.digest({key: PLAN[key] for key in ("title", "holes", "tables", "figures")})


def dataset_digest(wildcards):
    """Return what names a dataset's images: its settings, and the drawings they are made of."""
    dataset = settings.load_dataset(wildcards.dataset)
    return settings.digest([dataset.identity(), provenance.dataset_files(dataset)])


def description_digest(wildcards):
    """Return what names the texts of a dataset: templates, who wrote the descriptions, the file."""
    dataset = settings.load_dataset(wildcards.dataset)
    written = settings.load_descriptions(wildcards.descriptions)
    content = provenance.content(descriptions.source_file(dataset, written))
    return settings.digest(
        [dataset.templates, written.model_dump(mode="json"), content]
    )


def backbone_digest(wildcards):
    """Return what names a backbone: its settings and weights."""
    backbone = settings.load_backbone_settings(wildcards.backbone)
    return settings.digest(
        [backbone.model_dump(mode="json"), provenance.backbone_files(backbone)]
    )


def shipped_descriptions(wildcards):
    """Return the file that descriptions are taken from; if it is missing, the job will say so."""
    dataset = settings.load_dataset(wildcards.dataset)
    written = settings.load_descriptions(wildcards.descriptions)
    source = descriptions.source_file(dataset, written)
    if not source.is_file():
        return []
    return os.path.relpath(source) if source.is_relative_to(Path.cwd()) else str(source)
