"""`snakemake --resources gpu=1 all` works as typed here and nowhere else; the plugin is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.warm import PLUGINS
from tests.workflow import folder, terminal
from tests.workflow.folder import MACHINE, ROOT

sys.path.insert(0, str(PLUGINS))
from snakemake_logger_plugin_microclip import command_line  # noqa: E402

STEPS = "1 of 1 steps (100%) done"  # a line of Snakemake's
OURS = """\"\"\"microclip: one job\"\"\"
rule one:
    output: "done"
    shell: "echo hello from a job; touch done"
"""
MANIFEST = "results/data/tiny/manifest.csv"
PROFILE = ["--workflow-profile", "workflow/profiles/default"]
BARE = 'rule all:\n    output: "done"\n    shell: "touch done"\n'


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--resources gpu=1 all", "--resources gpu=1 -- all"),
        ("-n --cores 1 --res gpu=1 mem_mb=5 a b", "-n --cores 1 --res gpu=1 mem_mb=5 -- a b"),
        ("--resources gpu=1 all tables -n", "--resources gpu=1 -n -- all tables"),
        ("--resources gpu=1 a --config k=v -n", "--resources gpu=1 --config k=v -n -- a"),
    ],
)
def test_targets_after_resources_are_put_apart(typed: str, read: str) -> None:
    assert command_line.with_targets_apart(typed.split()) == read.split()


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "all",
        "all --resources gpu=1",
        "--resources gpu=1 -n all",
        "--resources gpu=1 -- all",
        "--resources gpu=1 all -- tables",  # nothing is moved past a `--` that people typed
        "--resources gpu=1 all mem_mb=5",  # is `all` a slip for all=1?
        "--resources all",
        "--resources=gpu=1 all",
        "--set-resources adapt:gpu=1 all",
        "--default-resources gpu=1 all",
        "--resources base64//Z3B1PTE= base64//bWVt --mode subprocess",  # a job of Snakemake's own
    ],
)
def test_all_other_words_stay_as_they_are(typed: str) -> None:
    assert command_line.with_targets_apart(typed.split()) == typed.split()


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("-n", "Snakefile"),
        ("-s other -n", "other"),
        ("-sother", "other"),
        ("--snakefile other", "other"),
        ("--snakefile=other", "other"),
        ("-d elsewhere", "Snakefile"),  # Snakemake goes there once it has its Snakefile
    ],
)
def test_the_snakefile_is_the_one_that_snakemake_reads(
    typed: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line.snakefile([]) is None
    Path("Snakefile").touch()
    assert command_line.snakefile(typed.split()) == Path(named)


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("-n --cores 1", []),
        ("--configfile a.yaml b.yaml -n", ["a.yaml", "b.yaml"]),
        ("--configfiles=a.yaml -n", ["a.yaml"]),
        ("--config a=1 all", []),
    ],
)
def test_study_files_are_found_among_the_words(typed: str, named: list[str]) -> None:
    assert list(command_line.configfiles(typed.split())) == list(map(Path, named))


def test_only_the_projects_snakefile_is_ours(tmp_path: Path) -> None:
    other = tmp_path / "Snakefile"
    other.write_text(BARE)
    assert command_line.is_ours(ROOT / "Snakefile")
    assert not any(map(command_line.is_ours, (other, tmp_path, tmp_path / "missing", None)))


def test_other_programs_keep_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = ["--resources", "gpu=1", "all"]
    for program in ("pytest", "/bin/notsnakemake", "-c", ""):
        monkeypatch.setattr(sys, "argv", [program, *words])
        command_line.mend()
        assert sys.argv[1:] == words
    monkeypatch.setattr(sys, "argv", ["/bin/snakemake", *words])
    command_line.mend()
    assert sys.argv[1:] == ["--logger=microclip", *PROFILE, "--resources", "gpu=1", "--", "all"]


def test_the_default_profile_is_named_unless_another_is() -> None:
    def given(*words: str) -> list[str]:
        return command_line.with_profile(words, ROOT / "Snakefile")

    assert given("-n") == ["--workflow-profile", str(ROOT / PROFILE[1]), "-n"]
    for own in (("--workflow-profile", "none"), ("--workflow-profile=workflow/profiles/slurm",)):
        assert given(*own) == list(own)
    assert command_line.with_profile(["-n"], Path("elsewhere/Snakefile")) == ["-n"]


def test_a_job_runs_for_real(tmp_path: Path) -> None:
    place = folder.write(tmp_path / "study")
    done = folder.snakemake(place, *MACHINE, MANIFEST)
    assert done.returncode == 0, done.stdout
    assert (place / MANIFEST).is_file()


def test_another_projects_command_line_fails_as_always(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(BARE)
    done = folder.snakemake(tmp_path, "-n", *MACHINE, "all")
    assert done.returncode != 0
    assert "dictionary update sequence" in done.stdout
    # but a Snakefile of ours that is named from there is ours
    there = ("-s", str(ROOT / "Snakefile"), "-d", str(ROOT))
    done = folder.snakemake(tmp_path, "-n", *there, *MACHINE, "all")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("", "--logger=microclip"),
        ("all -n", "--logger=microclip all -n"),
        ("--resources gpu=1 -- all", "--logger=microclip --resources gpu=1 -- all"),
        ("-n --logger snakemake --cores 1", "-n --cores 1"),
        ("--logger=snakemake all", "-- all"),
        ("--logger snakemake all", "-- all"),
        ("--logger snakemake a --cores 1 -- b", "--cores 1 -- a b"),
        ("--logger rich -n", "--logger rich -n"),
        ("--mode subprocess all", "--mode subprocess all"),  # a job of Snakemake's own
    ],
)
def test_it_is_the_logger_unless_another_is_named(typed: str, read: str) -> None:
    assert command_line.with_logger(typed.split()) == read.split()


def test_snakemakes_lines_are_in_its_log_and_come_back_on_request(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(OURS)
    code, drawn = terminal.watch(
        folder.command("--cores", "1"), tmp_path, folder.environment() | {"NO_COLOR": ""}
    )
    assert code == 0, drawn
    assert "1 of 1 jobs" in drawn
    assert STEPS not in drawn
    assert "hello from a job" not in drawn
    [log] = (tmp_path / ".snakemake/log").glob("*.log")
    assert STEPS in log.read_text()
    assert "hello from a job" in log.with_suffix(".out").read_text()
    done = folder.snakemake(tmp_path, "--logger", "snakemake", "--cores", "1", "--forceall")
    assert done.returncode == 0, done.stdout
    assert STEPS in done.stdout


def test_the_environment_has_the_plugin_where_snakemake_looks(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import pkgutil; print(*(m.name for m in pkgutil.iter_modules()))"],
        cwd=tmp_path,
        env={**folder.environment(), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "snakemake_logger_plugin_microclip" in found, "run `make setup` again"
