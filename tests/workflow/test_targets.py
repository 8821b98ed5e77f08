"""What a user types, what it would start, and the one spelling that Snakemake cannot read."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow import folder
from tests.workflow.folder import MACHINE, ROOT

ALL = {
    "fetch_dataset": 1,
    "store_images": 1,
    "describe": 1,
    "embed_descriptions": 1,
    "encode_images": 1,
    "adapt": 3,
    "collect_scores": 1,
    "tabulate": 1,
    "all": 1,
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder.write(tmp_path_factory.mktemp("fresh") / "a folder's name")


@pytest.mark.parametrize(
    "typed",
    [(*MACHINE,), ("all", *MACHINE), (*MACHINE, "--", "all"), ()],
    ids=["bare", "all first", "all after --", "profile alone"],
)
def test_the_spellings_that_work_plan_the_whole_study(fresh: Path, typed: tuple[str, ...]) -> None:
    assert folder.planned(folder.snakemake(fresh, "--dry-run", *typed)) == ALL


def test_all_after_resources_is_swallowed_by_snakemake_itself(tmp_path: Path) -> None:
    """`--resources` takes several values, so `all` is read as one; no Snakefile could help."""
    done = folder.snakemake(tmp_path, "--dry-run", *MACHINE, "all")
    assert done.returncode != 0
    assert "dictionary update sequence" in done.stdout


def test_a_dry_run_writes_no_result(fresh: Path) -> None:
    assert not (fresh / "results").exists()


def test_tables_is_a_target_and_stages_can_be_asked_for_by_file(fresh: Path) -> None:
    counts = folder.dry(fresh, "--", "tables")
    assert counts == {**{rule: n for rule, n in ALL.items() if rule != "all"}, "tables": 1}
    counts = folder.dry(fresh, "--", "results/descriptions/shipped/tiny.json")
    assert counts == {"describe": 1}


def test_the_default_study_has_18_runs() -> None:
    counts = folder.planned(folder.snakemake(ROOT, "--dry-run", "--forceall", *MACHINE))
    assert counts["adapt"] == 18
    assert counts["encode_images"] == counts["embed_descriptions"] == 6


def test_another_study_file_stands_alone(fresh: Path, tmp_path: Path) -> None:
    import yaml

    other = {**folder.STUDY, "study": "other", "runs": [{"methods": ["clip"]}], "tables": []}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    arguments = ("--configfile", str(tmp_path / "other.yaml"))
    counts = folder.dry(fresh, *arguments)
    assert counts["adapt"] == 1
    assert "tabulate" not in counts


def test_more_seeds_are_more_runs_of_seeded_methods(fresh: Path) -> None:
    assert folder.dry(fresh, "--config", "seeds=[0,1,2]")["adapt"] == 5


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seds=[1]", "unknown key 'seds' in the study"),
        ("datasets=[dtd]", "unknown dataset 'dtd', no config/datasets/dtd.yaml"),
        ("methods={microclip: {gama: 0.3}}", "did you mean 'gamma'?"),
        ("methods={microclip: {gamma: 1.5}}", "less than or equal to 1 (got"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(fresh: Path, setting: str, said: str) -> None:
    done = folder.snakemake(fresh, "--dry-run", *MACHINE, "--config", setting)
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if "microclip:" in line]
    assert said in line
    assert "Traceback" not in done.stdout


def test_learning_rates_may_be_written_as_yaml_reads_them_wrong(fresh: Path) -> None:
    done = folder.snakemake(
        fresh, "--dry-run", *MACHINE, "--config", "methods={microclip: {learning_rate: 1e-4}}"
    )
    assert done.returncode == 0, done.stdout


def test_the_workflow_is_linted_and_formatted() -> None:
    assert folder.snakemake(ROOT, "--lint").returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "snakefmt", "--check", "Snakefile", "workflow/rules"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_snakefile_and_the_shared_python_are_short() -> None:
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 60
    assert len((ROOT / "workflow/rules/common.smk").read_text().splitlines()) <= 120


def test_every_rule_calls_one_verb_that_exists_and_logs_under_its_name() -> None:
    import re

    helped = folder.microclip(ROOT, "--help").stdout
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"\nrule ", path.read_text())[1:]:
            name = rule.partition(":")[0]
            if "shell:" not in rule:
                continue
            [verb] = re.findall(r"python -m microclip ([a-z-]+)", rule)
            assert verb in helped
            assert verb == ("run" if name == "adapt" else name.replace("_", "-"))
            assert f'"logs/{name}' in rule
            assert "conda:" in rule
