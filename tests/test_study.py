"""From settings to runs: layers of settings, the runs of a study, and their digests."""

import json
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from microclip import settings, study
from microclip.measure import forecast
from microclip.measure.costs import Costs, Time
from microclip.methods.base import known_methods
from microclip.settings import SettingsError
from microclip.study import Plan, RunSettings, RunSpec, SweepPoint

ROOT = Path(__file__).resolve().parents[1]


SMALL = "icons-food-small"
THREE = [{"methods": ["clip", "cupl", "microclip"]}]
SWEEP = {"name": "figure5", "values": [0.0, 0.5, 1.0]}


def config(**changes: Any) -> dict[str, Any]:
    """The default study with the methods' own settings, and `changes` made to it."""
    return {**settings.read_yaml(ROOT / "config" / "config.yaml"), "methods": {}, **changes}


def bare(**changes: Any) -> study.Study:
    """Load a study of one dataset without tables, figures and runs, with `changes` made to it."""
    parts = {"datasets": [SMALL], "tables": [], "figures": [], **changes}
    return study.load(config(**parts))


def variants(declared: study.Study) -> list[str]:
    return [spec.variant for spec in declared.runs]


def one(method: str, **changes: Any) -> RunSettings:
    declared = bare(**{"datasets": ["icons-food"], "runs": THREE, **changes})
    return declared.resolve(next(spec for spec in declared.runs if spec.method == method))


def n_others() -> int:
    """Table 1's methods with code beside CLIP, CuPL and microCLIP; each is seeded."""
    rows = {row.method for row in settings.reports.load_table("table1").rows}
    return len((rows & set(known_methods())) - {"clip", "cupl", "microclip"})


def test_the_default_study_has_microclip_between_its_start_and_two_bounds_on_two_sets() -> None:
    runs = study.load(config()).runs
    assert len(runs) == len(set(runs)) == 2 * 5
    assert {spec.method for spec in runs} == {"oracle", "linear_probe", "clip", "cupl", "microclip"}
    assert {spec.seed for spec in runs} == {0}


def test_the_study_of_all_tables_has_ablations_on_a_small_set() -> None:
    """Table 1: 6 sets x 3 methods, and the others with code. On the small set: the default run; 4
    rows of each of Tables 2, 3 and 7, 5 of Table 4 and 2 of Table 5 beside it; gammas 0.25 and
    0.75, since 0 and 1 are rows of Table 4 and 0.5 is the default; 1 and 4 crops; rates 1e-5 and
    1e-3.
    """
    declared = study.load(settings.read_yaml(ROOT / "config" / "icons-all.yaml"))
    runs = declared.runs
    table1 = 6 * (3 + n_others())
    assert len(runs) == len(set(runs)) == table1 + 1 + (4 + 4 + 4 + 5 + 2) + 2 + 2 + 2
    small = Counter(spec.dataset == "icons-food-tiny" for spec in runs)
    assert small == {False: table1, True: 26}
    assert {spec.seed for spec in runs} == {0}
    assert declared.expansion.holes == {}  # its Table 1 is brief


def test_the_three_seed_study_has_more_points_on_a_larger_set() -> None:
    """6 sets x (2 + 3 seeds), and the other methods with 3 seeds; 28 runs x 3 seeds: 16 crops and a
    rate of 1e-6 besides.
    """
    runs = study.load(settings.read_yaml(ROOT / "config" / "icons-seeds.yaml")).runs
    others = 6 * n_others()
    assert len(runs) == 6 * (2 + 3) + (26 + 2) * 3 + 3 * others
    each = 6 + 28 + others
    assert Counter(spec.seed for spec in runs) == {0: 12 + each, 1: each, 2: each}


def test_the_study_of_the_claims_has_no_run_twice() -> None:
    """2 sets x (5 seeds of 27 variants of microCLIP, oracle and linear probe; 1 of CLIP and CuPL).

    The variants: the default; 4 of Table 2, 4 of Table 3, 5 of Table 4, 2 of Table 5 and 4 of
    Table 7, of which two are only tested; 2 values of gamma, 2 of crops, 3 of the rate besides.
    """
    declared = study.load(settings.read_yaml(ROOT / "config" / "icons-claims.yaml"))
    n_variants = 1 + 4 + 4 + 5 + 2 + 4 + 2 + 2 + 3
    assert len(declared.runs) == 2 * (5 * (n_variants + 2) + 2)
    assert sum(declared.trained_by(spec) is not None for spec in declared.runs) == 2 * 5 * 2
    assert declared.expansion.holes == {}


