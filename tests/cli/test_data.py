"""`microclip data list|get|verify` on the command line."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from microclip.cli import main
from microclip.data.public import downloads, splits
from tests.data.downloadable import ARCHIVE, NAME, RECIPE, Downloadable, archive_of, declare
from tests.data.layouts import dtd
from tests.data.public_project import bring
from tests.file_server import serving

FOLDER = Path("data") / NAME


@pytest.fixture
def dataset(
    own_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Downloadable]:
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    monkeypatch.delenv("MICROCLIP_DATA", raising=False)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        found = declare(server, own_project, tmp_path / "scratch")
        found.card()  # drops what another test declared from the cache
        yield found


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of `microclip data ...`."""
    code = main.main(["data", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_list_names_missing_datasets_and_the_next_command(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = typed(capsys, "list")
    head, row, last = out.splitlines()
    assert code == 0
    assert head.split() == ["dataset", "classes", "how", "split", "train", "test", "licence"]
    assert (
        row.split()
        == (
            f"{NAME} 3 missing archive 0.1 MB | hub | by hand paper 9 9 "
            "research only; all the terms are …"
        ).split()
    )
    assert last == (
        f"0 of 1 public datasets are here; `microclip data get {NAME}` fetches what is missing"
    )


def test_the_list_shows_the_layout_of_what_is_here(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    dtd.build(FOLDER)
    _, out, _ = typed(capsys, "list")
    assert f"here  dtd in {FOLDER}" in out
    assert out.splitlines()[-1].startswith("all 1 public datasets are here; `microclip data verif")


def test_the_list_prints_json_for_programs(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = typed(capsys, "list", "--json")
    (row,) = json.loads(out)
    assert (row["dataset"], row["is_here"], row["classes"]) == (NAME, False, 3)
    assert (row["train"], row["test"], row["counts_source"]) == (9, 9, "the copy")


def test_the_list_reports_unfinished_downloads_and_removed_files(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    (FOLDER / "archives").mkdir(parents=True)
    (FOLDER / "archives" / f"{ARCHIVE}.part").write_bytes(b"half")
    assert f"! {NAME}: a download stopped halfway; `microclip data get" in typed(capsys, "list")[1]
    typed(capsys, "get", NAME)
    (FOLDER / "dtd/labels/test1.txt").unlink()
    assert (
        f"! {NAME}: some files were removed; run `microclip data get {NAME}"
        in (typed(capsys, "list")[1])
    )


def test_the_list_reports_counts_that_differ(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(splits.COUNTS, "warn")
    dataset.values["card"]["counts"]["paper"]["train"] = 10
    dataset.write()
    dataset.card()
    dtd.build(FOLDER)
    bring(NAME)
    difference = [line for line in typed(capsys, "list")[1].splitlines() if line[0] == "!"]
    assert len(difference) == 1
    assert "9" in difference[0]
    assert "10" in difference[0]


def test_counts_that_differ_from_the_cards_are_an_error(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset.values["card"]["counts"]["paper"]["test"] = 10
    dataset.write()
    dataset.card()
    code, _, err = typed(capsys, "get", NAME)
    assert code == 6
    assert "9 test images, expected 10 in split 'paper' (the copy); nothing was stored" in err
    assert "MICROCLIP_COUNTS=warn" in err


def test_get_fetches_a_dataset_and_reports_counts_that_differ(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(splits.COUNTS, "warn")
    dataset.values["card"]["counts"]["paper"]["test"] = 10
    dataset.write()
    dataset.card()
    code, out, err = typed(capsys, "get", NAME)
    assert code == 0
    assert out.splitlines() == [
        f"{NAME}: split paper: 9 training and 9 test images, 3 classes",
        f"! {NAME}: 9 test, expected 10 (the copy)",
    ]
    assert f"{NAME}: 0.1 MB to fetch and about as much unpacked, " in err
    assert "free in" in err
    assert "licence: research only" in err
    assert f"unpacking {ARCHIVE}: 31 files" in err
    assert f"{NAME}: dtd in {FOLDER}, by archive" in err
    asked = len(dataset.server.asked)
    assert typed(capsys, "get", NAME)[0] == 0
    assert len(dataset.server.asked) == asked


def test_get_all_fetches_every_public_dataset(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, "get", "--all")[0] == 0
    assert (FOLDER / "dtd").is_dir()


@pytest.mark.parametrize("arguments", [["get"], ["get", NAME, "--all"]])
def test_get_needs_either_names_or_all(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, _, err = typed(capsys, *arguments)
    assert (code, err) == (
        2,
        "microclip: name the datasets to get, or give --all; `microclip data list` names them\n",
    )


def test_names_that_are_not_public_datasets_are_refused(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = typed(capsys, "get", "shapes")
    assert (code, err.splitlines()) == (
        2,
        [
            "microclip: shapes is not a public dataset (its images are drawn or your own); see "
            "`microclip data list`"
        ],
    )
    code, _, err = typed(capsys, "verify", "textrues")
    assert code == 2
    assert "did you mean 'textures'?" in err
    code, _, err = typed(capsys, "get", NAME, "--route", "torrent")
    assert code == 2
    assert "'torrent' is not one of" in err


def test_the_recipe_is_printed_on_demand(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = typed(capsys, "get", NAME, "--route", "local")
    assert code == 3
    assert RECIPE in out
    assert f"{NAME} is not in {FOLDER}; place it as said" in err
    assert not dataset.server.asked


def test_files_placed_by_hand_are_counted(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    dtd.build(FOLDER)
    code, out, err = typed(capsys, "get", NAME, "--route", "local")
    assert code == 0
    assert RECIPE not in out
    assert f"{NAME}: split paper: 9 training and 9 test images, 3 classes" in out
    assert f"all that the layout dtd needs is in {FOLDER}" in err
    assert "by hand" in typed(capsys, "get", NAME)[2]
    assert "by by" not in typed(capsys, "get", NAME)[2]


@pytest.mark.parametrize("options", [(), ("--route", "local")])
def test_one_file_that_lacks_is_named_and_nothing_is_downloaded(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    dtd.build(FOLDER)
    (FOLDER / "dtd/labels/test1.txt").unlink()
    code, _, err = typed(capsys, "get", NAME, *options)
    assert code == 3
    assert f"{FOLDER} has 3 of the 4 paths that {NAME} needs" in err
    assert f"missing: {FOLDER}/dtd/labels/test1.txt" in err
    assert not dataset.server.asked
    if not options:
        assert f"`microclip data get {NAME} --route archive`" in err
        assert typed(capsys, "get", NAME, "--route", "archive")[0] == 0


def test_a_dataset_to_place_by_hand_exits_with_3_and_the_recipe(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    del dataset.routes[:2]
    dataset.write()
    dataset.card()
    code, _, err = typed(capsys, "get", NAME)
    assert code == 3
    assert err.splitlines()[-1].startswith(
        f"microclip: {NAME} is not in {FOLDER}; {RECIPE}; homepage: http"
    )
    assert (
        f"`microclip data get {NAME} --route local` says what to place"
        in (typed(capsys, "list")[1])
    )


def test_failing_servers_exit_with_5_and_each_reason(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset.server.files.clear()
    code, _, err = typed(capsys, "get", NAME)
    assert code == 5
    assert "HTTP 404" in err.splitlines()[-1]
    assert RECIPE in err.splitlines()[-1]
    code, _, err = typed(capsys, "get", NAME, "--offline")
    assert code == 5
    assert "the network is forbidden" in err


def test_a_disk_that_is_too_small_exits_with_4(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset.server.faults[ARCHIVE] = ["huge"]
    code, _, err = typed(capsys, "get", NAME)
    assert code == 4
    assert "needs 100000000000000000 bytes" in err.splitlines()[-1]


def test_verify_reports_what_is_right_wrong_and_missing(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, "verify")[0] == 3
    code, out, err = typed(capsys, "verify", NAME)
    assert code == 3
    assert out.startswith(f"missing  {NAME}: {NAME} is not in {FOLDER}")
    typed(capsys, "get", NAME)
    bring(NAME)
    code, out, _ = typed(capsys, "verify")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["ok"] * 4
    for part in ("layout dtd", f"{ARCHIVE}: as published", "all 18 are", "passport"):
        assert part in out
    image = FOLDER / "dtd/images/banded/banded_0000.jpg"
    image.write_bytes(b"\xff\xd8 another")
    code, out, err = typed(capsys, "verify", NAME)
    assert code == 6
    assert f"wrong    {NAME}: images of results/data/{NAME}/manifest.csv: 1 of 18 differ" in out
    assert err.splitlines()[-1].startswith("microclip: 1 things differ, 0 missing; ")


def test_verify_finds_a_changed_class_list_by_the_passport(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(capsys, "get", NAME)
    bring(NAME)
    listed = dataset.root / "resources/classes" / f"{NAME}.txt"
    listed.write_text("zigzagged\npolka-dotted\nbanded\n")
    code, out, _ = typed(capsys, "verify", NAME)
    assert code == 6
    assert f"wrong    {NAME}: the class list resources/classes/{NAME}.txt is not the one in" in out


def test_an_archive_that_leads_outside_exits_with_3_and_names_the_member(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    dtd.build(Path("evil"))
    Path("evil/dtd/passwords").symlink_to("/etc/passwd")
    content = archive_of(Path("evil"))
    dataset.server.files[ARCHIVE] = content
    dataset.routes[0]["files"][0]["md5"] = hashlib.md5(content).hexdigest()
    dataset.write()
    dataset.card()
    code, _, err = typed(capsys, "get", NAME, "--route", "archive")
    assert code == 3
    assert "its member 'dtd/passwords' is a link to '/etc/passwd'" in err.splitlines()[-1]
    assert not (FOLDER / "dtd").exists()


def test_one_failing_dataset_does_not_stop_the_others(
    dataset: Downloadable, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**dataset.values, "title": "By hand"}
    other["card"] = {**other["card"], "routes": dataset.routes[2:]}
    other["source"] = {**other["source"], "dataset": "by-hand"}
    path = dataset.root / "config/datasets/by-hand.yaml"
    path.write_text(yaml.safe_dump(other))
    code, out, err = typed(capsys, "get", "--all")
    assert code == 3
    assert f"{NAME}: split paper: 9 training and 9 test images, 3 classes" in out
    assert err.splitlines()[-1] == "microclip: could not get 1 of 2 datasets"


def test_a_terminal_shows_a_progress_bar(dataset: Downloadable) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "microclip", "data", "get", NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while chunk := os.read(ours, 1 << 16):
                shown += chunk
    os.close(ours)
    assert process.returncode == 0
    assert ARCHIVE.encode() in shown
    assert "━".encode() in shown


def test_the_same_command_resumes_an_interrupted_download(dataset: Downloadable) -> None:
    dataset.server.faults[ARCHIVE] = ["cut", "404"]
    command = [sys.executable, "-m", "microclip", "data", "get", NAME, "--route", "archive"]
    ends = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2)]
    assert [end.returncode for end in ends] == [5, 0], ends
    assert "HTTP 404" in ends[0].stderr
    assert "run the same command again to continue" in ends[0].stderr
    assert dataset.server.sent(ARCHIVE) == len(dataset.server.files[ARCHIVE])
