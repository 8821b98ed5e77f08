"""Print what a method could gain on a dataset, and so whether the dataset can tell methods apart.

    python benchmarks/headroom.py DATASET... [--backbone icon-clip] [--descriptions shipped]
        [--oracle] [--views strong|mild|none] [--epochs N] [--learning-rate R] [--seed N]

DATASET and the backbone are names in `config/`, or paths of such YAML files. One Markdown row a
dataset, printed as soon as it is done; accuracies on the test images in percent, with one standard
error. The criteria, by their letters in the headings:

(a) zero-shot of [CLS] by templates, between 40 and 75;
(b) the oracle after its last epoch, at least 12 points above (a): only with `--oracle`, since it
    trains; with `--views` it learns other views than microCLIP's strong ones;
(c) [FG] alone before training, at least 60 % of what [CLS] has by the same vectors, those of the
    descriptions; the fused prediction stands beside it;
(d) zero-shot by descriptions, not worse than (a);
(e) the ceiling of a method without labels, at least 15 points above (a): every training scene gets
    the class that zero-shot gives most scenes of its class; the share of test images whose class is
    then right. Beside it the same by drawing: a test image counts as its own drawing's scenes do,
    or, if training has no scene of that drawing, as the average scene of its class.

The linear probe, trained with all labels, says what the frozen features hold. A dataset that is not
in `results/data` is drawn into a temporary folder. The numbers depend on the seed, not the machine.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor

from microclip import paths, runtime, settings, study
from microclip.data import datasets, loading, passport, store
from microclip.data.loading import Examples, LabelledImages
from microclip.data.vocabulary import load_vocabulary
from microclip.measure.evaluation import LabelMonitor, ViewReader, collect_heads, evaluate
from microclip.methods.base import Silence, Task, load_method, settings_of
from microclip.methods.fusion import FusionClassifier, untrained
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.embeddings import TextClassifiers, classifiers
from microclip.model.token_fusion import cosine_similarity
from microclip.settings.base import read_yaml, validated
from microclip.settings.fusion import FusionSettings
from microclip.settings.study import BackboneSettings
from microclip.text import descriptions

LEAST, MOST, ORACLE_GAIN, LOCAL_SHARE, CEILING_GAIN = 40.0, 75.0, 12.0, 0.6, 15.0
HEADS = ("Set", "Train", "Test", "(a) [CLS], templates", "(d) [CLS], descriptions", "(c) [FG]")
HEADS += ("Fused", "(e) Ceiling by class", "By drawing", "Linear probe", "(b) Oracle", "Met")


@dataclass(frozen=True)
class Share:
    """An accuracy in percent, with its standard error over `n` images."""

    pct: float
    n: int

    def __str__(self) -> str:
        """Return "48.1 ± 2.3"."""
        share = self.pct / 100
        return f"{self.pct:.1f} ± {100 * math.sqrt(share * (1 - share) / self.n):.1f}"


@dataclass(frozen=True, eq=False)
class Case:
    """A dataset as a backbone sees it.

    Attributes:
        drawings: of the images of each split, in order; empty if the manifest names none.
    """

    dataset: settings.DatasetSettings
    backbone: BackboneSettings
    texts: TextClassifiers
    splits: Mapping[str, LabelledImages]
    embeddings: Mapping[str, Float[Tensor, "image embedding"]]  # frozen [CLS], by split
    drawings: Mapping[str, tuple[str, ...]]
    options: argparse.Namespace

    def task(self, **granted: Any) -> Task:
        """Return a method's task, with what it may see."""
        names = load_vocabulary(self.dataset).class_names
        seed: int = self.options.seed
        return Task(names, self.texts, seed=seed, device="cpu", precision="fp32", **granted)

    def settings_of(self, method: str, **changes: Any) -> BaseModel:
        """Return a method's settings on this dataset, as a study resolves them, with changes."""
        declared = settings.load_study(
            {
                "study": "headroom",
                "datasets": [self.dataset.name],
                "backbones": [self.backbone.name],
                "descriptions": [self.options.descriptions],
                "runs": [{"methods": [method]}],
            }
        )
        resolved = study.Expansion(declared).resolved(method, "default", self.dataset.name)
        given = {name: value for name, value in changes.items() if value is not None}
        return settings_of(method).model_validate({**resolved, **given})

    def score(self, logits: Float[Tensor, "image classes"]) -> Share:
        """Return the accuracy of similarities of the test images."""
        labels = self.splits["test"].labels
        return Share(evaluate(logits.cpu(), labels).top1_pct, len(labels))


