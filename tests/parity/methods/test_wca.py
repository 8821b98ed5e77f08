"""WCA against the numbers of its official code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from microclip.adaptation.multi_view import view_weights
from microclip.data.crops import OfficialDraws, official_squares
from microclip.data.views import Window, pack, prepare, whole_window
from microclip.measure.evaluation import Evaluation, Repeats, evaluate
from microclip.methods.base import Task, Views
from microclip.methods.wca import METHOD, CropClassifier, class_vectors, draw_crops
from microclip.model.backbone import Backbone, unit_norm
from microclip.model.sentences import encode, encode_classes
from microclip.settings.methods.wca import WcaSettings
from microclip.text.classifier import description_classifier, template_classifier
from microclip.text.descriptions import framed
from microclip.text.prompts import readable
from tests.parity.comparison import Comparison
from tests.parity.vectors import MethodArrays, arrays, build_backbone, normalised

WCA = MethodArrays("wca")
ENDS = (94, 95)  # start and end of a text
SIZE = 64


def images() -> list[Any]:
    names = [f"image{number}_u8" for number in range(5)]
    return [WCA[name].numpy() for name in names]


class Table(SimpleTokenizer):
    """open_clip's tokenizer with the recorded ids in place of its vocabulary."""

    def __init__(self, ids: dict[str, list[int]]) -> None:
        self.ids = ids
        self.context_length = WCA["sentence_tokens"].shape[1]
        self.sot_token_id, self.eot_token_id = ENDS
        self.reduction_fn = None

    def encode(self, text: str) -> list[int]:
        return self.ids[text]


def kept(row: Tensor) -> list[int]:
    return [number for number in row.tolist() if number > 0 and number not in ENDS]


def tower() -> Backbone:
    ids = {
        text: [number for number in row.tolist() if number >= 0]
        for text, row in zip(WCA.text("sentence_out_text"), WCA["sentence_ids"], strict=True)
    }
    for texts, tokens in (
        (WCA.text("anchor_out_text"), WCA["anchor_tokens"]),
        (WCA.text("descriptor_out_text"), WCA["descriptor_tokens"]),
    ):
        ids |= {text: kept(row) for text, row in zip(texts, tokens, strict=True)}
    return build_backbone("a", Table(ids))


def names() -> list[str]:
    return WCA.text("class_names_text")


def by_class(texts: list[str], owners: Tensor) -> list[list[str]]:
    labels = owners.tolist()
    return [
        [text for text, own in zip(texts, labels, strict=True) if own == label]
        for label in range(max(labels) + 1)
    ]


def settings(**changes: Any) -> WcaSettings:
    n_crops, n_drawn = WCA["crop_features"].shape[1], WCA["run_index"].shape[1]
    return WcaSettings(n_crops=n_crops, n_drawn=n_drawn, **changes)


@pytest.mark.parametrize(
    ("name", "low"), [("low05", 0.5), ("low07", 0.7), ("default_low", 0.1), ("released", None)]
)
def test_crops_are_drawn_alike(name: str, low: float | None, compare: Comparison) -> None:
    bounds = WCA["released_lambda_low_high"].tolist()
    scale = tuple(bounds) if low is None else (low, bounds[1])
    boxes, shares = WCA[f"{name}_boxes"], WCA[f"{name}_lambda"]
    draws = OfficialDraws.seeded(int(WCA["seed"]))
    if name == "released":  # the data loader draws its workers' seed first
        torch.empty((), dtype=torch.int64).random_(generator=draws.corners)
    seen = Spy(draws)
    n_crops, found = boxes.shape[1], []
    for image in images():
        drawn = official_squares(image.shape[:2], SIZE, n_crops, scale=scale, draws=seen.draws)
        found.append([place(window) for window in drawn])
    compare.exact(WCA.key(f"{name}_boxes"), torch.tensor(found), boxes)
    lambdas = torch.tensor(seen.shares).view_as(shares)
    compare.absolute(WCA.key(f"{name}_lambda"), lambdas, shares, 1e-6)
    if name == "released":
        drawn_crops = draw_crops(boxes.shape[1], WCA["run_index"].shape[1], 4, draws.corners)
        compare.exact(WCA.key("run_index"), drawn_crops, WCA["run_index"])


