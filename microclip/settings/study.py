"""Settings of a study, its methods, variants and backbones.

The settings of a run are read in this order: `methods/<method>.yaml` -> `datasets/<dataset>.yaml`
(`methods:` block) -> the study file (`methods:` block) -> `variants/<method>.yaml` (`variants:`,
then `datasets:`). The later one wins, and every key must exist in the method's `Settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from microclip import paths
from microclip.settings.base import (
    Device,
    Frozen,
    Name,
    SettingsError,
    load_named,
    read_yaml,
    validated,
)
from microclip.settings.datasets import (
    DatasetCard,
    DatasetSettings,
    PublicSource,
)
from microclip.settings.llms import DescriptionSettings
from microclip.settings.reports import Epoch, FigureSettings, Spread, TableSettings

Compile = Literal["off", "default", "cuda-graphs"]


class BackboneSettings(Frozen):
    """One CLIP: an open_clip architecture and its weights."""

    name: Name
    title: str
    model: str | None = Field(None, description="open_clip architecture")
    config: Path | None = Field(None, description="our own open_clip JSON, instead of `model`")
    pretrained: str | None = Field(
        None, description="open_clip tag; downloads the weights at first use"
    )
    weights: Path | None = Field(None, description="local safetensors file")
    sha256: str | None = Field(None, description="hash of the weights file")

    @model_validator(mode="after")
    def _names_one_network(self) -> BackboneSettings:
        if (self.model is None) == (self.config is None):
            raise ValueError("must name exactly one of 'model' and 'config'; add or remove one")
        if (self.pretrained is None) == (self.weights is None):
            raise ValueError(
                "must name exactly one of 'pretrained' and 'weights'; to use an untrained network, "
                "wrap it in Python with from_open_clip"
            )
        if self.pretrained is not None and self.model is None:
            raise ValueError("'pretrained' goes with 'model', 'config' with 'weights'")
        return self

    def remedy(self, field: str) -> str:
        """What to do if one of its files is missing."""
        path: Path | None = getattr(self, field)
        if self.is_left_out and path is not None:
            return paths.how_to_add(path)
        return f"make it or correct config/backbones/{self.name}.yaml"

    @property
    def is_left_out(self) -> bool:
        """Whether its weights are the project's own, but not in the wheel that is installed."""
        ours = self.weights is not None and self.weights.parent == Path("resources/icon-clip")
        return ours and paths.IS_WHEEL and not (paths.INSTALLED / str(self.weights)).exists()

    @property
    def files(self) -> dict[str, Path]:
        """Local files by field, `config` and `weights`; relative paths start at the project."""
        named = {"config": self.config, "weights": self.weights}
        return {field: paths.resource(path) for field, path in named.items() if path is not None}


class CardSettings(Frozen):
    """`config/cards/<name>.yaml`: what a GPU's maker says it can do, for estimates of time."""

    name: Name
    title: str
    source: str = Field(description="where the numbers are printed")
    fp32_tflops: float = Field(gt=0, description="peak in float32, 10^12 FLOP/s; no TF32")
    bf16_tflops: float | None = Field(None, gt=0, description="peak in bf16; None: it has none")
    memory_gb: float = Field(gt=0, description="memory of the card")


class MethodFile(Frozen):
    """`config/methods/<method>.yaml`: title, source and default settings of a method."""

    name: Name
    title: str
    source: str = Field(description="paper, and where each number comes from")
    seeded: bool = Field(description="False: nothing is random, so one seed is enough")
    settings: dict[str, Any] = Field(default_factory=dict)


class VariantFile(Frozen):
    """`config/variants/<method>.yaml`: named overrides of a method's settings."""

    variants: dict[Name, dict[str, Any]]
    datasets: dict[Name, dict[Name, dict[str, Any]]] = Field(
        default_factory=dict,
        description="further overrides by variant and dataset, where a method's code has a value "
        "for each dataset",
    )

    @model_validator(mode="after")
    def _names_its_own_variants(self) -> VariantFile:
        for variant in self.datasets:
            if variant not in self.variants:
                raise ValueError(
                    f"'datasets' names the variant {variant!r}, 'variants' only "
                    f"{', '.join(self.variants)}; declare it there"
                )
        return self