def majority(
    keys: Sequence[str], predicted: Int[Tensor, " image"], labels: Int[Tensor, " image"]
) -> dict[str, bool]:
    """Return whether the class that most images of a key are given is their own, by key.

    Among equally frequent classes the one with the lower number counts.
    """
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    own: dict[str, int] = {}
    for key, guess, label in zip(keys, predicted.tolist(), labels.tolist(), strict=True):
        votes[key][guess] += 1
        own[key] = label
    winner = {key: min(found, key=lambda c: (-found[c], c)) for key, found in votes.items()}
    return {key: winner[key] == own[key] for key in own}


def ceilings(
    predicted: Int[Tensor, " image"],
    train: LabelledImages,
    test: LabelledImages,
    drawings: Mapping[str, Sequence[str]],
) -> tuple[float, float | None]:
    """Return the ceilings without labels in percent, by class and by drawing.

    `predicted` is what zero-shot gives the training images. The second is None without `drawings`.
    """
    is_right = majority([str(label) for label in train.labels.tolist()], predicted, train.labels)
    by_class = [is_right.get(str(label), False) for label in test.labels.tolist()]
    if not drawings:
        return 100 * sum(by_class) / len(by_class), None
    found = majority(drawings["train"], predicted, train.labels)
    scenes: dict[int, list[bool]] = defaultdict(list)
    for drawing, label in zip(drawings["train"], train.labels.tolist(), strict=True):
        scenes[label].append(found[drawing])
    average = {label: sum(own) / len(own) for label, own in scenes.items()}
    by_drawing = [
        float(found[drawing]) if drawing in found else average.get(label, 0.0)
        for drawing, label in zip(drawings["test"], test.labels.tolist(), strict=True)
    ]
    return 100 * sum(by_class) / len(by_class), 100 * sum(by_drawing) / len(by_drawing)


def read_drawings(dataset: str) -> dict[str, tuple[str, ...]]:
    """Return the manifest's column `drawing` by split, in order; nothing if there is none."""
    found: dict[str, list[str]] = {"train": [], "test": []}
    with Path(paths.MANIFEST.format(dataset=dataset)).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if "drawing" not in row:
                return {}
            found[row["split"]].append(row["drawing"])
    return {split: tuple(own) for split, own in found.items()}


def fetch(dataset: settings.DatasetSettings) -> None:
    """Fetch and store a dataset below the working directory."""
    datasets.fetch(dataset)
    store.build(dataset.name)
    passport.issue(dataset)


def read_case(name: str, backbone: BackboneSettings, options: argparse.Namespace) -> Case:
    """Read a dataset, and embed its texts and images."""
    dataset, author = settings.load_dataset(name), settings.load_descriptions(options.descriptions)
    if not Path(paths.PASSPORT.format(dataset=name)).is_file():
        fetch(dataset)
    if not Path(paths.DESCRIPTIONS.format(descriptions=author.name, dataset=name)).is_file():
        descriptions.write(dataset, author)
    tower, splits = load_backbone(backbone), loading.load(dataset)
    texts = classifiers(tower, descriptions.load(dataset, author), dataset.templates)
    encoded = {part: loading.image_embeddings(tower, own.images) for part, own in splits.items()}
    return Case(dataset, backbone, texts, splits, encoded, read_drawings(name), options)


def reader(case: Case, tower: Backbone | None = None) -> ViewReader:
    """Return the reader of the test images; without a tower it has their embeddings alone."""
    images = case.splits["test"].images
    return ViewReader(images, case.options.seed, tower=tower, embeddings=case.embeddings["test"])


def before_training(case: Case) -> dict[str, Share]:
    """Return the accuracy of microCLIP's heads before training: fused, global, local."""
    chosen = case.settings_of("microclip")
    assert isinstance(chosen, FusionSettings)
    tower = load_backbone(case.backbone)
    network = untrained(case.task(backbone=tower), chosen)
    classifier = FusionClassifier(network, chosen, case.options.seed)
    heads = collect_heads(classifier, reader(case, tower)(classifier.views))
    return {name: case.score(logits) for name, logits in heads.items()}


