"""How fast a machine computes what a study needs: a minute of measuring, or a card's data sheet.

`measure` runs real steps of teacher and student, with random weights and images, on the chosen
device and in the chosen precision, and remembers the result in `results/calibration.json`.
`assumed` takes a card's published peak times a share that we assume: nothing is measured.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microclip import paths, runtime
from microclip.measure.flops import Network, read_config
from microclip.settings.base import Frozen, SettingsError, digest, read_record
from microclip.settings.study import BackboneSettings, CardSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LIMIT_S = 60.0
_ENOUGH_S = 0.3  # a shorter piece of work is dominated by overheads
_LEAST, _GROWTH = 4, 8  # items of a piece, and how much their number may grow at once
_REPEATS = 3
_FREE = 0.8  # a share of the CPU that counts as a free machine
_BYTES = 64 * 2**20
_SHIPPED = "resources/icon-clip/calibration.json"  # `microclip plan` with one thread
_START = "import microclip.runner, microclip.tracking.run"

# Shares of the published peak that a whole step is assumed to reach. Matrix products alone reach
# more; LayerNorms, activations and softmaxes between them are bound by memory, which weighs most on
# the fast units. An H200 reached 0.52 and 0.12 with ViT-B/32 and cut 13 times as fast as assumed
# below (benchmarks/RESULTS.md), which one card of one kind is too little to set here.
SHARES = {"fp32": 0.5, "bf16": 0.25}
_CUT_S = 1.6e-4  # 49 patches in float64 on one CPU core, measured; a GPU is assumed to be no faster
_CUT_PATCHES = 49
# Measured in CPU seconds of one core (AMD EPYC). A strong view has a fixed part, one for each of
# its pixels and one for each pixel of the stored image.
_STRONG_S, _STRONG_OUT_S, _STRONG_IN_S = 1.8e-3, 5.9e-8, 9.0e-9
_DECODE_S, _HASH_RATE, _START_S = 0.036, 1.0e9, 10.0
_FORKED_S = 2.0  # a job that computes nothing, forked from the warm process; on a CPU, measured
_LOAD_RATE = 120e6  # bytes of weights per second
_WORKERS = 8


class Pace(Frozen):
    """How fast a machine is.

    Attributes:
        forward: FLOP per second without gradient, in the precision of training.
        evaluation: the same in float32, in which classifiers are tested.
        training: FLOP per second of forward and backward passes.
        cut_s: seconds for an image's cut.
        window_s: seconds to cut and resize one view.
        strong_s: seconds of one CPU core for a strong view.
        decode_s: seconds of one CPU core for a megapixel of JPEG.
        hash_rate: bytes per second that are read from a store and hashed.
        start_s: seconds to start a job: a fork on Linux, elsewhere Python and all imports.
        load_s: seconds to build the network.
        workers: processes that make strong views beside the training; 0: it makes them itself.
        peak_memory_mib: of a step on a GPU; None if it was not measured.
        share: of the CPU time that it asked for, what the measurement got beside other programs;
            all seconds are those of a machine with nothing else to do.
    """

    forward: float
    evaluation: float
    training: float
    cut_s: float
    window_s: float
    strong_s: float
    decode_s: float
    hash_rate: float
    start_s: float
    load_s: float
    workers: int
    peak_memory_mib: float | None = None
    share: float = 1.0


class Calibration(Frozen):
    """One measurement, and what it is valid for."""

    identity: dict[str, Any]
    pace: Pace


class Calibrations(Frozen):
    """`results/calibration.json`: measurements by the digest of their identity."""

    calibrations: dict[str, Calibration] = {}


@dataclass(frozen=True)
class Question:
    """What is measured.

    Attributes:
        backbone: whose network it is; only its architecture counts.
        canvas: width and height of a stored image, px.
        batch_size: images of a training step.
        device: "cpu" or "cuda".
        precision: of the training, "fp32" or "bf16".
    """

    backbone: BackboneSettings
    network: Network
    canvas: tuple[int, int]
    batch_size: int
    device: str
    precision: str

    def identity(self) -> dict[str, Any]:
        """Everything that the pace depends on: machine, network, images, precision."""
        return {
            "machine": platform.node(),
            "cpus": os.cpu_count(),
            "threads": os.environ.get("MICROCLIP_THREADS", ""),
            "gpu": gpu_name() if self.device == "cuda" else "",
            "torch": metadata.version("torch"),
            "network": asdict(self.network),
            "canvas": list(self.canvas),
            "batch_size": self.batch_size,
            "device": self.device,
            "precision": self.precision,
        }


def gpu_name() -> str:
    """Name of the first GPU, without starting CUDA in this process; "" if there is none."""
    listed = runtime.output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or ""
    return next(iter(listed.splitlines()), "").strip()


def assumed(card: CardSettings, network: Network, canvas: tuple[int, int], precision: str) -> Pace:
    """Return the pace that a card is assumed to have, from its published peak.

    Raises:
        SettingsError: the card has no bf16.
    """
    peak = card.bf16_tflops if precision == "bf16" else card.fp32_tflops
    if peak is None:
        raise SettingsError(
            f"{card.title} has no bf16 (config/cards/{card.name}.yaml); use precision: fp32"
        )
    single = card.fp32_tflops * 1e12 * SHARES["fp32"]
    width, height = canvas
    side = network.image_size
    window = 2 * 3 * side * (height * width + side * height)  # two products with float32 weights
    strong_s = _STRONG_S + _STRONG_OUT_S * side**2 + _STRONG_IN_S * width * height
    return Pace(
        forward=peak * 1e12 * SHARES[precision],
        evaluation=single,
        training=peak * 1e12 * SHARES[precision],
        cut_s=_CUT_S * (network.patches / _CUT_PATCHES) ** 2,
        window_s=window / single,
        strong_s=strong_s,
        decode_s=_DECODE_S,
        hash_rate=_HASH_RATE,
        start_s=_FORKED_S,
        load_s=4 * network.n_weights() / _LOAD_RATE,
        workers=_WORKERS,
    )


def known(question: Question) -> Pace | None:
    """Return what was measured for a question on this machine; None if nothing was."""
    found = _read().calibrations.get(digest(question.identity()))
    return None if found is None else found.pace


def shipped(question: Question) -> Pace | None:
    """Return the pace of one core of the project's own machine, if it was measured for the network.

    Only for a CPU: GPUs differ too much.
    """
    path = paths.resource(_SHIPPED)
    if question.device != "cpu" or not path.is_file():
        return None
    asked = {"network": asdict(question.network), "precision": question.precision}
    for entry in read_record(Calibrations, path, remedy="restore it").calibrations.values():
        if entry.identity["device"] == "cpu" and asked.items() <= entry.identity.items():
            return entry.pace
    return None


def remember(question: Question, pace: Pace) -> Path:
    """Write a measurement where `known` finds it; return the file."""
    identity = question.identity()
    entries = dict(_read().calibrations)
    entries[digest(identity)] = Calibration(identity=identity, pace=pace)
    path = Path(paths.CALIBRATION)
    runtime.write_json(path, Calibrations(calibrations=entries).model_dump(mode="json"))
    return path


def _read() -> Calibrations:
    """The measurements so far; none if the file is of another version: they are made again."""
    path = Path(paths.CALIBRATION)
    try:
        return read_record(Calibrations, path, remedy="") if path.is_file() else Calibrations()
    except SettingsError:
        return Calibrations()


@dataclass
class Stopwatch:
    """Times pieces of work until a measurement's time is over.

    Work on a CPU is timed by what this thread computed, not by the wall: other programs then do
    not count. `share` is how much of the wall that was, 1 on a machine with nothing else to do.
    """

    ends: float
    computed: float = 0.0
    waited: float = 0.0

    @classmethod
    def of(cls, seconds: float) -> Stopwatch:
        """Start one."""
        return cls(time.perf_counter() + seconds)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.perf_counter()

    @property
    def share(self) -> float:
        """Share of the wall's time in which work on the CPU was computed."""
        return min(1.0, self.computed / self.waited) if self.waited else 1.0

    def per_item(
        self,
        work: Callable[[int], object],
        most: int,
        finish: Callable[[], object] | None = None,
    ) -> float:
        """Seconds per item of `work(n)`, with an n up to `most` that takes long enough.

        The best of several times: disturbances only make it slower. `finish` waits for a GPU; None
        is work on the CPU. When no time is left, whatever was found so far must do.
        """
        self._seconds(work, 1, finish)  # the first call also loads kernels and allocates memory
        count, best, n_timed, total = 1, math.inf, 0, 0.0
        while True:
            took = self._seconds(work, count, finish)
            is_long = count == most or (took >= _ENOUGH_S and count >= min(most, _LEAST))
            if is_long or self.left <= 0:
                best, n_timed, total = min(best, took / count), n_timed + 1, total + took
                if self.left <= 0 or (n_timed >= _REPEATS and total >= _REPEATS * _ENOUGH_S):
                    return best
                continue
            wanted = math.ceil(count * _ENOUGH_S / max(took, 1e-6))
            count = min(most, max(2 * count, min(_GROWTH * count, wanted)))

    def _seconds(
        self, work: Callable[[int], object], count: int, finish: Callable[[], object] | None
    ) -> float:
        wall, thread = time.perf_counter(), time.thread_time()
        work(count)
        if finish is not None:
            finish()
            return time.perf_counter() - wall
        computed = time.thread_time() - thread
        self.computed += computed
        self.waited += time.perf_counter() - wall
        return computed


