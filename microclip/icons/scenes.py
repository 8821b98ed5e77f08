"""Render the icon benchmark's images: drawings on backgrounds, every draw from a named seed.

A scene shows one drawing of its class at a random position and size, slightly rotated, on a plain,
graded, textured or cluttered background. A higher `difficulty` in [0, 1] makes drawings smaller,
clutter denser and partly in front, light dimmer and coloured, and the picture softer. Clutter is
made of fragments of other classes' drawings. With `split: drawings` no drawing is on both sides of
the split, not even as clutter; with `split: scenes` each drawing is on both, in other scenes: then
instances are recognised, as car models recur in Cars. A `style` other than plain is a domain that
icon-clip was never shown. Only Pillow and Python's own Mersenne Twister are used: equal seeds give
equal bytes.
"""

from __future__ import annotations

import csv
import hashlib
import random
import shutil
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from microclip import paths, runtime
from microclip.settings.base import SettingsError
from microclip.settings.datasets import IconSource

ROTATION_DEG = 12.0
TEST_SHARE = 1 / 3  # of a class's drawings, at least one
TILES = (3, 4)  # copies in a row, with style tiles
COARSE_PX = 20  # side to which style coarse reduces a scene
CLUTTER_SHARE = (0.25, 0.5)  # of a fragment's side in the scene's


@dataclass(frozen=True)
class Look:
    """How scenes look at a given difficulty."""

    side_share: tuple[float, float]  # of the drawing's side in the scene's
    clutter: float  # share of scenes with clutter
    pieces: int  # of clutter at most
    occlusion: float  # share of scenes with a fragment in front of the drawing
    darkest: int  # light per channel, 255 is full
    blur_px: float  # at most


def look_of(difficulty: float) -> Look:
    """The look at a difficulty in [0, 1]."""
    return Look(
        side_share=(0.55 - 0.25 * difficulty, 0.9 - 0.35 * difficulty),
        clutter=0.3 + 0.7 * difficulty,
        pieces=round(3 + 5 * difficulty),
        occlusion=0.8 * difficulty,
        darkest=round(235 - 135 * difficulty),
        blur_px=1.2 * difficulty,
    )


@dataclass(frozen=True)
class Drawing:
    """One drawing of a set: a transparent image and the class it shows."""

    file: str
    class_name: str
    artist: str
    image: Image.Image


@dataclass(frozen=True)
class Row:
    """One row of the manifest."""

    split: str
    file: str
    label: int
    class_name: str
    artist: str
    drawing: str
    seed: int
    sha256: str


def seed_of(*parts: str | int) -> int:
    """A 63-bit seed derived from its parts."""
    # Not `hash()`, which differs from process to process for strings.
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def class_names(drawings: str, count: int | None = None, seed: int = 0) -> list[str]:
    """Class names of a set in label order; with `count`, a random choice of them by `seed`.

    Raises:
        SettingsError: the set is unknown or has fewer classes.
    """
    folder = paths.resource(f"{paths.ICONS}/{drawings}")
    if not (folder / "classes.txt").is_file():
        raise _no_drawings(drawings)
    names = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    if count is None:
        return names
    if count > len(names):
        raise SettingsError(
            f"classes: {count} asked of icon set {drawings!r}, which has {len(names)}; lower it"
        )
    kept = set(random.Random(seed_of(seed, drawings, "classes")).sample(names, count))
    return [name for name in names if name in kept]


def _no_drawings(drawings: str) -> SettingsError:
    roots = {paths.project_root(), paths.INSTALLED}
    found = {
        path.parent.name for root in roots for path in root.glob(f"{paths.ICONS}/*/classes.txt")
    }
    known = f"known: {', '.join(sorted(found))}"
    if not paths.IS_WHEEL:
        return SettingsError(f"unknown icon set {drawings!r}; {known}")
    wanted = f"{paths.ICONS}/{drawings}"
    return SettingsError(f"no drawings {drawings!r}; {known}; {paths.how_to_add(wanted)}")