def probe(case: Case) -> Share:
    """Return the accuracy of the linear probe."""
    known = case.splits["train"].labelled()
    examples = Examples(
        case.splits["train"].labels[known], embeddings=case.embeddings["train"][known]
    )
    classifier = load_method("linear_probe").adapt(
        case.task(examples=examples), case.settings_of("linear_probe"), Silence()
    )
    return case.score(collect_heads(classifier, reader(case)(classifier.views))["fused"])


class Epochs(Silence):
    """A tracker that prints the accuracy of each head after each epoch, on the error stream."""

    def __init__(self, case: Case, monitor: LabelMonitor) -> None:
        """Take the measurements of `monitor`."""
        self._name, self._monitor = case.dataset.name, monitor

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Print one line."""
        del row
        found = self._monitor.take(epoch)
        tested = ", ".join(
            f"{name.removeprefix('test_').removesuffix('_pct')} {found[name]:.1f}"
            for name in found
            if name.startswith("test_")
        )
        print(f"{self._name}, oracle, epoch {epoch}: {tested} %", file=sys.stderr, flush=True)


def oracle(case: Case) -> Share:
    """Return the oracle's accuracy after its last epoch."""
    options, train = case.options, case.splits["train"]
    chosen = case.settings_of(
        "oracle",
        trained_view=options.views,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
    )
    known, tower = train.labelled(), load_backbone(case.backbone)
    monitor = LabelMonitor(train.labels[known], case.splits["test"].labels, reader(case, tower))
    examples = Examples(train.labels[known], images=train.images.part(known))
    task = case.task(examples=examples, backbone=tower, monitor=monitor)
    classifier = load_method("oracle").adapt(task, chosen, Epochs(case, monitor))
    return case.score(monitor.heads(classifier)["fused"])


def row(case: Case) -> list[str]:
    """Return a dataset's row."""
    train, test = case.splits["train"], case.splits["test"]
    templates, written = (
        case.score(cosine_similarity(case.embeddings["test"], vectors))
        for vectors in (case.texts.templates, case.texts.uniform)
    )
    heads = before_training(case)
    local = heads.get("local")
    guesses = cosine_similarity(case.embeddings["train"], case.texts.templates).argmax(dim=-1)
    by_class, by_drawing = ceilings(guesses, train, test, case.drawings)
    known, start = probe(case), templates.pct
    taught = oracle(case) if case.options.oracle else None
    met = {
        "a": LEAST <= start <= MOST,
        "b": None if taught is None else taught.pct >= start + ORACLE_GAIN,
        "c": None if local is None else local.pct >= LOCAL_SHARE * heads["global"].pct,
        "d": written.pct >= start,
        "e": by_class >= start + CEILING_GAIN,
    }
    shares = [templates, written, local, heads["fused"]]
    bounds = [by_class, by_drawing]
    return [
        case.dataset.name,
        str(len(train)),
        str(len(test)),
        *("—" if one is None else str(one) for one in shares),
        *("—" if bound is None else f"{bound:.1f}" for bound in bounds),
        str(known),
        "—" if taught is None else str(taught),
        " ".join(name for name, holds in met.items() if holds) or "none",
    ]


def load_tower(named: str) -> BackboneSettings:
    """Return the backbone that is named in `config/backbones`, or declared in a YAML file."""
    file = Path(named)
    if file.suffix != ".yaml":
        return settings.load_backbone_settings(named)
    return validated(BackboneSettings, {"name": file.stem, **read_yaml(file)}, named)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="What a method could gain on a dataset.")
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--backbone", default="icon-clip", help="name, or a .yaml file")
    parser.add_argument("--descriptions", default="shipped", help="name in config/llms")
    parser.add_argument("--oracle", action="store_true", help="train the oracle too")
    parser.add_argument("--views", default="strong", choices=("strong", "mild", "none"))
    parser.add_argument("--epochs", type=int, help="of the oracle")
    parser.add_argument("--learning-rate", type=float, help="of the oracle")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    options = parsed()
    runtime.use_all_cpus()
    backbone = load_tower(options.backbone)
    os.environ["MICROCLIP_ROOT"] = str(paths.project_root())
    print("| " + " | ".join(HEADS) + " |")
    print("| " + " | ".join(["---", *["---:"] * (len(HEADS) - 2), "---"]) + " |", flush=True)
    for name in options.datasets:
        with ExitStack() as stack:
            if not Path(paths.PASSPORT.format(dataset=name)).is_file():
                stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory())))
            print("| " + " | ".join(row(read_case(name, backbone, options))) + " |", flush=True)


if __name__ == "__main__":
    main()