def measure(question: Question, limit_s: float = LIMIT_S) -> Pace:
    """Measure this machine for at most about `limit_s` seconds.

    Raises:
        ResourceError: the GPU is out of memory; the message gives the batch.
    """
    import torch

    watch = Stopwatch.of(limit_s)
    try:
        with runtime.seeded_globals(0):
            pace = _measure(question, watch)
        return pace.model_copy(update={"share": round(watch.share, 3)})
    except torch.cuda.OutOfMemoryError as error:
        raise runtime.ResourceError(
            f"the GPU has too little memory for a batch of {question.batch_size} images; lower "
            "batch_size, or give `--no-calibration`"
        ) from error


def _measure(question: Question, watch: Stopwatch) -> Pace:
    import torch

    from microclip.data.loading import default_workers

    is_gpu = question.device == "cuda"
    finish: Callable[[], object] | None = torch.cuda.synchronize if is_gpu else None
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    steps = Steps.of(question)
    load_s = time.perf_counter() - started
    views = question.batch_size * 8
    forward = watch.per_item(steps.encode, views, finish)
    in_float32 = replace(steps, precision="fp32")
    evaluation = forward
    if question.precision != "fp32":
        evaluation = watch.per_item(in_float32.encode, views, finish)
    training = watch.per_item(steps.train, question.batch_size, finish)
    cut_s = watch.per_item(steps.cut, question.batch_size, finish)
    picture = photograph(question.canvas)
    window_s = watch.per_item(_windows(picture, question), question.batch_size, finish) / 9
    memory = runtime.peak_memory_mib() if is_gpu else None
    n_classes = steps.n_classes
    return Pace(
        forward=question.network.encoded() / forward,
        evaluation=question.network.encoded() / evaluation,
        training=question.network.trained(n_classes, reads_patches=True) / training,
        cut_s=cut_s,
        window_s=window_s,
        strong_s=watch.per_item(_strong(picture, question.network.image_size), 64),
        decode_s=_decoding(watch),
        hash_rate=_BYTES / watch.per_item(_hash, 1),
        start_s=_starting(watch),
        load_s=load_s,
        workers=default_workers(torch.device(question.device)),
        peak_memory_mib=memory,
    )


