"""The verb `describe`: class descriptions from files or a language model, and the doctor.

`--check` and `--fix` run the doctor on a file; otherwise descriptions are read or requested. The
module is long because this one verb has many options and says what it does at each step. Heavy
imports are inside the functions, so that `--help` is quick.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from microclip import paths, processes, runtime, settings, writing
from microclip.cli import DescriptionsOption, app, say
from microclip.settings.errors import MissingFileError, SettingsError

if TYPE_CHECKING:
    from microclip.settings import DatasetSettings, DescriptionSettings
    from microclip.text.doctor import Options, Report
    from microclip.text.generation import Estimate, Generation, Order, Outcome


@dataclass(frozen=True)
class DoctorOptions:
    """Options of `--check` and `--fix`."""

    is_fix: bool = False
    long: Literal["trim", "drop", "error"] = "trim"
    backbone: str = ""  # name in config/backbones, to compare classes by vectors
    out: Path | None = None  # the fixed copy


@dataclass(frozen=True)
class Patient:
    """A file to examine: its classes, the options that suit it, and where its report goes."""

    path: Path
    class_names: tuple[str, ...] | None
    options: Options
    report: Path | None = None


def run_doctor(targets: Sequence[str], written: DescriptionSettings, wanted: DoctorOptions) -> None:
    """Check descriptions files or those of datasets, print the reports, and fix a copy if asked.

    Raises:
        VerificationError: there are errors, or some remain after fixing.
        SettingsError, MissingDataError: see `mending.examine`.
    """
    if wanted.out is not None and (len(targets) > 1 or not wanted.is_fix):
        raise SettingsError(
            f"--out {wanted.out} is for one fixed copy; use it with --fix and one file"
        )
    wrong = [target for target in targets if _examine(target, written, wanted).has_errors]
    if wrong:
        remedy = "write what is missing" if wanted.is_fix else "`--fix` writes a fixed copy"
        verb = "has" if len(wrong) == 1 else "have"
        raise runtime.VerificationError(
            f"{', '.join(wrong)} {verb} errors that must not be embedded; {remedy}"
        )


def _examine(target: str, written: DescriptionSettings, wanted: DoctorOptions) -> Report:
    """Examine a file; return the report on it, or on its fixed copy if one was made."""
    from microclip.text import mending
    from microclip.text.doctor import Options

    options = Options(long=wanted.long, frame=written.frame)
    patient = _of_dataset(target, written, options) or _of_file(target, wanted)
    if wanted.backbone:
        runtime.use_all_cpus()
    if wanted.is_fix:
        found = mending.examine_and_fix(
            patient.path,
            patient.class_names,
            options=patient.options,
            out=wanted.out,
            report=patient.report,
        )
    else:
        found = mending.examine(
            patient.path,
            patient.class_names,
            options=patient.options,
            backbone=wanted.backbone or None,
            report=patient.report,
        )
    print(found.text(), flush=True)
    for path in found.written:
        say(f"wrote {path}")
    return found.report if found.fixed is None else found.fixed.report


def _of_dataset(target: str, written: DescriptionSettings, options: Options) -> Patient | None:
    """One author's descriptions of a dataset; None if there is no such dataset."""
    if target not in settings.known("datasets"):
        return None
    from microclip.text import descriptions as texts
    from microclip.text import mending

    dataset = settings.load_dataset(target)
    kept = Path(paths.DESCRIPTIONS.format(descriptions=written.name, dataset=target))
    path = texts.source_file(dataset, written) if written.reads_file else kept
    if not path.is_file():
        raise runtime.MissingDataError(
            f"descriptions {path} do not exist; run "
            f"`microclip describe {target} --descriptions {written.name}` or put the file there"
        )
    names, options = mending.of_dataset(target, options)
    return Patient(path, _with_the_rest(dataset, path, names), options, kept.with_suffix(""))