class Spy:
    """Notes the shares that are drawn."""

    def __init__(self, draws: OfficialDraws) -> None:
        self.shares: list[float] = []
        self._plain = draws.shares
        self.draws = OfficialDraws(self, draws.corners)  # type: ignore[arg-type]

    def uniform(self, low: float, high: float) -> float:
        self.shares.append(self._plain.uniform(low, high))
        return self.shares[-1]


def place(window: Window) -> tuple[int, int, int, int]:
    return (window.left, window.top, window.width, window.height)


def test_views_are_preprocessed_alike(compare: Comparison) -> None:
    """As for a GPU, and on a CPU's bytes, where a few pixels of all views are two levels off."""
    key = WCA.key("released_views_u8")
    for number, (image, boxes) in enumerate(zip(images(), WCA["released_boxes"], strict=True)):
        squares = [Window(top, left, s, s, SIZE, SIZE) for left, top, s, _ in boxes.tolist()]
        windows = [whole_window(image.shape[:2], SIZE, "center"), *squares]
        theirs = WCA["released_views_u8"][number]
        ours = pack([image], [windows], SIZE, device=torch.device("cpu")).views()[0]
        compare.absolute(key, (255 * ours).round(), theirs, 1)
        ours = (255 * prepare([image], [windows], SIZE, device="cpu").views()[0]).round()
        compare.absolute(f"{key} (on bytes)", ours, theirs, 2)
        assert ((ours - theirs.float()).abs() > 1).double().mean() < 1e-4


def test_texts_and_tokens(compare: Comparison) -> None:
    backbone, sentences = tower(), WCA.text("sentence_in_text")
    framed_as = {
        "sentence": (sentences, "sentence_out_text", "{sentence}"),
        "descriptor": (WCA.text("descriptor_in_text"), "descriptor_out_text", "{name}, {clause}"),
    }
    for kind, (given, out, frame) in framed_as.items():
        owners = WCA[f"{kind}_class"].tolist()
        ours = [
            framed(names()[label], [text], frame)[0]
            for text, label in zip(given, owners, strict=True)
        ]
        as_bytes = torch.frombuffer(bytearray("\n".join(ours).encode()), dtype=torch.uint8)
        compare.exact(WCA.key(out), as_bytes, WCA[out])
        compare.exact(WCA.key(f"{kind}_tokens"), backbone.tokenize(ours), WCA[f"{kind}_tokens"])
    anchors = [settings().anchor.replace("{}", readable(name)) for name in names()]
    as_bytes = torch.frombuffer(bytearray("\n".join(anchors).encode()), dtype=torch.uint8)
    compare.exact(WCA.key("anchor_out_text"), as_bytes, WCA["anchor_out_text"])
    compare.exact(WCA.key("anchor_tokens"), backbone.tokenize(anchors), WCA["anchor_tokens"])


def task(backbone: Backbone) -> Task:
    sentences = by_class(WCA.text("sentence_in_text"), WCA["sentence_class"])
    return Task(
        class_names=names(),
        texts=None,  # type: ignore[arg-type]  WCA makes its own
        seed=0,
        device="cpu",
        precision="fp32",
        backbone=backbone,
        sentences=sentences,
    )


class Quiet:
    def message(self, text: str) -> None:
        pass


def adapted(backbone: Backbone, **changes: Any) -> Tensor:
    found = METHOD.adapt(task(backbone), settings(**changes), Quiet())  # type: ignore[arg-type]
    return found.trained_state()["vectors"]


