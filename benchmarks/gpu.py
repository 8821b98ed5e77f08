"""Print how fast a GPU trains, what its steps wait for, and what every method needs there.

Random weights and made photographs, ViT-B/32's shape (and B/16's), batches of 64, 8 crops, 100
classes. Each part prints Markdown tables and adds to `gpu.json` in the folder of `--out`; what
fails is printed in one line, and the rest goes on.

step      the trainer's own step on views that are on the GPU: images/s, memory, and the share of
          the rate that this GPU reaches in a large matrix product
official  the released order of operations (`step.py`), with its views made before or by workers
profile   the parts of a step, its kernels, and the lines that make the host wait
eigh      the cut's eigensolver, and what could stand in for it (`gpu_eigh.py`)
data      images/s that workers, packing and resizing give, and a whole epoch
methods   20 steps of every method

Usage: python benchmarks/gpu.py [--only PART[:SECONDS]...] [--compile MODE] [--device cpu] [--quick]
    [--out FOLDER]

`--compile` is the mode of all parts but `step`, which tries every one.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import signal
import statistics
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import gpu_eigh
import torch
from gpu_methods import LastRow, measure_method
from loader import write_photographs
from step import PHOTOGRAPH, TOWERS, OfficialStep, Way, our_trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from microclip import runtime
from microclip.adaptation.teacher import Teaching
from microclip.adaptation.training import Trainer, total
from microclip.data.loading import UnlabelledImages, ViewBatch, default_workers
from microclip.data.store import open_store, write_store
from microclip.data.views import Packed, has_kernels
from microclip.measure.flops import Network
from microclip.methods.base import known_methods
from microclip.model import frozen_linear
from microclip.model.saliency import affinity, fiedler_vector, normalized_cut
from microclip.model.token_fusion import TokenFusion

N_CLASSES, N_CROPS = 100, 8
PRIORS, PRECISIONS = ("online", "frozen"), ("fp32", "bf16")
# Networks, modes of compiling and precisions of `step`, the most wanted first.
ORDER = [("ViT-B/32", mode, "bf16") for mode in ("off", "cuda-graphs", "default")]
ORDER += [("ViT-B/32", mode, "fp32") for mode in ("off", "cuda-graphs", "default")]
ORDER += [("ViT-B/16", "off", "bf16"), ("ViT-B/16", "off", "fp32")]
FIRST = ("microclip", "pouf", "reclip", "upl", "wca", "oracle")  # of `methods`


class LateError(RuntimeError):
    """A part has had its time."""


@dataclass
class Bench:
    """Where and how large it is measured, and what was found."""

    device: str
    quick: bool
    out: Path
    mode: str = "off"
    deadline: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Images of a step."""
        return 4 if self.quick else 64

    @property
    def cases(self) -> list[tuple[str, str, str]]:
        """Network, mode of compiling and precision of each pair of rows of `step`."""
        if self.quick:
            return [("icon-clip", "off", precision) for precision in ("bf16", "fp32")]
        return [case for case in ORDER if self.device == "cuda" or case[1] == "off"]

    @property
    def name(self) -> str:
        """The network of all parts but `step`."""
        return self.cases[0][0]

    def say(self, text: str = "") -> None:
        """Print a line and keep it."""
        print(text, flush=True)
        with (self.out / "gpu.md").open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")

    def heads(self, *names: str) -> None:
        """Begin a table."""
        self.say()
        self.say("| " + " | ".join(names) + " |")
        self.say("| --- |" + " ---: |" * (len(names) - 1))

    def row(self, *cells: object) -> None:
        """Add a row to the table."""
        self.say("| " + " | ".join(str(cell) for cell in cells) + " |")

    def keep(self, table: str, **values: Any) -> None:
        """Add to what is written as JSON."""
        self.found.setdefault(table, []).append(values)
        runtime.write_json(self.out / "gpu.json", self.found)

    @contextmanager
    def case(self, what: str) -> Iterator[None]:
        """Print in one line what fails inside, and free memory afterwards."""
        if time.monotonic() > self.deadline:
            raise LateError("its time is up")
        try:
            yield
        except LateError:
            raise
        except Exception as error:  # noqa: BLE001  the rest is worth measuring
            with (self.out / "errors.txt").open("a", encoding="utf-8") as stream:
                stream.write(f"== {what}\n{traceback.format_exc()}\n")
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.say(f"{what}: {line}")
            self.keep("errors", what=what, error=line)
        finally:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def finish(self) -> None:
        """Wait for the device, whose work runs beside the host's."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], object], *, n_rounds: int = 5) -> float:
        """Seconds of a call: median of some rounds of many calls each, after two to warm up."""
        call()
        self.finish()
        began = time.perf_counter()
        call()
        self.finish()
        once = time.perf_counter() - began
        each = 0.05 if self.quick else 0.15
        n_calls = max(1, min(200, round(each / max(once, 1e-6))))
        taken = []
        for _ in range(n_rounds if once < 1 else 1):
            began = time.perf_counter()
            for _ in range(n_calls):
                call()
            self.finish()
            taken.append((time.perf_counter() - began) / n_calls)
        return statistics.median(taken)


def photographs(folder: Path, name: str, n: int) -> tuple[UnlabelledImages, list[Path]]:
    """`n` images of an image store, many of them the same, and the files."""
    files = write_photographs(folder, *PHOTOGRAPH[name], min(n, 64))
    write_store(files, folder / "store", "made")
    rows = tuple(number % len(files) for number in range(n))
    return UnlabelledImages(open_store(folder / "store"), rows), files


def flop(name: str, prior: str) -> float:
    """Operations of a step by image: teacher's views, crops if online, and the student."""
    shape = TOWERS[name]
    network = Network(
        image_size=shape["image_size"],
        patch_size=shape["patch_size"],
        width=shape["width"],
        layers=shape["layers"],
        mlp_width=4 * shape["width"],
        embedding_dim=512,
        is_quick_gelu=True,
        context=77,
        vocabulary=49408,
        text_width=64,
        text_layers=1,
    )
    crops = N_CROPS * network.encoded() if prior == "online" else 0.0
    return network.fused(N_CLASSES) + crops + network.trained(N_CLASSES, reads_patches=True)


