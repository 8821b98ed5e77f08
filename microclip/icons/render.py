"""Rasterise the icons: `make icons` writes `resources/icons/` and the pretraining drawings.

This is for maintainers and needs npm, resvg_py and a network; no study runs it.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microclip import paths, runtime
from microclip.icons.catalogue import (
    BENCHMARK_ARTISTS,
    PACKAGES,
    PRETRAINING_ARTISTS,
    Catalogue,
    Concept,
    Drawing,
    slug,
)

log = logging.getLogger(__name__)

BENCHMARK_PX = 96
PRETRAINING_PX = 64
MAX_DRAWINGS_PER_ARTIST = 2
SAME_DRAWING = 2.0  # two drawings are the same below this mean grey-level difference at 32 px
Raster = NDArray[np.uint8]


def fetch_packages(folder: Path) -> None:
    """Unpack the npm packages of `PACKAGES` below `folder`, by name and exact version."""
    for package, version in PACKAGES.items():
        target = folder / package.replace("@", "").replace("/", "-")
        if (target / "package").is_dir():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        log.info("npm pack %s@%s", package, version)
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True)
        archive = folder / f"{target.name}-{version}.tgz"
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")
        archive.unlink()


def svg_of(artist: dict[str, Any], icon: str) -> str:
    """An icon of an iconify set as a standalone SVG."""
    values = artist["icons"][icon]
    width = values.get("width", artist.get("width", 16))
    height = values.get("height", artist.get("height", 16))
    left = values.get("left", artist.get("left", 0))
    top = values.get("top", artist.get("top", 0))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{values['body']}</svg>"
    )


def rasterise(svg: str, size_px: int) -> Raster | None:
    """RGBA [size, size, 4] of the drawing, cropped to its ink and centred; None if it is empty."""
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=2 * size_px, height=None, skip_system_fonts=True
        )
    except ValueError:
        return None
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = image.getchannel("A").point(lambda value: 255 if value > 8 else 0).getbbox()
    if box is None:
        return None
    ink = image.crop(box)
    scale = size_px / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    # RGBa is premultiplied: transparent pixels must not bleed their colour into the edges.
    ink = ink.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (size_px, size_px))
    square.paste(ink, ((size_px - width) // 2, (size_px - height) // 2))
    return np.asarray(square, dtype=np.uint8)


def _rasterise_all(task: tuple[list[str], int]) -> list[Raster | None]:
    svgs, size_px = task
    return [rasterise(svg, size_px) for svg in svgs]


def rasterise_artist(
    pool: ProcessPoolExecutor, catalogue: Catalogue, drawings: Sequence[Drawing], size_px: int
) -> list[Raster | None]:
    """Rasters of one artist's drawings, in order."""
    if not drawings:
        return []
    file = catalogue.artist_file(drawings[0].artist)
    svgs = [svg_of(file, drawing.icon) for drawing in drawings]
    parts = [svgs[start : start + 64] for start in range(0, len(svgs), 64)]
    results = pool.map(_rasterise_all, [(part, size_px) for part in parts])
    return [raster for part in results for raster in part]


def write_pretraining(pool: ProcessPoolExecutor, catalogue: Catalogue, folder: Path) -> None:
    """Write `drawings.npy` [n, 64, 64, 4] and `drawings.json` (artist, icon, hexcode, licence)."""
    rasters: list[Raster] = []
    index = []
    for artist in PRETRAINING_ARTISTS:
        drawings = list(catalogue.drawings(artist))
        for drawing, raster in zip(
            drawings, rasterise_artist(pool, catalogue, drawings, PRETRAINING_PX), strict=True
        ):
            if raster is not None:
                rasters.append(raster)
                hexcode = drawing.concept.hexcode if drawing.concept else None
                index.append({"artist": artist, "icon": drawing.icon, "hexcode": hexcode})
        log.info("%s: %d drawings so far", artist, len(rasters))
    folder.mkdir(parents=True, exist_ok=True)
    with runtime.atomic_path(folder / "drawings.npy") as path:
        np.save(path, np.stack(rasters))
    runtime.write_json(folder / "drawings.json", {"packages": PACKAGES, "drawings": index})