def _with_the_rest(dataset: DatasetSettings, path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """A dataset's classes; if it uses part of an icon set, also the other classes of its file."""
    if not isinstance(dataset.source, settings.IconSource) or dataset.source.classes is None:
        return names
    from microclip.text import mending

    keys = mending.read_raw(path).sentences
    return (*names, *(key for key in keys if key not in names))


def _of_file(target: str, wanted: DoctorOptions) -> Patient:
    """A file; if it is named like a dataset or a published file, with that dataset's classes."""
    from microclip.text import mending
    from microclip.text.doctor import Options

    path, options = Path(target), Options(long=wanted.long)
    if not path.is_file():
        known = ", ".join(settings.known("datasets")[:3])
        raise MissingFileError(
            f"{target} is neither a file nor a dataset ({known}, …); give a JSON file of sentences"
        )
    dataset = _dataset_of(path)
    if dataset is None:
        say(
            f"{path}: taking each key as a class; name the file <dataset>.json to check it "
            "against that dataset's classes"
        )
        return Patient(path, None, options)
    names, options = mending.of_dataset(dataset, options)
    say(f"{path}: taking it as descriptions of {dataset}")
    return Patient(path, names, options)


def _dataset_of(path: Path) -> str | None:
    """The dataset that a file describes, judging by the file's name."""
    from microclip.text.descriptions import published_list

    stem = path.name.removesuffix(".json").removesuffix(".clean")
    if stem in settings.known("datasets"):
        return stem
    for own in published_list().files.values():
        for dataset, known in own.files.items():
            if known.file == f"{stem}.json":
                return dataset
    return None


_OWN_PROMPTS = "own-images"
_HEAD = ("classes of", "requests", "answered", "prompt tokens", "answer tokens", "USD", "at most")


@dataclass(frozen=True)
class _Options:
    """Command-line options that override a file in config/llms; "" and False override nothing."""

    prompts: str = ""
    model: str = ""
    domain: str = ""
    base_url: str = ""
    allow_quarantined: bool = False

    def changed(self, written: DescriptionSettings) -> DescriptionSettings:
        """Settings, with the given options replacing theirs."""
        values = written.model_dump(exclude_none=True)
        values |= _given(prompts=self.prompts, model=self.model)
        values["ask"] |= _given(
            domain=self.domain,
            base_url=self.base_url,
            allow_quarantined=self.allow_quarantined,
        )
        where = f"{written.name!r} with these options"
        return settings.validated(settings.DescriptionSettings, values, where)


def _given(**options: str | float | None) -> dict[str, str | float | None]:
    """The options that were given, by name."""
    return {name: value for name, value in options.items() if value}


@dataclass(frozen=True)
class _Job:
    """An order and the file for its descriptions."""

    order: Order
    target: Path | None
    is_tracked: bool


TargetsArgument = Annotated[
    list[str], typer.Argument(help="datasets in config/datasets, or a file with one class per line")
]
LlmOption = Annotated[str, typer.Option(help="the same, for your own classes")]
PromptsOption = Annotated[str, typer.Option(help="name of a file in config/prompts")]
DomainOption = Annotated[str, typer.Option(help='what the classes are: "a kind of bird"')]
ModelOption = Annotated[str, typer.Option(help="the model's name at its service")]
UrlOption = Annotated[str, typer.Option(help="address of a service that speaks OpenAI's protocol")]
OutOption = Annotated[Path | None, typer.Option(help="JSON file to write")]
AnswersOption = Annotated[
    Path, typer.Option(help="folder of paid answers", envvar="MICROCLIP_ANSWERS")
]
CostOption = Annotated[float | None, typer.Option(min=0, help="dollars this command may spend")]
LongOption = Annotated[
    Literal["trim", "drop", "error"],
    typer.Option(help="--fix: what to do with sentences over 77 tokens"),
]
VectorsOption = Annotated[
    str, typer.Option(help="--check: compare classes by the vectors of config/backbones/NAME")
]
CheckFlag = Annotated[
    bool, typer.Option("--check", help="report on a JSON file, or on a dataset's descriptions")
]
FixFlag = Annotated[
    bool, typer.Option("--fix", help="the same, and write a fixed copy next to the file")
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="estimate requests and cost; send nothing")
]
RetryFlag = Annotated[
    bool, typer.Option("--retry-quarantined", help="ask again about classes without usable answers")
]
AllowFlag = Annotated[
    bool,
    typer.Option("--allow-quarantined", help="use templates for classes without usable answers"),
]
CancelFlag = Annotated[
    bool, typer.Option("--cancel", help="cancel running batches and keep their answers")
]