def test_a_method_without_randomness_runs_with_one_seed() -> None:
    runs = bare(seeds=[0, 1, 2], runs=THREE).runs
    assert Counter(spec.method for spec in runs) == {"clip": 1, "cupl": 1, "microclip": 3}


def test_a_run_that_two_grids_name_is_one_run() -> None:
    grids = [
        {"methods": ["microclip"], "variants": ["default", "gamma-0"]},
        {"methods": ["microclip"], "variants": ["gamma-0", "gamma-1"], "datasets": ["icons-food"]},
    ]
    assert variants(bare(datasets=["icons-food"], runs=grids)) == ["default", "gamma-0", "gamma-1"]


def test_names_and_folders_consist_of_the_six_names() -> None:
    spec = RunSpec("d", "b", "l", "m", "v", 3)
    assert spec.name == "d/b/l/m/v/seed-3"
    assert spec.folder == Path("results/runs/d/b/l/m/v/seed-3")


def test_later_layers_win() -> None:
    assert one("microclip").method["gamma"] == 0.5
    assert one("microclip", methods={"microclip": {"gamma": 0.3}}).method["gamma"] == 0.3
    runs = [{"methods": ["microclip"], "variants": ["gamma-0"]}]
    both = one("microclip", methods={"microclip": {"gamma": 0.3}}, runs=runs)
    assert both.method["gamma"] == 0.0


def test_a_variants_value_for_a_dataset_wins_there_and_nowhere_else() -> None:
    runs = [{"methods": ["dpa"], "variants": ["default", "official"]}]
    declared = bare(datasets=["dtd", "birdsnap"], runs=runs)
    rates = {
        (spec.dataset, spec.variant): declared.resolve(spec).method["learning_rate"]
        for spec in declared.runs
    }
    assert rates == {
        ("dtd", "default"): 1e-4,
        ("dtd", "official"): 5e-5,
        ("birdsnap", "default"): 1e-4,
        ("birdsnap", "official"): 1e-4,
    }


def test_a_methods_setting_changes_only_that_method() -> None:
    changed = {"methods": {"microclip": {"gamma": 0.3}}}
    assert one("microclip").digest() != one("microclip", **changed).digest()
    assert one("clip").digest() == one("clip", **changed).digest()


def test_a_runs_digest_includes_precision_but_not_the_device() -> None:
    assert one("microclip").digest() == one("microclip", device="cpu").digest()
    assert one("microclip").digest() != one("microclip", precision="bf16").digest()


def test_a_runs_digest_includes_compile_once_it_is_used() -> None:
    plain, fast = one("microclip"), one("microclip", compile="default")
    assert plain.digest() == one("microclip", compile="off").digest()
    assert "compile" not in plain.as_dict()
    assert plain.digest() != fast.digest()
    assert RunSettings.from_dict(fast.as_dict()).digest() == fast.digest()
    with pytest.raises(SettingsError, match="compile in the study"):
        one("microclip", compile="fast")


def test_the_gate_of_a_study_changes_no_run() -> None:
    assert bare(runs=THREE, gate="warn").plan() == bare(runs=THREE).plan()
    with pytest.raises(SettingsError, match="gate in the study"):
        bare(runs=THREE, gate="off")


def test_writing_out_a_default_changes_nothing() -> None:
    assert one("microclip", methods={"microclip": {"gamma": 0.5}}) == one("microclip")


def test_settings_survive_writing_and_reading() -> None:
    for method in ("clip", "cupl", "microclip"):
        resolved = one(method)
        assert RunSettings.from_dict(resolved.as_dict()).digest() == resolved.digest()


