"""What users type, and what it would start."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from microclip.cli.tree import Tree
from tests.workflow import folder
from tests.workflow.folder import MACHINE, ROOT

ALL_ICONS = ("--configfile", "config/icons-all.yaml")
ALL = {
    "fetch_dataset": 1,
    "store_images": 1,
    "describe": 1,
    "embed_descriptions": 1,
    "encode_images": 1,
    "adapt": 3,
    "collect_scores": 1,
    "tabulate": 1,
    "typeset": 1,
    "ledger": 1,
    "report": 1,
    "mirror_study": 1,
    "all": 1,
}
TABLES = ("tabulate", "typeset", "ledger", "report", "mirror_study", "all")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder.write(tmp_path_factory.mktemp("fresh") / "a folder's name")


@pytest.mark.parametrize(
    "typed",
    [(*MACHINE,), ("all", *MACHINE), (*MACHINE, "all"), (*MACHINE, "--", "all"), ()],
    ids=["bare", "all first", "all last", "all after --", "profile alone"],
)
def test_every_working_spelling_plans_the_whole_study(fresh: Path, typed: tuple[str, ...]) -> None:
    done = folder.snakemake(fresh, "--dry-run", *typed)
    assert folder.planned(done) == ALL
    assert "Using workflow specific profile workflow/profiles/default" in done.stdout


def test_a_dry_run_writes_no_result(fresh: Path) -> None:
    assert not (fresh / "results").exists()


def test_tables_is_a_target_and_so_is_every_stages_file(fresh: Path) -> None:
    counts = folder.dry(fresh, "--", "tables")
    to_scores = {rule: n for rule, n in ALL.items() if rule not in TABLES}
    assert counts == {**to_scores, "tabulate": 1, "tables": 1}
    counts = folder.dry(fresh, "--", "results/descriptions/shipped/tiny.json")
    assert counts == {"describe": 1}


def test_the_study_of_all_tables_has_80_runs_on_seven_datasets() -> None:
    """Six sets of Table 1 and the small one of ablations: tests/test_study.py counts the runs.

    Only Table 1 asks for methods that read embeddings, so the small set's are not encoded.
    """
    counts = folder.planned(folder.snakemake(ROOT, "--dry-run", "--forceall", *MACHINE, *ALL_ICONS))
    assert counts["adapt"] == 80
    assert counts["fetch_dataset"] == counts["describe"] == counts["embed_descriptions"] == 7
    assert counts["encode_images"] == 6
    assert counts["tabulate"] == 6
    assert counts["plot"] == 8


def test_another_study_file_needs_no_defaults(fresh: Path, tmp_path: Path) -> None:
    other = {**folder.STUDY, "study": "other", "runs": [{"methods": ["clip"]}], "tables": []}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    arguments = ("--configfile", str(tmp_path / "other.yaml"))
    counts = folder.dry(fresh, *arguments)
    assert counts["adapt"] == 1
    assert "tabulate" not in counts


def test_a_figure_makes_its_runs_and_one_picture(fresh: Path) -> None:
    """Table 1's three methods, and gamma 0 and 1 beside the default's 0.5."""
    figures = "figures=[{name: figure5, values: [0.0, 0.5, 1.0]}, figure1]"
    assert folder.dry(fresh, "--config", figures) == {**ALL, "adapt": 5, "plot": 2}


def test_a_variant_that_differs_only_in_testing_waits_for_the_weights(
    fresh: Path,
) -> None:
    runs = "runs=[{methods: [microclip], variants: [global-only-swapped, global-only]}]"
    target = f"{folder.RUN}/microclip/global-only-swapped/seed-0/scores.json"
    done = folder.snakemake(
        fresh, "--dry-run", "--printshellcmds", *MACHINE, "--config", runs, "--", target
    )
    assert folder.planned(done)["adapt"] == 2
    [command] = [line for line in done.stdout.splitlines() if "--weights-from" in line]
    given = command.split("--weights-from ")[1].split()[0]
    assert given == f"{folder.RUN}/microclip/global-only/seed-0"
    assert f"--out {folder.RUN}/microclip/global-only-swapped/seed-0 " in command


def test_missing_descriptions_are_planned_and_reported_by_their_job(tmp_path: Path) -> None:
    place = folder.write(tmp_path / "study", descriptions=["cupl-gpt3"])
    done = folder.snakemake(place, *MACHINE, "--", "results/descriptions/cupl-gpt3/tiny.json")
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if line.startswith("microclip:")]
    assert "data/descriptions/cupl/tiny.json do not exist" in line


def test_more_seeds_are_more_runs_of_seeded_methods(fresh: Path) -> None:
    assert folder.dry(fresh, "--config", "seeds=[0,1,2]")["adapt"] == 5


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seds=[1]", "unknown key 'seds' in the study (config/config.yaml and --config)"),
        ("datasets=[eurosat]", "unknown dataset 'eurosat', no config/datasets/eurosat.yaml"),
        ("methods={microclip: {gama: 0.3}}", "did you mean 'gamma'?"),
        ("methods={microclip: {gamma: 1.5}}", "must be at most 1 (got"),
    ],
)
def test_a_wrong_setting_gives_one_clear_line(fresh: Path, setting: str, said: str) -> None:
    done = folder.snakemake(fresh, "--dry-run", *MACHINE, "--config", setting)
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if "microclip:" in line]
    assert said in line
    assert "Traceback" not in done.stdout


def test_a_key_that_the_study_gives_twice_is_refused(tmp_path: Path) -> None:
    place = folder.write(tmp_path / "study")
    with (place / "config/config.yaml").open("a") as stream:
        stream.write("tables: [table1]\n")
    done = folder.snakemake(place, "--dry-run", *MACHINE)
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if "microclip:" in line]
    assert "microclip: config/config.yaml is ambiguous: line" in line
    assert "has the key 'tables'" in line


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 3, "does not exist; create it or name another file"),
        ("", 2, "is empty; "),
        ("a: 1\na: 2", 2, "is ambiguous: line 2 has the key 'a' of line 1 again; keep one of them"),
    ],
)
def test_a_study_file_that_cannot_be_read_is_one_line(
    fresh: Path, tmp_path: Path, text: str | None, code: int, said: str
) -> None:
    study = tmp_path / "other.yaml"
    if text is not None:
        study.write_text(text)
    done = folder.snakemake(fresh, "--dry-run", *MACHINE, "--configfile", str(study))
    assert done.returncode == code
    [line] = done.stdout.splitlines()
    assert line.startswith(f"microclip: {study} {said}")


def test_learning_rates_that_yaml_reads_as_text_are_accepted(fresh: Path) -> None:
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


def test_every_rule_calls_one_existing_verb_and_logs_under_its_own_name() -> None:
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


def test_every_rule_whose_verb_takes_a_device_takes_a_gpu_slot() -> None:
    verbs: Any = Tree().commands
    takers = {
        verb for verb, command in verbs.items() if "device" in (p.name for p in command.params)
    }
    text = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    found = {}
    for rule in text.split("\nrule ")[1:]:
        _, calls, given = rule.partition('"python -m microclip ')
        if calls:
            found[given.split()[0].strip('"')] = "gpu=GPU_SLOTS," in rule
    assert {verb for verb, has_slot in found.items() if has_slot} == takers & found.keys()
    assert {"run", "encode-images", "embed-descriptions", "check-zero-shot"} <= takers


@pytest.mark.parametrize("name", ["my {y} project", "{}", 'it\'s #1, 50% {a} "b"?'])
def test_a_project_may_lie_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    place = folder.write(tmp_path / name, runs=[{"methods": ["clip"]}], tables=[])
    assert folder.dry(place)["adapt"] == 1


def test_the_weights_of_a_voter_are_a_parameter_of_the_runs_that_load_it_alone(
    tmp_path: Path,
) -> None:
    """Snakemake repeats a job whose parameters changed: here, if the voter's file did."""
    place = folder.write(
        tmp_path / "study",
        runs=[{"methods": ["clip", "upl"]}],
        tables=[],
        methods={"upl": {"template": "a {}.", "voters": ["icon-clip-2"]}},
    )
    done = folder.snakemake(place, "--dry-run", "--printshellcmds", *MACHINE, "all")
    commands = [line for line in done.stdout.splitlines() if "microclip run --settings" in line]
    found = {
        ("/clip/" in line, '"further_weights": {"icon-clip-2": "' in line) for line in commands
    }
    assert found == {(True, False), (False, True)}, done.stdout
