"""What a method is: it sees what its supervision allows, and returns a classifier.

Each file of this folder is the code of a method, found by its file name; there is no registry.
What a method says of itself is in a file of the same name in `settings/methods`. Neither this
module nor those import torch, so that a study can be planned without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, runtime_checkable

from pydantic import BaseModel

from microclip import settings as configuration
from microclip.settings import methods as declarations
from microclip.settings.base import SettingsError
from microclip.settings.declarations import Declaration, MethodSettings, Supervision, Work
from microclip.settings.study import RunGrid, StudySettings

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from microclip.adaptation.first_batch import FirstBatch
    from microclip.data.crops import CropDraw
    from microclip.data.loading import Examples, UnlabelledImages
    from microclip.model.backbone import Backbone
    from microclip.model.embeddings import TextClassifiers
    from microclip.model.sentences import SentenceStore

SHARED_RECIPE = 1  # raise when data, views, backbone or text stages change what they mean
REPEAT = "repeat_"  # begins the names of heads that are further draws of the fused one
_NOT_METHODS = {"__init__", "base", "few_shot", "fusion", "linear"}  # some methods share these
_DECLARED = frozenset(path.stem for path in Path(declarations.__path__[0]).glob("[!_]*.py"))


@runtime_checkable
class Tracker(Protocol):
    """Where a run reports: its first batch, one row per epoch, and lines for people."""

    def first_batch(self, found: FirstBatch) -> None:
        """Record what the first batch looks like, and show its warnings."""

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Record one row of history; the same epoch written again replaces the row."""

    def message(self, text: str) -> None:
        """Show one line."""


class Silence:
    """A tracker that records and shows nothing."""

    def first_batch(self, found: FirstBatch) -> None:
        """Record nothing."""

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Record nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class ViewPlan:
    """What a classifier needs of a test image."""

    kind: Literal["embedding", "image"]
    crop: Literal["center", "random", "squash"] = "center"
    squares: CropDraw | None = None  # embeddings of crops as well, for kind "embedding"


@dataclass(frozen=True)
class Views:
    """A batch in the form that a ViewPlan asks for; one of the two is set."""

    embeddings: Float[Tensor, "batch embedding"] | None = None  # frozen [CLS], unit norm
    images: Float[Tensor, "batch 3 height width"] | None = None  # normalised
    squares: Float[Tensor, "batch crop embedding"] | None = None  # as `embeddings`, if planned

    def needed_embeddings(self) -> Float[Tensor, "batch embedding"]:
        """Return the embeddings.

        Raises:
            ValueError: there are none.
        """
        if self.embeddings is None:
            raise ValueError("this classifier reads embeddings, got none; follow its ViewPlan")
        return self.embeddings

    def needed_images(self) -> Float[Tensor, "batch 3 height width"]:
        """Return the images.

        Raises:
            ValueError: there are none.
        """
        if self.images is None:
            raise ValueError("this classifier reads images, got none; follow its ViewPlan")
        return self.images


@runtime_checkable
class Monitor(Protocol):
    """Measures a method from outside: takes guesses and a classifier, returns nothing."""

    def pseudo_labels(
        self, indices: Int[Tensor, " batch"], guesses: Mapping[str, Int[Tensor, " batch"]]
    ) -> None:
        """Record the labels guessed for training images, by kind of guess."""

    def evaluate(self, classifier: Classifier, epoch: int) -> None:
        """Test the classifier in its present state, after `epoch` epochs."""


@dataclass(frozen=True)
class Task:
    """What the runner hands to a method. No label is reachable from here unless allowed."""

    class_names: Sequence[str]
    texts: TextClassifiers  # W_LLM (uniform and similarity weighting) and anchors, [C, e] each
    seed: int
    device: str
    precision: str
    backbone: Backbone | None = None  # set if the method reads images
    images: UnlabelledImages | None = None  # if it reads images and its supervision allows it
    embeddings: Float[Tensor, "image embedding"] | None = None  # frozen [CLS], if allowed
    examples: Examples | None = None  # labelled images, if allowed: few per class, or all
    sentences: Sequence[Sequence[str]] = ()  # descriptions by class; a saved classifier has none
    templates: Sequence[str] = ()  # of the dataset's prompts, one {} each
    sentence_store: SentenceStore | None = None  # their embeddings by the untrained backbone
    checkpoints: Path | None = None  # folder for epoch checkpoints; None: keep none
    monitor: Monitor | None = None  # None: nothing is measured


@runtime_checkable
class Classifier(Protocol):
    """An adapted classifier; every prediction goes through it."""

    views: ViewPlan

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return cosine similarities; the arg max is the prediction."""

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return `logits` as "fused", and the heads it is made of, by name."""

    def trained_state(self) -> dict[str, Tensor]:
        """Return only what was trained, by name."""


