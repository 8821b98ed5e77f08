"""The printed zero-shot accuracies of CLIP that datasets are held against."""

from __future__ import annotations

from dataclasses import dataclass

from microclip import paths
from microclip.measure import published
from microclip.settings import (
    DatasetSettings,
    Frozen,
    Name,
    PublicSource,
    read_yaml,
    validated,
)

_SPLIT = "paper"  # the only one that the paper's numbers are of


class PrintedRow(Frozen):
    """A row of one of the paper's tables."""

    table: Name
    row: str


class ZeroShotFile(Frozen):
    """`config/published/zero_shot.yaml`."""

    backbones: dict[Name, PrintedRow]


@dataclass(frozen=True)
class Figure:
    """A printed accuracy."""

    top1_pct: float
    where: str


def figure(dataset: DatasetSettings, backbone: str) -> Figure | None:
    """Return what the paper prints for CLIP on a public dataset's split `paper`; None if nothing.

    Raises: SettingsError if the file that names the rows names one that is not there.
    """
    path = paths.project_root() / "config/published/zero_shot.yaml"
    source = dataset.source
    if not isinstance(source, PublicSource) or source.split != _SPLIT or not path.is_file():
        return None
    where = "config/published/zero_shot.yaml"
    named = validated(ZeroShotFile, read_yaml(path), where).backbones.get(backbone)
    if named is None:
        return None
    printed = published.load(named.table).row(named.row, where).get(source.dataset, "")
    return Figure(float(printed), f"{named.table}, {named.row}") if printed else None