def test_class_vectors_and_the_scripts_other_classifiers(compare: Comparison) -> None:
    backbone = tower()
    described, _ = encode_classes(
        backbone, by_class(WCA.text("sentence_in_text"), WCA["sentence_class"])
    )
    clauses, _ = encode_classes(
        backbone, by_class(WCA.text("descriptor_out_text"), WCA["descriptor_class"])
    )
    filled = [backbone.encode_tokens(own, normalize=False) for own in WCA["template_tokens"]]
    found = {
        "clip": unit_norm(encode(backbone, WCA.text("anchor_out_text")).raw),
        "clip_e": template_classifier(filled),
        "clip_d": description_classifier(clauses),
        "cupl": description_classifier(described),
        "ours": adapted(backbone),
    }
    whole, accuracies = WCA["image_features"], []
    for name, vectors in found.items():
        compare.relative(WCA.key(f"text_{name}"), vectors.T, WCA[f"text_{name}"], 2e-5)
        logits = whole @ vectors.T
        key = f"fullimage_{name}_logits"
        compare.relative(WCA.key(key), logits, WCA[key], 2e-5)
        accuracies.append(evaluate(logits, WCA["labels"]).top1_pct)
    compare.absolute(
        WCA.key("fullimage_accuracy"), torch.tensor(accuracies), WCA["fullimage_accuracy"], 1e-4
    )
    unscaled = adapted(backbone, image_log_scale=0.0, text_log_scale=0.0)
    compare.relative(WCA.key("temperature1_text"), unscaled.T, WCA["temperature1_text"], 2e-5)


def test_crops_are_encoded_and_weighed_alike(compare: Comparison) -> None:
    backbone, views = build_backbone("a"), WCA["released_views_u8"]
    encoded = backbone.encode_global(normalised(views.flatten(0, 1), "a")).detach()
    encoded = encoded.unflatten(0, views.shape[:2])
    whole, crops = encoded[:, 0], encoded[:, 1:]
    compare.relative(WCA.key("image_features"), whole, WCA["image_features"], 2e-5)
    compare.relative(WCA.key("crop_features"), crops, WCA["crop_features"], 2e-5)
    relevance = torch.einsum("b n e, b e -> b n", crops, whole)
    compare.relative(WCA.key("crop_relevance"), relevance, WCA["crop_relevance"], 2e-5)
    # the weights are made from the same relevance
    torch.testing.assert_close(view_weights(whole, crops), relevance.softmax(dim=-1))


def heads(vectors: Tensor, prefix: str, draws: Tensor, **changes: Any) -> dict[str, Tensor]:
    """Return the production classifier's scores on recorded features, by repeat."""
    crops = WCA[f"{prefix}crop_features"]
    options = WcaSettings(n_crops=crops.shape[1], n_drawn=draws.shape[1], **changes)
    views = Views(embeddings=WCA[f"{prefix}image_features"], squares=crops)
    return CropClassifier(vectors, options, draws).heads(views)


def found_accuracies(scores: dict[str, Tensor], labels: Tensor) -> Repeats:
    found: dict[str, Evaluation] = {name: evaluate(own, labels) for name, own in scores.items()}
    repeats = Repeats.of(found)
    assert repeats is not None
    return repeats


def check_runs(
    compare: Comparison, scores: dict[str, Tensor], prefix: str, stem: str = "run"
) -> Repeats:
    stacked = torch.stack(list(scores.values()))
    compare.relative(
        WCA.key(f"{prefix}{stem}_scores"), stacked, WCA[f"{prefix}{stem}_scores"], 2e-5
    )
    repeats = found_accuracies(scores, WCA[f"{prefix}labels"])
    name = f"{prefix}{stem}_accuracy"
    compare.absolute(WCA.key(name), torch.tensor(repeats.accuracies), WCA[name], 1e-4)
    return repeats


def test_two_executions_of_the_main_program(compare: Comparison) -> None:
    vectors = adapted(tower())
    repeats = check_runs(compare, heads(vectors, "", WCA["run_index"]), "")
    both = torch.tensor([repeats.mean_pct, repeats.std_pct])
    compare.absolute(WCA.key("run_accuracy_mean_std"), both, WCA["run_accuracy_mean_std"], 1e-4)
    shape = WCA["cached_run_index"].shape
    generator = torch.Generator().manual_seed(int(WCA["seed"]))
    drawn = draw_crops(settings().n_crops, shape[1], shape[0], generator)
    compare.exact(WCA.key("cached_run_index"), drawn, WCA["cached_run_index"])
    check_runs(compare, heads(vectors, "", drawn), "", "cached_run")
    plain = {"image_log_scale": 0.0, "text_log_scale": 0.0}
    scores = heads(adapted(tower(), **plain), "", drawn, **plain)
    name = "temperature1_run_scores"
    compare.relative(WCA.key(name), torch.stack(list(scores.values())), WCA[name], 2e-5)