class RunGrid(Frozen):
    """A grid of runs, the product of these lists; the study fills in what is not given."""

    methods: tuple[Name, ...] = Field(min_length=1)
    variants: tuple[Name, ...] = ("default",)
    datasets: tuple[Name, ...] | None = None
    backbones: tuple[Name, ...] | None = None
    descriptions: tuple[Name, ...] | None = None
    seeds: tuple[int, ...] | None = None


class ReportSelection(Frozen):
    """A table or figure of a study, and the part of the study it shows; its name alone will do."""

    name: Name
    datasets: tuple[Name, ...] | None = None
    backbones: tuple[Name, ...] | None = None
    descriptions: tuple[Name, ...] | None = None
    seeds: tuple[int, ...] | None = None
    values: tuple[float | int, ...] | None = Field(
        None, description="values of a sweep, in place of the figure's own"
    )
    is_brief: bool = Field(default=False, description="leave out rows that were not run")
    spread: Spread = Field(
        "deviation",
        description="shown with an accuracy: its sample deviation over seeds, or its 95 % interval "
        "over test images and seeds",
    )
    epoch: Epoch = Field(
        "last", description="of trained methods: the last, or the best, selected with test labels"
    )
    reference: str | None = Field(
        None, description="row that others are compared with, in place of the table's own"
    )
    has_ranks: bool = Field(
        default=False, description="add mean ranks over datasets and their critical difference"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_a_name(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values


class StudySettings(Frozen):
    """`config/config.yaml`: which runs to make, on which data, for which tables and figures."""

    study: Name
    title: str = ""
    datasets: tuple[Name, ...] = Field(min_length=1)
    backbones: tuple[Name, ...] = Field(min_length=1)
    descriptions: tuple[Name, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    runs: tuple[RunGrid, ...] = Field(
        (), description="runs in addition to those of tables and figures"
    )
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of a method for this study only"
    )
    tables: tuple[ReportSelection, ...] = Field((), description="files in config/tables")
    figures: tuple[ReportSelection, ...] = Field((), description="files in config/figures")
    device: Device = "auto"
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast, slow on most CPUs"
    )
    compile: Compile = Field(
        "off", description="the image tower by torch.compile; changes the last bits"
    )
    evaluate_every: int = Field(
        1, ge=1, description="epochs between tests while training; the last one is always tested"
    )
    gate: Literal["stop", "warn"] = Field(
        "stop", description="if CLIP's zero-shot accuracy is too far from the paper's"
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> StudySettings:
        if not (self.runs or self.tables or self.figures):
            raise ValueError(
                "the study names no runs, tables or figures; add one, such as `tables: [table1]`"
            )
        return self

    @model_validator(mode="after")
    def _names_each_once(self) -> StudySettings:
        for kind in ("datasets", "backbones", "descriptions", "seeds"):
            values = getattr(self, kind)
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{kind} lists {twice[0]} twice; leave one out")
        return self

    @model_validator(mode="after")
    def _shows_each_report_once(self) -> StudySettings:
        for kind, listed in (("tables", self.tables), ("figures", self.figures)):
            names = [selection.name for selection in listed]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(
                    f"{kind} lists {twice[0]} twice; copy config/{kind}/{twice[0]}.yaml under "
                    "another name to show it in two ways"
                )
        return self


def check_options(selection: ReportSelection, report: TableSettings | FigureSettings) -> None:
    """Refuse a table's options where they mean nothing, and an unknown reference row.

    Raises:
        SettingsError: names the option and the report.
    """
    named = selection.reference
    if isinstance(report, TableSettings) and report.kind == "accuracy":
        for reference in filter(None, (report.reference, named)):
            report.row_named(reference)
        _check_epoch(selection, report)
        return
    used = {"spread": selection.spread == "interval", "reference": named is not None}
    used |= {"has_ranks": selection.has_ranks, "epoch": selection.epoch == "best"}
    if any(used.values()):
        asked = ", ".join(name for name, is_used in used.items() if is_used)
        raise SettingsError(
            f"{asked} of {report.name} in the study: only a table of accuracies has intervals, "
            "daggers, ranks and a best epoch; leave it out"
        )


def _check_epoch(selection: ReportSelection, table: TableSettings) -> None:
    """Refuse what runs keep of the last epoch alone: one token's accuracy, and predictions."""
    if "best" not in (selection.epoch, table.epoch):
        return
    if any(row.head != "fused" for row in table.rows):
        raise SettingsError(
            f"epoch: best of table {table.name}: a row shows one token, whose best epoch no run "
            "records; leave out head or epoch"
        )
    has_reference = (selection.reference or table.reference) is not None
    if selection.spread == "interval" or has_reference:
        name = "reference" if has_reference else "spread: interval"
        raise SettingsError(
            f"epoch: best and {name} of table {table.name}: runs keep the predictions of the last "
            "epoch alone, intervals and daggers come from these; leave out one of the two"
        )


def load_dataset(name: str) -> DatasetSettings:
    """Load `config/datasets/<name>.yaml`."""
    return load_named("datasets", name, DatasetSettings)


def load_card(source: PublicSource) -> DatasetCard:
    """Card of a public dataset.

    Raises:
        SettingsError: the named file has no card, or the card has no such split.
    """
    where = f"config/datasets/{source.dataset}.yaml"
    card = load_dataset(source.dataset).card
    if card is None:
        raise SettingsError(f"{where} has no card; name the file of a public dataset")
    if source.split not in card.splits:
        raise SettingsError(
            f"unknown split {source.split!r} of {source.dataset}; {where} has "
            f"{', '.join(card.splits)}"
        )
    return card


def load_backbone_settings(name: str) -> BackboneSettings:
    """Load `config/backbones/<name>.yaml`."""
    return load_named("backbones", name, BackboneSettings)


def load_card_of_gpu(name: str) -> CardSettings:
    """Load `config/cards/<name>.yaml`."""
    return load_named("cards", name, CardSettings)


def load_descriptions(name: str) -> DescriptionSettings:
    """Load `config/llms/<name>.yaml`."""
    return load_named("llms", name, DescriptionSettings)


def load_method_file(name: str) -> MethodFile:
    """Load `config/methods/<name>.yaml`."""
    return load_named("methods", name, MethodFile)


def variants_of(method: str) -> dict[str, dict[str, Any]]:
    """Overrides of a method's variants, by name; `default` is always there and empty."""
    return {"default": {}, **variant_file(method).variants}


def variant_file(method: str) -> VariantFile:
    """Load `config/variants/<method>.yaml`; empty if there is no such file."""
    path = paths.project_root() / "config" / "variants" / f"{method}.yaml"
    if not path.is_file():
        return VariantFile(variants={})
    return validated(VariantFile, read_yaml(path), f"config/variants/{method}.yaml")


def load_variant(method: str, variant: str) -> dict[str, Any]:
    """Overrides of one variant. Raises SettingsError if there is no such variant."""
    variants = variants_of(method)
    if variant not in variants:
        raise SettingsError(
            f"unknown variant {variant!r} of {method} in config/variants/{method}.yaml; "
            f"known: {', '.join(variants)}"
        )
    return variants[variant]


DECLARED = "the study (config/config.yaml or --configfile)"  # as Snakemake reads it


def load_study(config: Mapping[str, Any], where: str = DECLARED) -> StudySettings:
    """Read a study from Snakemake's `config` mapping, or from the content of the file `where`."""
    return validated(StudySettings, config, where)
