"""What a study computes: counted as torch counts it, and nothing for what is done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from microclip import runner, settings, study
from microclip.measure import costs
from microclip.measure.calibration import Pace
from microclip.measure.costs import Amount, Costs, Stage, images_of, n_texts, time_of
from microclip.measure.flops import network_of
from microclip.methods.base import Work, work_of
from microclip.settings import DatasetSettings, FolderSource, IconSource
from tests.fixtures.project import Journal, load_study, prepare, settings_of

PACE = Pace(
    forward=100.0,
    evaluation=50.0,
    training=10.0,
    cut_s=0.5,
    window_s=0.25,
    strong_s=3.0,
    decode_s=2.0,
    hash_rate=1000.0,
    start_s=7.0,
    load_s=4.0,
    workers=0,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "a frozen prior": {"prior": "frozen"},
    "the prior alone": {"pseudo_label": "multi"},
    "one view, class token alone": {"pseudo_label": "single", "train_head": "cls"},
}


def one(stages: list[Stage], title: str) -> Stage:
    return next(stage for stage in stages if stage.title == title)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_run_computes_what_is_predicted(changes: dict[str, Any]) -> None:
    """A whole run, tests between the epochs included, against torch's counter; the small products
    of losses and view weights are left out, which in a network this tiny are up to 3 %."""
    resolved = settings_of("microclip", **changes)
    prepare(resolved)
    images = images_of(resolved.dataset)
    assert images is not None
    assert (images.n_train, images.n_test, images.n_classes) == (15, 12, 3)
    amount = costs.amount_of_run(resolved, network_of(resolved.backbone), images)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        runner.run(resolved, resolved.spec.folder, Journal())
    assert amount is not None
    assert amount.flop == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_views_of_microclip_by_hand() -> None:
    """Per image and epoch: eight crops and one weak view by the teacher, a strong one to train."""
    found = work_of("microclip", {})
    assert found == Work(
        epochs=15, batch_size=64, encoded=8, fused=1, trained=1, reads_patches=True, is_cut=True
    )
    frozen = work_of("microclip", {"prior": "frozen", "n_crops": 4})
    assert frozen is not None
    assert (frozen.encoded_once, frozen.encoded, frozen.fused) == (5, 0, 1)
    single = work_of("microclip", {"pseudo_label": "single", "train_head": "cls"})
    assert single is not None
    assert (single.encoded, single.fused, single.reads_patches, single.is_cut) == (1, 0, 0, 0)


def test_a_method_that_trains_nothing_needs_not_say_so() -> None:
    assert work_of("clip", {}) == Work()


def test_the_number_of_images_may_decide_the_epochs() -> None:
    by_rule, set_by_hand = work_of("reclip", {}), work_of("reclip", {"epochs": 3})
    assert by_rule is not None
    assert set_by_hand is not None
    assert (by_rule.n_epochs(3_680), by_rule.n_epochs(20_000)) == (2, 6)  # n // 5000 + 2
    assert set_by_hand.n_epochs(20_000) == 3


@pytest.mark.usefixtures("project")
def test_learned_prompts_cost_the_text_tower_and_no_image_of_a_test() -> None:
    resolved = settings_of("coop", epochs=3, n_context=4)
    prepare(resolved)
    images, network = images_of(resolved.dataset), network_of(resolved.backbone)
    assert images is not None
    found = costs.amount_of_run(resolved, network, images)
    assert found is not None
    one_step = 3 * 2 * network.text(4 + 8)  # three classes, forward and back
    assert found.training == 3 * one_step  # one batch an epoch
    assert network.text(4 + 8) < network.text() == network.text(10_000)
    in_tests = 4 * one_step / 2  # before training and after each epoch
    # For zero-shot, and for the embeddings that all tests of the prompts read.
    assert found.evaluation == 2 * images.n_test * network.encoded() + in_tests
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        runner.run(resolved, resolved.spec.folder, Journal())
    assert found.flop == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_seconds_by_hand() -> None:
    amount = Amount(
        forward=1000, evaluation=100, training=20, cuts=2, windows=4, strong=3, hashed=500, starts=1
    )
    on_cpu = time_of(amount, PACE, 1)
    assert on_cpu.device == pytest.approx(10 + 2 + 2 + 1 + 1 + 9 + 0.5)
    assert on_cpu.wall == pytest.approx(on_cpu.device + 7)
    beside = PACE.model_copy(update={"workers": 3})
    assert time_of(amount, beside, 1).device == pytest.approx(10 + 2 + 2 + 1 + 1 + 0.5)  # not + 3
    decoded = time_of(Amount(megapixels=6, loads=1), PACE, 4)
    assert (decoded.cores, decoded.wall) == (12, 12 / 4 + 4)


@pytest.mark.parametrize(
    ("name", "train", "test", "canvas"),
    [
        ("icons-food-tiny", 20 * 4, 20 * 12, (96, 96)),
        ("pets", 3680, 3669, (640, 480)),
        ("cifar100", 50000, 10000, (32, 32)),
        ("birdsnap", 31900, 7977, (896, 672)),  # its card leaves them open: Table 10
    ],
)
def test_images_are_known_before_they_are_fetched(
    name: str, train: int, test: int, canvas: tuple[int, int], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    found = images_of(settings.load_dataset(name))
    assert found is not None
    assert (found.n_train, found.n_test, found.canvas) == (train, test, canvas)
    assert found.stored_bytes == 3 * canvas[0] * canvas[1] * (train + test)


@pytest.mark.usefixtures("project")
def test_a_folder_that_was_not_fetched_makes_its_runs_unknown() -> None:
    found = Costs(load_study())
    assert [run.amount for run in found.runs] == [None] * 3
    stages = found.stages
    assert one(stages, "images, decoded").n_unknown == 1
    assert one(stages, "runs of microclip").n_unknown == 1


@pytest.mark.usefixtures("project")
def test_what_is_done_costs_nothing() -> None:
    declared = load_study()
    prepare(settings_of("clip"))
    before = Costs(declared).stages
    assert one(before, "images, decoded").n_done == 1
    assert one(before, "class vectors").flop == 0
    assert one(before, "features, zero-shot check").n_done == 1
    assert one(before, "runs of microclip").flop > 0
    spec = next(spec for spec in declared.runs if spec.method == "microclip")
    spec.folder.mkdir(parents=True)
    resolved = declared.resolve(spec)
    scores = {"digest": resolved.digest(), "recipe": resolved.recipe, "seconds": 5.0}
    (spec.folder / "scores.json").write_text(json.dumps(scores))
    after = one(Costs(declared).stages, "runs of microclip")
    assert (after.n_done, after.n_to_do, after.flop) == (1, 0, 0)


@pytest.mark.usefixtures("project")
def test_a_method_that_does_not_say_what_it_computes_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from microclip.settings.methods import microclip as declared

    prepare(settings_of("clip"))
    monkeypatch.setattr(declared, "DECLARATION", replace(declared.DECLARATION, work=None))
    found = Costs(load_study())
    assert one(found.stages, "runs of microclip").n_unknown == 1
    assert one(found.stages, "runs of clip").n_unknown == 0


def test_weights_that_are_only_tested_are_not_trained_again() -> None:
    declared = study.load(
        {
            "study": "s",
            "datasets": ["icons-food-tiny"],
            "backbones": ["icon-clip"],
            "descriptions": ["shipped"],
            "runs": [{"methods": ["microclip"], "variants": ["default", "test-random"]}],
        }
    )
    trained, tested = (run.amount for run in Costs(declared).runs)
    assert trained is not None
    assert tested is not None
    assert trained.training > 0
    assert tested.training == tested.forward == 0
    assert 0 < tested.evaluation < trained.evaluation


def test_memory_grows_with_batch_and_crops() -> None:
    resolved = study.load(settings.read_yaml(settings_file("pets"))).resolve
    declared = study.load(settings.read_yaml(settings_file("pets")))
    spec = next(spec for spec in declared.runs if spec.method == "microclip")
    network, images = network_of(resolved(spec).backbone), images_of(resolved(spec).dataset)
    assert images is not None
    whole = resolved(spec)
    half = replace(whole, method={**whole.method, "batch_size": 32})
    needed = costs.memory_of_run(whole, network, images)
    assert needed is not None
    assert 2e9 < needed < 4e9  # weights 0.6, saved activations 64 x 25.8 MB, views 0.4
    smaller = costs.memory_of_run(half, network, images)
    assert smaller is not None
    assert smaller < 0.7 * needed


def settings_file(name: str) -> Path:
    return Path(__file__).resolve().parents[2] / "config" / f"{name}.yaml"


def test_texts_are_counted_or_taken_from_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pets = settings.load_dataset("pets")  # one template; 20 sentences a class in Table 10
    assert n_texts(pets, settings.load_descriptions("cupl-gpt3")) == 37 * (1 + 20)
    assert n_texts(pets, settings.load_descriptions("templates")) == 37 * 2
    path = Path("results/descriptions/cupl-gpt3/pets.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({name: ["One.", "Two."] for name in map(str, range(37))}))
    assert n_texts(pets, settings.load_descriptions("cupl-gpt3")) == 37 * (1 + 2)


def test_a_source_with_a_smaller_canvas_stores_smaller_images() -> None:
    source = FolderSource(folder=Path("x"), canvas_px=300)
    assert costs.stored_px((640, 480), source.canvas_px) == (400, 300)
    assert costs.stored_px((640, 480), IconSource.canvas_px) == (640, 480)
    folder = DatasetSettings(name="x", title="X", source=source)
    assert images_of(folder) is None