@dataclass(frozen=True, eq=False)
class Watching:
    """What a trainer reports to: the task's monitor measures, then the tracker records."""

    task: Task
    tracker: Tracker
    classifier: Classifier

    def pseudo_labels(self, indices: Int[Tensor, " batch"], guesses: dict[str, Tensor]) -> None:
        """Pass on the labels guessed for some images."""
        if self.task.monitor is not None:
            self.task.monitor.pseudo_labels(indices, guesses)

    def first_batch(self, found: FirstBatch) -> None:
        """Pass on what the first batch looks like."""
        self.tracker.first_batch(found)

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Measure the classifier in its present state, then record the row."""
        if self.task.monitor is not None:
            self.task.monitor.evaluate(self.classifier, epoch)
        self.tracker.epoch(epoch, row)

    def message(self, text: str) -> None:
        """Show a line."""
        self.tracker.message(text)


@runtime_checkable
class Method(Protocol[MethodSettings]):
    """A method: one file with its code, one `METHOD` object.

    What it says of itself is best inherited from `DeclaredMethod`, which has it from
    `settings/methods/<name>.py`. A method may also have these as class variables, and perhaps
    `REVISED`, `EVALUATION_FIELDS` and `work(settings)`; a study is then planned with torch loaded.
    """

    @property
    def supervision(self) -> Supervision:
        """What it may see."""

    @property
    def reads(self) -> Literal["embeddings", "images"]:
        """The frozen [CLS] alone, or images and backbone."""

    @property
    def RECIPE(self) -> int:  # noqa: N802  a constant of the method
        """Raised whenever the same settings mean other numbers."""

    @property
    def Settings(self) -> type[MethodSettings]:  # noqa: N802  a class, named as such
        """The model of its settings."""

    def adapt(self, task: Task, settings: MethodSettings, tracker: Tracker) -> Classifier:
        """Return the adapted classifier."""

    def restore(
        self, task: Task, settings: MethodSettings, state: Mapping[str, Tensor]
    ) -> Classifier:
        """Return the classifier whose `trained_state` is `state`, without training."""


class DeclaredMethod(Generic[MethodSettings]):
    """Base of a method whose `declaration` says what it is."""

    declaration: Declaration[MethodSettings]

    @property
    def supervision(self) -> Supervision:
        """What the method may see."""
        return self.declaration.supervision

    @property
    def reads(self) -> Literal["embeddings", "images"]:
        """The frozen [CLS] alone, or images and backbone."""
        return self.declaration.reads

    @property
    def RECIPE(self) -> int:  # noqa: N802  a constant of the method
        """Raised whenever the same settings mean other numbers."""
        return self.declaration.recipe

    @property
    def Settings(self) -> type[MethodSettings]:  # noqa: N802  a class, named as such
        """The model of its settings."""
        return self.declaration.settings


@dataclass(frozen=True, eq=False)
class Sight:
    """Unlabelled images in the two forms a method may read; embeddings are computed on demand."""

    images: UnlabelledImages
    embeddings: Callable[[], Float[Tensor, "image embedding"]]  # frozen [CLS], on the task's device


@runtime_checkable
class Sees(Protocol):
    """What decides which images a method gets; a `Method` is one."""

    @property
    def supervision(self) -> Supervision:
        """What it may see."""

    @property
    def reads(self) -> Literal["embeddings", "images"]:
        """The frozen [CLS] alone, or images and backbone."""


@dataclass(frozen=True)
class SeesWith:
    """What a method may see with some settings."""

    supervision: Supervision
    reads: Literal["embeddings", "images"]


def sees_with(method: Method[MethodSettings], settings: MethodSettings) -> SeesWith:
    """Return what a method may see with these settings."""
    declared = getattr(method, "declaration", None)
    supervision = method.supervision if declared is None else declared.sees(settings)
    return SeesWith(supervision, method.reads)


def grant(
    task: Task,
    method: Sees,
    *,
    train: Sight,
    test: Sight,
    examples: Examples | None = None,
) -> Task:
    """Return the task with exactly what the method's supervision allows it to see.

    Raises:
        SettingsError: the method needs labels, and there are no labelled `examples`.
    """
    match method.supervision:
        case Supervision.NONE:
            return task
        case Supervision.UNLABELLED:
            seen = train
        case Supervision.TRANSDUCTIVE:
            seen = test
        case Supervision.FEW_SHOT | Supervision.LABELS:
            if examples is None:
                raise SettingsError(
                    f"method needs labels ({method.supervision}), adapt has none; "
                    "use another method"
                )
            return replace(task, examples=examples)
    if method.reads == "images":
        return replace(task, images=seen.images)
    return replace(task, embeddings=seen.embeddings())


def known_methods() -> list[str]:
    """Names of all methods, a file each."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _NOT_METHODS)


def load_method(name: str) -> Method[BaseModel]:
    """Return the `METHOD` of `microclip.methods.<name>`. Raises SettingsError if unknown."""
    if name not in known_methods():
        raise SettingsError(f"unknown method {name!r}; known: {', '.join(known_methods())}")
    method: Method[BaseModel] = importlib.import_module(f"microclip.methods.{name}").METHOD
    return method


