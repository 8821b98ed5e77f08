"""What shipped files hold: a changed file makes anew what was made of it, a touched one does not.

Snakemake sees these as parameters of its rules. Times of files say nothing here: a fresh clone, a
branch and back, or a copy change them all.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from microclip import paths, runtime
from microclip.settings import BackboneSettings, DatasetSettings, IconSource, digest


@cache
def content(path: Path) -> str:
    """Return what names a file's or folder's bytes; "" if there is none."""
    if path.is_file():
        return runtime.sha256(path)
    files = sorted(found for found in path.rglob("*") if found.is_file())
    return digest([[str(f.relative_to(path)), runtime.sha256(f)] for f in files]) if files else ""


def dataset_files(dataset: DatasetSettings) -> str:
    """Return what names the drawings of an icon dataset; one's own images are listed by fetch."""
    if isinstance(dataset.source, IconSource):
        return content(paths.project_root() / "resources" / "icons" / dataset.source.drawings)
    return ""


def backbone_files(backbone: BackboneSettings) -> list[str]:
    """Return what names a backbone's local files."""
    return [content(path) for path in backbone.files.values()]
