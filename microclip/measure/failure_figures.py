"""Figure 11: test images that one of the two tokens had right and their fusion has wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from microclip.data.decoding import Pixels
from microclip.measure import pictures
from microclip.measure.drawing import Drawn, house_style
from microclip.measure.evaluation import Evaluation, evaluate
from microclip.measure.trained_runs import FusedRun, selected
from microclip.runs import FigureSelection
from microclip.settings import load_dataset
from microclip.settings.reports import FailuresPlot

_HEADS = {"fused": "fusion", "global": "[CLS]", "local": "[FG]"}
_COLUMNS = ("dataset", "image", "class", "rank", "head", "prediction", "confidence", "is_correct")
_BLOCKS = 2  # failures beside each other
_FAILURE_LINE = 29  # characters of the text beside an image


@dataclass(frozen=True)
class Guess:
    """What one head says of an image; `confidence` is a probability."""

    head: str
    class_name: str
    confidence: float
    is_correct: bool


@dataclass(frozen=True, eq=False)
class _Failure:
    """One image of the figure; `rank` counts from 1 within its dataset."""

    dataset: str
    file: str
    class_name: str
    rank: int
    picture: Pixels
    guesses: tuple[Guess, ...]


@house_style()
def draw_failures(plot: FailuresPlot, selection: FigureSelection) -> Drawn:
    """Return the failures of each dataset that the fusion is surest of.

    Raises:
        MissingDataError: a run is not complete.  SettingsError: it has no [FG] token.
    """
    found: list[_Failure] = []
    lines: list[str] = []
    for run in selected(plot, selection):
        heads = {name: evaluate(part, run.tested.test.labels) for name, part in run.heads().items()}
        ranked = rank(heads)
        title = load_dataset(run.tested.settings.spec.dataset).title
        lines.append(_summary(title, len(ranked), len(run.tested.test)))
        found += _failures(run, heads, ranked[: plot.images])
    return Drawn(_failures_picture(found, lines), _failures_numbers(found))


def rank(heads: Mapping[str, Evaluation]) -> list[int]:
    """Return the images that the fusion has wrong and a token right, surest wrong answer first."""
    fused = heads["fused"]
    has_one_right = heads["global"].is_correct | heads["local"].is_correct
    candidates = (has_one_right & ~fused.is_correct).nonzero().flatten().tolist()
    return sorted(candidates, key=lambda index: -float(fused.confidence[index]))


def _failures(
    run: FusedRun, heads: Mapping[str, Evaluation], indices: Sequence[int]
) -> list[_Failure]:
    if not indices:
        return []
    tested = run.tested
    return [
        _Failure(
            dataset=tested.settings.spec.dataset,
            file=tested.test.files[index],
            class_name=tested.class_of("label", index),
            rank=place,
            picture=picture,
            guesses=tuple(
                Guess(
                    head=shown,
                    class_name=tested.class_names[int(heads[name].predicted[index])],
                    confidence=float(heads[name].confidence[index]),
                    is_correct=bool(heads[name].is_correct[index]),
                )
                for name, shown in _HEADS.items()
            ),
        )
        for place, (index, picture) in enumerate(
            zip(indices, run.pictures(indices), strict=True), start=1
        )
    ]


def _summary(title: str, n_failures: int, n_test: int) -> str:
    """Return how many failures a dataset has, in words."""
    if n_failures == 0:
        return f"{title}: no image of {n_test} that a token has right and the fusion wrong"
    share = 100 * n_failures / n_test
    return (
        f"{title}: {n_failures} of {n_test} test images ({share:.1f} %) that a token has right and "
        "the fusion wrong"
    )


def _failures_picture(failures: Sequence[_Failure], lines: Sequence[str]) -> Figure:
    """Return the failures in blocks beside each other, below what is counted."""
    n_rows = -(-len(failures) // _BLOCKS)
    head = 0.06 + 0.16 * len(lines)
    board = pictures.board(n_rows, 2 * _BLOCKS + 2, text=0.0, head=head, foot=0.02)
    width = board.width / _BLOCKS
    top = board.place(0, 0, board.width, head)
    top.set_axis_off()
    top.text(0.003, 0.95, "\n".join(lines).replace("$", r"\$"), va="top", linespacing=1.25)
    for place, failure in enumerate(failures):
        row, block = divmod(place, _BLOCKS)
        down = head + row * (board.side + board.gap)
        pictures.show(board.place(block * width, down, board.side, board.side), failure.picture)
        left = block * width + board.side
        axes = board.words(left, down, width - board.side)
        said = [
            f"{pictures.mark(is_right=guess.is_correct)} {guess.head}: {guess.class_name}, "
            f"{100 * guess.confidence:.0f}\N{NO-BREAK SPACE}%"
            for guess in failure.guesses
        ]
        if len(lines) > 1:
            said.insert(0, failure.dataset)
        pictures.write_lines(axes, failure.class_name, said, width=_FAILURE_LINE)
    return board.figure


def _failures_numbers(failures: Sequence[_Failure]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (
                failure.dataset,
                failure.file,
                failure.class_name,
                failure.rank,
                guess.head,
                guess.class_name,
                guess.confidence,
                guess.is_correct,
            )
            for failure in failures
            for guess in failure.guesses
        ],
        columns=list(_COLUMNS),
    )
