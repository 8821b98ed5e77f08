"""Sweeps and histories: means and bands over seeds, missing runs with reasons, axes, marks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from microclip.measure import curves
from microclip.measure.curves import Results
from microclip.measure.drawing import Drawn
from microclip.settings import SettingsError
from microclip.settings.reports import HistoryPlot, SweepPlot
from microclip.study import FigureSelection, RunSpec, SweepPoint
from microclip.tracking.run import write_history

RUN = RunSpec("icons-food-small", "icon-clip", "shipped", "microclip")
SWEEP = SweepPlot.model_validate(
    {
        "setting": "gamma",
        "prefix": "gamma",
        "values": [0.0, 0.5, 1.0],
        "x_label": "gamma",
        "published": [
            {"dataset": "icons-food-small", "value": 0.5, "top1_pct": 60.0, "source": "text"},
            {"dataset": "icons-flags", "value": 0.5, "top1_pct": 70.0, "source": "text"},
        ],
    }
)
VARIANTS = {0.0: "gamma-0", 0.5: "default", 1.0: "gamma-1"}
HISTORY = HistoryPlot.model_validate(
    {
        "y_label": "Pseudo-label accuracy (%)",
        "lines": [
            {"label": "Mix", "column": "pseudo_mix_pct"},
            {
                "label": "Prior alone",
                "column": "pseudo_mix_pct",
                "variant": "gamma-1",
                "is_dashed": True,
            },
        ],
    }
)


def selection(**changes: Any) -> FigureSelection:
    """A plan's selection for a figure of one dataset with three seeds."""
    parts = {
        "datasets": ["icons-food-small"],
        "backbones": ["icon-clip"],
        "descriptions": ["shipped"],
        "seeds": [0, 1, 2],
        **changes,
    }
    points = tuple(
        SweepPoint(dataset, value, variant)
        for dataset in parts["datasets"]
        for value, variant in VARIANTS.items()
    )
    return FigureSelection(**{k: tuple(v) for k, v in {"points": points, **parts}.items()})


def row(top1_pct: float, seconds: float = 10.0, device: str = "cpu") -> "pd.Series[Any]":
    return pd.Series({"top1_pct": top1_pct, "seconds": seconds, "device": device}, dtype=object)


def by_seed(variant: str, *values: float) -> dict[RunSpec, "pd.Series[Any]"]:
    return {replace(RUN, variant=variant, seed=k): row(v) for k, v in enumerate(values)}


THREE_SEEDS = Results(
    {
        **by_seed("gamma-0", 50.0, 52.0, 57.0),
        **by_seed("default", 60.0, 60.0, 60.0),
        **by_seed("gamma-1", 55.0, 56.0, 57.0),
    },
    {},
)


def sweep(
    results: Results = THREE_SEEDS, *, plot: SweepPlot = SWEEP, **changes: Any
) -> tuple[Drawn, list[Axes]]:
    drawn = curves.draw_sweep("figure5", plot, selection(**changes), results)
    drawn.figure.draw_without_rendering()
    return drawn, drawn.figure.axes


def of_kind(numbers: pd.DataFrame, kind: str) -> pd.DataFrame:
    return numbers[numbers["kind"] == kind].reset_index(drop=True)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_point_is_the_mean_over_seeds_with_its_sample_deviation() -> None:
    drawn, _ = sweep()
    means = of_kind(drawn.numbers, "mean")
    assert means["gamma"].tolist() == [0.0, 0.5, 1.0]
    assert means["variant"].tolist() == ["gamma-0", "default", "gamma-1"]
    assert means["value"].tolist() == [53.0, 60.0, 56.0]
    # ((50 - 53)^2 + (52 - 53)^2 + (57 - 53)^2) / 2 = 13
    assert means["deviation"].tolist() == pytest.approx([13**0.5, 0.0, 1.0])
    assert means["n_seeds"].tolist() == [3, 3, 3]
    assert of_kind(drawn.numbers, "run")["value"].tolist() == [50, 52, 57, 60, 60, 60, 55, 56, 57]
    assert set(drawn.numbers["measure"]) == {"top1_pct"}


