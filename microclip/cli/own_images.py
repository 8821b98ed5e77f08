"""Verbs for your own images: `adapt` to a folder, then `predict` with the result or `export` it.

Heavy imports are inside the functions, so that `--help` is fast.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microclip import paths, processes, runtime, settings
from microclip.cli import BackboneOption, DeviceOption, app, say
from microclip.writing import Untouched

if TYPE_CHECKING:
    from microclip.api import Adapted
    from microclip.own_images.inputs import Materials, Request, Texts
    from microclip.own_images.prediction import Prediction
    from microclip.own_images.record import Options, OwnSettings, Resolved
    from microclip.own_images.report import Prepared
    from microclip.own_images.results import Results

_HINT = "the run continues, and its folder will be complete without MLflow"
_WHERE = "the options of adapt"

FolderArgument = Annotated[Path, typer.Argument(help="folder of images, nested or not")]
ClassesOption = Annotated[Path | None, typer.Option(help="text file with one class name per line")]
FromFoldersFlag = Annotated[
    bool, typer.Option("--classes-from-folders", help="use the folders' names as class names")
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(help="CSV with columns file,class; for scoring, and for few-shot methods"),
]
OutOption = Annotated[Path, typer.Option(help="folder for everything that is written")]
DescriptionsOption = Annotated[
    Path | None, typer.Option(help="JSON file, class name to sentences; default: templates")
]
LlmOption = Annotated[
    str,
    typer.Option(help="name of a file in config/llms: that language model writes the sentences"),
]
DomainOption = Annotated[
    str, typer.Option(help='what the classes are, for example "a kind of bird"')
]
MethodOption = Annotated[str, typer.Option(help="name of a file in config/methods")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="a setting, for example gamma=0.3; repeatable")
]
SeedOption = Annotated[int, typer.Option(min=0, help="seed of every random draw")]
LabelFirstOption = Annotated[
    int, typer.Option(min=1, help="number of images in label_these_first.csv", metavar="N")
]
SkipBadFlag = Annotated[bool, typer.Option("--skip-bad", help="skip files that cannot be used")]
StretchFlag = Annotated[
    bool, typer.Option("--stretch", help="brighten 16-bit grey images of 12-bit cameras")
]
DuplicatesFlag = Annotated[
    bool, typer.Option("--allow-duplicates", help="keep class names that read the same")
]
YesFlag = Annotated[bool, typer.Option("--yes", help="start without asking")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print the results as JSON at the end")]
AdaptedArgument = Annotated[Path, typer.Argument(help="folder of an adapted classifier")]


class Format(StrEnum):
    """Formats of an exported classifier."""

    ONNX = "onnx"
    MLFLOW = "mlflow"


@app.command()
def adapt(
    folder: FolderArgument,
    out: OutOption,
    classes: ClassesOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    llm: LlmOption = "",
    domain: DomainOption = "",
    backbone: BackboneOption = "icon-clip",
    method: MethodOption = "microclip",
    set_: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    label_first: LabelFirstOption = 50,
    *,
    classes_from_folders: FromFoldersFlag = False,
    skip_bad: SkipBadFlag = False,
    stretch: StretchFlag = False,
    allow_duplicates: DuplicatesFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Adapt to a folder of unlabelled images; repeat the command to continue an interrupted one."""
    from microclip.own_images.inputs import Request

    named: dict[str, Any] = {} if device is None else {"device": device}
    named |= {"stretch": True} if stretch else {}
    given = {"seed": seed, **named, **_templates(domain), **_pairs(set_ or [])}
    request = Request(
        folder=folder,
        out=out,
        classes=classes,
        classes_from_folders=classes_from_folders,
        labels=labels,
        descriptions=descriptions,
        llm=llm,
        domain=domain,
        backbone=backbone,
        method=method,
        settings=given,
        seed=given["seed"],
        n_label_first=label_first,
        skip_bad=skip_bad,
        allow_duplicates=allow_duplicates,
    )
    runtime.use_all_cpus()
    found = _adapt(request, is_asked=not yes and sys.stdin.isatty())
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1), flush=True)


def _templates(domain: str) -> dict[str, Any]:
    """A template that names the domain, as CLIP's own templates for birds or pets do."""
    if not domain:
        return {}
    if "{" in domain or "}" in domain:
        raise settings.SettingsError(
            f'--domain {domain!r} contains braces; write it like "a kind of bird"'
        )
    return {"templates": (f"a photo of a {{}}, {domain}.",)}


