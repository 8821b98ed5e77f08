"""Follow microCLIP's fine-grained token [FG] through a training, epoch by epoch and part by part.

    python benchmarks/local_head.py DATASET... [--backbone icon-clip-2] [--ways WAY...]
        [--rates 1e-4 3e-4 1e-3] [--seeds 0] [--tested 500] [--batch-size 32] [--device auto]
        [--processes 1] [--until SECONDS] [--out FILE.csv] [--by-epoch]

Every run trains microCLIP as its method file says, but for what its WAY changes:

- default: nothing;
- rho-0.25, rho-0: the share of the global logits in the fused ones, 0.5 by default;
- local-loss: the cross-entropy of the local logits against the pseudo-labels as a term of its own;
- slow-maps, frozen-maps: a tenth of the rate for W_Q, W_K and W_V, or none;
- slow-norms: a tenth of the rate for the image tower's LayerNorms;
- slow-both: a tenth of the rate for the maps and the LayerNorms;
- frozen-norms, frozen-classes: no rate for them, or for the class vectors;
- decay-0: no weight decay, which pulls the three maps to zero, not to the identity they start from;
- cosine-cut: the patch graph by cosines, and the mean as threshold.

Printed is a row a run as soon as it is done; with --by-epoch also a table of its epochs, and --out
gets the same as CSV. Accuracies in percent, on every k-th test image, so that about --tested are
taken (500: one standard error is 2.2 points). By epoch:

- fused, [CLS], [FG]: accuracy of the prediction, and of each token alone;
- entropy: of the attention over the patches and the empty token, 1 if it is uniform;
- empty: the attention's weight of the empty token;
- mask: share of the patches that the cut calls salient;
- W_Q, W_K, W_V: ||W - I|| / ||I||, Frobenius, how far each map has moved from the identity;
- loss [CLS], loss [FG]: cross-entropy of each token's logits against the pseudo-labels, on the
  strong views of training;
- labels: share of the pseudo-labels that are right.

Only after the last epoch, [FG] with one trained part put back to its start, all others as trained:
the part that makes [FG] better when put back is one that spoilt it.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from many_runs import is_better_on_cpu, prepare, solve_on_cpu
from torch import Tensor

from microclip import processes, runtime, settings, study, warm
from microclip.adaptation.losses import mean_probabilities, self_training_loss
from microclip.adaptation.teacher import Teaching
from microclip.data.loading import ViewBatch, spread
from microclip.measure.evaluation import LabelMonitor, ViewReader
from microclip.methods.base import Silence, Task, ViewPlan
from microclip.methods.fusion import optimizer_recipe, untrained
from microclip.methods.microclip import SelfTrainingLosses, trainer_of
from microclip.model.token_fusion import FusionOutput, TokenFusion
from microclip.runner import Inputs, read_inputs
from microclip.settings.methods.microclip import MicroClipSettings
from microclip.study import RunSettings

PARTS = {"maps": "pooling.", "norms": "visual.", "classes": "classifier"}
Row = dict[str, float]


@dataclass(frozen=True)
class Way:
    """What a way of training changes: settings, rates by the start of a tensor's name, a loss."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    factors: tuple[tuple[str, float], ...] = ()
    local_weight: float = 0.0


WAYS = {
    "default": Way(),
    "rho-0.25": Way({"rho": 0.25}),
    "rho-0": Way({"rho": 0.0}),
    "local-loss": Way(local_weight=1.0),
    "slow-maps": Way(factors=((PARTS["maps"], 0.1),)),
    "frozen-maps": Way(factors=((PARTS["maps"], 0.0),)),
    "slow-norms": Way(factors=((PARTS["norms"], 0.1),)),
    "slow-both": Way(factors=((PARTS["maps"], 0.1), (PARTS["norms"], 0.1))),
    "frozen-norms": Way(factors=((PARTS["norms"], 0.0),)),
    "frozen-classes": Way(factors=((PARTS["classes"], 0.0),)),
    "decay-0": Way({"weight_decay": 0.0}),
    "cosine-cut": Way({"ncut_normalize": True, "ncut_threshold": "mean"}),
}
COLUMNS = {  # by epoch: heading, and decimals
    "fused": ("fused", 1),
    "global": ("[CLS]", 1),
    "local": ("[FG]", 1),
    "entropy": ("entropy", 3),
    "empty": ("empty", 4),
    "mask": ("mask", 3),
    "query": ("W_Q", 4),
    "key": ("W_K", 4),
    "value": ("W_V", 4),
    "loss_global": ("loss [CLS]", 3),
    "loss_local": ("loss [FG]", 3),
    "pseudo_mix_pct": ("labels", 1),
}
RESTORED = {f"restored_{part}": (f"[FG], {part} put back", 1) for part in PARTS}


