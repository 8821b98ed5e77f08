"""`results/<study>/index.html`: a study on one self-contained page.

The page shows tables and the ledger from the same structures as their files, the figures (`.png`),
and facts from the run folders. Pictures are embedded; a strict content security policy keeps
browsers from requesting anything over the network. The same inputs give the same bytes.
"""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from microclip import paths, runtime, settings
from microclip.measure import ledger, scores, tables
from microclip.measure.scores import Run
from microclip.measure.typesetting import Block, Table, template
from microclip.settings import reports
from microclip.settings.datasets import DatasetSettings, IconSource
from microclip.study import Plan

PICTURES_BYTES = 5_500_000  # of all figures together; base64 adds a third
_SCREEN_DPI = 150  # figures are made for print; a screen shows them half as large again
_LARGEST_PX = 2000  # width of a picture that has to be shrunk
_NUMBERS_ROWS = 80  # a figure's numbers are shown if there are no more rows


@dataclass(frozen=True)
class TablePart:
    """A table of the study on the page; `table` is None if it was not written."""

    name: str
    title: str
    caption: str
    table: Table | None
    files: dict[str, str]
    missing: str


@dataclass(frozen=True)
class FigurePart:
    """A figure of the study on the page; `picture` is a data URI, or None if it was not drawn."""

    name: str
    title: str
    caption: str
    picture: str | None
    size_px: tuple[int, int]  # on the page
    numbers: list[list[str]]  # heading first; empty if there are too many rows
    numeric: list[bool]  # by column
    files: dict[str, str]
    missing: str


@dataclass(frozen=True)
class Ledger:
    """The ledger on the page.

    Attributes:
        heads: headings of the columns that are not empty throughout.
        numeric: by column, whether it has only numbers.
        verdicts: number of cells by verdict.
        summary: number of cells by table and verdict; None if the study has no published table.
        text: the rest of the ledger's text.
    """

    heads: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    verdicts: dict[str, int]
    summary: Table | None
    text: tuple[Block, ...]
    files: dict[str, str]


def write(plan: Plan) -> Path:
    """Write the page of a planned study; return its path.

    A table, figure or ledger that does not exist is noted as missing in its place.

    Raises:
        MissingDataError: the study has no scores yet.
    """
    study = plan.study
    runs = scores.read_runs(plan, scores.read(study))
    beside = {"scores.csv": paths.STUDY_SCORES, "all.tex": paths.ALL_TABLES}
    text = template("page.html").render(
        study=study,
        title=plan.title or f"Study {study}",
        tables=[table_part(name, plan) for name in plan.tables],
        figures=read_figures(plan.figures, study),
        ledger=ledger_part(plan),
        files=files_of(beside, study),
        **_setting(plan, runs),
        **_outcome(plan, runs),
    )
    target = Path(paths.PAGE.format(study=study))
    runtime.write_text(target, text)
    return target


def files_of(patterns: Mapping[str, str], study: str, **names: str) -> dict[str, str]:
    """The files that exist: each link's text, and its address relative to the page."""
    page = Path(paths.PAGE.format(study=study)).parent
    found = {label: Path(p.format(study=study, **names)) for label, p in patterns.items()}
    return {
        label: path.relative_to(page).as_posix() for label, path in found.items() if path.is_file()
    }


def table_part(name: str, plan: Plan) -> TablePart:
    """A table as `tabulate` writes it, or a note that it was not written."""
    declared = reports.load_table(name)
    patterns = {f: paths.TABLE.replace("{format}", f) for f in ("csv", "md", "tex")}
    path = Path(paths.TABLE.format(study=plan.study, table=name, format="md"))
    table = tables.read(declared, plan) if path.is_file() else None
    return TablePart(
        name=name,
        title=declared.title,
        caption=declared.caption if table is None else table.caption,
        table=table,
        files=files_of(patterns, plan.study, table=name),
        missing=str(path),
    )


def read_figures(names: Iterable[str], study: str) -> list[FigurePart]:
    """The figures from their PNG and CSV files, or notes that they are missing."""
    names = list(names)
    share = PICTURES_BYTES // max(1, len(names))
    return [_figure(name, study, share) for name in names]


