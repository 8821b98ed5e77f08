"""What `config/datasets/<name>.yaml` may say: where images come from, how they are split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from microclip.settings.base import Frozen, Name

BadImages = Literal["error", "skip"]
TEMPLATES = ("a photo of a {}.",)


class IconSource(Frozen):
    """Scenes rendered from the shipped drawings (`resources/icons/<drawings>`)."""

    kind: Literal["icons"] = "icons"
    drawings: Name = Field(description="icon set, a folder of resources/icons")
    classes: int | None = Field(None, ge=2, description="classes taken, None = all")
    train_scenes: int = Field(ge=1, description="training scenes per class")
    test_scenes: int = Field(ge=1, description="test scenes per class")
    difficulty: float = Field(
        0.5, ge=0, le=1, description="0 large and clean, 1 small, cluttered, tinted and occluded"
    )
    size_px: int = Field(96, ge=32, le=448, description="side of a scene")
    seed: int = Field(0, ge=0, description="seed of the renderer")


class FolderSource(Frozen):
    """One's own images: `train/<class>/` and `test/<class>/`, `<class>/`, or a list of labels."""

    kind: Literal["folder"] = "folder"
    folder: Path = Field(description="folder that holds train/ and test/, or the classes' folders")
    classes: Path | None = Field(None, description="file with a class name a line, in label order")
    labels: Path | None = Field(
        None, description="CSV with columns file and class: what is tested; other images train"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="of each class, where the folder has no train/ and test/"
    )
    seed: int = Field(0, ge=0, description="seed of that split")
    bad_images: BadImages = Field("error", description="skip: leave out what cannot be read")


class PublicSource(Frozen):
    """One of the datasets whose card (routes, splits, counts) the project has."""

    kind: Literal["public"] = "public"
    dataset: Name = Field(description="the file of config/datasets that holds the card")
    split: Name = Field("paper", description="one of the card's splits")
    seed: int = Field(0, ge=0, description="seed of a split that is drawn")
    bad_images: BadImages = Field("error", description="skip: leave out what cannot be read")


Source = Annotated[IconSource | FolderSource | PublicSource, Field(discriminator="kind")]


class RemoteFile(Frozen):
    """A file of an archive route."""

    name: str = Field(description="file name below data/<dataset>/archives/, or its place if kept")
    urls: tuple[str, ...] = Field(min_length=1, description="mirrors, in order of preference")
    md5: str | None = Field(None, description="as the publisher or torchvision states it")
    sha256: str | None = None
    unpack: bool = Field(default=True, description="False: the file itself is read, as it is")
    into: str = Field("", description="folder below data/<dataset>/ that it is unpacked into")
    inner: tuple[str, ...] = Field(
        (), description="paths of archives in it, unpacked into the same folder, then removed"
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
    """Fetch a copy from the Hugging Face hub and write its images as files."""

    kind: Literal["hub"]
    layout: Name = Field(description="module of microclip.data.layouts that reads the result")
    repository: str = Field(description="owner/name of the dataset")
    revision: str | None = Field(
        None, description="commit; None: the one found first, written down and kept"
    )
    files: tuple[str, ...] = Field(min_length=1, description="glob patterns of what is fetched")
    parts: dict[str, str] = Field(
        default_factory=dict, description="the copy's splits -> train, val or test"
    )
    image_column: str = "image"
    label_column: str = "label"
    is_gated: bool = Field(default=False, description="terms must be accepted on the hub first")
    note: str = ""


class LocalRoute(Frozen):
    """Files that the user places: for licences and dead links that forbid anything else."""

    kind: Literal["local"]
    layout: Name = Field(description="module of microclip.data.layouts that reads the result")
    recipe: str = Field(description="what to place where, and where it can be had")


Route = Annotated[ArchiveRoute | HubRoute | LocalRoute, Field(discriminator="kind")]


class PartsRule(Frozen):
    """The publisher's own parts: which make `train`, which `test`."""

    rule: Literal["parts"]
    train: tuple[str, ...] = Field(min_length=1)
    test: tuple[str, ...] = Field(min_length=1)


class CoopRule(Frozen):
    """CoOp's `split_zhou_*.json`, which the user places; its `val` is unused."""

    rule: Literal["coop"]
    file: str = Field(description="path below the dataset's folder")
    otherwise_drawn: bool = Field(
        default=False, description="without the file: 50/20/30 a class, drawn, and said so"
    )


class DrawnRule(Frozen):
    """A draw a class from sorted names; what is neither `train` nor `val` is tested."""

    rule: Literal["drawn"]
    train: float = Field(gt=0, description="fraction of a class below 1, else images of a class")
    val: float = Field(0.0, ge=0, lt=1, description="fraction of a class that is left unused")
    rounding: Literal["floor", "half-even"] = "floor"
    draws: int = Field(1, ge=1, le=2, description="2: union of two draws, which overlap (Caltech)")
    generator: Literal["numpy", "python"] = Field("python", description="whose shuffle")
    seed: int | None = Field(None, description="fixed; None: the source's seed")


class SubsetRule(Frozen):
    """Some training images of a part; `test` is another part."""

    rule: Literal["subset"]
    train: str = Field(description="part to draw from")
    test: str
    per_class: int | None = Field(None, ge=1, description="drawn with labels: not unsupervised")
    total: int | None = Field(None, ge=1, description="drawn without looking at labels")
    seed: int | None = Field(0, description="fixed; None: the source's seed")


SplitRule = Annotated[PartsRule | CoopRule | DrawnRule | SubsetRule, Field(discriminator="rule")]


class Counts(Frozen):
    """Images that a split should have, and who says so."""

    classes: int
    train: int | None = None
    test: int | None = None
    source: str = Field(description="Table 10, the release, a count of ours")


class DatasetCard(Frozen):
    """What is known of a public dataset; decides no number but through the split it names."""

    licence: str
    homepage: str = ""
    size: str = Field("", description="of the download")
    ask_first: bool = Field(
        default=False, description="too large for a study to fetch by itself: `microclip data get`"
    )
    routes: tuple[Route, ...] = Field(min_length=1, description="in order of preference")
    splits: dict[Name, SplitRule]
    counts: dict[Name, Counts] = Field(default_factory=dict, description="by split")
    deviations: tuple[str, ...] = Field((), description="from the paper's Table 10, one line each")
    flags: dict[Name, str] = Field(
        default_factory=dict, description="by split, what a reader must know: labels seen, overlap"
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
        default_factory=dict, description="settings of a method for this dataset alone"
    )
    card: DatasetCard | None = Field(None, description="of a public dataset")

    def identity(self) -> dict[str, Any]:
        """Return what decides the images and classes, as plain values."""
        return {"name": self.name, "source": self.source.model_dump(mode="json")}

    @model_validator(mode="after")
    def _one_slot_a_template(self) -> DatasetSettings:
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"template {template!r} must hold {{}} once; got {template.count('{}')}"
                )
        return self