@dataclass(frozen=True)
class Case:
    """One training."""

    dataset: str
    way: str
    rate: float
    seed: int
    options: argparse.Namespace = field(compare=False)

    def declared(self) -> study.Study:
        """The study that resolves the settings of the dataset's run."""
        own = {"batch_size": self.options.batch_size, "learning_rate": self.rate}
        if self.options.epochs is not None:
            own["epochs"] = self.options.epochs
        return study.load(
            {
                "study": "local-head",
                "datasets": [self.dataset],
                "backbones": [self.options.backbone],
                "descriptions": [self.options.descriptions],
                "seeds": [self.seed],
                "runs": [{"methods": ["microclip"]}],
                "methods": {"microclip": {**own, **WAYS[self.way].changes}},
            }
        )

    def settings(self, device: str) -> RunSettings:
        """The settings of the run."""
        declared = self.declared()
        return replace(declared.resolve(declared.runs[0]), device=device)


class BothHeads(SelfTrainingLosses):
    """microCLIP's losses, which also notes each token's own, and may add the local one."""

    def __init__(self, fusion: TokenFusion, settings: MicroClipSettings, weight: float) -> None:
        """Train `fusion`; `weight` is that of the local loss."""
        super().__init__(fusion, settings)
        self._weight = weight
        self._sums: dict[str, Tensor] = {}
        self._n = 0

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of a batch."""
        assert batch.strong is not None
        assert teaching.labels is not None
        seen = self._fusion(batch.strong, generator=generator)
        scale, labels = self._settings.temperature, teaching.labels
        local = self_training_loss(seen.local_logits, labels, scale)
        self._note("local", local, len(labels))
        self._note("global", self_training_loss(seen.global_logits, labels, scale), len(labels))
        self._n += len(labels)
        terms = {
            "ce": self_training_loss(seen.logits, labels, scale),
            "fairness": self._fairness(mean_probabilities(seen.logits, scale)),
        }
        return {**terms, "local": self._weight * local} if self._weight else terms

    def _note(self, name: str, loss: Tensor, n: int) -> None:
        self._sums[name] = self._sums.get(name, torch.zeros_like(loss)) + n * loss.detach()

    def take(self) -> Row:
        """Mean losses of the tokens since the last call."""
        found = {f"loss_{name}": float(value) / self._n for name, value in self._sums.items()}
        self._sums, self._n = {}, 0
        return found


@contextmanager
def put_back(fusion: TokenFusion, start: Mapping[str, Tensor], prefix: str) -> Iterator[None]:
    """Give one part of a network the values from before training, for a while."""
    trained = fusion.trained_state()
    fusion.load_trained_state(
        {n: start[n] if n.startswith(prefix) else value for n, value in trained.items()}
    )
    yield
    fusion.load_trained_state(trained)


class Measured(Silence):
    """Follows a training: a row an epoch of what `COLUMNS` and `RESTORED` name."""

    def __init__(self, fusion: TokenFusion, losses: BothHeads, inputs: Inputs, case: Case) -> None:
        """Take every k-th test image, so that about as many are tested as the case asks for."""
        test, train = inputs.splits["test"], inputs.splits["train"]
        chosen = spread(len(test), case.options.tested)
        self._labels = test.labels[chosen]
        self._views = ViewReader(
            test.images.part(chosen),
            case.seed,
            tower=inputs.backbone,
            device=inputs.device,
            is_reread=True,
        )
        self._fusion, self._losses, self._start = fusion, losses, fusion.trained_state()
        self._guesses = LabelMonitor(train.labels, self._labels, self._views)
        self.rows: list[Row] = []

    def pseudo_labels(self, indices: Tensor, guesses: dict[str, Tensor]) -> None:
        """Keep the pseudo-labels of a batch."""
        self._guesses.pseudo_labels(indices, guesses)

    def epoch(self, epoch: int, row: Row) -> None:
        """Measure the network after an epoch."""
        del row
        found = {**self._look(), **self._drift(), **self._losses.take()}
        self.rows.append({"epoch": epoch, **found, **self._guesses.take(epoch)})

    def finish(self) -> None:
        """Measure [FG] with each part put back."""
        for part, prefix in PARTS.items():
            with put_back(self._fusion, self._start, prefix):
                self.rows[-1][f"restored_{part}"] = self._look()["local"]

    @torch.no_grad()
    def _look(self) -> Row:
        self._fusion.eval()
        sums: dict[str, float] = defaultdict(float)
        first = 0
        for views in self._views(ViewPlan("image")):
            seen = self._fusion(views.needed_images())
            labels = self._labels[first : first + len(seen.logits)]
            first += len(labels)
            for name, value in measures(seen, labels.to(seen.logits.device)).items():
                sums[name] += float(value)
        return {name: value / first for name, value in sums.items()}

    @torch.no_grad()
    def _drift(self) -> Row:
        """How far each map is from the identity, relative to the identity's norm."""
        found = {}
        for name in ("query", "key", "value"):
            weight = getattr(self._fusion.pooling, name).weight
            eye = torch.eye(len(weight), device=weight.device)
            found[name] = float((weight - eye).norm() / math.sqrt(len(weight)))
        return found


