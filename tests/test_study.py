"""From settings to runs: what is layered over what, which runs there are, what names them."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from microclip import settings, study
from microclip.settings import SettingsError
from microclip.study import RunSettings, RunSpec

ROOT = Path(__file__).resolve().parents[1]


def config(**changes: Any) -> dict[str, Any]:
    return {**settings.read_yaml(ROOT / "config" / "config.yaml"), **changes}


def one(method: str, **changes: Any) -> RunSettings:
    declared = study.load(config(datasets=["icons-food"], **changes))
    return declared.resolve(next(spec for spec in declared.runs if spec.method == method))


def test_the_default_study_has_three_methods_on_six_sets() -> None:
    runs = study.load(config()).runs
    assert len(runs) == len(set(runs)) == 18
    assert {spec.seed for spec in runs} == {0}


def test_a_method_without_randomness_runs_with_one_seed() -> None:
    runs = study.load(config(seeds=[0, 1, 2])).runs
    seeds = {m: sum(spec.method == m for spec in runs) for m in ("clip", "cupl", "microclip")}
    assert seeds == {"clip": 6, "cupl": 6, "microclip": 18}


def test_a_run_that_two_grids_name_is_one_run() -> None:
    grids = [
        {"methods": ["microclip"], "variants": ["default", "gamma-0"]},
        {"methods": ["microclip"], "variants": ["gamma-0", "gamma-1"], "datasets": ["icons-food"]},
    ]
    runs = study.load(config(datasets=["icons-food"], runs=grids)).runs
    assert [spec.variant for spec in runs] == ["default", "gamma-0", "gamma-1"]


def test_names_and_folders_are_the_six_names() -> None:
    spec = RunSpec("d", "b", "l", "m", "v", 3)
    assert spec.name == "d/b/l/m/v/seed-3"
    assert spec.folder == Path("results/runs/d/b/l/m/v/seed-3")


def test_later_layers_win() -> None:
    assert one("microclip").method["gamma"] == 0.5
    assert one("microclip", methods={"microclip": {"gamma": 0.3}}).method["gamma"] == 0.3
    runs = [{"methods": ["microclip"], "variants": ["gamma-0"]}]
    both = one("microclip", methods={"microclip": {"gamma": 0.3}}, runs=runs)
    assert both.method["gamma"] == 0.0


def test_a_setting_of_one_method_changes_that_method_alone() -> None:
    changed = {"methods": {"microclip": {"gamma": 0.3}}}
    assert one("microclip").digest() != one("microclip", **changed).digest()
    assert one("clip").digest() == one("clip", **changed).digest()


def test_the_device_is_not_part_of_what_names_a_run_but_precision_is() -> None:
    assert one("microclip").digest() == one("microclip", device="cpu").digest()
    assert one("microclip").digest() != one("microclip", precision="bf16").digest()


def test_writing_a_default_out_changes_nothing() -> None:
    assert one("microclip", methods={"microclip": {"gamma": 0.5}}) == one("microclip")


def test_settings_survive_being_written() -> None:
    for method in ("clip", "cupl", "microclip"):
        resolved = one(method)
        assert RunSettings.from_dict(resolved.as_dict()).digest() == resolved.digest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": {"microclip": {"gama": 0.3}}}, "unknown key 'gama' in the study"),
        ({"methods": {"microclip": {"gama": 0.3}}}, "did you mean 'gamma'"),
        ({"methods": {"microclip": {"gamma": 1.5}}}, "less than or equal to 1 (got 1.5)"),
        ({"methods": {"microclip": {"n_crops": 0}}}, "n_crops in the study"),
        ({"methods": {"nothing": {}}}, "unknown method 'nothing' in the study's methods"),
        ({"runs": [{"methods": ["clop"]}]}, "unknown method 'clop'"),
        ({"runs": [{"methods": ["clip"], "variants": ["x"]}]}, "unknown variant 'x' of clip"),
        ({"datasets": ["dtd"]}, "unknown dataset 'dtd'"),
        ({"backbones": ["RN50"]}, "unknown backbone 'RN50'"),
        ({"descriptions": ["gpt"]}, "unknown llm 'gpt'"),
        ({"tables": ["table9"]}, "unknown table 'table9'"),
    ],
)
def test_errors_come_before_anything_runs_in_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        study.load(config(**change))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{}, {"spec": {}}, {"spec": {"datset": "x"}, "dataset": {}}])
def test_what_is_no_settings_of_a_run_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        RunSettings.from_dict(values)


def test_settings_of_a_run_without_one_part_name_it() -> None:
    whole = one("clip").as_dict()
    for key in ("spec", "dataset", "backbone", "descriptions", "method", "recipe"):
        with pytest.raises(SettingsError, match=key):
            RunSettings.from_dict({k: v for k, v in whole.items() if k != key})


def test_titles_and_other_methods_settings_do_not_name_a_run() -> None:
    resolved = one("clip")
    dataset = resolved.dataset.model_copy(
        update={"title": "Other", "methods": {"microclip": {"gamma": 0.3}}}
    )
    assert replace(resolved, dataset=dataset).digest() == resolved.digest()


def test_what_a_job_is_given_does_not_hold_the_device() -> None:
    declared = study.load(config(datasets=["icons-food"], device="cuda"))
    given = json.loads(
        declared.settings_json(**{k: str(v) for k, v in asdict(declared.runs[0]).items()})
    )
    assert "device" not in given
    assert RunSettings.from_dict(given).digest() == declared.resolve(declared.runs[0]).digest()
