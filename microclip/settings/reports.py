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


class TableSettings(Frozen):
    """`config/tables/<table>.yaml`: rows are methods and variants, columns are datasets."""

    name: Name
    title: str
    caption: str
    label: str = Field(description="LaTeX label")
    kind: Literal["accuracy", "datasets"] = Field(
        "accuracy", description="accuracy of runs, or the contents of the datasets (Table 10)"
    )
    rows: tuple[TableRow, ...] = ()
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
