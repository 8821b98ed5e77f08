"""Settings are typed and frozen, and a wrong one is refused in one line that says what to do."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from microclip import settings
from microclip.cli import project
from microclip.settings import SettingsError, reports
from microclip.settings.methods.microclip import MicroClipSettings
from microclip.text.prompts import PromptSet

ROOT = Path(__file__).resolve().parents[2]
STUDY = {
    "study": "s",
    "datasets": ["icons-food"],
    "backbones": ["icon-clip"],
    "descriptions": ["shipped"],
    "runs": [{"methods": ["clip"]}],
}
KINDS: dict[str, type[settings.Frozen]] = {
    "backbones": settings.BackboneSettings,
    "cards": settings.CardSettings,
    "datasets": settings.DatasetSettings,
    "figures": reports.FigureSettings,
    "llms": settings.DescriptionSettings,
    "methods": settings.MethodFile,
    "prompts": PromptSet,
    "tables": reports.TableSettings,
}
SHIPPED = [
    (kind, path.stem) for kind in KINDS for path in sorted((ROOT / "config" / kind).glob("*.yaml"))
]
STUDIES = sorted((ROOT / "config").glob("*.yaml"))


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_every_shipped_file_is_valid(kind: str, name: str) -> None:
    values = yaml.safe_load((ROOT / "config" / kind / f"{name}.yaml").read_text())
    assert KINDS[kind].model_validate({"name": name, **values})


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_is_named_like_its_file_and_names_only_files_that_exist(path: Path) -> None:
    study = settings.load_study(settings.read_yaml(path))
    assert study.study == ("icons" if path.stem == "config" else path.stem)
    for kind in ("tables", "figures"):
        selections = getattr(study, kind)
        names = [selection.name for selection in selections]
        assert len(names) == len(set(names))
        assert set(names) <= set(settings.known(kind))
    for selection in (study, *study.tables, *study.figures):
        assert set(selection.datasets or ()) <= set(settings.known("datasets"))
        assert set(selection.backbones or ()) <= set(settings.known("backbones"))
        assert set(selection.descriptions or ()) <= set(settings.known("llms"))


def test_a_study_lists_a_table_by_name_or_with_a_part_of_the_study() -> None:
    study = settings.load_study({**STUDY, "tables": ["table1", {"name": "table2", "seeds": [1]}]})
    assert [selection.name for selection in study.tables] == ["table1", "table2"]
    assert study.tables[0].seeds is None
    assert study.tables[1].seeds == (1,)
    with pytest.raises(SettingsError, match="unknown key 'rows' in the first entry of tables in"):
        settings.load_study({**STUDY, "tables": [{"name": "table1", "rows": []}]})


def test_a_table_that_is_listed_twice_is_refused() -> None:
    twice = ["table1", "table2", {"name": "table1", "epoch": "best"}]
    with pytest.raises(SettingsError, match="tables lists table1 twice; copy config/tables/"):
        settings.load_study({**STUDY, "tables": twice})


@pytest.mark.parametrize("kind", ["datasets", "backbones", "descriptions", "seeds"])
def test_what_is_listed_twice_is_refused(kind: str) -> None:
    listed = [*settings.load_study(STUDY).model_dump()[kind]]
    with pytest.raises(SettingsError, match=f"{kind} lists {listed[0]} twice; leave one out"):
        settings.load_study({**STUDY, kind: [*listed, listed[0]]})


def official() -> dict[str, object]:
    values: dict[str, object] = settings.load_method_file("microclip").settings
    return values


def test_a_bare_off_is_the_word_off() -> None:
    """YAML 1.1 reads it as False, in a file, in Snakemake's --configfile and after --set."""
    study = yaml.safe_load("compile: off")
    assert study == {"compile": False}
    assert settings.load_study({**STUDY, **study}).compile == "off"
    options = MicroClipSettings.model_validate({**official(), "gradient_clip": False})
    assert options.gradient_clip == "off"
    with pytest.raises(SettingsError, match="compile in the study"):
        settings.load_study({**STUDY, "compile": True})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seds": [1]}, ["unknown key 'seds'", "the study", "did you mean 'seeds'"]),
        ({"qqq": 1}, ["unknown key 'qqq'", "known: study,"]),
        ({"datasets": []}, ["datasets in the study", "at least 1"]),
        ({"seeds": [-1]}, ["the first entry of seeds in the study", "must be at least 0 (got -1)"]),
        ({"device": "gpu"}, ["device in the study", "'auto', 'cpu' or 'cuda'", "'gpu'"]),
        ({"device": "mps"}, ["device in the study", "Apple's GPU", "write 'cpu' (got 'mps')"]),
        ({"device": "cuda:1"}, ["device in the study", "CUDA_VISIBLE_DEVICES=1", "'cuda:1'"]),
        (
            {"runs": [{"method": ["clip"]}]},
            [
                "unknown key 'method' in the first entry of runs in the study",
                "did you mean 'methods'?",
            ],
        ),
        ({"study": "a/../b"}, ["study in the study"]),
        ({"runs": []}, ["the study names no runs, tables or figures; add one"]),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(change: dict[str, object], said: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load_study({**STUDY, **change})
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("load", "name", "said"),
    [
        (settings.load_dataset, "icons-fod", "unknown dataset 'icons-fod', no config/datasets/"),
        (settings.load_dataset, "icons-fod", "did you mean 'icons-food'?"),
        (settings.load_dataset, "zzz", "known: birdsnap, caltech101,"),
        (settings.load_backbone_settings, "RN50", "unknown backbone 'RN50'"),
        (settings.load_method_file, "microclpi", "did you mean 'microclip'?"),
        (reports.load_table, "table13", "unknown table 'table13'"),
        (reports.load_figure, "figure2", "unknown figure 'figure2'"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(load, name: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(name)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"weights": "w"}, "exactly one of 'model' and 'config'"),
        ({"model": "ViT-B-32"}, "exactly one of 'pretrained' and 'weights'"),
        ({"config": "c", "pretrained": "openai"}, "'pretrained' goes with 'model'"),
    ],
)
def test_a_backbone_must_name_exactly_one_network(values: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=f"^here: .*{said}") as caught:
        settings.validated(settings.BackboneSettings, {"name": "b", "title": "B", **values}, "here")
    assert "Value error" not in str(caught.value)


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="known: default, released, paper-text"):
        settings.load_variant("microclip", "paper")
    assert settings.load_variant("clip", "default") == {}