def declaration_of(name: str) -> Declaration[Any]:
    """Return what a method says of itself, without importing its code if it has a declaration.

    Raises:
        SettingsError: unknown method.
    """
    if name in _DECLARED:
        found = importlib.import_module(f"microclip.settings.methods.{name}").DECLARATION
        assert isinstance(found, Declaration)
        return found
    method = load_method(name)
    return Declaration(
        method.Settings,
        supervision=method.supervision,
        reads=method.reads,
        recipe=method.RECIPE,
        revised=getattr(method, "REVISED", {}),
        evaluation_fields=frozenset(getattr(method, "EVALUATION_FIELDS", ())),
        work=getattr(method, "work", None),
    )


def settings_of(name: str) -> type[BaseModel]:
    """Return the settings model of a method."""
    return declaration_of(name).settings


def recipe_of(name: str, settings: Mapping[str, Any]) -> int:
    """Return the recipe of a method with these settings: its own, one more for each revised one.

    So only the runs with a revised value are made again, not all runs of the method.
    """
    declared = declaration_of(name)
    revised = declared.revised
    return declared.recipe + sum(1 for key in revised if settings.get(key) == revised[key])


def reads_of(name: str) -> Literal["embeddings", "images"]:
    """Return what a method looks at."""
    return declaration_of(name).reads


def evaluation_fields(name: str) -> frozenset[str]:
    """Settings that only change how a trained method is tested."""
    return declaration_of(name).evaluation_fields


def further_backbones(name: str, settings: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of the backbones that a method loads beside the run's own."""
    declared = declaration_of(name)
    if declared.also_loads is None:
        return ()
    found: tuple[str, ...] = declared.also_loads(declared.settings.model_validate(settings))
    return found


def work_of(name: str, settings: Mapping[str, object]) -> Work | None:
    """Return what a method with these settings computes; None if its declaration does not say."""
    declared = declaration_of(name)
    if declared.work is None:
        return Work() if declared.supervision is Supervision.NONE else None
    return declared.work(declared.settings.model_validate(settings))


def check_keys(study: Mapping[str, Any], where: str) -> None:
    """Refuse a method's setting that a study has beside `methods`, or in `runs`, with its place.

    Raises:
        SettingsError: names the setting, the methods that have it, and how to write it.
    """
    runs = study.get("runs")
    grids = [grid for grid in runs if isinstance(grid, dict)] if isinstance(runs, list) else []
    beside = {str(key): value for part in (study, *grids) for key, value in part.items()}
    for key in set(beside) - {*StudySettings.model_fields, *RunGrid.model_fields}:
        if owners := [name for name in known_methods() if key in settings_of(name).model_fields]:
            chosen = "microclip" if "microclip" in owners else owners[0]
            raise SettingsError(
                f"{key!r} in {where} is a setting of methods ({', '.join(owners)}); write "
                f"methods: {{{chosen}: {{{key}: {beside[key]}}}}}"
            )


def check_blocks(of_study: Mapping[str, dict[str, Any]], where: str) -> None:
    """Refuse what a study sets for a method if it does not fit, even where no run has the method.

    Raises:
        SettingsError: names the file, the method and the setting.
    """
    for method, block in of_study.items():
        if method not in known_methods():
            raise SettingsError(
                f"unknown method {method!r} in methods of {where}; known: "
                f"{', '.join(known_methods())}"
            )
        values = {**configuration.load_method_file(method).settings, **block}
        configuration.validated(settings_of(method), values, f"methods: {method} of {where}")


def resolved_settings(
    of_study: Mapping[str, dict[str, Any]],
    method: str,
    dataset: str,
    overrides: dict[str, Any],
    source: str,
) -> dict[str, Any]:
    """Return a method's complete settings: method file -> dataset -> study -> `overrides`.

    `of_study` holds what the study sets, by method; `source` is where the overrides are written.
    A method that follows another takes what both have from the other's file and blocks as well.

    Raises:
        SettingsError: names the layer with an unknown key or a value that does not fit.
    """
    of_dataset = configuration.load_dataset(dataset).methods
    layers = {
        **_followed(method),
        f"config/methods/{method}.yaml": configuration.load_method_file(method).settings,
        f"methods: {method} of config/datasets/{dataset}.yaml": _block(of_dataset, method),
        f"methods: {method} of the study": _block(of_study, method),
        source: overrides,
    }
    merged: dict[str, Any] = {}
    resolved: dict[str, Any] = {}
    for where, layer in layers.items():
        merged |= layer
        # Validated layer by layer, so that an error names the file it is in.
        if layer or not resolved:
            model = configuration.validated(settings_of(method), merged, where)
            resolved = model.model_dump(mode="json")
    return resolved


def _followed(method: str) -> dict[str, dict[str, Any]]:
    """The file of the method that this one follows, as far as both have its settings."""
    followed = declaration_of(method).follows
    if followed is None:
        return {}
    values = configuration.load_method_file(followed).settings
    return {f"config/methods/{followed}.yaml": _shared(method, values)}


def _block(blocks: Mapping[str, dict[str, Any]], method: str) -> dict[str, Any]:
    """What a dataset or a study sets for a method, by the block of the method that it follows too.

    Raises:
        SettingsError: unknown method.
    """
    followed = declaration_of(method).follows
    others = {} if followed is None else _shared(method, blocks.get(followed, {}))
    return {**others, **blocks.get(method, {})}


def _shared(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in values if key in settings_of(method).model_fields}