def given_vectors(prefix: str, **changes: Any) -> Tensor:
    owners, raw = WCA[f"{prefix}desc_class"], WCA[f"{prefix}desc_embeddings_raw"]
    anchors = WCA[f"{prefix}anchor_embeddings_raw"]
    parts = [raw[owners == label] for label in range(len(anchors))]
    return class_vectors(parts, anchors, WcaSettings(**changes))


@pytest.mark.parametrize("prefix", ["flip_", "multi_"])
def test_given_embeddings(prefix: str, compare: Comparison) -> None:
    vectors, index = given_vectors(prefix), WCA[f"{prefix}run_index"]
    generator = torch.Generator().manual_seed(int(WCA["seed"]))
    n_crops = WCA[f"{prefix}crop_features"].shape[1]
    drawn = draw_crops(n_crops, index.shape[1], len(index), generator)
    compare.exact(WCA.key(f"{prefix}run_index"), drawn, index)
    scores = heads(vectors, prefix, drawn)
    repeats = check_runs(compare, scores, prefix)
    if prefix == "multi_":
        both = torch.tensor([repeats.mean_pct, repeats.std_pct])
        compare.absolute(WCA.key("multi_mean_std"), both, WCA["multi_mean_std"], 1e-4)
        return
    compare.relative(WCA.key("flip_text_ours"), vectors.T, WCA["flip_text_ours"], 2e-5)
    plain = heads(given_vectors(prefix, sums="plain"), prefix, drawn, sums="plain")
    stacked, name = torch.stack(list(plain.values())), "flip_double_sum_scores"
    compare.relative(WCA.key(name), stacked, WCA[name], 2e-5)
    assert (stacked.argmax(dim=-1) != torch.stack(list(scores.values())).argmax(dim=-1)).any()


@pytest.mark.parametrize("case", ["main_", "small_scales_"])
def test_scoring_with_other_scales(case: str, compare: Comparison) -> None:
    """The arrays beside the core's, under the core's names."""
    core: Callable[[str], Tensor] = lambda name: arrays("wca")[case + name]  # noqa: E731
    owners, anchors = core("desc_class"), core("label_embeddings_raw")
    parts = [core("desc_embeddings_raw")[owners == label] for label in range(len(anchors))]
    index = core("sampled_index")
    options = WcaSettings(
        n_crops=core("crop_features").shape[1],
        n_drawn=index.shape[1],
        image_log_scale=float(core("image_scale").log()),
        text_log_scale=float(core("text_scale").log()),
    )
    vectors = class_vectors(parts, anchors, options)
    compare.relative(f"wca.{case}class_weights", vectors.T, core("class_weights"), 1e-5)
    whole, crops = unit_norm(core("image_features_raw")), unit_norm(core("crop_features_raw"))
    compare.relative(f"wca.{case}image_features", whole, core("image_features"), 1e-5)
    compare.relative(f"wca.{case}crop_features", crops, core("crop_features"), 1e-5)
    found = CropClassifier(vectors, options, index).heads(Views(embeddings=whole, squares=crops))
    compare.relative(f"wca.{case}scores", torch.stack(list(found.values())), core("scores"), 1e-5)
    compare.relative(f"wca.{case}baseline_logits", whole @ vectors.T, core("baseline_logits"), 1e-5)
    relevance = torch.einsum("b n e, b e -> b n", crops, whole)
    compare.relative(f"wca.{case}crop_relevance", relevance, core("crop_relevance"), 1e-5)
    weights = view_weights(whole, crops[:, index[0]], 1 / options.image_scale)
    compare.relative(f"wca.{case}crop_weights_run0", weights, core("crop_weights_run0"), 1e-5)
    plain = options.model_copy(update={"sums": "plain"})
    views = Views(embeddings=whole, squares=crops)
    doubled = CropClassifier(class_vectors(parts, anchors, plain), plain, index).logits(views)
    name = "double_sum_scores_run0"
    compare.relative(f"wca.{case}{name}", doubled, core(name), 1e-5)