def _adapt(request: Request, *, is_asked: bool) -> dict[str, Any]:
    """Run a command unless its folder is complete already; return its results for JSON."""
    from microclip.own_images import inputs, record, report, results

    chosen = record.resolve(request.method, request.settings, _WHERE)
    given = inputs.gather(request)
    named = record.run_settings(request, given, chosen)
    is_complete = record.is_complete(request.out, named)
    damage = report.damage(request.out) if is_complete else ""
    if damage:
        say(f"{request.out} is damaged ({damage}); adapting again to write its files anew")
    elif is_complete:
        about = json.loads((request.out / record.RECORD).read_text(encoding="utf-8"))["about"]
        say(f"{request.out} is already complete ({about['verdict']}); nothing to do")
        say(f"next: `microclip predict {paths.quoted(request.out)} IMAGES`")
        return dict(about)
    texts = _texts(request, given, chosen.options)
    with processes.exclusive(request.out):
        prepared = _prepare(request, given, texts, named, chosen)
        if is_asked and not _confirmed():
            say("nothing was started")
            raise typer.Exit(0)
        # From here on, a damaged folder is an unfinished one.
        (request.out / record.RECORD).unlink(missing_ok=True)
        outcome = _run(prepared, request.out)
    _say_all(results.done_lines(outcome, request.out))
    return outcome.as_dict()


def _texts(request: Request, given: Materials, options: Options) -> Texts:
    """The sentences of all classes, from a language model, a file or templates."""
    from microclip.own_images import inputs

    if request.llm:
        return inputs.description_texts(_described(request, given), given.vocabulary)
    if request.descriptions is not None:
        return inputs.description_texts(request.descriptions, given.vocabulary)
    return inputs.template_texts(given.vocabulary, options.templates)


def _described(request: Request, given: Materials) -> Path:
    """Have a language model describe the classes, as `microclip describe` does; return the file."""
    from microclip.cli.describe import describe

    author = settings.load_descriptions(request.llm)
    if not author.asks:
        raise settings.SettingsError(
            f"--llm {request.llm!r} reads a file and asks no model; pass that file with "
            "--descriptions, or name a file in config/llms that asks one"
        )
    names, target = request.out / "classes.txt", request.out / "descriptions.json"
    with Untouched(request.out, names.name):
        runtime.write_text(names, "".join(f"{name}\n" for name in given.vocabulary.class_names))
        describe([str(names)], llm=request.llm, domain=request.domain, out=target)
    return target


def _prepare(
    request: Request, given: Materials, texts: Texts, named: OwnSettings, chosen: Resolved
) -> Prepared:
    """Load and encode what training needs, and print the plan."""
    from microclip.data.manifest import UNKNOWN
    from microclip.own_images import results, training
    from microclip.own_images.report import Prepared
    from microclip.settings.declarations import Supervision

    learns_labels = chosen.method.supervision is Supervision.FEW_SHOT
    _say_all(results.survey_lines(given, request.out, learns_labels=learns_labels))
    device = runtime.choose_device(chosen.options.device)
    labels = [given.labels.get(path, UNKNOWN) for path in given.images]
    start = training.load_start(texts.sentences, named.backbone, chosen, device, labels)
    _say_all(results.text_lines(texts, start.texts, given.vocabulary.class_names))
    _say_all(results.warning_lines(given, chosen.settings, len(start.drawn())))
    is_begun = (request.out / paths.RUN_CHECKPOINT).is_dir()
    estimate = None if is_begun else training.estimate(given.images, start)
    _say_all(results.plan_lines(request, estimate, device))
    return Prepared(start, given, texts, replace(named, device=device))


def _run(prepared: Prepared, out: Path) -> Results:
    """Run a command, mirrored to MLflow."""
    from microclip.own_images import record, report
    from microclip.tracking import mirror
    from microclip.tracking.run import open_tracker

    with mirror.beside(out, _HINT):
        tracker = open_tracker(prepared.settings, out, record.STUDY, report.MIRRORED)
        with tracker.recording_failure():
            return report.run(prepared, out, tracker)


def _confirmed() -> bool:
    """Ask whether to start."""
    try:
        return typer.confirm("go?", default=True, err=True)
    except typer.Abort:  # Ctrl-C or the end of the input
        say("")
        return False


def _say_all(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)