def measures(seen: FusionOutput, labels: Tensor) -> dict[str, Tensor]:
    """Return sums over the images of a batch."""
    logits = {"fused": seen.logits, "global": seen.global_logits, "local": seen.local_logits}
    attention = seen.attention.double()
    entropy = torch.special.entr(attention).sum(dim=-1) / math.log(attention.shape[-1])
    return {
        **{name: 100 * (own.argmax(dim=-1) == labels).sum() for name, own in logits.items()},
        "entropy": entropy.sum(),
        "empty": attention[:, -1].sum(),
        "mask": seen.saliency.mask.double().mean(dim=-1).sum(),
    }


def train(case: Case, device: str) -> list[Row]:
    """Train microCLIP in one way; return a row an epoch, the first from before training."""
    run, way = case.settings(device), WAYS[case.way]
    chosen = MicroClipSettings.model_validate(run.method)
    inputs = read_inputs(run, "images")
    task = Task(
        inputs.class_names,
        inputs.texts,
        images=inputs.splits["train"].images,
        seed=case.seed,
        device=inputs.device,
        precision="fp32",
        backbone=inputs.backbone,
    )
    fusion = untrained(task, chosen)
    losses = BothHeads(fusion, chosen, way.local_weight)
    optimizer = replace(optimizer_recipe(chosen), factors=way.factors)
    trainer = trainer_of(task, chosen, fusion, losses, optimizer, say=Silence().message)
    measured = Measured(fusion, losses, inputs, case)
    trainer.train(measured)
    measured.finish()
    return measured.rows


# ---- the tables

ENDS = ("fused", "global", "local", "entropy", "mask")
HEADS = (
    "Set",
    "Way",
    "Rate",
    "Seed",
    *(f"{COLUMNS[name][0]}, before and after" for name in ENDS),
    *(COLUMNS[name][0] for name in ("query", "key", "value")),
    "labels, first and last",
    *(title for title, _ in RESTORED.values()),
)