def load_drawings(drawings: str, names: Sequence[str]) -> list[Drawing]:
    """Drawings of the named classes, in the order of `drawings.csv`.

    Raises:
        SettingsError: a drawing cannot be read; the message names the file.
    """
    folder = paths.resource(f"{paths.ICONS}/{drawings}")
    wanted, found = set(names), []
    with (folder / "drawings.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["class"] not in wanted:
                continue
            try:
                with Image.open(folder / row["file"]) as opened:
                    image = opened.convert("RGBA")
            except OSError as error:
                raise SettingsError(
                    f"drawing {folder / row['file']} cannot be read ({error}); restore it from git"
                ) from error
            found.append(Drawing(row["file"], row["class"], row["artist"], image))
    return found


def by_class_name(drawings: Sequence[Drawing]) -> dict[str, list[Drawing]]:
    """Drawings by class, in their order."""
    found: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        found.setdefault(drawing.class_name, []).append(drawing)
    return found


def split_drawings(
    drawings: Sequence[Drawing], seed: int
) -> tuple[dict[str, list[Drawing]], dict[str, list[Drawing]]]:
    """Train and test drawings by class; a random third of each class is for testing."""
    train, test = {}, {}
    for name, own in by_class_name(drawings).items():
        shuffled = random.Random(seed_of(seed, name, "split")).sample(own, len(own))
        n_test = max(1, round(len(own) * TEST_SHARE))
        test[name], train[name] = shuffled[:n_test], shuffled[n_test:]
    return train, test


def _colour(rng: random.Random) -> tuple[int, int, int]:
    bright = rng.random() < 0.5
    low, high = (150, 255) if bright else (0, 255)
    return (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))


def _noise(rng: random.Random, cells: int, size_px: int) -> Image.Image:
    """Smooth colour noise with `cells` cells per side."""
    coarse = Image.frombytes("RGB", (cells, cells), rng.randbytes(cells * cells * 3))
    return coarse.resize((size_px, size_px), Image.Resampling.BICUBIC)


def background(rng: random.Random, size_px: int) -> Image.Image:
    """A plain, graded or textured background, opaque RGB."""
    plain = Image.new("RGB", (size_px, size_px), _colour(rng))
    kind = rng.choice(("plain", "gradient", "clouds", "grain"))
    if kind == "plain":
        return plain
    if kind == "gradient":
        other = Image.new("RGB", (size_px, size_px), _colour(rng))
        ramp = Image.linear_gradient("L").resize((size_px, size_px))
        turned = ramp.rotate(90 * rng.randint(0, 3))
        return Image.composite(plain, other, turned)
    cells = rng.randint(3, 7) if kind == "clouds" else size_px // 2
    return Image.blend(plain, _noise(rng, cells, size_px), rng.uniform(0.15, 0.6))


def _paste(
    canvas: Image.Image, drawing: Image.Image, rng: random.Random, share: float, *, inside: bool
) -> None:
    """Put a drawing on the canvas, scaled and rotated; unless `inside`, the edge may cut it."""
    side = max(4, round(canvas.width * share))
    turned = drawing.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    angle = rng.uniform(-ROTATION_DEG, ROTATION_DEG)
    turned = turned.rotate(angle, Image.Resampling.BICUBIC).convert("RGBA")
    low, high = (0, canvas.width - side) if inside else (-side // 2, canvas.width - side // 2)
    canvas.paste(turned, (rng.randint(low, high), rng.randint(low, high)), turned)


def _tile(canvas: Image.Image, drawing: Image.Image, rng: random.Random, share: float) -> None:
    """Cover the canvas with copies of a drawing, each turned by any angle, as seen from above."""
    n = rng.randint(*TILES)
    pitch = canvas.width / n
    side = max(4, round(pitch * min(1.0, share + 0.3)))
    small = drawing.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    for row in range(n):
        for column in range(n):
            turned = small.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC).convert("RGBA")
            left, top = (round((i + rng.uniform(0, 0.3)) * pitch) for i in (column, row))
            canvas.paste(turned, (left, top), turned)


