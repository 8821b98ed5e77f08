"""Figures of images, drawn from complete runs of the tiny project."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Text

from microclip.measure import drawing, masks, pictures
from microclip.measure.drawing import Drawn
from microclip.measure.evaluation import CONFIDENCE_SCALE, evaluate
from microclip.measure.trained_runs import FusedRun, read
from microclip.model import embeddings
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError, reports
from tests.fixtures.project import CLASSES, N_TEST
from tests.measure.tiny_run import CLIP, MICROCLIP, SELECTION, finish, finished_runs

N_PATCHES = 16


@pytest.fixture(scope="module", autouse=True)
def workplace(project_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with finished_runs(project_source, tmp_path_factory.mktemp("figures")) as folder:
        yield folder


def figure(kind: str, **options: Any) -> Any:
    """Plot settings for a figure of this kind."""
    declared = reports.FigureSettings(
        name="figure0", title="Figure 0", caption="None.", plot={"kind": kind, **options}
    )
    return declared.plot


def words(drawn: Figure) -> str:
    return "\n".join(text.get_text() for text in drawn.findobj(Text))


def variant(name: str, **settings: Any) -> None:
    """Write a run with the default run's network and other settings."""
    target = MICROCLIP.parents[1] / name / "seed-0"
    shutil.copytree(MICROCLIP, target, dirs_exist_ok=True)
    values = yaml.safe_load((target / "settings.yaml").read_text())
    values["method"].update(settings)
    (target / "settings.yaml").write_text(yaml.safe_dump(values))


def test_attention_is_drawn_for_both_tokens_before_and_after_training() -> None:
    drawn = pictures.draw_maps(figure("attention", images=3), SELECTION)
    numbers = drawn.numbers
    assert list(numbers) == ["dataset", "image", "map", "patch_row", "patch_column", "value"]
    assert len(numbers) == 3 * 4 * N_PATCHES
    maps = dict(iter(numbers.groupby("map")))
    assert list(dict.fromkeys(numbers["map"])) == [
        "[CLS] before",
        "[FG] before",
        "[CLS] after",
        "[FG] after",
    ]
    weights = maps["[FG] after"].groupby("image")["value"].sum()
    assert weights.between(0, 1).all()
    changed = maps["[CLS] after"]["value"].to_numpy() - maps["[CLS] before"]["value"].to_numpy()
    assert np.abs(changed).max() > 1e-6
    # the first image of each class in turn, with its class and both predictions in words
    assert [Path(name).parent.name for name in dict.fromkeys(numbers["image"])] == list(CLASSES)
    said = words(drawn.figure)
    assert all(name in said for name in CLASSES)
    assert said.count("before: ") == said.count("after: ") == 3


@pytest.mark.parametrize("method", ["microclip", "oracle"])
def test_before_is_the_untrained_network_and_after_the_one_that_predicted(method: str) -> None:
    run = FusedRun(read(MICROCLIP if method == "microclip" else finish(method)))
    texts = embeddings.load_texts(
        run.tested.settings.dataset,
        run.tested.settings.backbone,
        run.tested.settings.descriptions,
    )
    before, after = run.before.fusion, run.after.fusion
    torch.testing.assert_close(before.classifier.detach(), texts.uniform)
    width = before.backbone.width
    torch.testing.assert_close(before.pooling.query.weight.detach(), torch.eye(width))
    assert not torch.equal(after.classifier, before.classifier)
    predicted = run.heads()["fused"].argmax(dim=-1).tolist()
    assert predicted == run.tested.predictions["prediction"].tolist()
    torch.testing.assert_close(run.views([7, 2])[1], next(iter(run.each_view([2])))[0])


def test_named_images_are_drawn_in_the_order_of_their_names() -> None:
    files = read(MICROCLIP).test.files
    chosen = (files[5], files[0])
    drawn = pictures.draw_maps(figure("attention", images=chosen), SELECTION)
    assert tuple(dict.fromkeys(drawn.numbers["image"])) == chosen
    with pytest.raises(SettingsError, match=r"nowhere\.png is not a test image of shapes"):
        pictures.draw_maps(figure("attention", images=("nowhere.png",)), SELECTION)


def test_more_images_than_classes_take_the_second_of_each_class() -> None:
    tested = read(MICROCLIP)
    # files are sorted by name: blue bars, green squares, red discs; labels are the other way round
    assert tested.choose(5) == [2 * N_TEST, N_TEST, 0, 2 * N_TEST + 1, N_TEST + 1]
    assert sorted(tested.choose(1000)) == list(range(N_TEST * len(CLASSES)))


def test_masks_come_with_the_values_that_made_them() -> None:
    drawn = masks.draw_masks(figure("masks", images=2), SELECTION)
    numbers = drawn.numbers
    assert len(numbers) == 2 * N_PATCHES
    for _, own in numbers.groupby("image"):
        z = own["z"].to_numpy()
        assert np.linalg.norm(z) == pytest.approx(1)
        assert own["theta"].iloc[0] == pytest.approx(z.std(ddof=1))
        assert (own["mask_before_sign"] == (z > own["theta"])).all()
        sign = -1 if own["is_flipped"].iloc[0] else 1
        assert sign * z[np.abs(z).argmax()] > 0
        expected = (sign * z > own["theta"]) | own["is_degenerate"]
        assert (own["mask"] == expected).all()
    assert "refined by a dense CRF" in words(drawn.figure)


