"""Declarations of tables and figures, `config/tables/` and `config/figures/`.

A table or figure names the runs that it shows; a study that lists it makes those runs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from microclip.settings.base import Frozen, Name, SettingsError, load_named

Head = Literal["fused", "global", "local"]
Spread = Literal["deviation", "interval"]
Epoch = Literal["last", "best"]


class TableRow(Frozen):
    """A row of a table: the runs that it averages, and its label."""

    method: Name
    label: str
    group: str | None = Field(None, description="heading above consecutive rows of one group")
    variant: Name = "default"
    backbone: Name | None = Field(None, description="needed if the study has several")
    descriptions: Name | None = Field(None, description="needed if the study has several")
    head: Head = Field(
        "fused", description="accuracy shown: the method's own prediction, or that of one token"
    )
    published: str | None = Field(
        None, description="row of the published CSV: the words of its name, joined by ' / '"
    )


class ClaimSide(Frozen):
    """One of the two sides that a claim compares: runs, and what is measured of them."""

    method: Name = "microclip"
    variant: Name = "default"
    figure: Name | None = Field(None, description="a sweep of the study: the run is its `value`'s")
    value: float | None = None
    head: Head = "fused"
    column: Name | None = Field(
        None, description="of the history, on training images, in place of the test accuracy"
    )
    epoch: Literal["mean", "first", "last"] = Field("mean", description="of the column")

    @model_validator(mode="after")
    def _names_one_run(self) -> ClaimSide:
        if (self.figure is None) != (self.value is None):
            raise ValueError("a point of a sweep needs both 'figure' and 'value'; add the other")
        if self.figure is not None and self.variant != "default":
            raise ValueError("'figure' names the variant of its value; leave out 'variant'")
        if self.column is not None and self.head != "fused":
            raise ValueError("'column' is measured in place of a head; leave out 'head'")
        return self


class Claim(Frozen):
    """A claim of the paper: the first side is better than the second, or about as good."""

    group: str = Field(description="heading above consecutive claims, such as Table 2")
    label: str
    source: str = Field(description="where the paper says so")
    first: ClaimSide = Field(
        default_factory=lambda: ClaimSide.model_validate({}), description="microCLIP if left out"
    )
    second: ClaimSide
    alike_pct: float | None = Field(
        None, gt=0, description="claimed to be alike, within this many points, not to be better"
    )
    published_pct: float | None = Field(
        None, description="the paper's difference in points, on its own datasets"
    )

    @model_validator(mode="after")
    def _compares_like_with_like(self) -> Claim:
        if (self.first.column is None) != (self.second.column is None):
            raise ValueError(f"claim {self.label!r}: both sides need a 'column', or none")
        return self


class TableSettings(Frozen):
    """`config/tables/<table>.yaml`: rows are methods and variants, columns are datasets."""

    name: Name
    title: str
    caption: str
    label: str = Field(description="LaTeX label")
    kind: Literal["accuracy", "datasets", "claims"] = Field(
        "accuracy",
        description="accuracy of runs, the contents of the datasets (Table 10), or claims and "
        "whether they hold",
    )
    rows: tuple[TableRow, ...] = ()
    claims: tuple[Claim, ...] = Field((), description="rows of a table of claims")
    shows_supervision: bool = Field(
        default=True, description="a first column that says what each method may see"
    )
    epoch: Epoch = Field(
        "last",
        description="of trained methods: the last, or the best, which the test labels select; a "
        "study can ask for the best too",
    )
    published: Name | None = Field(None, description="file in config/published, without .csv")
    tolerance_pct: float = Field(
        0.5, ge=0, description="a cell matches the published one within this many points"
    )
    reference: str | None = Field(
        None, description="row that others are compared with, LABEL or GROUP: LABEL; adds daggers"
    )

    @model_validator(mode="after")
    def _accuracy_has_rows(self) -> TableSettings:
        if self.kind == "accuracy" and not self.rows:
            raise ValueError("a table of accuracies needs rows")
        if (self.kind == "claims") != bool(self.claims):
            raise ValueError("'kind: claims' and a list of 'claims' go together; add the other")
        return self

    def row_named(self, name: str) -> TableRow:
        """The row with this label, or `GROUP: LABEL`. Raises SettingsError if not exactly one."""
        found = [row for row in self.rows if name in (row.label, f"{row.group}: {row.label}")]
        if len(found) != 1:
            known = "; ".join(
                row.label if row.group is None else f"{row.group}: {row.label}" for row in self.rows
            )
            raise SettingsError(
                f"reference {name!r} of table {self.name} names {len(found)} rows, expected one; "
                f"rows of config/tables/{self.name}.yaml: {known or 'none'}"
            )
        return found[0]


class PublishedPoint(Frozen):
    """A point of a figure that the paper's text names."""

    dataset: Name
    value: float
    top1_pct: float
    source: str


class SweepPlot(Frozen):
    """Accuracy, and optionally time and memory, over the values of one setting."""

    kind: Literal["sweep"] = "sweep"
    method: Name = "microclip"
    setting: Name = Field(description="field of the method's settings")
    prefix: Name = Field(description="of the variants' names: <prefix>-<value>")
    values: tuple[float | int, ...] = Field(min_length=1)
    x_label: str
    x_scale: Literal["linear", "log2", "log10"] = "linear"
    panels: tuple[Literal["accuracy", "seconds", "memory"], ...] = ("accuracy",)
    published: tuple[PublishedPoint, ...] = ()


class HistoryLine(Frozen):
    """One column of `history.csv` of one variant, by epoch."""

    label: str
    column: str
    variant: Name = "default"
    is_dashed: bool = False


class HistoryPlot(Frozen):
    """Columns of history by epoch."""

    kind: Literal["history"] = "history"
    method: Name = "microclip"
    y_label: str
    lines: tuple[HistoryLine, ...] = Field(min_length=1)


class MapsPlot(Frozen):
    """Where [CLS] and [FG] look, before and after adaptation, for some test images."""

    kind: Literal["attention"] = "attention"
    method: Name = "microclip"
    variant: Name = "default"
    images: int | tuple[str, ...] = Field(
        6, description="number of images, one per class from the first class on, or manifest files"
    )


class MasksPlot(Frozen):
    """Normalised-cut masks, raw and refined by a dense CRF."""

    kind: Literal["masks"] = "masks"
    method: Name = "microclip"
    variant: Name = "default"
    images: int | tuple[str, ...] = 6


class FailuresPlot(Frozen):
    """Test images that one token classifies correctly and the fusion does not."""

    kind: Literal["failures"] = "failures"
    method: Name = "microclip"
    variant: Name = "default"
    images: int = Field(8, ge=1)


class FigureSettings(Frozen):
    """`config/figures/<figure>.yaml`: a picture, its caption and the runs that it is drawn from."""

    name: Name
    title: str
    caption: str
    plot: Annotated[
        SweepPlot | HistoryPlot | MapsPlot | MasksPlot | FailuresPlot,
        Field(discriminator="kind"),
    ]

    @property
    def variants(self) -> tuple[str, ...]:
        """Named variants that are shown; the study itself makes those of a sweep."""
        match self.plot:
            case SweepPlot():
                return ()
            case HistoryPlot(lines=lines):
                return tuple(dict.fromkeys(line.variant for line in lines))
            case plot:
                return (plot.variant,)


def load_table(name: str) -> TableSettings:
    """Load `config/tables/<name>.yaml`."""
    return load_named("tables", name, TableSettings)


def load_figure(name: str) -> FigureSettings:
    """Load `config/figures/<name>.yaml`."""
    return load_named("figures", name, FigureSettings)
