"""Input functions and digests of the rules: functions of wildcards; no science.

A digest is a rule's parameter, so that a changed setting or file makes Snakemake repeat exactly the
jobs that depend on it. Snakemake asks for each several times a job: what files or settings decide
is found once.
"""

import inspect
import json
from functools import cache

from microclip.measure import published


def spec_of(wildcards):
    """The run that the wildcards name."""
    return study.RunSpec(**{**dict(wildcards), "seed": int(wildcards.seed)})


def run_settings(wildcards):
    """The resolved settings of a run, as JSON, and the weights of further backbones, if any."""
    text = STUDY.settings_json(**wildcards)
    further = STUDY.resolve(spec_of(wildcards)).further_backbones
    if not further:
        return text
    weights = {one.name: digest_of_backbone(one.name) for one in further}
    return json.dumps({**json.loads(text), "further_weights": weights})


def run_inputs(wildcards):
    """What a run reads: the images or, for a method that needs no more, frozen embeddings."""
    reads = study.reads_of(wildcards.method)
    return paths.STORE if reads == "images" else paths.FEATURES


def zero_shot_gate(wildcards):
    """The gate that a run waits for, if the paper prints CLIP's accuracy on the dataset."""
    return paths.ZERO_SHOT if has_printed(wildcards.dataset, wildcards.backbone) else []


@cache
def has_printed(dataset, backbone):
    """Whether the paper prints CLIP's accuracy on a dataset."""
    return published.figure(settings.load_dataset(dataset), backbone) is not None


def run_weights(wildcards):
    """The scores of the run whose weights this run only tests in another way, if there is one."""
    other = STUDY.trained_by(spec_of(wildcards))
    return [] if other is None else str(other.folder / paths.RUN_SCORES)


def weights_option(wildcards, input):
    """The option with that run's folder."""
    return f"--weights-from {Path(input.weights).parent}" if input.weights else ""


def selection_digest(wildcards):
    """Digest of the part of the study that a table or figure shows, and of the paper's numbers."""
    return settings.digest(
        [
            PLANNED["tables"].get(wildcards.get("table")),
            PLANNED["figures"].get(wildcards.get("figure")),
            PUBLISHED,
        ]
    )


def report_digest(wildcards):
    """Digest of everything that a study's page shows besides its scores."""
    shown = {key: PLANNED[key] for key in ("title", "holes", "tables", "figures")}
    return settings.digest({**shown, "published": PUBLISHED})


def dataset_digest(wildcards):
    """Digest of a dataset's images: its settings and the files that they are made from."""
    return digest_of_dataset(wildcards.dataset)


@cache
def digest_of_dataset(name):
    """Digest of a dataset's images, by the dataset's name."""
    dataset = settings.load_dataset(name)
    return settings.digest([dataset.identity(), runtime.dataset_files(dataset)])


def description_digest(wildcards):
    """Digest of a dataset's texts: templates, the author of descriptions, the file or prompts."""
    return digest_of_descriptions(wildcards.dataset, wildcards.descriptions)


@cache
def digest_of_descriptions(dataset, author):
    """Digest of a dataset's texts, by the names of the dataset and of the author."""
    written = settings.load_descriptions(author)
    return settings.digest(
        descriptions.identity(settings.load_dataset(dataset), written)
    )


def template_digest(wildcards):
    """Digest of a dataset's prompt templates."""
    return settings.digest(settings.load_dataset(wildcards.dataset).templates)


def backbone_digest(wildcards):
    """Digest of a backbone: its settings and weights."""
    return digest_of_backbone(wildcards.backbone)


@cache
def digest_of_backbone(name):
    """Digest of a backbone, by its name."""
    backbone = settings.load_backbone_settings(name)
    return settings.digest(
        [backbone.model_dump(mode="json"), runtime.backbone_files(backbone)]
    )


def shipped_descriptions(wildcards):
    """The file that descriptions are read from, if it exists; if not, the job says what is missing."""
    dataset = settings.load_dataset(wildcards.dataset)
    written = settings.load_descriptions(wildcards.descriptions)
    if written.asks or descriptions.is_remote(dataset, written):
        return []
    source = descriptions.source_file(dataset, written)
    if not source.is_file():
        return []
    return os.path.relpath(source) if source.is_relative_to(Path.cwd()) else str(source)


# Snakemake reads a function's signature several times a job; Python takes this one as it is.
for _asked in (run_settings, run_inputs, zero_shot_gate, run_weights, weights_option):
    _asked.__signature__ = inspect.signature(_asked)