def _pairs(texts: list[str]) -> dict[str, Any]:
    """Settings from `key=value` texts; values are read as YAML."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise settings.SettingsError(f"--set {text!r} lacks '='; write it as key=value")
        pairs[key.strip()] = _value(value)
    return pairs


def _value(text: str) -> Any:
    """A value as YAML reads it. Raises SettingsError if it is not YAML."""
    from microclip.settings.base import cut, parsed_yaml

    return parsed_yaml(text, f"--set value {cut(text)!r} is")


@app.command()
def predict(
    adapted: AdaptedArgument,
    images: Annotated[list[Path], typer.Argument(help="image files, folders, or both")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="print a JSON array instead of CSV")
    ] = False,
    as_lines: Annotated[
        bool, typer.Option("--json-lines", help="print one JSON object per line")
    ] = False,
    top: Annotated[
        int, typer.Option(min=1, help="classes to print per image, most probable first")
    ] = 2,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="skip files that cannot be read, with a warning each")
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Classify images with an adapted classifier; prints CSV on standard output."""
    if as_json and as_lines:
        raise settings.SettingsError("--json and --json-lines are two formats; drop one")
    from microclip import api

    runtime.use_all_cpus()
    loaded = api.load(adapted, device or "auto")
    found = loaded.predict(images, top=top, skip_bad=skip_bad)
    if as_lines:
        for one in found:
            print(json.dumps(_object(one), ensure_ascii=False))
    elif as_json:
        print(json.dumps([_object(one) for one in found], indent=1, ensure_ascii=False))
    else:
        _write_csv(found)


@app.command()
def export(
    adapted: AdaptedArgument,
    out: Annotated[Path, typer.Option(help="folder to write; must not exist yet")],
    format_: Annotated[Format, typer.Option("--format", help="format of the model")],
    *,
    check: Annotated[
        list[Path] | None,
        typer.Option(help="images on which to compare the ONNX file with torch; repeatable"),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="also register it in MLflow's store under NAME"),
    ] = None,
) -> None:
    """Export an adapted classifier as an ONNX file or in MLflow's model format."""
    is_onnx = format_ is Format.ONNX
    if (check and not is_onnx) or (log is not None and is_onnx):
        raise settings.SettingsError(
            "--check goes with --format onnx, --log with --format mlflow; drop the other"
        )
    from microclip import api

    runtime.use_all_cpus()
    loaded = api.load(adapted, "cpu")
    if is_onnx:
        from microclip.export import onnx

        say(onnx.to_onnx(loaded, out, check))
        say(f"wrote {out}; try `python {paths.quoted(out / 'onnx_predict.py')} IMAGE`")
        return
    from microclip.export import mlflow_model  # MLflow takes seconds to import

    version = mlflow_model.to_mlflow(loaded, out, log)
    served = f"mlflow models serve -m {paths.quoted(out)} --env-manager local"
    say(f"wrote {out}; serve it with `{served}`")
    if log is not None:
        say(_registered(loaded, f"models:/{log}", version))


def _registered(loaded: Adapted, model: str, version: str | None) -> str:
    """A line that says where a model is registered, and how to serve it."""
    from microclip.export import mlflow_model
    from microclip.tracking import mirror

    address = f"{model}@{mlflow_model.alias_of(loaded)}"
    where = mirror.shown_uri()
    return (
        f"registered as {model}/{version}, {address}, in {where}; serve it with "
        f"`MLFLOW_TRACKING_URI="
        f"{paths.quoted(where)} mlflow models serve -m {paths.quoted(address)} --env-manager local`"
    )


def _object(found: Prediction) -> dict[str, Any]:
    """A prediction as plain values, with the classes of single tokens if there are two."""
    tokens = {"fg_class": found.fg_class, "cls_class": found.cls_class}
    return {
        "file": found.file,
        "class": found.class_name,
        "confidence": round(found.confidence, 4),
        "top": [{"class": name, "confidence": round(value, 4)} for name, value in found.top],
        **{key: name for key, name in tokens.items() if name is not None},
    }


def _write_csv(found: Sequence[Prediction]) -> None:
    """Print one row per image; all predictions have the same columns."""
    places = range(2, len(found[0].top) + 1)
    has_tokens = found[0].fg_class is not None
    columns = ["file", "class", "confidence"]
    columns += [f"{what}_{place}" for place in places for what in ("class", "confidence")]
    columns += ["fg_class", "cls_class"] if has_tokens else []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for one in found:
        values = [value for name, share in one.top for value in (name, f"{share:.4f}")]
        writer.writerow([one.file, *values, *([one.fg_class, one.cls_class] if has_tokens else [])])