def styled(scene: Image.Image, style: str) -> Image.Image:
    """A scene in another domain: grey, of low resolution, or outlines on white."""
    match style:
        case "grey":
            return scene.convert("L").convert("RGB")
        case "coarse":
            small = scene.resize((COARSE_PX, COARSE_PX), Image.Resampling.BOX)
            return small.resize(scene.size, Image.Resampling.BILINEAR)
        case "lines":
            edges = scene.convert("L").filter(ImageFilter.FIND_EDGES)
            inked = ImageOps.invert(ImageOps.autocontrast(edges, cutoff=(0, 2)))
            ImageDraw.Draw(inked).rectangle((0, 0, inked.width - 1, inked.height - 1), outline=255)
            return inked.convert("RGB")
    return scene


def render_scene(  # noqa: PLR0913  all that a scene depends on
    drawing: Image.Image,
    clutter: Sequence[Image.Image],
    rng: random.Random,
    *,
    size_px: int,
    look: Look,
    style: str = "plain",
) -> Image.Image:
    """A scene, RGB [size, size]: background, clutter, drawing, occlusion, light, blur, style."""

    def add_fragment() -> None:
        fragment = clutter[rng.randrange(len(clutter))]
        _paste(canvas, fragment, rng, rng.uniform(*CLUTTER_SHARE), inside=False)

    canvas = background(rng, size_px)
    if clutter and rng.random() < look.clutter:
        for _ in range(rng.randint(1, look.pieces)):
            add_fragment()
    share = rng.uniform(*look.side_share)
    if style == "tiles":
        _tile(canvas, drawing, rng, share)
    else:
        _paste(canvas, drawing, rng, share, inside=True)
    if clutter and rng.random() < look.occlusion:
        add_fragment()
    tint = tuple(rng.randint(look.darkest, 255) for _ in range(3))
    canvas = ImageChops.multiply(canvas, Image.new("RGB", canvas.size, tint))
    return styled(canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0, look.blur_px))), style)


def _write_split(
    source: IconSource,
    names: Sequence[str],
    split: str,
    drawings: dict[str, list[Drawing]],
    folder: Path,
) -> list[Row]:
    """Render one split into `folder`; return its manifest rows."""
    look = look_of(source.difficulty)
    n_scenes = source.train_scenes if split == "train" else source.test_scenes
    rows = []
    for label, name in enumerate(names):
        clutter = [d.image for other in names if other != name for d in drawings[other]]
        for number in range(n_scenes):
            chosen = drawings[name][number % len(drawings[name])]
            seed = seed_of(source.seed, source.drawings, split, name, number)
            scene = render_scene(
                chosen.image,
                clutter,
                random.Random(seed),
                size_px=source.size_px,
                look=look,
                style=source.style,
            )
            file = f"{split}/{Path(chosen.file).parent.name}/{number:03d}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            scene.save(folder / file)
            digest = runtime.sha256(folder / file)
            rows.append(Row(split, file, label, name, chosen.artist, chosen.file, seed, digest))
    return rows


def write_dataset(source: IconSource, folder: Path) -> None:
    """Write `train/`, `test/` and, last, `manifest.csv` into `folder`.

    Raises:
        SettingsError: an unknown set, too few classes, or an unreadable drawing.
    """
    names = class_names(source.drawings, source.classes, source.seed)
    drawings = load_drawings(source.drawings, names)
    if source.split == "drawings":
        halves = split_drawings(drawings, source.seed)
    else:
        halves = (by_class_name(drawings),) * 2
    temporary = folder / ".rendering"
    shutil.rmtree(temporary, ignore_errors=True)
    rows: list[Row] = []
    try:
        for split, shown in zip(("train", "test"), halves, strict=True):
            rows += _write_split(source, names, split, shown, temporary)
        for split in ("train", "test"):
            shutil.rmtree(folder / split, ignore_errors=True)
            (temporary / split).rename(folder / split)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    header = ["class" if f.name == "class_name" else f.name for f in fields(Row)]
    with (
        runtime.atomic_path(folder / "manifest.csv") as path,
        path.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(astuple(row) for row in rows)