BLOCK = "methods: microclip of the study (config/config.yaml or --configfile)"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": {"microclip": {"gama": 0.3}}}, f"unknown key 'gama' in {BLOCK}"),
        ({"methods": {"microclip": {"gama": 0.3}}}, "did you mean 'gamma'"),
        ({"methods": {"microclip": {"gamma": 1.5}}}, "must be at most 1 (got 1.5)"),
        ({"methods": {"microclip": {"n_crops": 0}}}, f"n_crops in {BLOCK}"),
        ({"methods": {"dpa": {"epoks": 3}}}, "unknown key 'epoks' in methods: dpa of the study"),
        ({"methods": {"nothing": {}}}, "unknown method 'nothing' in methods of the study"),
        ({"prior": "frozen"}, "is a setting of methods (microclip)"),
        ({"prior": "frozen"}, "write methods: {microclip: {prior: frozen}}"),
        ({"runs": [{"methods": ["clip"], "shots": 4}]}, "write methods: {clip_lora: {shots: 4}}"),
        ({"runs": [{"methods": ["clop"]}]}, "unknown method 'clop'"),
        ({"runs": [{"methods": ["clip"], "variants": ["x"]}]}, "unknown variant 'x' of clip"),
        ({"datasets": ["eurosat"]}, "unknown dataset 'eurosat'"),
        ({"backbones": ["RN50"]}, "unknown backbone 'RN50'"),
        ({"descriptions": ["gpt"]}, "unknown llm 'gpt'"),
        ({"tables": ["table13"]}, "unknown table 'table13'"),
        ({"figures": ["figure2"]}, "unknown figure 'figure2'"),
        ({"figures": [{**SWEEP, "values": [0.5, 1.5]}]}, "must be at most 1 (got 1.5)"),
        ({"figures": [{**SWEEP, "values": [1.5]}]}, f"the values of figure {SWEEP['name']}"),
    ],
)
def test_errors_are_one_line_and_come_before_anything_runs(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        bare(**{"runs": THREE, **change})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named_without_the_rest_of_the_study() -> None:
    values = {key: value for key, value in config().items() if key != "backbones"}
    with pytest.raises(SettingsError) as caught:
        study.load(values)
    assert str(caught.value) == (
        "the study (config/config.yaml or --configfile) has no key 'backbones', which is required; "
        "add it"
    )


@pytest.mark.parametrize("values", [{}, {"spec": {}}, {"spec": {"datset": "x"}, "dataset": {}}])
def test_values_that_are_not_a_runs_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        RunSettings.from_dict(values)


def test_a_missing_part_of_a_runs_settings_is_named() -> None:
    whole = one("clip").as_dict()
    for key in ("spec", "dataset", "backbone", "descriptions", "method", "recipe"):
        with pytest.raises(SettingsError, match=key):
            RunSettings.from_dict({k: v for k, v in whole.items() if k != key})


def test_titles_and_other_methods_settings_are_not_in_a_runs_digest() -> None:
    resolved = one("clip")
    dataset = resolved.dataset.model_copy(
        update={"title": "Other", "methods": {"microclip": {"gamma": 0.3}}}
    )
    assert replace(resolved, dataset=dataset).digest() == resolved.digest()


def test_a_jobs_settings_leave_out_the_device() -> None:
    declared = bare(runs=THREE, device="cuda")
    given = json.loads(
        declared.settings_json(**{k: str(v) for k, v in asdict(declared.runs[0]).items()})
    )
    assert "device" not in given
    assert RunSettings.from_dict(given).digest() == declared.resolve(declared.runs[0]).digest()


def test_a_runs_settings_with_an_unknown_device_are_refused() -> None:
    values = {**one("clip").as_dict(), "device": "mps"}
    with pytest.raises(SettingsError, match="device in the run's settings: mps.*write 'cpu'"):
        RunSettings.from_dict(values)


def test_the_rows_of_a_table_and_the_lines_of_a_figure_are_runs() -> None:
    declared = bare(tables=["table5"], figures=["figure3"])
    assert variants(declared) == [
        "start-templates",
        "both-templates",
        "default",  # Table 5's last row and Figure 3's first lines
        "gamma-1",
        "gamma-0",
    ]


def test_a_selection_restricts_a_table_but_not_the_study() -> None:
    parts = [{"name": "table5", "datasets": ["icons-food"], "seeds": [7]}]
    declared = bare(tables=parts, runs=[{"methods": ["clip"]}])
    assert Counter((spec.dataset, spec.method, spec.seed) for spec in declared.runs) == {
        (SMALL, "clip", 0): 1,
        ("icons-food", "microclip", 7): 3,
    }
    assert declared.plan().tables["table5"].datasets == ("icons-food",)


def test_a_row_that_names_its_backbone_runs_only_with_that_one() -> None:
    declared = bare(datasets=["dtd"], tables=["table12"])
    assert {spec.backbone for spec in declared.runs} == {"metaclip-400m", "metaclip-2.5b"}
    assert Counter(spec.method for spec in declared.runs) == {
        "cupl": 2,
        "dpa": 2,
        "microclip": 2,
    }


def test_a_point_of_a_sweep_that_equals_the_default_is_the_default_run() -> None:
    declared = bare(runs=[{"methods": ["microclip"]}], figures=[SWEEP])
    assert variants(declared) == ["default", "gamma-0", "gamma-1"]
    points = declared.plan().figures["figure5"].points
    assert points == (
        SweepPoint(SMALL, 0.0, "gamma-0"),
        SweepPoint(SMALL, 0.5, "default"),
        SweepPoint(SMALL, 1.0, "gamma-1"),
    )


def test_which_point_is_the_default_run_depends_on_the_dataset() -> None:
    """food101 learns at 1e-6 by default, the others at 1e-4: each has one default point."""
    sweep = {"name": "figure8", "values": [1.0e-6, 1.0e-4]}
    declared = bare(datasets=["food101", "dtd"], figures=[sweep])
    of_dataset = {(p.dataset, p.value): p.variant for p in declared.expansion.points["figure8"]}
    assert of_dataset == {
        ("food101", 1.0e-6): "default",
        ("food101", 1.0e-4): "rate-0.0001",
        ("dtd", 1.0e-6): "rate-1e-06",
        ("dtd", 1.0e-4): "default",
    }


def test_a_study_setting_changes_which_point_is_the_default_run() -> None:
    declared = bare(figures=[SWEEP], methods={"microclip": {"gamma": 1.0}})
    assert [p.variant for p in declared.expansion.points["figure5"]] == [
        "gamma-0",
        "gamma-0.5",
        "default",
    ]


def test_variants_created_by_sweeps_are_named_by_prefix_and_value() -> None:
    crops = {"name": "figure6", "values": [1, 8, 64]}
    declared = bare(figures=[{**SWEEP, "values": [0.25]}, crops])
    assert variants(declared) == ["gamma-0.25", "crops-1", "default", "crops-64"]
    quarter = declared.resolve(declared.runs[0])
    assert quarter.method == {**one("microclip").method, "gamma": 0.25, "batch_size": 16}


def test_adding_a_gamma_to_a_sweep_adds_exactly_one_run() -> None:
    before = bare(figures=[SWEEP])
    after = bare(figures=[{**SWEEP, "values": [0.0, 0.25, 0.5, 1.0]}])
    [new] = set(after.runs) - set(before.runs)
    assert new.variant == "gamma-0.25"
    assert set(before.runs) < set(after.runs)
    for spec in before.runs:
        assert after.resolve(spec).digest() == before.resolve(spec).digest()


def root_of_ones_own(folder: Path) -> Path:
    """A copy of the project's declarations that a test may change."""
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "resources").symlink_to(ROOT / "resources")
    return folder


