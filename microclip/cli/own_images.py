"""The verb for one's own images: from a folder of photographs to an adapted classifier."""

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
import yaml

from microclip import paths, processes, runtime, settings
from microclip.cli import BackboneOption, DeviceOption, app, say
from microclip.processes import Terminated

if TYPE_CHECKING:
    from microclip.api import Adapted
    from microclip.own_images.inputs import Materials, Texts, Wishes
    from microclip.own_images.prediction import Prediction
    from microclip.own_images.record import Options, OwnSettings
    from microclip.own_images.report import Prepared
    from microclip.own_images.results import Results


_WHERE = "the options of adapt"

FolderArgument = Annotated[Path, typer.Argument(help="folder of images, nested or not")]
ClassesOption = Annotated[Path | None, typer.Option(help="text file, a class name a line")]
FromFoldersFlag = Annotated[
    bool, typer.Option("--classes-from-folders", help="class names are the folders' names")
]
LabelsOption = Annotated[
    Path | None, typer.Option(help="CSV with columns file,class: for scoring alone")
]
OutOption = Annotated[Path, typer.Option(help="folder for all that is written")]
DescriptionsOption = Annotated[
    Path | None, typer.Option(help="JSON: class name to sentences; without, templates")
]
LlmOption = Annotated[
    str, typer.Option(help="file of config/llms: a language model writes the sentences")
]
DomainOption = Annotated[str, typer.Option(help='what the classes are: "a kind of bird"')]
MethodOption = Annotated[str, typer.Option(help="name of a file in config/methods")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="a setting, as gamma=0.3; repeatable")
]
SeedOption = Annotated[int, typer.Option(min=0, help="of every random draw")]
LabelFirstOption = Annotated[
    int, typer.Option(min=1, help="images in label_these_first.csv", metavar="N")
]
SkipBadFlag = Annotated[bool, typer.Option("--skip-bad", help="leave out files that are no images")]
DuplicatesFlag = Annotated[
    bool, typer.Option("--allow-duplicates", help="keep class names that read the same")
]
YesFlag = Annotated[bool, typer.Option("--yes", help="do not ask before it starts")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print the findings as JSON at the end")]


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
    label_first: LabelFirstOption = 50,
    *,
    classes_from_folders: FromFoldersFlag = False,
    skip_bad: SkipBadFlag = False,
    allow_duplicates: DuplicatesFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Adapt to a folder of unlabelled images; the same command continues an interrupted one."""
    from microclip.own_images.inputs import Wishes

    given = {"seed": seed, **_templates(domain), **_pairs(set_ or [])}
    wishes = Wishes(
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
    found = _adapt(wishes, is_asked=not yes and sys.stdin.isatty())
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1), flush=True)


def _templates(domain: str) -> dict[str, Any]:
    """Return the template that tells what the classes are, as CLIP's own for birds or pets do."""
    if not domain:
        return {}
    if "{" in domain or "}" in domain:
        raise settings.SettingsError(f'--domain {domain!r} holds braces; write "a kind of bird"')
    return {"templates": (f"a photo of a {{}}, {domain}.",)}


def _adapt(wishes: Wishes, *, is_asked: bool) -> dict[str, Any]:
    """Return the findings of a command, which may have been complete before."""
    from microclip.own_images import inputs
    from microclip.own_images import record as command
    from microclip.own_images import record as core
    from microclip.own_images.record import RECORD

    _, method_settings, options = core.resolved(wishes.method, wishes.settings, _WHERE)
    given = inputs.gather(wishes)
    named = command.named(wishes, given, method_settings, options)
    if command.is_complete(wishes.out, named):
        record = json.loads((wishes.out / RECORD).read_text(encoding="utf-8"))
        say(f"{wishes.out} is complete already ({record['about']['verdict']}); nothing was done")
        say(f"next: `microclip predict {wishes.out} IMAGES`")
        return dict(record["about"])
    texts = _texts(wishes, given, options)
    with processes.exclusive(wishes.out):
        prepared = _prepare(wishes, given, texts, named)
        if is_asked and not _is_wanted():
            say("nothing was started")
            raise typer.Exit(0)
        results = _run(prepared, wishes.out)
    _say_all(_done_lines(results, wishes.out))
    return results.as_dict()


def _texts(wishes: Wishes, given: Materials, options: Options) -> Texts:
    """Return the sentences; a language model is asked in a process that outlives a kill."""
    from microclip.own_images import inputs

    if wishes.llm:
        return inputs.texts_from_file(_described(wishes, given), given.vocabulary)
    if wishes.descriptions is not None:
        return inputs.texts_from_file(wishes.descriptions, given.vocabulary)
    return inputs.from_templates(given.vocabulary, options.templates)


def _described(wishes: Wishes, given: Materials) -> Path:
    """Have a language model describe the classes, as `microclip describe` does."""
    from microclip.cli.describe import describe

    author = settings.load_descriptions(wishes.llm)
    if not author.asks:
        raise settings.SettingsError(
            f"--llm {wishes.llm!r} reads a file and asks no model; give that file by "
            "--descriptions, or name a file of config/llms that asks"
        )
    names, target = wishes.out / "classes.txt", wishes.out / "descriptions.json"
    runtime.write_text(names, "".join(f"{name}\n" for name in given.vocabulary.class_names))
    describe([str(names)], llm=wishes.llm, domain=wishes.domain, out=target)
    return target


def _prepare(wishes: Wishes, given: Materials, texts: Texts, named: OwnSettings) -> Prepared:
    """Load and encode what the training needs, and say what will be done."""
    from microclip.model import embeddings
    from microclip.model.backbone import load_backbone
    from microclip.own_images import record as core
    from microclip.own_images import results, training
    from microclip.own_images.record import Record
    from microclip.own_images.report import Prepared
    from microclip.own_images.training import Start

    method, method_settings, options = core.resolved(wishes.method, wishes.settings, _WHERE)
    names = given.vocabulary.class_names
    _say_all(results.found(given, wishes.out))
    device = str(runtime.choose_device(options.device))
    tower = load_backbone(named.backbone, device)
    vectors = embeddings.classifiers(tower, texts.sentences, options.templates).to(device)
    _say_all(results.texts(texts, vectors, names))
    _say_all(results.warnings(given, method_settings))
    record = Record(
        class_names=names,
        backbone=wishes.backbone,
        backbone_key=named.inputs["backbone_key"],
        method=wishes.method,
        settings=named.method,
        seed=options.seed,
    )
    start = Start(
        record=record,
        backbone=named.backbone,
        texts=vectors,
        tower=tower,
        method=method,
        settings=method_settings,
        precision=options.precision,
    )
    is_begun = (wishes.out / paths.RUN_CHECKPOINT).is_dir()
    estimate = None
    if not is_begun:
        estimate = training.estimate(given.images, start)
    _say_all(results.plan(wishes, estimate, device))
    return Prepared(start, given, texts, replace(named, device=device))


def _run(prepared: Prepared, out: Path) -> Results:
    """Run a command under the eyes of MLflow."""
    from microclip.own_images import record, report
    from microclip.tracking import run

    named = prepared.settings
    run.init(record.STUDY)
    tracker = run.open_tracker(named, out, record.STUDY, report.OwnMirror)
    try:
        return report.run(prepared, out, tracker)
    except (Terminated, KeyboardInterrupt):
        tracker.fail("KILLED", "interrupted")
        raise
    except Exception as error:
        tracker.fail("FAILED", " ".join(str(error).split()))
        raise


def _is_wanted() -> bool:
    """Return whether whoever sits there wants the plan to be carried out."""
    try:
        return typer.confirm("go?", default=True, err=True)
    except typer.Abort:  # Ctrl-C or the end of the input
        say("")
        return False


def _done_lines(results: Results, out: Path) -> Iterable[str]:
    from microclip.own_images import results as screen

    return screen.done(results, out)


def _say_all(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)


def _pairs(texts: list[str]) -> dict[str, Any]:
    """Return `key=value` texts as settings; values are read as YAML."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise settings.SettingsError(f"--set {text!r} lacks '='; write it as key=value")
        pairs[key.strip()] = _value(value)
    return pairs


def _value(text: str) -> Any:
    """Return a value as YAML reads it. Raises SettingsError if it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise settings.SettingsError(
            f"--set value {text!r} is no YAML ({' '.join(str(error).split())}); quote it"
        ) from None


EXPERIMENT = "exports"  # of MLflow's store, for registered models
AdaptedArgument = Annotated[Path, typer.Argument(help="folder of an adapted classifier")]


class Format(StrEnum):
    """Of an exported classifier."""

    ONNX = "onnx"
    MLFLOW = "mlflow"


@app.command()
def predict(
    adapted: AdaptedArgument,
    images: Annotated[list[Path], typer.Argument(help="image files, folders, or both")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="an array in place of CSV")] = False,
    as_lines: Annotated[bool, typer.Option("--json-lines", help="one object a line")] = False,
    top: Annotated[int, typer.Option(min=1, help="likeliest classes to tell of an image")] = 2,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="leave out files that cannot be read, by name")
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Classify images with an adapted classifier; CSV on standard output."""
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
    out: Annotated[Path, typer.Option(help="folder to write; must not be there yet")],
    format_: Annotated[Format, typer.Option("--format", help="of the model")],
    *,
    check: Annotated[
        list[Path] | None,
        typer.Option(help="images on which the ONNX file is compared with torch; repeatable"),
    ] = None,
    log: Annotated[
        str | None, typer.Option(metavar="NAME", help="register it in MLflow's store as well")
    ] = None,
) -> None:
    """Write an adapted classifier as an ONNX file or in MLflow's model format."""
    if (check and format_ is not Format.ONNX) or (log and format_ is not Format.MLFLOW):
        raise settings.SettingsError(
            "--check goes with --format onnx, --log with --format mlflow; leave the other out"
        )
    from microclip import api

    runtime.use_all_cpus()
    loaded = api.load(adapted, "cpu")
    if format_ is Format.ONNX:
        from microclip.export import onnx

        say(onnx.to_onnx(loaded, out, check))
        say(f"wrote {out}; try `python {out / 'onnx_predict.py'} IMAGE`")
        return
    from microclip.export import mlflow_model  # MLflow takes seconds to import

    mlflow_model.to_mlflow(loaded, out)
    say(f"wrote {out}; serve it by `mlflow models serve -m {out} --env-manager local`")
    if log:
        say(_registered(loaded, log))