@app.command()
def describe(
    targets: TargetsArgument,
    descriptions: DescriptionsOption = "shipped",
    llm: LlmOption = "",
    prompts: PromptsOption = "",
    domain: DomainOption = "",
    model: ModelOption = "",
    base_url: UrlOption = "",
    out: OutOption = None,
    answers: AnswersOption = Path(paths.ANSWERS),
    max_cost: CostOption = None,
    long: LongOption = "trim",
    backbone: VectorsOption = "",
    *,
    check: CheckFlag = False,
    fix: FixFlag = False,
    dry_run: DryRunFlag = False,
    retry_quarantined: RetryFlag = False,
    allow_quarantined: AllowFlag = False,
    cancel: CancelFlag = False,
) -> None:
    """Describe the classes of a dataset, or of your own list, in sentences."""
    written = settings.load_descriptions(llm or descriptions)
    if check or fix:
        run_doctor(targets, written, DoctorOptions(fix, long, backbone, out))
        return
    options = _Options(prompts, model, domain, base_url, allow_quarantined)
    if not written.asks:
        _refuse_options(_given(**vars(options), max_cost=max_cost, cancel=cancel), written.name)
        for target in targets:
            _gather(target, written, dry_run=dry_run)
        return
    jobs = _jobs(targets, written, options, out)
    works = [_work(job, answers, retry_quarantined=retry_quarantined) for job in jobs]
    if dry_run:
        if out is not None:
            writing.check_place(out)  # as the command itself will
        _show_estimates(jobs, [work.estimate() for work in works])
        return
    for job, work in zip(jobs, works, strict=True):
        _carry_out(job, work, max_cost, cancel=cancel)


def _gather(target: str, written: DescriptionSettings, *, dry_run: bool) -> None:
    from microclip.text import descriptions as texts

    if target not in settings.known("datasets") and Path(target).is_file():
        raise SettingsError(
            f"{target} is a list of classes, but {written.name!r} reads a dataset's file; name a "
            "model, such as --llm gpt-4o"
        )
    dataset = settings.load_dataset(target)
    if dry_run:
        where = texts.location(dataset, written) if written.reads_file else "its templates"
        print(f"{target}: read from {where}, no model is asked")
        return
    say(f"wrote {texts.write(dataset, written)}")


def _refuse_options(given: Iterable[str], name: str) -> None:
    """Raise SettingsError if an option is given that only makes sense for a model."""
    for option in given:
        raise SettingsError(
            f"--{option.replace('_', '-')} says how a language model is asked, but {name!r} asks "
            "none; name a model with --llm"
        )


def _jobs(
    targets: Sequence[str], written: DescriptionSettings, options: _Options, out: Path | None
) -> list[_Job]:
    """One job per list of classes. Raises SettingsError if `out` would get more than one list."""
    jobs = [_job(target, written, options, out) for target in targets]
    if len(jobs) > 1 and out is not None:
        raise SettingsError(
            f"--out {out} is for one list of classes, got {len(jobs)}; give only one"
        )
    return jobs


def _job(target: str, written: DescriptionSettings, options: _Options, out: Path | None) -> _Job:
    from microclip.data import vocabulary
    from microclip.settings.datasets import TEMPLATES
    from microclip.text.generation import Order

    is_dataset = target in settings.known("datasets")
    if is_dataset:
        dataset = settings.load_dataset(target)
        if out is None and (options.prompts or options.model):
            raise SettingsError(
                f"--prompts and --model would override config/llms/{written.name}.yaml, which "
                "names these descriptions; give --out, or add another file there"
            )
        names = vocabulary.load_vocabulary(dataset).class_names
        place = Path(paths.DESCRIPTIONS.format(descriptions=written.name, dataset=target))
        order = Order(names, options.changed(written), target, dataset.templates)
        return _Job(order, out or place, is_tracked=out is None)
    if not Path(target).is_file():
        if Path(target).suffix or os.sep in target:
            raise runtime.MissingDataError(
                f"{target} does not exist; give a file with one class name per line"
            )
        settings.load_dataset(target)  # raises an error that lists the known names
    names = vocabulary.read_class_list(Path(target)).class_names
    own = replace(options, prompts=options.prompts or _OWN_PROMPTS)
    return _Job(Order(names, own.changed(written), None, TEMPLATES), out, is_tracked=False)


def _work(job: _Job, answers: Path, *, retry_quarantined: bool) -> Generation:
    from microclip.text.answers import AnswerCache
    from microclip.text.generation import Generation

    cache = AnswerCache(answers, job.order.settings.model)
    return Generation(job.order, cache, retry_quarantined=retry_quarantined)


def _title(job: _Job) -> str:
    return job.order.dataset or f"{len(job.order.class_names)} classes"


def _carry_out(job: _Job, work: Generation, max_cost: float | None, *, cancel: bool) -> None:
    if cancel:
        say(f"cancelled {work.cancel(say)} batches of {_title(job)}; their answers are saved")
    else:
        _generate(job, work, max_cost)