def test_an_ambiguous_variant_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = root_of_ones_own(tmp_path)
    path = root / "config/variants/microclip.yaml"
    path.write_text(path.read_text() + "  gamma-0.25: {gamma: 0.25, rho: 0.3}\n")
    monkeypatch.setenv("MICROCLIP_ROOT", str(root))
    with pytest.raises(SettingsError) as caught:
        bare(figures=[{**SWEEP, "values": [0.25]}])
    assert "variant 'gamma-0.25' is {'gamma': 0.25, 'rho': 0.3} in config/variants" in str(
        caught.value
    )
    assert "{'gamma': 0.25} in a figure; rename one" in str(caught.value)


def test_a_sweep_over_a_setting_that_the_method_lacks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = root_of_ones_own(tmp_path)
    path = root / "config/figures/figure5.yaml"
    path.write_text(path.read_text().replace("setting: gamma", "setting: gama"))
    monkeypatch.setenv("MICROCLIP_ROOT", str(root))
    with pytest.raises(SettingsError, match="no setting 'gama', which the sweep over gamma"):
        bare(figures=["figure5"])


@pytest.fixture
def planned_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A method that is declared and a row of Table 1, but has no code."""
    root = root_of_ones_own(tmp_path)
    method = root / "config/methods/later.yaml"
    method.write_text("title: Later\nsource: not published\nseeded: false\n")
    table = root / "config/tables/table1.yaml"
    row = "rows:\n  - {method: later, label: Later}\n"
    table.write_text(table.read_text().replace("rows:\n", row))
    monkeypatch.setenv("MICROCLIP_ROOT", str(root))
    return "later"


def test_a_method_without_code_is_a_hole_with_a_reason_and_no_run(planned_method: str) -> None:
    declared = bare(tables=["table1"])
    [hole] = declared.plan().holes
    assert set(declared.expansion.holes) == {hole.spec}
    assert (hole.spec.method, hole.spec.variant) == (planned_method, "default")
    assert hole.reason == "method later has no code in this release"
    table1 = {"clip", "cupl", "microclip", "wca", "upl", "pouf", "lafter", "reclip", "dpa"}
    assert {spec.method for spec in declared.runs} == table1


def test_a_study_of_methods_without_code_takes_no_time(planned_method: str) -> None:
    declared = bare(runs=[{"methods": [planned_method]}])
    assert not declared.runs
    costs = Costs(declared)
    assert {stage.time({}, 1) for stage in costs.stages} == {Time()}
    assert "0 of 0 runs to do" in forecast.announcement(declared)


@pytest.mark.usefixtures("planned_method")
def test_a_brief_table_leaves_out_methods_without_code() -> None:
    declared = bare(tables=[{"name": "table1", "is_brief": True}])
    assert declared.expansion.holes == {}
    assert {spec.method for spec in declared.runs} <= set(known_methods())


def test_runs_that_differ_only_in_testing_share_weights() -> None:
    declared = bare(
        tables=["table7"], runs=[{"methods": ["microclip"], "variants": ["test-random"]}]
    )
    by_variant = {spec.variant: declared.trained_by(spec) for spec in declared.runs}
    shared = {name: spec.variant for name, spec in by_variant.items() if spec is not None}
    assert shared == {
        "global-only-swapped": "global-only",
        "local-only-swapped": "local-only",
        "test-random": "default",
    }


def test_a_run_trains_itself_if_the_study_has_no_run_to_share_weights_with() -> None:
    grid = {"methods": ["microclip"], "variants": ["default", "global-only-swapped"]}
    declared = bare(runs=[grid])
    assert [declared.trained_by(spec) for spec in declared.runs] == [None, None]


def test_the_plan_lists_each_run_with_its_digest() -> None:
    declared = bare(runs=THREE)
    planned = declared.plan().runs
    assert [run.name for run in planned] == [spec.name for spec in declared.runs]
    for run, spec in zip(planned, declared.runs, strict=True):
        resolved = declared.resolve(spec)
        assert run.digest == resolved.digest()
        assert run.recipe == resolved.recipe


def test_a_plan_is_read_back_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = bare(tables=["table1"], figures=[SWEEP]).plan()
    monkeypatch.chdir(tmp_path)
    path = plan.write()
    before = path.read_bytes()
    again = Plan.read(plan.study)
    assert again == plan
    assert plan.holes or plan.runs
    again.write()
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["[]", "{", '{"study": "s"}', '{"runs": [{"dataset": 1}]}'])
def test_a_file_that_is_not_a_plan_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(
        SettingsError, match=r"plan\.json, a study's plan, cannot be read .*microclip plan"
    ):
        Plan.from_file(path)


@pytest.mark.parametrize(
    ("variant", "recipe"),
    [("default", 1), ("test-random", 1), ("ncut-as-computed", 2), ("released", 2)],
)
def test_only_runs_with_a_revised_setting_have_a_higher_recipe(variant: str, recipe: int) -> None:
    grid = {"methods": ["microclip"], "variants": [variant]}
    assert one("microclip", runs=[grid]).recipe == recipe


def test_the_oracle_takes_microclips_settings_wherever_they_are_written() -> None:
    declared = study.load(
        {
            "study": "bounds",
            "datasets": ["food101", "icons-food-small"],
            "backbones": ["icon-clip"],
            "descriptions": ["shipped"],
            "runs": [{"methods": ["microclip", "oracle"]}],
            "methods": {
                "microclip": {"epochs": 3, "gamma": 0.1, "rho": 0.4},
                "oracle": {"rho": 0.3},
            },
        }
    )
    for dataset in ("food101", "icons-food-small"):
        theirs, own = (
            declared.resolve(RunSpec(dataset, "icon-clip", "shipped", method)).method
            for method in ("microclip", "oracle")
        )
        shared = {name: theirs[name] for name in own if name in theirs}
        assert len(shared) > 20
        assert own == {**shared, "rho": 0.3, "trained_view": "strong", "mild_scale": [0.8, 1.0]}
    assert theirs["batch_size"] == own["batch_size"] == 16  # the dataset's block
    assert own["epochs"] == 3  # the study's