@dataclass(frozen=True, eq=False)
class Steps:
    """Teacher and student of a network with random weights, on images of noise."""

    fusion: Any  # TokenFusion
    optimizer: Any  # torch.optim.Optimizer
    images: Tensor
    device: str
    precision: str
    n_classes: int = 100

    @classmethod
    def of(cls, question: Question) -> Steps:
        """Build the network on the question's device."""
        import torch
        from open_clip.model import CLIP

        from microclip.adaptation.schedules import OptimizerRecipe, constant
        from microclip.model.backbone import from_open_clip
        from microclip.model.token_fusion import TokenFusion

        config = read_config(question.backbone)
        small = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
        network = CLIP(
            embed_dim=config["embed_dim"],
            vision_cfg=config["vision_cfg"],
            text_cfg=small,  # the text tower takes no part in a step
            quick_gelu=bool(config.get("quick_gelu", False)),
        )
        tower = from_open_clip(network).to(question.device)
        fusion = TokenFusion(tower, torch.randn(cls.n_classes, tower.embedding_dim))
        side = tower.image_size
        views = question.batch_size * 8
        return cls(
            fusion=fusion,
            optimizer=OptimizerRecipe(schedule=constant(1e-6)).build(fusion.trained_parameters()),
            images=torch.randn(min(views, 64), 3, side, side, device=question.device),
            device=question.device,
            precision=question.precision,
        )

    def encode(self, count: int) -> None:
        """Encode `count` views to their class tokens, as the teacher and the tests do."""
        import torch

        with torch.no_grad(), self._autocast():
            self.fusion.backbone.encode_global(self._views(count))

    def train(self, count: int) -> None:
        """Train one step on `count` views; the cut is not part of it."""
        import torch
        from torch.nn import functional

        patches = self.fusion.backbone.patch_grid
        mask = torch.ones(count, patches[0] * patches[1], dtype=torch.bool, device=self.device)
        with self._autocast():
            logits = self.fusion(self._views(count), mask).logits
            loss = functional.cross_entropy(100 * logits, logits.detach().argmax(dim=-1))
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([loss])
        self.optimizer.step()

    def cut(self, count: int) -> None:
        """Cut `count` images into two sides."""
        import torch

        from microclip.model.saliency import normalized_cut

        grid = self.fusion.backbone.patch_grid
        shape = (count, grid[0] * grid[1], self.fusion.backbone.width)
        normalized_cut(torch.randn(shape, device=self.device))

    def _views(self, count: int) -> Tensor:
        times = -(-count // len(self.images))
        return self.images.repeat(times, 1, 1, 1)[:count]

    def _autocast(self) -> Any:
        import torch

        is_half = self.precision == "bf16"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=is_half)


