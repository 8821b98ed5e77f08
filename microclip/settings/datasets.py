"""Dataset settings, `config/datasets/<name>.yaml`: where images come from, how they are split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from microclip.settings.base import Frozen, Name, without_defaults

BadImages = Literal["error", "skip"]
TEMPLATES = ("a photo of a {}.",)
CANVAS_PX = 672  # three times CLIP's 224 px; benchmarks/canvas.py measures what crops lose
_CANVAS = (
    "larger images are stored with this shorter side, and views are drawn from that; null: as they "
    "are"
)


class IconSource(Frozen):
    """Scenes rendered from the shipped drawings (`resources/icons/<drawings>`)."""

    kind: Literal["icons"] = "icons"
    bad_images: ClassVar[BadImages] = "error"
    canvas_px: ClassVar[int | None] = None  # scenes are stored as they are drawn
    stretch: ClassVar[bool] = False
    drawings: Name = Field(description="icon set, a folder in resources/icons")
    classes: int | None = Field(None, ge=2, description="number of classes used; None: all")
    train_scenes: int = Field(ge=1, description="training scenes per class")
    test_scenes: int = Field(ge=1, description="test scenes per class")
    difficulty: float = Field(
        0.5, ge=0, le=1, description="0 large and clean, 1 small, cluttered, tinted and occluded"
    )
    size_px: int = Field(96, ge=32, le=448, description="side of a scene")
    seed: int = Field(0, ge=0, description="seed of the renderer")
    split: Literal["drawings", "scenes"] = Field(
        "drawings",
        description="drawings: none is on both sides; scenes: each is, in other scenes",
    )
    style: Literal["plain", "grey", "coarse", "lines", "tiles"] = Field(
        "plain",
        description="domain: as drawn, grey, low resolution, outlines, or many copies from above",
    )

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, dump, "split", "style")


class FolderSource(Frozen):
    """Your own images: `train/<class>/` and `test/<class>/`, `<class>/`, or a list of labels."""

    kind: Literal["folder"] = "folder"
    folder: Path = Field(description="folder with train/ and test/, or with one folder per class")
    classes: Path | None = Field(
        None, description="file with one class name per line, in label order"
    )
    labels: Path | None = Field(
        None,
        description="CSV with columns file and class, the test images; all others are for training",
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of each class that is tested, if the folder has no train/ and test/",
    )
    seed: int = Field(0, ge=0, description="seed of that split")
    bad_images: BadImages = Field("error", description="skip: leave out unreadable images")
    canvas_px: int | None = Field(CANVAS_PX, ge=224, description=_CANVAS)
    stretch: bool = Field(
        default=False, description="16-bit grey images with values up to 4095: 4095 is white"
    )

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, dump, "stretch")


class PublicSource(Frozen):
    """A public dataset that has a card (routes, splits, counts) in this project."""

    kind: Literal["public"] = "public"
    stretch: ClassVar[bool] = False
    dataset: Name = Field(description="the file in config/datasets that holds the card")
    split: Name = Field("paper", description="one of the card's splits")
    seed: int = Field(0, ge=0, description="seed of a randomly drawn split")
    bad_images: BadImages = Field("error", description="skip: leave out unreadable images")
    canvas_px: int | None = Field(CANVAS_PX, ge=224, description=_CANVAS)


Source = Annotated[IconSource | FolderSource | PublicSource, Field(discriminator="kind")]


class RemoteFile(Frozen):
    """A file of an archive route."""

    name: str = Field(
        description="file name in data/<dataset>/archives/, or the path of a file that stays packed"
    )
    urls: tuple[str, ...] = Field(min_length=1, description="mirrors, in order of preference")
    md5: str | None = Field(None, description="as the publisher or torchvision states it")
    sha256: str | None = None
    unpack: bool = Field(default=True, description="False: the file is read without unpacking")
    into: str = Field("", description="folder in data/<dataset>/ that it is unpacked into")
    inner: tuple[str, ...] = Field(
        (), description="archives inside it, unpacked into the same folder, then removed"
    )

    @model_validator(mode="after")
    def _below_the_folder(self) -> RemoteFile:
        for path in (self.name, self.into, *self.inner):
            if path.startswith("/") or "\\" in path or ".." in path.split("/"):
                raise ValueError(f"{path!r} must be a path below the dataset's folder")
        return self


class ArchiveRoute(Frozen):
    """Download and unpack the publisher's archives, into the original layout."""

    kind: Literal["archive"]
    layout: Name = Field(description="module of microclip.data.layouts that reads the result")
    files: tuple[RemoteFile, ...] = Field(min_length=1)
    torchvision: str | None = Field(None, description="torchvision class with the same addresses")
    note: str = ""