def _registered(loaded: Adapted, name: str) -> str:
    """Register a classifier in MLflow's store and return how to serve it from there."""
    from microclip.export import mlflow_model
    from microclip.tracking import run

    address = mlflow_model.log_model(loaded, name, run.experiment(run.connect(), EXPERIMENT))
    where = run.shown_uri()
    return (
        f"registered as {address} in {where}; serve it by `MLFLOW_TRACKING_URI={where} mlflow "
        f"models serve -m {address} --env-manager local`"
    )


def _object(found: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON holds it; the classes of single tokens where there are such."""
    tokens = {"fg_class": found.fg_class, "cls_class": found.cls_class}
    return {
        "file": found.file,
        "class": found.class_name,
        "confidence": round(found.confidence, 4),
        "top": [{"class": name, "confidence": round(value, 4)} for name, value in found.top],
        **{key: name for key, name in tokens.items() if name is not None},
    }


def _write_csv(found: Sequence[Prediction]) -> None:
    """Write a row an image; the columns follow from the first one, all have the same."""
    places = range(2, len(found[0].top) + 1)
    has_tokens = found[0].fg_class is not None
    columns = ["file", "class", "confidence"]
    columns += [f"{what}_{place}" for place in places for what in ("class", "confidence")]
    columns += ["fg_class", "cls_class"] if has_tokens else []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for one in found:
        told = [value for name, share in one.top for value in (name, f"{share:.4f}")]
        writer.writerow([one.file, *told, *([one.fg_class, one.cls_class] if has_tokens else [])])
