"""The rule `describe` with a language model: it asks for missing classes; bad ones stop W_LLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from microclip import settings
from microclip.settings import base
from microclip.text import descriptions
from tests.llm_server import Server
from tests.text.asking import PRICES, server
from tests.workflow import folder

__all__ = ["server"]
pytestmark = pytest.mark.usefixtures("shared_warm")
DESCRIBED = "results/descriptions/asked/tiny.json"
W_LLM = "results/classifiers/icon-clip/asked/tiny.safetensors"


def place_of(tmp_path: Path, server: Server) -> Path:
    """Set up a study that gets its descriptions from the test's server."""
    place = folder.write(tmp_path / "study", descriptions=["asked"])
    values = {
        "title": "asked",
        "engine": "chat",
        "model": "gpt-4o",
        "prompts": "own-images",
        "ask": {"base_url": server.url, "prices": PRICES, "backoff_s": 0.01, "tries": 1},
    }
    (place / "config" / "llms" / "asked.yaml").write_text(yaml.safe_dump(values))
    return place


def set_classes(place: Path, n: int) -> None:
    source = {**folder.DATASET["source"], "classes": n}
    text = yaml.safe_dump({**folder.DATASET, "source": source})
    (place / "config" / "datasets" / "tiny.yaml").write_text(text)


@pytest.mark.slow
def test_only_a_new_class_is_requested_and_quarantine_stops_w_llm(
    server: Server, tmp_path: Path
) -> None:
    place = place_of(tmp_path, server)
    done = folder.snakemake(place, *folder.MACHINE, "--", DESCRIBED)
    assert done.returncode == 0, done.stdout
    assert len(server.sent) == 4 * 3
    known = {one.question for one in server.sent}

    set_classes(place, 5)
    server.fault = lambda _, question: None if question in known else "refusal"
    done = folder.snakemake(place, *folder.MACHINE, "--", W_LLM)
    assert done.returncode == 1
    assert "1 of 5 classes are in quarantine" in done.stdout
    assert len(server.sent) == 4 * 3 + 3
    assert not {one.question for one in server.sent[12:]} & known
    assert not (place / W_LLM).exists()
    assert not (place / DESCRIBED).exists()


def test_prompts_and_model_are_part_of_the_jobs_digest(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(tmp_path, server)
    monkeypatch.setenv("MICROCLIP_ROOT", str(place))
    base._load.cache_clear()

    def named() -> str:
        base._load.cache_clear()
        dataset = settings.load_dataset("tiny")
        return settings.digest(descriptions.identity(dataset, settings.load_descriptions("asked")))

    first = named()
    set_classes(place, 5)
    with_a_class = named()
    assert with_a_class != first
    own = place / "config" / "llms" / "asked.yaml"
    values = yaml.safe_load(own.read_text())
    own.write_text(yaml.safe_dump({**values, "ask": {**values["ask"], "concurrency": 2}}))
    assert named() == with_a_class
    own.write_text(yaml.safe_dump({**values, "ask": {**values["ask"], "domain": "food"}}))
    assert named() != with_a_class
