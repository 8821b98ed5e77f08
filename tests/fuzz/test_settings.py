"""Files under config/, those that `adapt --set` names, and JSON records that the project wrote."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from microclip import settings, study
from microclip.cli import own_images, project
from microclip.data.manifest import Origin
from microclip.data.passport import Passport
from microclip.own_images import record
from microclip.settings.base import read_record, validated
from microclip.study import Plan, RunSettings
from microclip.text.descriptions import PublishedList
from tests.fuzz.judge import few, judged
from tests.fuzz.strategies import BOMBS, SIGNS, VALUES, dumped, encoded, mutated_text

CONFIG = Path(__file__).resolve().parents[2] / "config"
YAML_SIGNS = (
    *SIGNS,
    *(
        "2001-99-99",
        "!!timestamp x",
        "!!int ''",
        "!!bool x",
        "!!float x",
        "!!binary ä",
        "0x",
        "0b_",
    ),
    *(
        "&a ",
        "*a",
        "<<: *a",
        "<<: 1",
        "? ",
        "? [a]: b",
        "|\n ",
        ">-\n",
        "--- ",
        "... ",
        "%YAML 9.9\n",
    ),
    *(
        "12:30:99",
        "1_000",
        ".inf",
        "-.nan",
        "~",
        "off",
        "[1, [2, [3]]]",
        "{a: {b: c}}",
        "name: x\n",
    ),
)


@cache
def shipped(kind: str) -> tuple[str, ...]:
    """The smallest shipped files of a folder of config/."""
    files = sorted((CONFIG / kind).glob("*.yaml"), key=lambda path: path.stat().st_size)
    return tuple(path.read_text(encoding="utf-8")[:2000] for path in files[:4])


@cache
def whole(kind: str) -> tuple[Any, ...]:
    """The values of the same files."""
    files = sorted((CONFIG / kind).glob("*.yaml"), key=lambda path: path.stat().st_size)
    return tuple(settings.read_yaml(path) for path in files[:2])


MODELS: dict[str, type[BaseModel]] = {
    **project.named_models(),
    "variants": settings.VariantFile,
    "published": PublishedList,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


def read(path: Path, model: type[BaseModel], kind: str, parser: str) -> None:
    """What `load_named` does, without its cache."""
    with judged(parser):
        values = settings.read_yaml(path)
        found = validated(model, {"name": "own", **values}, f"config/{kind}/own.yaml")
        again = validated(model, found.model_dump(), "the same")
        assert again == found or "nan" in repr(found)


@few(2)
@pytest.mark.parametrize("kind", sorted(MODELS))
@given(st.data())
def test_a_file_of_config(folder: Path, kind: str, data: st.DataObject) -> None:
    texts = data.draw(
        st.one_of(
            mutated_text(shipped(kind), YAML_SIGNS),
            mutated_text(shipped(kind), YAML_SIGNS),
            BOMBS,
            encoded(mutated_text(shipped(kind), YAML_SIGNS)),
        )
    )
    path = folder / f"{kind}.yaml"
    path.write_bytes(texts if isinstance(texts, bytes) else texts.encode("utf-8", "replace"))
    read(path, MODELS[kind], kind, f"config/{kind}")


def replaced(value: Any) -> st.SearchStrategy[Any]:
    """A value in which one part is any other value."""
    if isinstance(value, dict) and value:
        return st.sampled_from(sorted(value, key=str)).flatmap(
            lambda key: replaced(value[key]).map(lambda own: {**value, key: own})
        )
    if isinstance(value, list) and value:
        return replaced(value[0]).map(lambda own: [own, *value[1:]])
    return VALUES


@few(2)
@pytest.mark.parametrize("kind", sorted(MODELS))
@given(st.data())
def test_one_value_of_a_file_is_any_other(kind: str, data: st.DataObject) -> None:
    values = data.draw(st.sampled_from(whole(kind)).flatmap(replaced))
    with judged(f"config/{kind} values"):
        validated(MODELS[kind], {"name": "own", **values}, f"config/{kind}/own.yaml")


STUDY = settings.read_yaml(CONFIG / "config.yaml")


@few(2)
@given(replaced(STUDY) | mutated_text([yaml.safe_dump(STUDY)], YAML_SIGNS))
def test_a_study(folder: Path, values: Any) -> None:
    path = folder / "study.yaml"
    text = values if isinstance(values, str) else json.dumps(values)
    path.write_bytes(text.encode("utf-8", "replace"))
    with judged("a study"):
        study.load(settings.read_yaml(path), str(path))


@given(st.sampled_from(SIGNS + YAML_SIGNS) | BOMBS, st.sampled_from(("epochs", "seed", "lr", "x")))
def test_set_on_the_command_line(text: str, key: str) -> None:
    with judged("--set"):
        given_ = own_images._pairs([f"{key}={text}"])
        record.resolve("microclip", given_, "--set")


RECORDS: dict[str, type[settings.Frozen]] = {"origin": Origin, "passport": Passport}


@pytest.mark.parametrize("kind", sorted(RECORDS))
@given(dumped(VALUES) | BOMBS | mutated_text(['{"source": {"kind": "icons"}, "notes": ["a"]}']))
def test_a_record_of_ours(folder: Path, kind: str, text: str) -> None:
    path = folder / f"{kind}.json"
    path.write_bytes(text.encode("utf-8", "replace"))
    with judged("read_record"):
        read_record(RECORDS[kind], path, remedy="run it again")


@given(
    dumped(VALUES) | BOMBS | mutated_text(['{"study": "a", "title": "b", "runs": [], "holes": []}'])
)
def test_a_plan(folder: Path, text: str) -> None:
    path = folder / "plan.json"
    path.write_bytes(text.encode("utf-8", "replace"))
    with judged("a plan"):
        Plan.from_file(path)


SPEC = dict.fromkeys(("dataset", "backbone", "descriptions", "method", "variant"), "a") | {
    "seed": 0
}
RUN = {"spec": SPEC, "method": {}, "dataset": {}, "backbone": {}, "descriptions": {}}


@given(replaced(RUN))
def test_the_settings_of_a_run(values: Any) -> None:
    with judged("RunSettings"):
        RunSettings.from_dict(values)