def test_line_band_and_dots_show_the_numbers() -> None:
    _, (axes,) = sweep()
    assert axes.lines[0].get_xdata().tolist() == [0.0, 0.5, 1.0]
    assert axes.lines[0].get_ydata().tolist() == [53.0, 60.0, 56.0]
    band, dots = axes.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(53 - 13**0.5)
    assert corners[:, 1].max() == pytest.approx(60.0)
    assert len(dots.get_offsets()) == 9


def test_one_seed_has_no_band_and_no_dots() -> None:
    drawn, (axes,) = sweep(seeds=[0])
    means = of_kind(drawn.numbers, "mean")
    assert means["value"].tolist() == [50.0, 60.0, 55.0]
    assert means["deviation"].isna().all()
    assert means["n_seeds"].tolist() == [1, 1, 1]
    assert not axes.collections
    assert not [label for label in legend(drawn.figure) if "deviation" in label]


def test_the_default_is_ringed_and_the_papers_point_starred_on_its_dataset() -> None:
    drawn, (axes,) = sweep()
    _, ring, star = axes.lines
    assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([0.5], [60.0])
    assert (star.get_marker(), star.get_ydata().tolist()) == ("*", [60.0])
    assert legend(drawn.figure) == [
        "Food, 20 classes",
        "default setting",
        "named in the paper",
        "± sample deviation, 3 seeds",
    ]
    published = of_kind(drawn.numbers, "published")
    assert published[["dataset", "gamma", "value", "note"]].to_numpy().tolist() == [
        ["icons-food-small", 0.5, 60.0, "text"]
    ]


def test_a_missing_run_is_left_out_and_its_reason_recorded() -> None:
    scores = dict(THREE_SEEDS.scores)
    for spec in [replace(RUN, variant="gamma-0", seed=2), *by_seed("gamma-1", 0, 0, 0)]:
        del scores[spec]
    holes = {replace(RUN, variant="gamma-1", seed=k): "no code" for k in range(3)}
    drawn, (axes,) = sweep(Results(scores, holes))
    means = of_kind(drawn.numbers, "mean")
    assert means["value"].tolist() == [51.0, 60.0]  # (50 + 52) / 2
    assert means["n_seeds"].tolist() == [2, 3]
    assert axes.lines[0].get_xdata().tolist() == [0.0, 0.5]
    missing = of_kind(drawn.numbers, "missing")
    assert missing[["gamma", "seed", "note"]].to_numpy().tolist() == [
        [0.0, 2, "not in scores.csv"],
        [1.0, 0, "no code"],
        [1.0, 1, "no code"],
        [1.0, 2, "no code"],
    ]
    assert "± sample deviation, 2 to 3 seeds" in legend(drawn.figure)
    assert axes.get_xticks().tolist() == [0.0, 0.5, 1.0]


def test_a_figure_without_any_run_says_so() -> None:
    plot = SWEEP.model_copy(update={"panels": ("accuracy", "memory"), "published": ()})
    drawn, axes = sweep(Results({}, {}), plot=plot)
    assert [texts(panel) for panel in axes] == [["No run: not in scores.csv"]] * 2
    assert len(of_kind(drawn.numbers, "missing")) == 2 * 9
    assert axes[1].get_xticks().tolist() == [0.0, 0.5, 1.0]


def test_a_figure_with_only_the_papers_points_says_so() -> None:
    _, (axes,) = sweep(Results({}, {}))
    assert texts(axes) == ["No run: not in scores.csv"]
    assert axes.lines[-1].get_ydata().tolist() == [60.0]
    assert axes.get_yticks().size > 0


