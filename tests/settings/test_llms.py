"""How a model is asked is kept apart from what names a run, and never contains a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from microclip import settings, study
from microclip.settings import SettingsError, load_descriptions, validated
from microclip.settings.llms import AskSettings, DescriptionSettings
from microclip.text import descriptions

ASKED = {"name": "m", "title": "M", "engine": "chat", "model": "m", "prompts": "own-images"}
SECRET = "sk-4f7a2b9c1d"


def test_settings_for_asking_do_not_change_the_digests_of_shipped_descriptions() -> None:
    root = Path(__file__).resolve().parents[2]
    planned = study.load(settings.read_yaml(root / "config" / "icons-all.yaml")).plan().runs
    names = {run.name: run.digest for run in planned}
    assert names["icons-animals/icon-clip/shipped/clip/default/seed-0"] == "22d1ab2f5474e551"
    shipped = load_descriptions("shipped")
    assert set(shipped.identity()) == {"name", "engine", "model", "prompts", "files", "frame"}
    texts = descriptions.identity(settings.load_dataset("icons-food"), shipped)
    assert "ask" not in texts[1]


def test_settings_that_change_no_sentence_change_no_digest() -> None:
    def name(**ask: object) -> str:
        values = {**ASKED, "ask": ask}
        return settings.digest(validated(DescriptionSettings, values, "a test").identity())

    base = name()
    prices = {"date": "2025-06-01", "source": "s", "input_usd": 1.0, "output_usd": 1.0}
    for same in ({"concurrency": 2}, {"prices": prices}, {"max_cost_usd": 1.0}, {"attempts": 2}):
        assert name(**same) == base, same
    for other in ({"parameters": {"temperature": 1.0}}, {"samples": 3}, {"domain": "a bird"}):
        assert name(**other) != base, other


def test_an_engine_is_refused_without_the_settings_it_needs() -> None:
    assert validated(DescriptionSettings, ASKED, "a test").ask == AskSettings()
    with pytest.raises(SettingsError, match="remove 'ask'"):
        validated(DescriptionSettings, {**ASKED, "engine": "file", "files": "x", "ask": {}}, "it")
    with pytest.raises(SettingsError, match="needs 'files'"):
        validated(DescriptionSettings, {**ASKED, "engine": "shipped"}, "it")


@pytest.mark.parametrize(
    "ask",
    [
        {"parameters": {"api_key": SECRET}},
        {"parameters": {"extra_headers": {"Authorization": SECRET}, "auth": SECRET}},
        {"base_url": f"https://user:{SECRET}@example.org/v1"},
        {"base_url": f"https://example.org/v1?api_key={SECRET}"},
        {"key_variable": SECRET},
        {"api_key": SECRET},
    ],
)
def test_a_key_in_a_setting_is_refused_and_not_repeated(ask: dict[str, object]) -> None:
    with pytest.raises(SettingsError) as caught:
        validated(DescriptionSettings, {**ASKED, "ask": ask}, "config/llms/m.yaml")
    assert SECRET not in str(caught.value)


def test_parameters_that_microclip_sets_itself_are_refused() -> None:
    with pytest.raises(SettingsError, match="microclip sets 'messages' itself"):
        validated(DescriptionSettings, {**ASKED, "ask": {"parameters": {"messages": []}}}, "it")


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4o-batch", "cupl-instruct", "local"])
def test_the_shipped_models_can_be_asked_and_have_a_cost_limit(name: str) -> None:
    declared = load_descriptions(name)
    assert declared.asks
    assert declared.ask is not None
    if name != "local":  # your own server: we do not know its price
        assert declared.ask.prices is not None
        assert declared.ask.max_cost_usd == 20.0
