"""Print what a crop loses if its image was first reduced to a canvas, by canvas size.

`python benchmarks/canvas.py [FOLDER]` takes a folder's photographs, or makes six of 2000 x 1500 px
as JPEGs (quality 92): leaves of all sizes that cover each other, whose spectrum falls as that of
photographs does, textured with 1/f noise. Each square crop is resized to 224 px twice, from the
canvas and from the same place of the original. A cell says how much smaller the mean absolute
difference of neighbouring pixels is (least and most), and the mean PSNR of the pixels.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from microclip.data.files import image_files

CANVASES = (448, 560, 672, 896, 1120)
# Sides of square crops, as shares of the shorter side. A crop has 0.5 to 0.9 of it: at exactly 0.5
# of 448 px it is not resized again and loses nothing, at 0.505 it loses most. 0.474 is the shorter
# side of the smallest strong view (area 0.3, ratio 4/3) of a square photograph.
SHARES = (0.474, 0.505, 0.6, 0.7, 0.9)
VIEW = 224
BORDER = 4  # px of a view that are not compared: there, the canvas has neighbours to draw on
N_MADE, WIDTH, HEIGHT = 6, 2000, 1500
PLACES = ((0.0, 0.0), (0.5, 0.5), (1.0, 0.3))  # of a crop, as shares of the room it has


def one_over_f(rng: np.random.Generator) -> np.ndarray:
    """Noise whose amplitude falls as 1/frequency, with mean 0 and deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((HEIGHT, WIDTH))) / frequency
    noise = np.fft.irfft2(spectrum, (HEIGHT, WIDTH))
    return noise / noise.std()


def photograph(seed: int) -> Image.Image:
    """A scene of leaves; radii follow r^-3, which makes it alike at all scales."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (WIDTH, HEIGHT), (110, 120, 130))
    draw = ImageDraw.Draw(image)
    smallest, largest = 3.0, 500.0
    radii = 1 / np.sqrt(rng.uniform(largest**-2, smallest**-2, 60_000))
    for radius in radii:
        x, y = rng.uniform(-50, WIDTH + 50), rng.uniform(-50, HEIGHT + 50)
        flat = rng.uniform(0.5, 1.0) * radius
        colour = tuple(int(v) for v in rng.normal(115, 50, 3).clip(0, 255))
        draw.ellipse((x - radius, y - flat, x + radius, y + flat), fill=colour)
    textured = np.asarray(image, dtype=np.float64) + 12 * one_over_f(rng)[..., None]
    return Image.fromarray(textured.clip(0, 255).round().astype(np.uint8))


def on_canvas(image: Image.Image, canvas: int) -> Image.Image:
    """The image as the store keeps it."""
    shorter = min(image.size)
    if shorter <= canvas:
        return image
    size = [max(1, round(side * canvas / shorter)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def views(
    original: Image.Image, stored: Image.Image, share: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each crop from the original and from the canvas."""
    found = []
    width, height = stored.size
    side = int(share * min(width, height))
    across, down = original.width / width, original.height / height
    for x_share, y_share in PLACES:
        x, y = int(x_share * (width - side)), int(y_share * (height - side))
        box = (x * across, y * down, (x + side) * across, (y + side) * down)
        both = [
            image.resize((VIEW, VIEW), Image.Resampling.BICUBIC, box=own)
            for image, own in ((original, box), (stored, (x, y, x + side, y + side)))
        ]
        first, second = (np.asarray(view, dtype=np.float64) for view in both)
        found.append((first, second))
    return found


def compare(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """Least and greatest share of gradients lost (%), and the mean PSNR (dB)."""
    lost, psnr = [], []
    for pair in pairs:
        first, second = (view[BORDER:-BORDER, BORDER:-BORDER] for view in pair)
        steps = [
            np.abs(np.diff(view, axis=0)).mean() + np.abs(np.diff(view, axis=1)).mean()
            for view in (first, second)
        ]
        lost.append(100 * (1 - steps[1] / steps[0]))
        psnr.append(10 * np.log10(255**2 / np.square(first - second).mean()))
    return min(lost), max(lost), float(np.mean(psnr))


def main() -> None:
    """Compare all canvases and shares, and print the bytes of each canvas."""
    with tempfile.TemporaryDirectory() as name:
        if len(sys.argv) < 2:
            for seed in range(N_MADE):
                photograph(seed).save(Path(name) / f"{seed}.jpg", quality=92)
        files = image_files(Path(sys.argv[1] if len(sys.argv) > 1 else name))
        originals = [Image.open(file).convert("RGB") for file in files]
    print(f"{len(originals)} photographs, the first of {originals[0].size}")
    for canvas in CANVASES:
        stored = [on_canvas(image, canvas) for image in originals]
        n_bytes = np.mean([3 * image.width * image.height for image in stored])
        cells = [f"{canvas}", f"{n_bytes / 1e6:.2f} MB"]
        for share in SHARES:
            pairs = [
                pair
                for original, small in zip(originals, stored, strict=True)
                for pair in views(original, small, share)
            ]
            least, most, psnr = compare(pairs)
            cells.append(f"{least:.1f} to {most:.1f} %, {psnr:.1f} dB")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