def test_the_threshold_is_the_runs() -> None:
    variant("mean", ncut_threshold="mean")
    numbers = masks.draw_masks(figure("masks", images=1, variant="mean"), SELECTION).numbers
    assert numbers["theta"].iloc[0] == pytest.approx(numbers["z"].mean())


def test_a_run_that_cuts_no_graph_has_no_masks() -> None:
    variant("averaged", query="mean")
    with pytest.raises(SettingsError, match="query 'mean', which needs no normalised cut"):
        masks.draw_masks(figure("masks", variant="averaged"), SELECTION)


def test_several_datasets_are_named_beside_their_rows() -> None:
    rows = masks._rows(FusedRun(read(MICROCLIP)), figure("masks", images=1))
    assert "shapes" not in words(masks._picture(rows))
    said = words(masks._picture([*rows, replace(rows[0], dataset="others")]))
    assert "shapes" in said
    assert "others" in said


def evaluation(*cosines: list[float], labels: list[int]) -> Any:
    return evaluate(torch.tensor(cosines), torch.tensor(labels))


def test_failures_are_ranked_by_the_confidence_of_the_wrong_answer() -> None:
    labels = [0, 0, 0, 0]
    heads = {
        # wrong by a little, right, wrong by much, wrong
        "fused": evaluation([0.1, 0.11], [1, 0], [0, 0.9], [0, 0.5], labels=labels),
        "global": evaluation([1, 0], [0, 1], [0, 1], [0, 1], labels=labels),
        "local": evaluation([0, 1], [0, 1], [1, 0], [0, 1], labels=labels),
    }
    assert pictures.rank(heads) == [2, 0]


def test_failures_show_each_heads_prediction() -> None:
    run = FusedRun(read(MICROCLIP))
    heads = {name: evaluate(part, run.tested.test.labels) for name, part in run.heads().items()}
    ranked = pictures.rank(heads)
    drawn = pictures.draw_failures(figure("failures", images=2), SELECTION)
    assert len(drawn.numbers) == 3 * min(2, len(ranked))
    n_test = N_TEST * len(CLASSES)
    counted = f"{len(ranked)} of {n_test}" if ranked else f"no image of {n_test}"
    assert counted in words(drawn.figure)
    for row, index in zip(drawn.numbers.itertuples(), np.repeat(ranked, 3), strict=False):
        name = {"fusion": "fused", "[CLS]": "global", "[FG]": "local"}[str(row.head)]
        logits = run.heads()[name][index].double()
        assert row.confidence == pytest.approx(
            float((CONFIDENCE_SCALE * logits).softmax(dim=-1).max()), abs=1e-5
        )


def test_a_figure_without_failures_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "rank", lambda _: [])
    drawn = pictures.draw_failures(figure("failures"), SELECTION)
    assert "no image of 12 that a token has right and the fusion wrong" in words(drawn.figure)
    assert len(drawn.numbers) == 0
    drawing.save(drawn, tmp_path / "none")
    assert (tmp_path / "none.png").stat().st_size > 500


@pytest.mark.parametrize("kind", ["attention", "masks", "failures"])
def test_the_same_run_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    draw = {
        "attention": pictures.draw_maps,
        "masks": masks.draw_masks,
        "failures": pictures.draw_failures,
    }[kind]
    for name in ("first", "second"):
        found: Drawn = draw(figure(kind, images=1), SELECTION)
        drawing.save(found, tmp_path / name)
    for suffix in drawing.FORMATS:
        files = [(tmp_path / f"{name}.{suffix}").read_bytes() for name in ("first", "second")]
        assert files[0] == files[1]
    assert len(pd.read_csv(tmp_path / "first.csv").columns) >= 6


def test_a_run_without_tokens_is_refused() -> None:
    with pytest.raises(SettingsError, match="has no trained .FG. token"):
        FusedRun(read(CLIP))


def test_an_incomplete_run_is_refused() -> None:
    with pytest.raises(MissingDataError, match=r"seed-7 is not complete: it has no .*scores\.json"):
        pictures.draw_maps(figure("attention"), replace(SELECTION, seeds=(7,)))


def test_class_vectors_that_have_changed_since_the_run_are_refused() -> None:
    variant("stale")
    folder = MICROCLIP.parents[1] / "stale" / "seed-0"
    record = (folder / "run.json").read_text()
    known = read(folder).inputs["class_vectors"]
    (folder / "run.json").write_text(record.replace(known, "0" * len(known)))
    with pytest.raises(SettingsError, match="made with a different version of its class vectors"):
        pictures.draw_maps(figure("attention", variant="stale"), SELECTION)
