"""Steps of every method (`gpu_methods.py` prints nothing: `gpu.py` calls it).

Each method gets a task as the runner makes it, with CLIP of random weights, made class names and
sentences, and what its supervision allows; its published settings but for epochs and batch. Two
epochs: the first one warms up. Methods that read embeddings have no steps; their whole work and the
reading of the test images is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from step import Way, tower
from torch import Tensor
from torch.nn import functional

from microclip import runtime
from microclip.adaptation.training import Trainer
from microclip.data.loading import Examples, UnlabelledImages
from microclip.measure.evaluation import ViewReader, collect_heads
from microclip.methods.base import Sight, Silence, Task, grant, load_method, sees_with, settings_of
from microclip.model.backbone import Backbone
from microclip.model.embeddings import TextClassifiers
from microclip.settings import load_method_file

TEXTS = {
    "ViT": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    "icon": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
TEMPLATES = ("a photo of a {}.", "a picture of a {}.")
N_TESTED = 128  # images; the same number that a test reads together


@dataclass
class Cost:
    """What a method needs."""

    steps: int
    step_ms: float
    images_per_s: float
    with_data: float
    peak_mib: float

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table."""
        return (
            str(self.steps or "none"),
            f"{self.step_ms:.1f}" if self.steps else "—",
            *(f"{value:.0f}" for value in (self.images_per_s, self.with_data, self.peak_mib)),
        )


class LastRow(Silence):
    """A tracker that keeps the last row of history."""

    def __init__(self) -> None:
        self.row: dict[str, float] = {}

    def pseudo_labels(self, indices: Tensor, guesses: dict[str, Tensor]) -> None:
        """Look at nothing."""

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Keep a row."""
        del epoch
        self.row = row or self.row


def clip(name: str, device: str) -> Backbone:
    """A network of this shape with both towers, random weights, and CLIP's tokenizer."""
    text = TEXTS["ViT" if name.startswith("ViT") else "icon"]
    return tower(name, text, SimpleTokenizer(context_length=77)).to(device)


def shortened(name: str, batch_size: int, steps: int) -> Any:
    """A method's published settings, with two epochs of some steps."""
    model = settings_of(name)
    short: dict[str, Any] = {
        "epochs": 2,
        "batch_size": batch_size,
        "steps_per_epoch": steps,
        "text_steps": 20,
        "max_iterations": 20,
        "shots": 1,
        "depth": min(9, steps),
        "per_class": max(1, steps * batch_size // 100),
    }
    given = {key: value for key, value in short.items() if key in model.model_fields}
    return model.model_validate({**load_method_file(name).settings, **given})


def made_task(name: str, images: UnlabelledImages, way: Way, backbone: Backbone) -> Task:
    """A task of made classes, with all that a method of any supervision may get."""
    method = load_method(name)
    generator = torch.Generator().manual_seed(0)
    count, dim = way.n_classes, backbone.embedding_dim
    vectors = [
        functional.normalize(torch.randn(count, dim, generator=generator), dim=-1) for _ in range(4)
    ]
    names = tuple(f"thing {chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(count))
    encoded = functional.normalize(torch.randn(len(images), dim, generator=generator), dim=-1)
    encoded = encoded.to(way.device)
    sight = Sight(images, lambda: encoded)
    labels = torch.arange(len(images)) % count
    task = Task(
        class_names=names,
        texts=TextClassifiers(*vectors),
        seed=0,
        device=way.device,
        precision=way.precision,
        templates=TEMPLATES,
        backbone=backbone if method.reads == "images" else None,
        sentences=tuple((f"{one} is seen.", f"A {one} has a shape.") for one in names),
    )
    is_pictures = method.reads == "images"
    examples = Examples(
        labels,
        images=images if is_pictures else None,
        embeddings=None if is_pictures else encoded,
    )
    return grant(
        task, sees_with(method, shortened(name, 2, 2)), train=sight, test=sight, examples=examples
    )


@contextmanager
def clocked(device: str) -> Iterator[list[Any]]:
    """Note when each step of a trainer begins and ends, as the device sees it."""
    plain, marks = Trainer._step, list[Any]()

    def mark() -> Any:
        if device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def step(self: Any, *given: Any) -> Any:
        begin = mark()
        found = plain(self, *given)
        marks.append((id(self), begin, mark()))
        return found

    Trainer._step = step  # type: ignore[method-assign]
    try:
        yield marks
    finally:
        Trainer._step = plain  # type: ignore[method-assign]


def milliseconds(begin: Any, end: Any) -> float:
    """Time between two marks."""
    return 1000 * (end - begin) if isinstance(begin, float) else float(begin.elapsed_time(end))


def measure_method(
    name: str, images: UnlabelledImages, way: Way, *, network: str, batch_size: int
) -> Cost:
    """Train a method for two epochs, or let it read the test images if it does not train."""
    backbone = clip(network, way.device)
    task = made_task(name, images, way, backbone)
    options = shortened(name, batch_size, len(images) // batch_size)
    runtime.reset_peak_memory()
    history = LastRow()
    with clocked(way.device) as marks:
        began = time.perf_counter()
        classifier = load_method(name).adapt(task, options, history)
        seconds = time.perf_counter() - began
    if not marks:
        tested = images.part(range(min(len(images), N_TESTED)))
        reader = ViewReader(tested, 0, tower=backbone, device=way.device)
        began = time.perf_counter()
        collect_heads(classifier, reader(classifier.views))
        seconds = time.perf_counter() - began
        speed = len(tested) / seconds
        return Cost(0, 0.0, speed, speed, runtime.peak_memory_mib())
    if way.device == "cuda":
        torch.cuda.synchronize()
    own = [pair for trainer, *pair in marks if trainer == marks[-1][0]]  # LaFTer's head comes first
    taken = statistics.median(milliseconds(*pair) for pair in own[len(own) // 2 :])
    with_data = history.row.get("images_per_s", len(own) * batch_size / seconds)
    memory = history.row.get("peak_memory_mib", runtime.peak_memory_mib())
    return Cost(len(own), taken, 1000 * batch_size / taken, with_data, memory)
