"""`results/<study>/index.html`: a study on one page that needs nothing but itself.

The page shows tables and ledger from the structures that their files are written from, the figures
(`.png`), and what the run folders say. Pictures lie within the file; a strict content policy in its
head keeps browsers from asking the network for anything. The same inputs give the same bytes.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from microclip import paths, runtime, settings
from microclip.measure import page_parts, scores, study_facts
from microclip.measure.study_facts import Run
from microclip.runs import Plan
from microclip.settings import DatasetSettings, IconSource

_TEMPLATES = Path(__file__).parent / "templates"


def write(plan: Plan) -> Path:
    """Write the page of a planned study; return its path.

    A table, figure or ledger that is not there is said to be missing, in its place.

    Raises: MissingDataError if the study has no scores yet.
    """
    study = plan.study
    runs = study_facts.read_runs(plan, scores.read(study))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    beside = {"scores.csv": paths.STUDY_SCORES, "all.tex": paths.ALL_TABLES}
    environment.filters["duration"] = study_facts.duration_text
    text = environment.get_template("page.html").render(
        study=study,
        title=plan.title or f"Study {study}",
        tables=[page_parts.table_part(name, plan) for name in plan.tables],
        figures=page_parts.read_figures(plan.figures, study),
        ledger=page_parts.ledger_part(plan),
        files=page_parts.files_of(beside, study),
        **_setting(plan, runs),
        **_outcome(plan, runs),
    )
    target = Path(paths.PAGE.format(study=study))
    runtime.write_text(target, text)
    return target


def _setting(plan: Plan, runs: list[Run]) -> dict[str, Any]:
    """Return what was run: datasets, backbones, descriptions, seeds, methods."""

    def named(field: str) -> list[str]:
        specs = [one.spec for part in (plan.runs, plan.holes) for one in part]
        parts = [str(getattr(spec, field)) for spec in specs]
        return list(dict.fromkeys(parts))

    datasets, shared = _dataset_facts(named("dataset"))
    return {
        "datasets": datasets,
        "shared_source": shared,
        "backbones": [settings.load_backbone_settings(name) for name in named("backbone")],
        "descriptions": [settings.load_descriptions(name) for name in named("descriptions")],
        "seeds": sorted({run.spec.seed for run in runs}),
        "precisions": list(dict.fromkeys(run.precision for run in runs if run.precision)),
        "devices": list(dict.fromkeys(run.device for run in runs if run.device)),
        "methods": study_facts.methods(runs),
    }


def _outcome(plan: Plan, runs: list[Run]) -> dict[str, Any]:
    """Return what came of it: runs, holes, durations, machines."""
    titles = {run.spec.method: settings.load_method_file(run.spec.method).title for run in runs}
    sets = {run.spec.dataset: settings.load_dataset(run.spec.dataset).title for run in runs}
    return {
        "runs": runs,
        "method_titles": titles,
        "dataset_titles": sets,
        "columns": [
            field
            for field in ("backbone", "descriptions")
            if len({getattr(run.spec, field) for run in runs}) > 1
        ],
        "n_complete": sum(run.is_complete for run in runs),
        "holes": study_facts.holes(plan),
        "durations": study_facts.durations(runs),
        "machines": study_facts.machines(runs),
    }


def _dataset_facts(names: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Return each dataset's facts, and what is alike in the sources of all."""
    declared = [settings.load_dataset(name) for name in names]
    sources = [_source(dataset) for dataset in declared]
    alike = [part for part in sources[0] if all(part in one for one in sources)] if sources else []
    shared = alike if len(sources) > 1 else []
    facts = [
        {
            "name": dataset.name,
            "title": dataset.title,
            **_counts(dataset),
            "source": ", ".join(part for part in source if part not in shared),
        }
        for dataset, source in zip(declared, sources, strict=True)
    ]
    return facts, ", ".join(shared)


def _source(dataset: DatasetSettings) -> list[str]:
    """Return where images come from, in words; without their numbers, which are counted."""
    said = dataset.source.model_dump(mode="json", exclude_none=True)
    parts = [str(said.pop("kind"))]
    for key, value in said.items():
        if key not in ("classes", "train_scenes", "test_scenes"):
            name, unit = (key[:-3], " px") if key.endswith("_px") else (key, "")
            parts.append(f"{name.replace('_', ' ')} {value}{unit}")
    return parts


def _counts(dataset: DatasetSettings) -> dict[str, int | None]:
    """Return the numbers of classes and images, of the manifest if there is one."""
    manifest = Path(paths.MANIFEST.format(dataset=dataset.name))
    if manifest.is_file():
        with manifest.open(newline="", encoding="utf-8") as stream:
            images = list(csv.DictReader(stream))
        splits = Counter(image["split"] for image in images)
        n_classes = len({image["label"] for image in images})
        return {"classes": n_classes, "train": splits["train"], "test": splits["test"]}
    source = dataset.source
    if isinstance(source, IconSource) and source.classes is not None:
        n = source.classes
        return {"classes": n, "train": n * source.train_scenes, "test": n * source.test_scenes}
    return {"classes": None, "train": None, "test": None}