def matrix_rate(bench: Bench, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, without TF32."""
    side = 256 if bench.quick else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / bench.timed(lambda: a @ b)


def some_batches(trainer: Trainer[ViewBatch], n: int = 2) -> list[ViewBatch]:
    """The first batches of an epoch, all workers having ended."""
    return list(trainer.views.batches(1, 1))[:n]


def stepping(trainer: Trainer[ViewBatch], batches: Sequence[ViewBatch]) -> Callable[[], object]:
    """The trainer's step on one batch after another."""
    again, generator = itertools.cycle(batches), torch.Generator()
    trainer.model.train()
    return lambda: trainer._step(next(again), generator)


def part_step(bench: Bench) -> None:
    """Steps by prior, precision and mode of compiling."""
    rates = {
        "fp32": matrix_rate(bench, torch.float32),
        "bf16": matrix_rate(bench, torch.bfloat16),
    }
    bench.say(", ".join(f"{kind}: {rate / 1e12:.1f} TFLOP/s" for kind, rate in rates.items()))
    bench.keep("rates", **rates)
    bench.heads(
        *("Step", "Compile", "First call (s)", "ms", "Images/s", "GFLOP an image"),
        *("Ideal images/s", "Share", "Peak MiB"),
    )
    with tempfile.TemporaryDirectory() as folder:
        images, _ = photographs(Path(folder), bench.name, 2 * bench.batch)
        one = Way("online", "fp32", "off", bench.device, N_CLASSES)
        batches = some_batches(our_trainer(bench.name, images, one, batch_size=bench.batch))

        def measure(name: str, way: Way, note: str = "") -> None:
            with bench.case(f"step {name} {way}"):
                trainer = our_trainer(name, images, way, batch_size=bench.batch)
                step = stepping(trainer, batches)
                step_row(bench, step, (name, way, note), rates[way.precision])

        for name, mode, precision in bench.cases:
            for prior in PRIORS:
                measure(name, replace(one, prior=prior, precision=precision, compile=mode))
            if gpu_eigh.LOOPS and bench.device == "cuda" and (mode, precision) == ORDER[0][1:]:
                with gpu_eigh.plain():
                    measure(name, replace(one, precision=precision), ", eigh in a loop")


def step_row(
    bench: Bench, step: Callable[[], object], case: tuple[str, Way, str], rate: float
) -> None:
    """One row of `part_step`."""
    name, way, note = case
    began = time.perf_counter()
    step()
    bench.finish()
    first = time.perf_counter() - began
    step()
    runtime.reset_peak_memory()
    seconds = bench.timed(step)
    speed, ideal = bench.batch / seconds, rate / flop(name, way.prior)
    memory = runtime.peak_memory_mib()
    bench.row(
        f"{name}, {way.prior}, {way.precision}{note}",
        way.compile,
        *(f"{first:.1f}", f"{1000 * seconds:.1f}", f"{speed:.0f}"),
        *(f"{flop(name, way.prior) / 1e9:.1f}", f"{ideal:.0f}"),
        *(f"{100 * speed / ideal:.0f} %", f"{memory:.0f}"),
    )
    bench.keep(
        "step",
        name=name,
        prior=way.prior,
        precision=way.precision,
        compile=way.compile,
        note=note,
        first_s=first,
        seconds=seconds,
        images_per_s=speed,
        ideal=ideal,
        peak_mib=memory,
    )


class TenViews(Dataset[Tensor]):
    """The official views of one file after another."""

    def __init__(self, step: OfficialStep, n: int) -> None:
        self._step, self._n = step, n

    def __len__(self) -> int:
        """Return the number of images."""
        return self._n

    def __getitem__(self, index: int) -> Tensor:
        """Make the views of an image."""
        torch.set_num_threads(1)
        return self._step.views(self._step.files[index % len(self._step.files)])


def part_official(bench: Bench) -> None:
    """The released order of operations, in turn with ours."""
    with tempfile.TemporaryDirectory() as folder:
        images, files = photographs(Path(folder), bench.name, 10 * bench.batch)
        official = OfficialStep(bench.name, files, device=bench.device, n_classes=N_CLASSES)
        few = torch.stack([official.views(file) for file in files[: max(1, bench.batch // 8)]])
        views = few.repeat(bench.batch // len(few), 1, 1, 1, 1).to(bench.device)
        bench.heads("Step, views ready", "Official ms", "Ours ms", "Ours, frozen ms", "Ratio", "")
        for precision in PRECISIONS:
            with bench.case(f"official {precision}"):
                some = images.part(range(2 * bench.batch))
                official_row(bench, official, views=views, images=some, precision=precision)
        bench.heads("With views, workers for all CPUs", "Official images/s", "Ours", "Ratio")
        with bench.case("official, with views"):
            theirs = official_epoch(bench, official, len(images))
            way = Way("online", "fp32", bench.mode, bench.device, N_CLASSES)
            ours = epoch_rate(bench, images, way)
            bench.row("fp32", f"{theirs:.0f}", f"{ours:.0f}", f"{ours / theirs:.1f}")
            bench.keep("official_with_views", official=theirs, ours=ours)


def official_row(
    bench: Bench,
    official: OfficialStep,
    *,
    views: Tensor,
    images: UnlabelledImages,
    precision: str,
) -> None:
    """One row of `part_official`: views are ready."""

    def learn() -> None:
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            official.learn(views)

    theirs = bench.timed(learn, n_rounds=3)
    ours = {}
    for prior in PRIORS:
        way = Way(prior, precision, bench.mode, bench.device, N_CLASSES)  # type: ignore[arg-type]
        trainer = our_trainer(bench.name, images, way, batch_size=bench.batch)
        ours[prior] = bench.timed(stepping(trainer, some_batches(trainer)), n_rounds=3)
    theirs = min(theirs, bench.timed(learn, n_rounds=3))  # once more, after ours
    bench.row(
        f"{bench.name}, {precision}",
        *(f"{1000 * seconds:.1f}" for seconds in (theirs, ours["online"], ours["frozen"])),
        *(f"{theirs / ours[prior]:.2f}" for prior in PRIORS),
    )
    bench.keep("official", precision=precision, official_s=theirs, ours_s=ours)


def official_epoch(bench: Bench, official: OfficialStep, n: int) -> float:
    """Images/s of the official step and loader, the start of the workers apart."""
    loaded = DataLoader(
        TenViews(official, n),
        batch_size=bench.batch,
        num_workers=0 if bench.device == "cpu" else runtime.n_cpus(),
        pin_memory=bench.device == "cuda",
    )
    began, seen = 0.0, -bench.batch
    for views in loaded:
        official.learn(views.to(bench.device, non_blocking=True))
        seen += len(views)
        if seen == 0:
            bench.finish()
            began = time.perf_counter()
    bench.finish()
    return seen / (time.perf_counter() - began)


def epoch_rate(bench: Bench, images: UnlabelledImages, way: Way) -> float:
    """Images/s of the trainer's second epoch, views and all."""
    trainer = our_trainer(bench.name, images, way, batch_size=bench.batch, epochs=2)
    history = LastRow()
    trainer.train(history)
    return history.row["images_per_s"]


def part_profile(bench: Bench) -> None:
    """Where the time of a step goes."""
    with tempfile.TemporaryDirectory() as folder:
        images, _ = photographs(Path(folder), bench.name, 2 * bench.batch)
        for precision in reversed(PRECISIONS):
            way = Way("online", precision, bench.mode, bench.device, N_CLASSES)
            trainer = our_trainer(bench.name, images, way, batch_size=bench.batch)
            batches = some_batches(trainer)
            bench.heads(f"Part of a step, {bench.name}, online, {precision}", "ms")
            with bench.case(f"parts {precision}"):
                parts_of(bench, trainer, batches[0], precision)
            step = stepping(trainer, batches)
            with bench.case(f"profile {precision}"):
                kernels_of(bench, step, precision)
            if bench.device == "cuda":
                with bench.case(f"host syncs {precision}"):
                    syncs_of(bench, step, precision)


def parts_of(bench: Bench, trainer: Trainer[ViewBatch], batch: ViewBatch, precision: str) -> None:
    """Time each part of a step by itself."""
    fusion, generator = trainer.model, torch.Generator()
    assert isinstance(fusion, TokenFusion)
    tower = fusion.backbone
    key = [(1, int(index)) for index in batch.indices]
    views: Any = trainer.views
    host, recipe = views._prepared(key), views.recipe
    strong = torch.zeros(batch.weak.shape, dtype=torch.uint8)

    def autocast(call: Callable[[], object], *, has_grad: bool = False) -> Callable[[], object]:
        def inside() -> object:
            coarse = torch.autocast(bench.device, torch.bfloat16, enabled=precision == "bf16")
            with torch.set_grad_enabled(has_grad), frozen_linear.packed(), coarse:
                return call()

        return inside

    tokens = autocast(lambda: tower.encode_image(batch.weak))()
    patches = tokens.patches.float()  # type: ignore[attr-defined]
    weights = affinity(patches, tau=0.2, eps=1e-6, normalize=False).double()
    teaching = autocast(lambda: trainer._teacher.teach(batch, generator))()
    assert isinstance(teaching, Teaching)
    taught = replace(teaching, look=None)
    student = autocast(lambda: trainer._losses.terms(batch, taught, generator), has_grad=True)

    def learn() -> None:
        trainer._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([total(student())])  # type: ignore[arg-type]

    learn()
    calls: dict[str, Callable[[], object]] = {
        "packing pixels (host, one thread)": lambda: views._prepared(key),
        "resize of weak view and crops": lambda: host.normalised(
            recipe.mean, recipe.std, views._memory
        ),
        "strong views' bytes to the device": lambda: strong.to(bench.device).float().div_(255),
        "teacher": autocast(lambda: trainer._teacher.teach(batch, generator)),
        "- weak view with patches": autocast(lambda: tower.encode_image(batch.weak)),
        "- crops": autocast(lambda: tower.encode_global(batch.crops.flatten(0, 1))),
        "- cut": lambda: normalized_cut(patches),
        "- - eigenvector, float64": lambda: fiedler_vector(weights),
        "student: forward pass with a cut": student,
        "student: forward and backward pass": learn,
        "optimiser": trainer._optimizer.step,
        "whole step": stepping(trainer, [batch]),
    }
    for name, call in calls.items():
        seconds = bench.timed(call, n_rounds=3)
        bench.row(name, f"{1000 * seconds:.2f}")
        bench.keep("parts", precision=precision, name=name, seconds=seconds)


def kernels_of(bench: Bench, step: Callable[[], object], precision: str) -> None:
    """Print the profiler's first lines: kernels, and operations of the host."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    is_gpu = bench.device == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    orders = {"cpu": "self_cpu_time_total"}
    if is_gpu:
        orders = {"device": "self_device_time_total", **orders}
    step()
    bench.finish()
    n_steps = 3
    with profile(activities=kinds) as seen:
        for _ in range(n_steps):
            step()
        bench.finish()
    averages: Any = seen.key_averages()
    for kind, order in orders.items():
        text = averages.table(sort_by=order, row_limit=40, max_name_column_width=70)
        with (bench.out / "profile.txt").open("a", encoding="utf-8") as stream:
            stream.write(f"== {precision}, by {order}, {n_steps} steps\n{text}\n")
        bench.heads(f"{precision}: greatest {kind} time of its own", "ms a step", "Calls a step")
        ranked = sorted(averages, key=lambda one: -getattr(one, order))
        kernels = [
            one for one in ranked if (one.device_type == DeviceType.CUDA) == (kind == "device")
        ]
        for one in kernels[:15]:
            milliseconds = getattr(one, order) / 1000 / n_steps
            bench.row(one.key[:90], f"{milliseconds:.3f}", f"{one.count / n_steps:.0f}")
            bench.keep("profile", precision=precision, by=kind, name=one.key, ms=milliseconds)
    launches = sum(one.count for one in averages if "LaunchKernel" in one.key) / n_steps
    waits = {one.key: one.count / n_steps for one in averages if "Synchronize" in one.key}
    gpu = [one for one in averages if one.device_type == DeviceType.CUDA]
    busy = sum(one.self_device_time_total for one in gpu) / 1000 / n_steps
    n_kernels = sum(one.count for one in gpu) / n_steps
    bench.say(
        f"\n{precision}: {launches:.0f} launches by the host and {n_kernels:.0f} kernels a step, "
        f"which take {busy:.1f} ms; {waits}"
    )
    bench.keep("launches", precision=precision, launches=launches, waits=waits, busy_ms=busy)


def syncs_of(bench: Bench, step: Callable[[], object], precision: str) -> None:
    """Count what makes the host wait in a step, by the line of ours that asked for it."""
    places: Counter[str] = Counter()

    def note(message: object, *_: object, **__: object) -> None:
        if "called a synchronizing" in str(message):
            ours = [f for f in traceback.extract_stack() if "microclip/" in f.filename]
            last = ours[-1] if ours else traceback.extract_stack()[-2]
            places[f"{Path(last.filename).name}:{last.lineno} {last.line}"] += 1

    step()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    bench.heads(f"{precision}: lines that make the host wait", "Times a step")
    for place, count in places.most_common():
        bench.row(place, count)
    bench.keep("syncs", precision=precision, places=dict(places))


def part_eigh(bench: Bench) -> None:
    """Eigensolvers for the cut."""
    sides = (9,) if bench.quick else (49, 196)
    bench.heads("Solver", "ms", "Largest error of the vector", "Of the gap")
    for side, dtype in itertools.product(sides, (torch.float64, torch.float32)):
        weights = gpu_eigh.graphs(bench.batch, side)
        known = fiedler_vector(weights.double())
        for name, solver in gpu_eigh.SOLVERS.items():
            what = f"[{bench.batch}, {side}, {side}], {str(dtype)[6:]}: {name}"
            with bench.case(what):
                given = weights.to(bench.device, dtype)
                errors = gpu_eigh.errors(solver(given), known)
                seconds = bench.timed(lambda s=solver, g=given: s(g), n_rounds=3)  # type: ignore[misc]
                bench.row(what, f"{1000 * seconds:.2f}", *(f"{error:.1e}" for error in errors))
                bench.keep("eigh", what=what, seconds=seconds, errors=errors)


def part_data(bench: Bench) -> None:
    """Who waits for whom in an epoch."""
    n = 3 * bench.batch if bench.quick else 40 * bench.batch
    bench.say(f"{runtime.n_cpus()} CPUs, {default_workers(torch.device(bench.device))} workers")
    bench.say(f"Views by Triton kernels: {has_kernels(torch.device(bench.device))}")
    bench.heads("Alone or together", "Images/s")
    with tempfile.TemporaryDirectory() as folder:
        images, _ = photographs(Path(folder), bench.name, n)
        way = Way("online", "bf16", bench.mode, bench.device, N_CLASSES)
        with bench.case("data path"):
            data_rows(bench, our_trainer(bench.name, images, way, batch_size=bench.batch))
        for prior, precision in itertools.product(PRIORS, ("bf16", "fp32")):
            with bench.case(f"epoch {prior} {precision}"):
                one = replace(way, prior=prior, precision=precision)  # type: ignore[arg-type]
                speed = epoch_rate(bench, images, one)
                bench.row(f"epoch: loader and step, {one}", f"{speed:.0f}")
                bench.keep("data", what=f"epoch {one}", images_per_s=speed)


def data_rows(bench: Bench, trainer: Trainer[ViewBatch]) -> None:
    """The stages of the data path, each alone, and all of them without a step."""
    views: Any = trainer.views
    keys = views._keys(1, 1)
    few = keys[: min(len(keys), 4)]
    packed = [views._prepared(key) for key in few]

    def resize() -> None:
        for one in packed:
            one.normalised(views.recipe.mean, views.recipe.std, views._memory)

    stages: dict[str, Callable[[], Iterable[object]]] = {
        "strong views by the workers": lambda: views._strong_views(views._keys(1, 2)),
        "packing, one thread": lambda: map(views._prepared, few),
        "all views, no step": lambda: views.batches(1, 2),
    }
    for name, make in stages.items():
        speed = flow(bench, make())
        bench.row(name, f"{speed:.0f}")
        bench.keep("data", what=name, images_per_s=speed)
    speed = bench.batch * len(few) / bench.timed(resize, n_rounds=3)
    bench.row("resize of weak view and crops on the device", f"{speed:.0f}")
    bench.keep("data", what="resize", images_per_s=speed)
    if isinstance(packed[0], Packed):
        moved = sum(one.pixels.nbytes for one in packed) / len(packed) / 2**20
        bench.say(f"\n{moved:.0f} MiB of pixels a batch")


def flow(bench: Bench, batches: Iterable[object]) -> float:
    """Images/s of an iterator of batches, its first one apart."""
    began, n = 0.0, -1
    for n, _ in enumerate(batches):
        if n == 0:
            bench.finish()
            began = time.perf_counter()
    bench.finish()
    return n * bench.batch / (time.perf_counter() - began)


def part_methods(bench: Bench) -> None:
    """Every method."""
    bench.heads("Method", "Precision", "Steps", "ms a step", "Images/s", "With data", "Peak MiB")
    with tempfile.TemporaryDirectory() as folder:
        images, _ = photographs(Path(folder), bench.name, bench.batch * (2 if bench.quick else 20))
        precisions = ("bf16",) if bench.quick else PRECISIONS
        names = sorted(known_methods(), key=lambda name: name not in FIRST)
        for precision, name in itertools.product(precisions, names):
            with bench.case(f"{name} {precision}"):
                n_classes = 3 if bench.quick else N_CLASSES
                way = Way("online", precision, bench.mode, bench.device, n_classes)
                found = measure_method(
                    name, images, way, network=bench.name, batch_size=bench.batch
                )
                bench.row(name, precision, *found.cells())
                bench.keep("methods", method=name, precision=precision, **vars(found))


PARTS: dict[str, Callable[[Bench], None]] = {
    "step": part_step,
    "profile": part_profile,
    "eigh": part_eigh,
    "official": part_official,
    "data": part_data,
    "methods": part_methods,
}


def ring(signal_number: int, frame: FrameType | None) -> None:
    """Stop a part."""
    del signal_number, frame
    raise LateError("its time is up")


def run(bench: Bench, part: str, limit_s: int) -> None:
    """Run a part within its time."""
    bench.say(f"\n## {part}\n")
    began = time.monotonic()
    bench.deadline = began + limit_s
    signal.alarm(limit_s)
    try:
        solving = nullcontext() if part == "eigh" else gpu_eigh.as_torch_2_12()
        with bench.case(part), solving:
            PARTS[part](bench)
    except LateError as error:
        bench.say(f"{part} stopped: {error}")
    finally:
        signal.alarm(0)
        bench.say(f"\n{part}: {time.monotonic() - began:.0f} s")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="How fast a GPU trains.")
    parser.add_argument("--only", nargs="+", default=list(PARTS), metavar="PART[:SECONDS]")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compile", choices=("off", "default", "cuda-graphs"), default="off")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test this script")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder")
    parser.add_argument("--limit-s", type=int, default=120, help="seconds for a part")
    return parser.parse_args()


def main() -> None:
    """Run the parts."""
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MICROCLIP_ROOT", str(Path(__file__).resolve().parents[1]))
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGALRM, ring)
    bench = Bench(options.device, options.quick, options.out, options.compile)
    runtime.full_float32()
    card = torch.cuda.get_device_name() if bench.device == "cuda" else "CPU"
    bench.say(f"{card}, torch {torch.__version__}, batches of {bench.batch}")
    bench.say(f"compile: {bench.mode}, but in `step`")
    bench.keep("machine", card=card, torch=str(torch.__version__), cpus=runtime.n_cpus())
    if gpu_eigh.LOOPS and bench.device == "cuda":
        bench.say("eigh as torch 2.12 calls it (cusolverDnXsyevBatched), but for rows that say so")
    gpu_eigh.compile_as_torch_2_12()
    for chosen in options.only:
        part, _, seconds = chosen.partition(":")
        run(bench, part, int(seconds or options.limit_s))


if __name__ == "__main__":
    main()