def photograph(canvas: tuple[int, int]) -> np.ndarray:
    """Return RGB bytes as of a photograph: soft colours with a little noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize(canvas, Image.Resampling.BICUBIC), dtype=np.int16)
    return (soft + rng.integers(-8, 9, soft.shape)).clip(0, 255).astype(np.uint8)


def _windows(picture: np.ndarray, question: Question) -> Callable[[int], object]:
    """Make the weak view and eight crops of `count` images."""
    import numpy as np

    from microclip.data.views import resize_windows, square_windows, whole_window

    shape = (picture.shape[0], picture.shape[1])
    size = question.network.image_size
    rng = np.random.default_rng(0)
    own = [
        whole_window(shape, size, "center"),
        *square_windows(shape, size, 8, scale=(0.5, 0.9), rng=rng),
    ]

    def work(count: int) -> None:
        resize_windows([picture] * count, [own] * count, size, device=question.device)

    return work


def _strong(picture: np.ndarray, size: int) -> Callable[[int], object]:
    from microclip.data.augmentation import StrongTransform, strong_view

    transform = StrongTransform(size)

    def work(count: int) -> None:
        for seed in range(count):
            strong_view(picture, transform, seed=seed)

    return work


def _decoding(watch: Stopwatch) -> float:
    """Seconds of one core for a megapixel of JPEG."""
    from PIL import Image

    from microclip.data.decoding import decode

    width, height = 640, 480
    stream = io.BytesIO()
    Image.fromarray(photograph((width, height))).save(stream, "JPEG", quality=90)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photograph.jpg")
        path.write_bytes(stream.getvalue())

        def work(count: int) -> None:
            for _ in range(count):
                decode(path)

        return watch.per_item(work, 64) / (width * height / 1e6)


def _hash(count: int) -> None:
    hashlib.sha256(bytes(count * _BYTES)).hexdigest()


def _starting(watch: Stopwatch) -> float:
    """Seconds to start a job; without a warm process, CPU seconds of Python and its imports."""
    if platform.system() == "Linux":
        return _FORKED_S
    if watch.left < _START_S:
        return _START_S
    before = os.times()
    subprocess.run([sys.executable, "-c", _START], check=True, capture_output=True)
    after = os.times()
    took = after.children_user + after.children_system
    return took - before.children_user - before.children_system


def described(paces: Sequence[Pace]) -> str:
    """One line on how fast the machine is."""
    shown = "; ".join(
        f"{pace.forward / 1e9:,.0f} GFLOP/s without gradient, {pace.training / 1e9:,.0f} with, "
        f"{1e3 * pace.cut_s:.2f} ms a cut, {1e3 * pace.strong_s:.1f} ms a strong view"
        for pace in paces
    )
    share = min((pace.share for pace in paces), default=1.0)
    if share > _FREE:
        return shown
    return f"{shown}; other programs left it {share:.0%} of a CPU, a run beside them takes longer"
