"""Verbs for an adapted classifier: classify images, export it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from microclip.stages import app


@app.command()
def predict(
    adapted: Annotated[Path, typer.Argument(help="folder of an adapted model")],
    images: Annotated[list[Path], typer.Argument(help="image files or one folder")],
) -> None:
    """Classify images with an adapted model; CSV on standard output."""
    import csv

    import microclip

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "class", "confidence"])
    chosen = images[0] if len(images) == 1 and images[0].is_dir() else images
    for found in microclip.load(adapted).predict(chosen):
        writer.writerow([found.file, found.class_name, f"{found.confidence:.4f}"])