def _figure(name: str, study: str, limit_bytes: int) -> FigurePart:
    declared = reports.load_figure(name)
    patterns = {f: paths.FIGURE.replace("{format}", f) for f in ("pdf", "png", "csv")}
    png = Path(paths.FIGURE.format(study=study, figure=name, format="png"))
    numbers = Path(paths.FIGURE.format(study=study, figure=name, format="csv"))
    picture, size = embedded(png, limit_bytes) if png.is_file() else (None, (0, 0))
    rows = _without_constant_columns(_csv(numbers))
    return FigurePart(
        name=name,
        title=declared.title,
        caption=declared.caption,
        picture=picture,
        size_px=size,
        numbers=rows if 1 < len(rows) <= _NUMBERS_ROWS + 1 else [],
        numeric=_numeric(rows),
        files=files_of(patterns, study, figure=name),
        missing=str(png),
    )


def embedded(png: Path, limit_bytes: int) -> tuple[str, tuple[int, int]]:
    """A picture as a data URI, and the size at which the page shows it, in CSS px.

    A PNG over the limit is embedded as a smaller WebP; the page links to the file itself anyway.
    """
    data, kind = png.read_bytes(), "png"
    with Image.open(png) as opened:
        dpi = float(opened.info.get("dpi", (_SCREEN_DPI,))[0])
        size = tuple(max(1, round(side * _SCREEN_DPI / dpi)) for side in opened.size)
        if len(data) > limit_bytes:
            image = opened.convert("RGB")
            image.thumbnail((_LARGEST_PX, 3 * _LARGEST_PX), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            image.save(stream, "WEBP", quality=88, method=6)
            data, kind = stream.getvalue(), "webp"
    text = base64.b64encode(data).decode("ascii")
    return f"data:image/{kind};base64,{text}", (size[0], size[1])


def _csv(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.reader(stream) if row]


def _without_constant_columns(rows: list[list[str]]) -> list[list[str]]:
    """The table without columns that are the same in every row."""
    if len(rows) < 3:  # one row cannot differ from others
        return rows
    columns = [column for column in zip(*rows, strict=True) if len(set(column[1:])) > 1]
    return [list(row) for row in zip(*columns, strict=True)] or rows


def _numeric(rows: list[list[str]]) -> list[bool]:
    """By column, whether all its cells below the heading are numbers."""
    if len(rows) < 2:  # a heading alone
        return [False for row in rows for _ in row]
    columns = zip(*rows[1:], strict=True)
    return [any(column) and all(map(_is_number, filter(None, column))) for column in columns]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def ledger_part(plan: Plan) -> Ledger | None:
    """The ledger as `microclip ledger` writes it; None if it was not written."""
    if not Path(paths.LEDGER.format(study=plan.study, format="csv")).is_file():
        return None
    entries = ledger.compare(plan)
    lines = list(csv.reader(io.StringIO(ledger.to_csv(entries))))
    used = [column for column in zip(*lines, strict=True) if set(column[1:]) - {"", "0", "false"}]
    heads, *rows = [list(row) for row in zip(*used, strict=True)] or [lines[0]]
    _, summary, *text = ledger.to_text(entries, plan)
    patterns = {f: paths.LEDGER.replace("{format}", f) for f in ("csv", "md")}
    return Ledger(
        heads=[head.replace("_", " ") for head in heads],
        rows=rows,
        numeric=_numeric([heads, *rows]),
        verdicts=dict(Counter(e.verdict for e in entries if e.verdict).most_common()),
        summary=summary if isinstance(summary, Table) else None,
        text=tuple(text if isinstance(summary, Table) else [summary, *text]),
        files=files_of(patterns, plan.study),
    )


def _setting(plan: Plan, runs: list[Run]) -> dict[str, Any]:
    """Template values for what was run: datasets, backbones, descriptions, seeds, methods."""

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
        "methods": scores.methods(runs),
    }


def _outcome(plan: Plan, runs: list[Run]) -> dict[str, Any]:
    """Template values for the outcome: runs, holes, durations, machines."""
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
        "holes": scores.holes(plan),
        "durations": scores.durations(runs),
        "machines": scores.machines(runs),
    }


def _dataset_facts(names: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Each dataset's facts, and the parts of their sources that all share."""
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
    """Where the images come from, in words; their numbers are counted elsewhere."""
    values = dataset.source.model_dump(mode="json", exclude_none=True)
    parts = [str(values.pop("kind"))]
    for key, value in values.items():
        if key not in ("classes", "train_scenes", "test_scenes"):
            name, unit = (key[:-3], " px") if key.endswith("_px") else (key, "")
            parts.append(f"{name.replace('_', ' ')} {value}{unit}")
    return parts


def _counts(dataset: DatasetSettings) -> dict[str, int | None]:
    """The numbers of classes and images, counted in the manifest if there is one."""
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
