"""The archive for a report: what is in it, what never is, and that it is the same every time."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from microclip import bundle, runner
from microclip.cli import main
from microclip.settings import SettingsError
from microclip.tracking.run import open_tracker
from tests.fixtures.project import prepare, settings_of

STUDY = {
    "study": "tiny",
    "datasets": ["shapes"],
    "backbones": ["tiny"],
    "descriptions": ["shipped"],
    "runs": [{"methods": ["clip", "microclip"]}],
    "methods": {"microclip": {"epochs": 2, "batch_size": 4, "n_crops": 2}},
    "device": "cpu",
}
FOLDER = "runs/shapes/tiny/shipped/microclip/default/seed-0"
SECRETS = {
    "OPENAI_API_KEY": "sk-proj-1234567890abcdefghij",
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuv",
    "MY_LAB_SECRET": "correct horse battery",
    "MLFLOW_TRACKING_PASSWORD": "hunter2-tracking",
    "MLFLOW_TRACKING_URI": "https://alice:swordfish@mlflow.example.org/x",
}
IN_LOGS = (
    "Authorization: Bearer abcdef0123456789abcdef",
    "GET https://cdn.example.org/pets.tar?X-Amz-Signature=deadbeefcafe&part=1",
    "api_key='zz-not-of-the-environment'",
    "pushed to https://bob:letmein@example.org/repo.git",
    "token ghp_abcdefghijklmnopqrstuvwxyz0123",
    "config /home/alice/src/microclip and /home/carol/data, run by alice on gpu-box-7",
    "correct horse battery",
)
NEVER = (
    *("sk-proj", "hf_abcdef", "correct horse", "hunter2", "swordfish", "abcdef0123456789"),
    *("deadbeefcafe", "not-of-the-environment", "letmein", "ghp_", "alice", "carol", "gpu-box-7"),
)


def write_study(where: Path) -> Path:
    path = where / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


def read(path: Path) -> dict[str, str]:
    """The texts of an archive, by name below its only folder."""
    with tarfile.open(path) as archive:
        found = {}
        for entry in archive.getmembers():
            opened = archive.extractfile(entry)
            assert opened is not None
            found[entry.name.removeprefix("microclip-bundle/")] = opened.read().decode()
        return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_run(folder: str = f"results/{FOLDER}") -> None:
    """The files of a run that failed, as far as it came."""
    settings = settings_of("microclip").as_dict()
    write(Path(folder, "settings.yaml"), yaml.safe_dump({"study": "tiny", **settings}))
    write(Path(folder, "journal.jsonl"), '{"event": "failed", "reason": "out of memory"}\n')


@pytest.fixture
def alice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a user with secrets in the environment."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setattr("platform.node", lambda: "gpu-box-7")


def test_a_report_of_a_study_has_its_texts_and_no_image_or_weight(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens
    settings = settings_of("microclip")
    prepare(settings)
    tracker = open_tracker(settings, settings.spec.folder, "tiny")
    runner.run(settings, settings.spec.folder, tracker)
    write(Path("results/data/shapes/zero-shot-tiny.refused.json"), '{"verdict": "refused"}')
    write(Path("logs/store_images/shapes.log"), "wrote it\n")
    write(Path("logs/store_images/other.log"), "of another study\n")
    write(Path(".snakemake/log/2026-01-01T000000.0.snakemake.log"), "1 of 9 steps\n")
    assert main.main(["bundle", "--config", str(write_study(project))]) == 0
    said = capsys.readouterr()
    found = read(Path("microclip-tiny.tar.gz"))
    run_files = {"settings.yaml", "history.csv", "first_batch.json", "journal.jsonl"}
    run_files |= {"scores.json", "run.json"}
    assert {name for name in found if name.startswith("runs/")} == {
        f"{FOLDER}/{name}" for name in run_files
    }
    assert set(found) - {f"{FOLDER}/{name}" for name in run_files} == {
        "README.txt",
        *("machine.json", "packages.txt", "torch.txt", "nvidia-smi.txt", "environment.txt"),
        *("changes.txt", "identity.json", "verify/tiny.txt", "study/tiny.yaml"),
        *("data/shapes/passport.json", "data/shapes/origin.json"),
        *("data/shapes/zero-shot-tiny.refused.json", "logs/store_images/shapes.log"),
        "snakemake/2026-01-01T000000.0.snakemake.log",
    }
    assert found["verify/tiny.txt"].startswith("microclip: results/tiny/scores.csv does not exist")
    identity = json.loads(found["identity.json"])
    assert identity["backbones"]["tiny"]["settings"]["sha256"] is None
    assert len(identity["backbones"]["tiny"]["key"]) >= 12
    (vectors,) = identity["class_vectors"].values()
    assert {"sha256", "key", "tensors_sha256"} <= set(vectors)
    assert list(identity["trained"]) == [FOLDER]
    first = json.loads(found[f"{FOLDER}/first_batch.json"])
    assert first["precision"]["float32_matmul"] == "highest"
    assert f"torch=={json.loads(found['machine.json'])['packages']['torch']}" in found[
        "packages.txt"
    ].split("\n")
    assert f"{FOLDER}/: first_batch.json, history.csv" in said.out
    assert f"wrote microclip-tiny.tar.gz, {len(found)} files" in said.err


@pytest.mark.usefixtures("alice")
def test_no_secret_and_no_name_gets_into_a_report(project: Path) -> None:
    write_run()
    write(Path(f"results/{FOLDER}/journal.jsonl"), json.dumps({"reason": "\n".join(IN_LOGS)}))
    log = Path("logs/adapt/shapes.tiny.shipped.microclip.default.seed-0.log")
    write(log, "\n".join([*IN_LOGS, *SECRETS.values()]))
    write(Path("logs/tabulate/tiny.table1.log"), "\n".join(IN_LOGS))
    assert main.main(["bundle", "--config", str(write_study(project))]) == 0
    found = read(Path("microclip-tiny.tar.gz"))
    for name, text in found.items():
        for secret in NEVER:
            assert secret not in text, (name, secret)
            assert secret not in name
    packed = Path("microclip-tiny.tar.gz").read_bytes()
    assert b"alice" not in packed
    kept = found[str(log)]
    assert "config ~/src/microclip and /home/<user>/data, run by <user> on <host>" in kept
    assert "https://***@mlflow.example.org/x" in kept
    assert "part=1" in kept
    assert "HF_TOKEN=***" in found["environment.txt"]


def test_scrubbing_leaves_ordinary_words_alone() -> None:
    scrub = bundle.Scrubber(values=("abc123def",), home="/opt/me", names={"al": "<user>"})
    text = 'max_tokens: 4096, "learnable_empty": false, risk-averse-estimation-of, total /opt/merry'
    assert scrub(text) == text
    assert scrub("/opt/me/x, abc123def") == "~/x, ***"


@pytest.mark.usefixtures("project")
def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    write_run()
    config = str(write_study(tmp_path))
    for name in ("one.tar.gz", "two.tgz"):
        assert main.main(["bundle", "--config", config, "--out", name]) == 0
    assert Path("one.tar.gz").read_bytes() == Path("two.tgz").read_bytes()
    with tarfile.open("one.tar.gz") as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert {(e.mtime, e.uid, e.uname, e.mode) for e in entries} == {(0, 0, "", 0o644)}


@pytest.mark.usefixtures("project")
def test_runs_and_folders_of_own_images_are_reported_by_their_folder() -> None:
    write_run()
    write(Path("adapted/adapted.json"), '{"backbone": "tiny"}')
    write(Path("adapted/predictions.csv"), "file,class\nprivate.jpg,fox\n")
    write(Path("adapted/bad_files.csv"), "file\nprivate.jpg\n")
    assert main.main(["bundle", f"results/{FOLDER}", "adapted", "--out", "it.tar.gz"]) == 0
    found = read(Path("it.tar.gz"))
    assert {name for name in found if name.startswith("runs/")} == {
        f"{FOLDER}/settings.yaml",
        f"{FOLDER}/journal.jsonl",
        "runs/adapted/adapted.json",
    }
    assert not any("private.jpg" in text for text in found.values())


@pytest.mark.usefixtures("project")
def test_a_long_file_keeps_its_ends_and_its_cut_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_run()
    lines = "".join(f"line {number}\n" for number in range(100_000))
    write(Path(f"results/{FOLDER}/journal.jsonl"), lines)
    assert main.main(["bundle", f"results/{FOLDER}", "--out", "it.tar.gz"]) == 0
    found = read(Path("it.tar.gz"))
    kept = found[f"{FOLDER}/journal.jsonl"].splitlines()
    (middle,) = [line for line in kept if "left out" in line]
    assert (kept[0], kept[-1]) == ("line 0", "line 99999")
    assert set(kept) - {middle} <= set(lines.splitlines())  # whole lines
    assert len(found[f"{FOLDER}/journal.jsonl"]) < 530_000
    assert f"{FOLDER}/journal.jsonl: " in found["README.txt"]
    assert f"cut  {FOLDER}/journal.jsonl" in capsys.readouterr().out


@pytest.mark.usefixtures("project")
def test_nothing_to_report_is_one_line_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    config = str(write_study(tmp_path))
    write_run("results/runs/run")
    cases = {
        ("--config", config): (3, "nothing of study tiny is in "),
        ("empty",): (3, "empty holds no file of a run"),
        ("empty", "--config", config): (2, "not both"),
        ("results/runs/run", "--out", "it.zip"): (2, "end its name in .tar.gz"),
    }
    for arguments, (code, message) in cases.items():
        assert main.main(["bundle", *arguments]) == code
        said = capsys.readouterr().err.strip()
        assert message in said
        assert "\n" not in said
    assert not list(tmp_path.rglob("*.tar.gz")) + list(tmp_path.rglob("it*"))


def test_a_failed_write_leaves_no_archive(tmp_path: Path) -> None:
    def torn() -> Iterator[bundle.Member]:
        yield bundle.Member("a", "x")
        raise SettingsError("torn")

    with pytest.raises(SettingsError, match="torn"):
        bundle.write(torn(), tmp_path / "it.tar.gz")
    assert list(tmp_path.iterdir()) == []