def test_values_by_dataset_belong_to_a_declared_variant() -> None:
    with pytest.raises(SettingsError, match=r"here: .*'datasets' names the variant 'b'.* only a;"):
        settings.validated(
            settings.VariantFile, {"variants": {"a": {}}, "datasets": {"b": {}}}, "here"
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", r"c.yaml is not YAML: .*, line 2, column 1; quote or fix it$"),
        ("- a", "must be a mapping .*; got list"),
        ("# a", "c.yaml is empty; "),
        ("", "c.yaml is empty; "),
        ("a:\n\tb: 1", "c.yaml is not YAML: line 2 has a tab; YAML wants spaces"),
        ("a:\n  b: 1\n\tc: 1", "line 3 has a tab"),
        ("a: 'x\ty' z", "did not find expected"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SettingsError, match=said) as caught:
        settings.read_yaml(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nruns: [x]\nb: 1\nruns: [y]", "line 4 has the key 'runs' of line 2 again; keep"),
        ("m:\n  n: {epochs: 1, epochs: 2}", "line 2 has the key 'epochs' of line 2 again"),
        ("- x\n- [{1: a, 1: b}]", "line 2 has the key '1'"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        settings.read_yaml(tmp_path / "c.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/c.yaml is ambiguous: {said}")


def test_a_merged_key_may_be_given_again(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {z: 1}\nc: {<<: *a, <<: *b, y: 2}\nd: {<<: *a}"
    (tmp_path / "c.yaml").write_text(text)
    found = settings.read_yaml(tmp_path / "c.yaml")
    assert found["c"] == {"x": 1, "y": 2, "z": 1}
    assert found["d"] == found["a"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        settings.read_yaml(tmp_path / "c.yaml")


def test_a_key_that_looks_like_a_secret_is_refused_without_its_value() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load_study({**STUDY, "api_key": "sk-very-secret"})
    assert "sk-very-secret" not in str(caught.value)


def test_1e_4_in_yaml_is_a_number_after_validation() -> None:
    class Rate(settings.Frozen):
        learning_rate: float

    values = yaml.safe_load("learning_rate: 1e-4")
    assert isinstance(values["learning_rate"], str)  # YAML 1.1
    assert settings.validated(Rate, values, "x").learning_rate == 1e-4


def test_shipped_numbers_are_numbers_to_every_yaml_parser() -> None:
    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [t for inner in value.values() for t in texts(inner)]
        if isinstance(value, list):
            return [t for inner in value for t in texts(inner)]
        return [value] if isinstance(value, str) else []

    for path in (ROOT / "config").rglob("*.yaml"):
        for text in texts(yaml.safe_load(path.read_text())):
            try:
                float(text)
            except ValueError:
                continue
            pytest.fail(f"{text!r} in {path} is a string in YAML 1.1; write 1.0e-4")


@pytest.mark.parametrize("template", ["a picture", "a {} of {}"])
def test_a_template_must_have_exactly_one_slot(template: str) -> None:
    values = {
        "name": "x",
        "title": "X",
        "source": {"kind": "folder", "folder": "x"},
        "templates": [template],
    }
    with pytest.raises(SettingsError, match="must contain {} once"):
        settings.validated(settings.DatasetSettings, values, "x")


def test_settings_are_frozen() -> None:
    study = settings.load_study(STUDY)
    with pytest.raises(ValidationError):
        study.study = "other"


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert settings.digest({"a": 1, "b": [2]}) == settings.digest({"b": [2], "a": 1})
    assert settings.digest({"a": 1}) != settings.digest({"a": 1.5})
    assert len(settings.digest({})) == 16


def test_every_setting_of_a_method_has_a_description() -> None:
    from microclip.methods.base import known_methods, settings_of

    for method in known_methods():
        model: type[BaseModel] = settings_of(method)
        assert not [name for name, field in model.model_fields.items() if not field.description]


def test_the_committed_schemas_match_the_models(tmp_path: Path) -> None:
    project.export(tmp_path)
    committed = ROOT / "config" / "schema"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in committed.iterdir())
    for path in tmp_path.iterdir():
        same = path.read_text() == (committed / path.name).read_text()
        assert same, f"{path.name} is out of date; run `microclip export-schema`"


@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_number_of_epochs(value: bool) -> None:
    study = {"study": "s", "datasets": ["x"], "backbones": ["b"], "descriptions": ["d"]}
    study = {**study, "evaluate_every": value}
    with pytest.raises(
        SettingsError, match=f"evaluate_every in mine.yaml.*got '{str(value).lower()}'"
    ):
        settings.load_study(study, "mine.yaml")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), True, "inf"])
def test_every_float_of_a_method_is_a_finite_number(value: object) -> None:
    from microclip.methods.base import known_methods, settings_of

    for method in known_methods():
        model: type[BaseModel] = settings_of(method)
        for name, field in model.model_fields.items():
            if field.annotation is float:
                with pytest.raises(SettingsError, match=rf"^{name} in x: must be a "):
                    settings.validated(model, {name: value}, "x")


def test_an_unknown_key_is_found_by_the_papers_symbol() -> None:
    from microclip.settings.methods.upl import UplSettings

    with pytest.raises(SettingsError, match="unknown key 'k' in x; did you mean 'per_class'"):
        settings.validated(UplSettings, {"k": 4}, "x")
