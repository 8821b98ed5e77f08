"""Figures have one style, fit the page, and are saved with the same bytes each time."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from microclip.measure import drawing
from microclip.measure.drawing import Drawn

SCRIPT = """
import sys
from pathlib import Path
from tests.measure.test_drawing import example
from microclip.measure import drawing
drawing.save(example(), Path(sys.argv[1]))
assert "matplotlib.pyplot" not in sys.modules
"""
NUMBERS = pd.DataFrame({"x": [1e-6, 0.25], "value": [45.2083333333, 50.0]})


@drawing.house_style()
def example() -> Drawn:
    figure = drawing.new_figure(drawing.COLUMN_IN, 2.0)
    axes = figure.subplots()
    axes.plot([1, 2, 3], [4, 6, 5], label="fähig γ")
    axes.set_xlabel("$10^{-3}$")
    axes.legend()
    return Drawn(figure, NUMBERS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stem = tmp_path_factory.mktemp("saved") / "figure6.a"
    drawing.save(example(), stem)
    return stem


def test_a_figure_is_saved_as_picture_print_and_numbers(saved: Path) -> None:
    assert sorted(path.name for path in saved.parent.iterdir()) == [
        "figure6.a.csv",
        "figure6.a.pdf",
        "figure6.a.png",
    ]
    with Image.open(f"{saved}.png") as image:
        assert image.size == (650, 400)  # 3.25 and 2 inches of 200 dots
    assert Path(f"{saved}.csv").read_text() == "x,value\n1e-06,45.208333\n0.25,50\n"


def test_another_process_saves_the_same_bytes_and_never_loads_pyplot(
    saved: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "0"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "again"],
        check=True,
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
    )
    for kind in drawing.FORMATS:
        assert (tmp_path / f"again.{kind}").read_bytes() == Path(f"{saved}.{kind}").read_bytes()


def test_saved_files_contain_no_date_and_no_software_version(saved: Path) -> None:
    with Image.open(f"{saved}.png") as image:
        assert set(image.info) == {"dpi"}
    text = Path(f"{saved}.pdf").read_bytes()
    assert b"Date" not in text
    assert b"atplotlib" not in text


def test_text_in_a_pdf_can_be_searched(saved: Path) -> None:
    assert b"/FontFile2" in Path(f"{saved}.pdf").read_bytes()  # TrueType


def test_the_callers_style_is_restored() -> None:
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        with drawing.house_style():
            assert matplotlib.rcParams["font.size"] == 8
            assert matplotlib.rcParams["axes.facecolor"] == "white"
        assert matplotlib.rcParams["font.size"] == 20
        assert matplotlib.rcParams["axes.facecolor"] == "red"


def test_seven_lines_differ_in_every_feature_and_49_in_at_least_one() -> None:
    for part in ("colour", "marker", "dash"):
        assert len({getattr(drawing.ink(i), part) for i in range(7)}) == 7
    assert len({drawing.ink(i) for i in range(49)}) == 49
    assert drawing.ink(0).dash == "solid"


def luminance(colour: str) -> float:
    """The relative luminance (WCAG) of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))


def test_every_line_contrasts_with_white_paper() -> None:
    assert all(1.05 / (luminance(i.colour) + 0.05) > 2 for i in drawing.INKS)


@drawing.house_style()
def with_legend(labels: list[str]) -> tuple[Figure, float, float]:
    """A figure with a legend, and the height of its axes without and with it, inches."""
    figure = drawing.new_figure(drawing.COLUMN_IN, 2.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    figure.draw_without_rendering()
    before = axes.get_window_extent().height / figure.dpi
    drawing.legend_above(figure, [Line2D([], [], label=label) for label in labels])
    figure.draw_without_rendering()
    return figure, before, axes.get_window_extent().height / figure.dpi


@pytest.mark.parametrize(
    ("labels", "n_columns"),
    [
        (["one"], 1),
        (["one", "two", "three"], 3),
        (["a line with a name of some length", "another one with such a name"], 1),
        (["word"] * 6, 3),
    ],
)
def test_a_legend_is_above_the_axes_in_as_many_columns_as_fit(
    labels: list[str], n_columns: int
) -> None:
    figure, before, after = with_legend(labels)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert legend._ncols == n_columns
    assert box.y0 >= figure.axes[0].get_window_extent().y1
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert after == pytest.approx(before, abs=0.1)