def _thumbnails(rasters: Raster) -> NDArray[np.float32]:
    colour = rasters.astype(np.float32)
    colour[..., :3] *= colour[..., 3:] / 255
    n, side = len(rasters), rasters.shape[1]
    factor = side // 32
    small: NDArray[np.float32] = colour.reshape(n, 32, factor, 32, factor, 4).mean((2, 4))
    return small


class SeenInPretraining:
    """Recognises benchmark drawings that are nearly identical to a pretraining drawing."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "drawings.json").read_text())["drawings"]
        thumbnails = _thumbnails(np.load(folder / "drawings.npy"))
        self._by_concept: dict[str, list[NDArray[np.float32]]] = {}
        for row, thumbnail in zip(index, thumbnails, strict=True):
            if row["hexcode"]:
                self._by_concept.setdefault(row["hexcode"], []).append(thumbnail)

    def __call__(self, concept: Concept, raster: Raster) -> bool:
        """Whether a pretraining drawing of the concept has nearly the same pixels."""
        own = _thumbnails(raster[None])[0]
        others = self._by_concept.get(concept.hexcode, [])
        return any(float(np.abs(own - other).mean()) < SAME_DRAWING for other in others)


def write_benchmark(
    pool: ProcessPoolExecutor, catalogue: Catalogue, folder: Path, seen: SeenInPretraining
) -> None:
    """Write each set's classes, drawings (lossless WebP) and `drawings.csv` below `folder`."""
    rasters: dict[str, list[tuple[Drawing, Raster]]] = {}
    for artist in BENCHMARK_ARTISTS:
        drawings = [d for d in catalogue.drawings(artist) if d.concept]
        for drawing, raster in zip(
            drawings, rasterise_artist(pool, catalogue, drawings, BENCHMARK_PX), strict=True
        ):
            assert drawing.concept
            if raster is not None and not seen(drawing.concept, raster):
                rasters.setdefault(drawing.concept.hexcode, []).append((drawing, raster))
    for name, concepts in catalogue.benchmark_classes().items():
        shutil.rmtree(folder / name, ignore_errors=True)
        kept = [c for c in concepts if len({d.artist for d, _ in rasters[c.hexcode]}) >= 2]
        _write_set(folder / name, kept, rasters)
        log.info("%s: %d classes (of %d)", name, len(kept), len(concepts))


def _write_set(
    folder: Path, concepts: Sequence[Concept], rasters: dict[str, list[tuple[Drawing, Raster]]]
) -> None:
    rows = []
    for concept in concepts:
        taken: dict[str, int] = {}
        for drawing, raster in rasters[concept.hexcode]:
            number = taken.setdefault(drawing.artist, 0)
            if number == MAX_DRAWINGS_PER_ARTIST:
                continue
            taken[drawing.artist] += 1
            suffix = f"-{number + 1}" if number else ""
            file = f"{slug(concept.name)}/{drawing.artist}{suffix}.webp"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(raster).save(folder / file, lossless=True, quality=100, method=6)
            rows.append([file, concept.name, drawing.artist, drawing.icon, drawing.licence])
    runtime.write_text(folder / "classes.txt", "".join(f"{c.name}\n" for c in concepts))
    with (
        runtime.atomic_path(folder / "drawings.csv") as path,
        path.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "class", "artist", "icon", "licence"])
        writer.writerows(rows)


def main() -> None:
    """Fetch, rasterise and write `resources/icons/` (benchmark) and `build/` (pretraining)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    root = paths.project_root()
    fetch_packages(root / "build" / "npm")
    catalogue = Catalogue(root / "build" / "npm")
    pretraining = root / "build" / "icon-clip"
    with ProcessPoolExecutor() as pool:
        if not (pretraining / "drawings.json").is_file():
            write_pretraining(pool, catalogue, pretraining)
        seen = SeenInPretraining(pretraining)
        write_benchmark(pool, catalogue, root / "resources" / "icons", seen)


if __name__ == "__main__":
    main()
