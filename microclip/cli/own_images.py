"""The verb for one's own images: from a folder of photographs to an adapted classifier."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from microclip import paths, processes, runtime, settings
from microclip.cli import BackboneOption, app, say
from microclip.interruption import Terminated

if TYPE_CHECKING:
    from microclip.own_images.command import OwnSettings
    from microclip.own_images.core import Options
    from microclip.own_images.inputs import Materials, Wishes
    from microclip.own_images.results import Results
    from microclip.own_images.run import Prepared
    from microclip.own_images.texts import Texts

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
    from microclip.own_images import command, core, inputs
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
    from microclip.own_images import texts

    if wishes.llm:
        return texts.from_file(_described(wishes, given), given.vocabulary)
    if wishes.descriptions is not None:
        return texts.from_file(wishes.descriptions, given.vocabulary)
    return texts.from_templates(given.vocabulary, options.templates)


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
    from microclip.own_images import core, screen, timing
    from microclip.own_images.record import Record
    from microclip.own_images.run import Prepared
    from microclip.own_images.training import Start

    method, method_settings, options = core.resolved(wishes.method, wishes.settings, _WHERE)
    names = given.vocabulary.class_names
    _say_all(screen.found(given, wishes.out))
    device = str(runtime.choose_device(options.device))
    tower = load_backbone(named.backbone, device)
    vectors = embeddings.classifiers(tower, texts.sentences, options.templates).to(device)
    _say_all(screen.texts(texts, vectors, names))
    _say_all(screen.warnings(given, method_settings))
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
        estimate = timing.estimate(given.images, start)
    _say_all(screen.plan(wishes, estimate, device))
    return Prepared(start, given, texts, replace(named, device=device))


def _run(prepared: Prepared, out: Path) -> Results:
    """Run a command under the eyes of MLflow."""
    from microclip.own_images import command
    from microclip.own_images import run as own_images_run
    from microclip.tracking import run

    named = prepared.settings
    run.init(command.STUDY)
    tracker = run.open_tracker(named, out, command.STUDY, own_images_run.OwnMirror)
    try:
        return own_images_run.run(prepared, out, tracker)
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
    from microclip.own_images import screen

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