def summary(case: Case, rows: Sequence[Row]) -> list[str]:
    """The cells of a run."""
    first, last = rows[0], rows[-1]

    def both(name: str, one: Row) -> str:
        decimals = COLUMNS[name][1]
        return f"{one[name]:.{decimals}f} → {last[name]:.{decimals}f}"

    return [
        case.dataset,
        case.way,
        f"{case.rate:g}",
        str(case.seed),
        *(both(name, first) for name in ENDS),
        *(f"{last[name]:.4f}" for name in ("query", "key", "value")),
        both("pseudo_mix_pct", rows[1]) if len(rows) > 1 else "",
        *(f"{last[name]:.1f}" for name in RESTORED),
    ]


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def by_epoch(case: Case, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a run's table of epochs."""
    yield ""
    yield f"{case.dataset}, {case.way}, rate {case.rate:g}, seed {case.seed}:"
    yield ""
    yield line(["epoch", *(title for title, _ in COLUMNS.values())])
    yield line(["---:"] * (1 + len(COLUMNS)))
    for row in rows:
        cells = [f"{row[n]:.{d}f}" if n in row else "" for n, (_, d) in COLUMNS.items()]
        yield line([f"{row['epoch']:.0f}", *cells])


def write(out: Path, found: Mapping[Case, Sequence[Row]]) -> None:
    """Write the rows of all runs as CSV."""
    names = ("dataset", "way", "rate", "seed")
    fields = [*names, "epoch", *COLUMNS, "pseudo_prior_pct", "pseudo_fusion_pct", *RESTORED]
    with runtime.atomic_path(out) as path, path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fields, lineterminator="\n")
        writer.writeheader()
        for case, rows in found.items():
            own = {name: getattr(case, name) for name in names}
            writer.writerows({**own, **{k: round(v, 5) for k, v in row.items()}} for row in rows)


# ---- the processes


def begin(*, is_solved_on_cpu: bool) -> None:
    """Prepare a process for its runs."""
    runtime.use_all_cpus()
    if is_solved_on_cpu:
        solve_on_cpu()


def run(options: argparse.Namespace) -> None:
    """Train all cases and print their rows."""
    began = time.monotonic()
    device = runtime.choose_device(options.device)
    cases = [
        Case(dataset, way, rate, seed, options)
        for seed in options.seeds
        for rate in options.rates
        for way in options.ways
        for dataset in options.datasets
    ]
    for dataset in options.datasets:
        prepare(next(case for case in cases if case.dataset == dataset).declared(), device)
    threads = max(1, runtime.n_cpus() // options.processes)
    os.environ.update(MICROCLIP_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    on_cpu = device == "cuda" and is_better_on_cpu(options.solver)
    found: dict[Case, list[Row]] = {}
    print(line(HEADS))
    print(line(["---"] * 2 + ["---:"] * (len(HEADS) - 2)), flush=True)
    tables: list[str] = []
    for case, rows in trained(cases, device, on_cpu=on_cpu, began=began):
        found[case] = rows
        print(line(summary(case, rows)), flush=True)
        tables += by_epoch(case, rows) if options.by_epoch else ()
        if options.out:
            write(options.out, found)
    print("\n".join(tables))
    said = f"{len(found)} of {len(cases)} runs in {time.monotonic() - began:.0f} s on {device}"
    print(said, file=sys.stderr)


def trained(
    cases: Sequence[Case], device: str, *, on_cpu: bool, began: float
) -> Iterator[tuple[Case, list[Row]]]:
    """Yield each case with its rows as it is done; none begins after the time is up."""
    options = cases[0].options
    spawned = multiprocessing.get_context("spawn")  # this process may have started CUDA
    pool = ProcessPoolExecutor(options.processes, spawned, partial(begin, is_solved_on_cpu=on_cpu))
    waiting = list(cases)
    running = {}
    with pool:
        while True:
            is_in_time = options.until is None or time.monotonic() - began < options.until
            while is_in_time and waiting and len(running) < options.processes:
                case = waiting.pop(0)
                running[pool.submit(train, case, device)] = case
            if not running:
                return
            done = next(as_completed(running))
            yield running.pop(done), done.result()


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--backbone", default="icon-clip-2")
    parser.add_argument("--descriptions", default="shipped", help="name in config/llms")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tested", type=int, default=500, help="test images, about")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, help="in place of the method's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--processes", type=int, default=1, help="that share GPU and CPUs")
    parser.add_argument("--until", type=float, metavar="SECONDS", help="begin no run after that")
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV of all epochs")
    parser.add_argument("--by-epoch", action="store_true", help="print a table a run too")
    parser.add_argument("--solver", choices=("auto", "cpu", "gpu"), default="auto")
    return parser.parse_args(arguments)


def main() -> None:
    """Print the tables."""
    processes.listen(warm.ENDING)
    try:
        run(parsed())
    except (settings.SettingsError, runtime.ResourceError, runtime.MissingDataError) as error:
        sys.exit(f"local_head.py: {error}")


if __name__ == "__main__":
    main()
