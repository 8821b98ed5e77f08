"""Every file name that the project reads or writes, in one place.

The braces in patterns are Snakemake wildcards; in Python, `str.format` fills them. All names are
relative to the folder in which the workflow runs, so that each test can have a folder to itself.
"""

from __future__ import annotations

import os
import shlex
from functools import cache
from pathlib import Path

MANIFEST = "results/data/{dataset}/manifest.csv"
ORIGIN = "results/data/{dataset}/origin.json"
STORE = "results/data/{dataset}/store.json"
PASSPORT = "results/data/{dataset}/passport.json"
ZERO_SHOT = "results/data/{dataset}/zero-shot-{backbone}.json"
DESCRIPTIONS = "results/descriptions/{descriptions}/{dataset}.json"
PUBLISHED_DESCRIPTIONS = "results/downloads/{sha256}.json"
LOADED_WEIGHTS = "results/backbones/{backbone}.json"  # of downloaded weights
CLASSIFIER = "results/classifiers/{backbone}/{descriptions}/{dataset}.safetensors"
SENTENCES = "results/sentences/{backbone}/{key}"  # a store that may be deleted
FEATURES = "results/features/{backbone}/{dataset}.safetensors"
RUN = "results/runs/{dataset}/{backbone}/{descriptions}/{method}/{variant}/seed-{seed}"
SCORES = RUN + "/scores.json"
TRACKING_DATABASE = "results/mlflow.db"
TRACKING_ARTIFACTS = "results/mlflow-artifacts"
CALIBRATION = "results/calibration.json"  # how fast machines are that `microclip plan` measured
ICONS = "resources/icons"  # a folder of drawings for each set
ANSWERS = "data/answers"  # of language models; not below results/, because they cost money
STUDY = "results/{study}"
STUDY_SCORES = STUDY + "/scores.csv"
STUDY_PLAN = STUDY + "/plan.json"
PREDICTION = STUDY + "/prediction.json"  # how long each run should take, from before it started
TABLE = STUDY + "/tables/{table}.{format}"
ALL_TABLES = STUDY + "/tables/all.tex"
FIGURE = STUDY + "/figures/{figure}.{format}"
LEDGER = STUDY + "/ledger.{format}"
PAGE = STUDY + "/index.html"
STUDY_MIRRORED = STUDY + "/mirrored.json"  # tables and figures that MLflow has
RUN_GALLERY = RUN + "/gallery.html"

RUN_SETTINGS = "settings.yaml"
RUN_HISTORY = "history.csv"
RUN_FIRST_BATCH = "first_batch.json"  # of a method that trains
RUN_PREDICTIONS = "predictions.parquet"
RUN_WEIGHTS = "adapted.safetensors"
RUN_RECORD = "run.json"
RUN_SHOTS = "shots.csv"  # the labelled images of a few-shot run
ADAPTED = "adapted.json"  # in the folder of `adapt`: its record
RUN_SCORES = "scores.json"
RUN_CHECKPOINT = "checkpoint"  # folder, removed when the run is complete
RUN_JOURNAL = "journal.jsonl"
RUN_MIRRORED = "mirrored.json"  # present once MLflow has these scores

BAD_FILES = "bad_files.csv"  # of a dataset or a folder of images: files that could not be used

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = _PACKAGE / "shipped"  # wheels have the project's files there (pyproject.toml)
IS_WHEEL = _SHIPPED.is_dir()
INSTALLED = _SHIPPED if IS_WHEEL else _PACKAGE.parent  # the project that came with the package


def project_root() -> Path:
    """The folder that contains `config/` and `resources/`.

    `MICROCLIP_ROOT` if set, else the working directory if it has both, else what came with the
    package: the source checkout, or in a wheel a part of it.
    """
    named = os.environ.get("MICROCLIP_ROOT")
    if named:
        return Path(named).resolve()
    # By the quickest calls: a dry run of a large study asks some ten thousand times.
    if os.path.isdir("config/datasets") and os.path.isdir("resources"):  # noqa: PTH112
        return _as_path(os.getcwd())  # noqa: PTH109
    return INSTALLED


def resource(name: os.PathLike[str] | str) -> Path:
    """A file or folder of the project, or what came with the package if the project has none.

    So a study's folder needs no weights and drawings of its own.
    """
    own = project_root() / name
    came = INSTALLED / name
    return came if came.exists() and not own.exists() else own


def how_to_add(name: os.PathLike[str] | str) -> str:
    """How to get a file of the project that is missing: wheels leave some out."""
    if not IS_WHEEL:
        return f"restore {name} from git"
    folder = quoted(Path(name).parent)
    copied = f"`mkdir -p {folder} && cp -r SOURCE/{quoted(name)} {folder}`"
    place = "a folder by `microclip init`" if project_root() == INSTALLED else "the study's folder"
    return f"wheels leave it out; copy it from microclip's source tree: {copied} in {place}"


def quoted(path: os.PathLike[str] | str) -> str:
    r"""A path as a shell reads it, so that a command in a message can be pasted.

    A name with line breaks, or bytes that are no UTF-8, is in the form of bash and zsh: $'a\nb'.
    """
    text = os.fspath(path)
    if text.isprintable():
        return shlex.quote(text)
    plain = set(range(32, 127)) - set(b"'\\")
    signs = [chr(c) if c in plain else f"\\x{c:02x}" for c in os.fsencode(text)]
    return "$'" + "".join(signs) + "'"


@cache
def _as_path(folder: str) -> Path:
    return Path(folder)


_OF_SYSTEMS = frozenset(
    (
        *("__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found"),
        "system volume information",
    )
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden by its name, or a folder that systems make themselves."""
    return name.startswith(".") or name.casefold() in _OF_SYSTEMS