def _generate(job: _Job, work: Generation, max_cost: float | None) -> None:
    """Ask for what is missing, then write the descriptions, or report why that is not possible."""
    from microclip.text import generation
    from microclip.text.generation import checked_outcome

    if job.target is None:
        raise SettingsError("--out is missing; give the JSON file to write, as --out out.json")
    writing.check_place(job.target)  # before anything is paid for
    before = work.estimate()
    # A separate process sends the requests: if this command is killed, it still saves the answers
    # in flight, which are paid for.
    if before.n_requests and not processes.is_worker():
        raise typer.Exit(processes.work())
    processes.watch()
    say(f"{_title(job)}: {_estimate_line(job, before)}")
    limit = job.order.ask.max_cost_usd if max_cost is None else max_cost
    is_whole = False
    try:
        work.run(say, limit)
        found = checked_outcome(work.outcome(), job.order)
        generation.write_descriptions(job.target, job.order, found)
        is_whole = True
    finally:
        has_usage = generation.usage_file(job.target).is_file()
        if work.done.n_sent or (is_whole and not has_usage):
            generation.write_usage(job.target, work, before)
        if work.done.n_sent or is_whole:
            _mirror(job)
    for line in _kept_back(found):
        say(line)
    for name, why in found.quarantined.items():
        say(f"{name!r} is quarantined and described by its usable answers or templates ({why})")
    n_sentences = sum(map(len, found.sentences.values()))
    money = "" if found.cost_usd is None else f", {found.cost_usd:.4f} USD"
    say(
        f"wrote {job.target}: {n_sentences} sentences for {len(found.sentences)} classes; "
        f"{work.done.n_sent} requests sent now{_faults(work)}, {found.tokens.prompt:,} prompt and "
        f"{found.tokens.completion:,} answer tokens in all{money}"
    )


def _kept_back(found: Outcome) -> list[str]:
    """What was paid for and not used, and what is used although it is cut: a line each."""
    lines = []
    if found.unusable:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in sorted(found.unusable.items()))
        lines.append(f"answers that were not used ({reasons}) were asked again; they stay saved")
    if found.n_cut_as_asked:
        lines.append(
            f"{found.n_cut_as_asked} sentences end where the request's own limit of tokens cut "
            "them, as in CuPL; raise `max_tokens` (`ask.parameters` in config/llms/) to avoid that"
        )
    return lines


def _faults(work: Generation) -> str:
    faults = ", ".join(f"{n} x {name}" for name, n in sorted(work.done.faults.items()))
    return f" (of which failed: {faults})" if faults else ""


def _mirror(job: _Job) -> None:
    """Show the usage in MLflow: always for a dataset, otherwise only if a store exists."""
    from microclip.text import generation

    assert job.target is not None
    file = generation.usage_file(job.target)
    has_store = Path(paths.TRACKING_DATABASE).is_file() or "MLFLOW_TRACKING_URI" in os.environ
    # A workflow's mirror process is the only writer; it shows the usage at its end.
    if file.is_file() and (job.is_tracked or has_store) and not os.environ.get(processes.MIRROR):
        from microclip.tracking import study

        study.mirror_usage(file)


def _estimate_line(job: _Job, found: Estimate) -> str:
    if not found.n_requests:
        return f"all {found.n_answered} requests are already answered, nothing to send"
    prices = job.order.ask.prices
    money = "no prices known"
    if prices is not None:
        money = f"about {found.cost_usd:.4f} USD, at most {found.most_usd:.4f}"
        money += f" (prices of {prices.date})"
    return (
        f"{found.n_requests} requests to send, {found.n_answered} already answered; about "
        f"{found.tokens.prompt:,} prompt and {found.tokens.completion:,} answer tokens, {money}"
    )


def _show_estimates(jobs: Sequence[_Job], found: Sequence[Estimate]) -> None:
    """Print what would be sent, one line per list of classes and the sum."""
    rows = [_row(_title(job), [one]) for job, one in zip(jobs, found, strict=True)]
    if len(rows) > 1:
        rows.append(_row("together", found))
    widths = [max(len(row[i]) for row in (_HEAD, *rows)) for i in range(len(_HEAD))]
    for row in (_HEAD, *rows):
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join((first, *rest)))
    prices = jobs[0].order.ask.prices
    known = "no prices known" if prices is None else f"prices of {prices.date}, {prices.source}"
    print(f"nothing was sent; {known}; token numbers are estimates")


def _row(title: str, found: Sequence[Estimate]) -> tuple[str, ...]:
    whole = [
        sum(e.n_requests for e in found),
        sum(e.n_answered for e in found),
        sum(e.tokens.prompt for e in found),
        sum(e.tokens.completion for e in found),
    ]
    has_prices = all(e.cost_usd is not None for e in found)
    money = [sum(e.cost_usd or 0.0 for e in found), sum(e.most_usd or 0.0 for e in found)]
    costs = [f"{usd:.2f}" if has_prices else "-" for usd in money]
    return (title, *(f"{n:,}" for n in whole), *costs)
