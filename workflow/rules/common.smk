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
# What jobs inherit instead of being parameters, since it decides nothing about their results.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
    MICROCLIP_STUDY=STUDY_NAME,
    MICROCLIP_DEVICE=STUDY.settings.device,
)
CONSTRAINTS = {
    "study": "[A-Za-z0-9._-]+",
    "table": "[A-Za-z0-9._-]+",
    "seed": "[0-9]+",
    **{
        field: "|".join(name.replace(".", "[.]") for name in STUDY.names(field))
        for field in ("dataset", "backbone", "descriptions", "method", "variant")
    },
}
SCORES = [str(spec.folder / paths.RUN_SCORES) for spec in STUDY.runs]
TABLES = expand(
    paths.TABLE,
    study=STUDY_NAME,
    table=STUDY.settings.tables,
    format=["csv", "md", "tex"],
)


def write_plan():
    """Leave the list of runs where jobs and people find it."""
    target = Path(paths.STUDY_PLAN.format(study=STUDY_NAME))
    runtime.write_json(target, STUDY.plan())


def run_settings(wildcards):
    """Return the resolved settings of a run as JSON."""
    return STUDY.settings_json(**wildcards)


def run_inputs(wildcards):
    """Return what a run reads: images for a method that looks at them, else frozen embeddings."""
    reads = study.reads_of(wildcards.method)
    return paths.STORE if reads == "images" else paths.FEATURES


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
    """Return the file that descriptions are taken from."""
    dataset = settings.load_dataset(wildcards.dataset)
    written = settings.load_descriptions(wildcards.descriptions)
    source = descriptions.source_file(dataset, written)
    return os.path.relpath(source) if source.is_relative_to(Path.cwd()) else str(source)