class HubRoute(Frozen):
    """Fetch a copy from the Hugging Face Hub and write its images as files."""

    kind: Literal["hub"]
    layout: Name = Field(description="module of microclip.data.layouts that reads the result")
    repository: str = Field(description="owner/name of the dataset")
    revision: str | None = Field(
        None, description="commit; None: the latest at the first download, recorded and kept"
    )
    files: tuple[str, ...] = Field(min_length=1, description="glob patterns of the files to fetch")
    parts: dict[str, str] = Field(
        default_factory=dict, description="the copy's splits -> train, val or test"
    )
    image_column: str = "image"
    label_column: str = "label"
    is_gated: bool = Field(default=False, description="you must accept its terms on the Hub first")
    note: str = ""


class LocalRoute(Frozen):
    """Files that the user puts in place, where a licence or a dead link leaves no other way."""

    kind: Literal["local"]
    layout: Name = Field(description="module of microclip.data.layouts that reads the result")
    recipe: str = Field(description="which files to put where, and where to get them")


Route = Annotated[ArchiveRoute | HubRoute | LocalRoute, Field(discriminator="kind")]


class PartsRule(Frozen):
    """The publisher's own parts: those for `train` and those for `test`."""

    rule: Literal["parts"]
    train: tuple[str, ...] = Field(min_length=1)
    test: tuple[str, ...] = Field(min_length=1)


class CoopRule(Frozen):
    """CoOp's `split_zhou_*.json`, which the user puts in place; its `val` is not used."""

    rule: Literal["coop"]
    file: str = Field(description="path within the dataset's folder")
    otherwise_drawn: bool = Field(
        default=False,
        description="without the file: draw 50/20/30 percent of each class, and report it",
    )


class DrawnRule(Frozen):
    """A random draw per class from sorted names; images in neither `train` nor `val` are tested."""

    rule: Literal["drawn"]
    train: float = Field(gt=0, description="below 1: fraction of each class; else images per class")
    val: float = Field(0.0, ge=0, lt=1, description="fraction of each class that is left unused")
    rounding: Literal["floor", "half-even"] = "floor"
    draws: int = Field(1, ge=1, le=2, description="2: union of two draws, which overlap (Caltech)")
    generator: Literal["numpy", "python"] = Field("python", description="library that shuffles")
    seed: int | None = Field(None, description="fixed seed; None: the source's seed")


class SubsetRule(Frozen):
    """A sample of one part for training; `test` is another part."""

    rule: Literal["subset"]
    train: str = Field(description="part to draw from")
    test: str
    per_class: int | None = Field(None, ge=1, description="drawn with labels: not unsupervised")
    total: int | None = Field(None, ge=1, description="drawn without looking at labels")
    seed: int | None = Field(0, description="fixed seed; None: the source's seed")


SplitRule = Annotated[PartsRule | CoopRule | DrawnRule | SubsetRule, Field(discriminator="rule")]


class Counts(Frozen):
    """How many images a split should have, and who says so."""

    classes: int
    train: int | None = None
    test: int | None = None
    source: str = Field(description="Table 10, the release, or our own count")


class DatasetCard(Frozen):
    """What we know about a public dataset; only the split that it names affects results."""

    licence: str
    homepage: str = ""
    size: str = Field("", description="of the download")
    typical_px: tuple[int, int] = Field(
        (640, 480), description="width and height of most images, only to estimate disk and time"
    )
    ask_first: bool = Field(
        default=False, description="too large to fetch unasked: run `microclip data get` first"
    )
    routes: tuple[Route, ...] = Field(min_length=1, description="in order of preference")
    splits: dict[Name, SplitRule]
    counts: dict[Name, Counts] = Field(default_factory=dict, description="by split")
    deviations: tuple[str, ...] = Field((), description="from the paper's Table 10, one line each")
    flags: dict[Name, str] = Field(
        default_factory=dict, description="warnings by split: labels used, images that overlap"
    )
    allowed_overlap: tuple[Name, ...] = Field(
        (), description="splits whose train and test may share images"
    )


class DatasetSettings(Frozen):
    """One dataset: where its images come from and how its classes are named in prompts."""

    name: Name
    title: str = Field(description="as printed in tables")
    source: Source
    templates: tuple[str, ...] = Field(
        TEMPLATES, min_length=1, description="prompt templates, one {} each"
    )
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of a method for this dataset only"
    )
    card: DatasetCard | None = Field(None, description="for a public dataset")

    def identity(self) -> dict[str, Any]:
        """Everything that decides the images and classes, as plain values."""
        return {"name": self.name, "source": self.source.model_dump(mode="json")}

    @model_validator(mode="after")
    def _one_slot_a_template(self) -> DatasetSettings:
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"template {template!r} must contain {{}} once; got {template.count('{}')}"
                )
        return self
