"""One flipped bit in each file that something is read back from: refused or made again, never used.

Each reader gets its file with one bit turned, at places drawn by a seed and at both ends. It may
refuse it in one line, or give what it gave before; it must not give anything else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from microclip import paths, runner
from microclip.adaptation import checkpoint
from microclip.data import loading, passport
from microclip.data.manifest import read_manifest
from microclip.measure import comparison
from microclip.measure.scores import read_score
from microclip.methods.base import SHARED_RECIPE
from microclip.model import embeddings
from microclip.model.sentences import Encoded, SentenceStore
from microclip.model.weights import tensors_sha256
from microclip.own_images import verdict
from microclip.study import PlannedRun
from tests.fixtures.project import Journal, prepare, settings_of, write_project

N_FLIPS = 6  # and the first and the last byte
REFUSALS = (ValueError, FileNotFoundError)  # settings errors and missing data: exit codes 2 and 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete run and all that it read; tests put back what they spoil."""
    place = tmp_path_factory.mktemp("bits")
    write_project(place / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROCLIP_ROOT", str(place / "project"))
        patch.chdir(place)
        settings = settings_of("microclip", epochs=1)
        prepare(settings)
        runner.run(settings, settings.spec.folder, Journal())
    torch.manual_seed(0)
    tensors = {"a": torch.randn(3, 4)}
    checkpoint.save(
        place / "kept", checkpoint.Checkpoint(1, tensors, {"0/a": torch.ones(2)}), "key"
    )
    verdict._write_guesses(place / "guesses.safetensors", {1: torch.arange(5)})
    SentenceStore(place / "sentences").add(["a", "b"], encoded())
    return place


def encoded() -> Encoded:
    return Encoded(torch.arange(8.0).reshape(2, 4), torch.tensor([False, True]))


def hashed(tensors: dict[str, Tensor]) -> str:
    return tensors_sha256(tensors)


RUN = "results/runs/shapes/tiny/shipped/microclip/default/seed-0"
DATA = "results/data/shapes"


def images() -> str:
    """The pixels, labels and files of both splits, as a run reads them."""
    settings = settings_of("microclip", epochs=1)
    passport.check(settings.dataset)
    found = hashlib.sha256()
    for name, split in sorted(loading.load(settings.dataset).items()):
        found.update(f"{name} {split.labels.tolist()} {split.files}".encode())
        for row in range(len(split)):
            found.update(np.ascontiguousarray(split.images.pixels(row)).tobytes())
    return found.hexdigest() + read_manifest("shapes").images_sha256


def vectors() -> str:
    settings = settings_of("microclip", epochs=1)
    found = embeddings.load_texts(settings.dataset, settings.backbone, settings.descriptions)
    return hashed({"u": found.uniform, "s": found.similarity, "t": found.templates})


def features() -> str:
    settings = settings_of("microclip", epochs=1)
    found = embeddings.load_features(settings.dataset, settings.backbone)
    return hashed({"train": found.train, "test": found.test})


def last_checkpoint() -> str:
    found = checkpoint.load(Path("kept"), "key")
    # Of other settings, as its key says then: the run begins at epoch 0.
    return "" if found is None else hashed({**found.weights, "rng": found.rng}) + str(found.epoch)


def scores() -> str:
    settings = settings_of("microclip", epochs=1)
    run = PlannedRun(settings.spec, settings.digest(), settings.recipe)
    return str(read_score(run, SHARED_RECIPE))


def predicted() -> str:
    found = comparison.read(Path(RUN), "fused")
    return f"{found.labels.tolist()} {found.right.tolist()}"


def sentences() -> str:
    found = SentenceStore(Path("sentences")).find(["a", "b"])
    # None, and the file is gone: they are encoded again.
    return "" if not found else str({text: (v.tolist(), cut) for text, (v, cut) in found.items()})


READERS: dict[str, Callable[[], str]] = {
    f"{DATA}/pixels.bin": images,
    f"{DATA}/index.npy": images,
    f"{DATA}/store.json": images,
    f"{DATA}/manifest.csv": images,
    f"{DATA}/passport.json": images,
    "results/descriptions/shipped/shapes.json": vectors,
    "results/classifiers/tiny/shipped/shapes.safetensors": vectors,
    "results/features/tiny/shapes.safetensors": features,
    "sentences/": sentences,
    "kept/last.safetensors": last_checkpoint,
    "guesses.safetensors": lambda: str(verdict._read_guesses(Path("guesses.safetensors"))),
    f"{RUN}/{paths.RUN_WEIGHTS}": lambda: hashed(
        checkpoint.read_weights(Path(RUN, paths.RUN_WEIGHTS))[0]
    ),
    f"{RUN}/{paths.RUN_SCORES}": scores,
    f"{RUN}/{paths.RUN_PREDICTIONS}": predicted,
}


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_refused_or_changes_nothing(
    made: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROCLIP_ROOT", str(made / "project"))
    monkeypatch.chdir(made)
    path = Path(name)
    if path.is_dir():
        [path] = path.glob("*.safetensors")
    whole, read = path.read_bytes(), READERS[name]
    expected = read()
    draw = random.Random(name)
    places = [0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(N_FLIPS))]
    refusals = []
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << draw.randrange(8)
        path.write_bytes(spoilt)
        try:
            found = read()
        except REFUSALS as error:
            refusals.append(str(error))
        else:
            assert found in (expected, ""), f"byte {place}"
        finally:
            path.write_bytes(whole)
    assert read() == expected
    assert refusals or name in ("sentences/", f"{DATA}/passport.json")
    assert all(len(said.strip().splitlines()) == 1 for said in refusals)