def test_several_reasons_are_counted() -> None:
    holes = {replace(RUN, variant="gamma-1", seed=0): "no code"}
    plot = SWEEP.model_copy(update={"published": ()})
    _, (axes,) = sweep(Results({}, holes), plot=plot)
    assert texts(axes) == ["No run: 9 are missing"]


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that writes a run's history: a column's values by epoch, None for a gap."""
    monkeypatch.chdir(tmp_path)

    def write(spec: RunSpec, column: str, *values: float | None) -> None:
        rows = [
            {"epoch": epoch, **({} if value is None else {column: value})}
            for epoch, value in enumerate(values)
        ]
        write_history(spec.folder, rows)

    return write


def test_time_and_memory_are_below_the_accuracy_and_start_at_zero(
    history: Callable[..., None],
) -> None:
    scores = {}
    for k, (variant, peaks) in enumerate({"gamma-0": (100, 300), "default": (400, 600)}.items()):
        scores[replace(RUN, variant=variant)] = row(50.0, seconds=7.5 * (k + 1))
        history(replace(RUN, variant=variant), "peak_memory_mib", None, *peaks)
    plot = SWEEP.model_copy(update={"panels": ("accuracy", "seconds", "memory"), "published": ()})
    drawn, axes = sweep(Results(scores, {}), plot=plot, seeds=[0])
    means = of_kind(drawn.numbers, "mean").groupby("measure")["value"].agg(list)
    assert means["seconds"] == [7.5, 15.0]
    assert means["peak_memory_mib"] == [200.0, 500.0]  # mean over the epochs
    assert [panel.get_ylabel() for panel in axes] == [
        "Top-1 accuracy (%)",
        "Run's wall\ntime (s)",
        "Process's peak\nmemory (MiB)",
    ]
    assert [panel.get_ylim()[0] for panel in axes[1:]] == [0, 0]
    assert axes[0].get_shared_x_axes().joined(axes[0], axes[2])
    assert axes[0].get_window_extent().y0 > axes[1].get_window_extent().y1


def test_gpu_memory_is_labelled_as_such(history: Callable[..., None]) -> None:
    scores = {spec: row(50.0, device="cuda") for spec in by_seed("default", 0)}
    history(RUN, "peak_memory_mib", None, 9000.0)
    plot = SWEEP.model_copy(update={"panels": ("memory",)})
    _, (axes,) = sweep(Results(scores, {}), plot=plot, seeds=[0])
    assert axes.get_ylabel() == "GPU's peak\nmemory (MiB)"


def test_a_run_without_the_column_is_missing_and_its_file_named(
    history: Callable[..., None],
) -> None:
    history(RUN, "loss", None, 1.0)
    plot = SWEEP.model_copy(update={"panels": ("memory",)})
    drawn, _ = sweep(Results(by_seed("default", 60.0), {}), plot=plot, seeds=[0])
    notes = of_kind(drawn.numbers, "missing").set_index("variant")["note"]
    assert notes["default"] == f"{RUN.folder}/history.csv has no peak_memory_mib"


@pytest.mark.parametrize(
    ("scale", "values", "labels", "base"),
    [
        ("log2", [1, 4, 16], ["1", "4", "16"], 2),
        ("log10", [1e-6, 3e-5, 1e-3], ["$10^{-6}$", r"$3{\cdot}10^{-5}$", "$10^{-3}$"], 10),
        ("log10", [0.01, 1.0, 20000], ["0.01", "1", r"$2{\cdot}10^{4}$"], 10),
    ],
)
def test_a_log_axis_has_ticks_at_the_values(
    scale: str, values: list[float], labels: list[str], base: int
) -> None:
    names = ("gamma-0", "default", "gamma-1")
    points = [
        SweepPoint("icons-food-small", value, variant)
        for value, variant in zip(values, names, strict=True)
    ]
    plot = SWEEP.model_copy(update={"x_scale": scale, "published": ()})
    _, (axes,) = sweep(plot=plot, points=points)
    assert axes.get_xscale() == "log"
    assert axes.xaxis.get_transform().base == base
    assert axes.get_xticks().tolist() == values
    assert [tick.get_text() for tick in axes.get_xticklabels()] == labels
    assert axes.get_xticks(minor=True).tolist() == []
    low, high = axes.get_xlim()
    assert low < values[0]
    assert high > values[-1]


def test_zero_on_a_log_axis_is_refused() -> None:
    plot = SWEEP.model_copy(update={"x_scale": "log10"})
    with pytest.raises(SettingsError, match=r"value 0 .* config/figures/figure5\.yaml"):
        sweep(plot=plot)


def test_many_values_all_have_ticks_but_not_all_have_labels() -> None:
    points = [SweepPoint("icons-food-small", value / 20, "default") for value in range(21)]
    _, (axes,) = sweep(points=points)
    named = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(named) == 21
    assert named[:4] == ["0", "", "0.1", ""]


def test_each_dataset_has_a_line_with_its_title() -> None:
    flags = {replace(spec, dataset="icons-flags"): r for spec, r in THREE_SEEDS.scores.items()}
    flags = {spec: row(found["top1_pct"] + 10) for spec, found in flags.items()}
    results = Results({**THREE_SEEDS.scores, **flags}, {})
    drawn, (axes,) = sweep(results, datasets=["icons-food-small", "icons-flags"])
    assert legend(drawn.figure)[:2] == ["Food, 20 classes", "Flags"]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [line.get_ydata().tolist() for line in lines] == [[53, 60, 56], [63, 70, 66]]
    assert len({line.get_color() for line in lines}) == 2
    assert len({line.get_marker() for line in lines}) == 2
    assert of_kind(drawn.numbers, "published")["value"].tolist() == [60.0, 70.0]


def test_lines_of_several_backbones_have_different_labels() -> None:
    drawn, _ = sweep(backbones=["icon-clip", "vit-b-32"])
    assert legend(drawn.figure)[:2] == [
        "Food, 20 classes, icon-clip",
        "Food, 20 classes, CLIP ViT-B/32",
    ]
    assert of_kind(drawn.numbers, "published")["value"].tolist() == [60.0]


def test_an_accuracy_axis_does_not_magnify_noise() -> None:
    _, (axes,) = sweep(Results(by_seed("default", 60.0, 60.1, 60.2), {}))
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(2.0)
    assert low < 60.0 < 60.2 < high


def test_a_method_without_random_draws_has_one_seed() -> None:
    plot = SWEEP.model_copy(update={"method": "clip", "published": ()})
    drawn, _ = sweep(Results({}, {}), plot=plot)
    assert drawn.numbers["seed"].tolist() == [0, 0, 0]


def test_a_history_shows_mean_and_deviation_by_epoch(history: Callable[..., None]) -> None:
    specs = [replace(RUN, variant=v, seed=k) for v in ("default", "gamma-1") for k in (0, 1)]
    for spec, values in zip(specs, [(40, 50), (44, 56), (30, 30), (30, 30)], strict=True):
        history(spec, "pseudo_mix_pct", None, *values)
    results = Results({spec: row(60.0) for spec in specs}, {})
    drawn = curves.draw_history(HISTORY, selection(seeds=[0, 1]), results)
    means = of_kind(drawn.numbers, "mean")
    assert means["line"].tolist() == ["Mix", "Mix", "Prior alone", "Prior alone"]
    assert means["epoch"].tolist() == [1, 2, 1, 2]  # nothing was measured before the first
    assert means["value"].tolist() == [42.0, 53.0, 30.0, 30.0]
    assert means["deviation"].tolist() == pytest.approx([8**0.5, 18**0.5, 0.0, 0.0])
    (axes,) = drawn.figure.axes
    solid, dashed = axes.lines
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert np.asarray(solid.get_ydata()).tolist() == [42.0, 53.0]
    assert axes.get_title() == "Food, 20 classes"
    assert legend(drawn.figure) == ["Mix", "Prior alone", "± sample deviation, 2 seeds"]


def test_a_history_has_one_panel_per_dataset_and_says_if_it_is_empty(
    history: Callable[..., None],
) -> None:
    history(RUN, "pseudo_mix_pct", None, 40.0)
    datasets = ["icons-food-small", "icons-flags", "icons-faces", "icons-animals"]
    results = Results(by_seed("default", 60.0), {})
    drawn = curves.draw_history(HISTORY, selection(datasets=datasets, seeds=[0]), results)
    shown = [axes for axes in drawn.figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["Food, 20 classes", "Flags", "Faces", "Animals"]
    assert [len(axes.texts) for axes in shown] == [0, 1, 1, 1]
    assert [axes.get_xlabel() for axes in shown] == ["", "Epoch", "Epoch", "Epoch"]
    missing = of_kind(drawn.numbers, "missing")
    assert missing["note"].unique().tolist() == ["not in scores.csv"]
    assert len(missing) == 7
