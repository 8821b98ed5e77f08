"""Copies from the hub, fetched by its real client from a local server."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.public import hub
from microclip.data.public.hub import LISTING, files_of_copy, is_partial_copy
from microclip.settings import SettingsError
from microclip.settings.datasets import HubRoute
from tests.data.hub_server import COMMIT, REPOSITORY, HubCopy
from tests.file_server import serving

FILES = {
    "README.md": b"# shapes\n",
    ".gitattributes": b"*.parquet filter=lfs\n",
    "data/train-00000-of-00001.parquet": b"PAR1" + random.Random(0).randbytes(300_000),
    "data/test-00000-of-00001.parquet": b"PAR1" + random.Random(1).randbytes(90_000),
    "more/corrupted-00000-of-00001.parquet": b"PAR1",
}
WANTED = [name for name in sorted(FILES) if name.startswith(("data/", "README"))]
TOKEN = "hf_" + "oneofatest" * 3


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubCopy]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield HubCopy(server, dict(FILES))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shapes" / "hub"


def route(**changed: object) -> HubRoute:
    values: dict[str, object] = {
        "kind": "hub",
        "layout": "hub_parquet",
        "repository": REPOSITORY,
        "files": ("data/*.parquet",),
        **changed,
    }
    return HubRoute.model_validate(values)


def here(folder: Path) -> list[str]:
    """The copy's files that are in its folder."""
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if not name.startswith((".cache", LISTING)))


def test_the_wanted_files_and_the_readme_are_fetched(copy: HubCopy, folder: Path) -> None:
    assert hub.fetch(route(), folder) == COMMIT
    assert here(folder) == WANTED
    assert all((folder / name).read_bytes() == FILES[name] for name in WANTED)
    assert [file.path for file in files_of_copy(folder)] == WANTED
    assert not is_partial_copy(folder)


def test_the_first_commit_is_kept_and_the_line_that_pins_it_printed(
    copy: HubCopy, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fetch(route(), folder)
    assert f"add this to the card: revision: {COMMIT}" in capsys.readouterr().err
    copy.commit = "f" * 40  # main moved on
    with pytest.raises(runtime.ServiceError):  # it asks for the old one, which this server forgot
        hub.fetch(route(), folder)
    assert f"revision/{'f' * 40}" not in str(copy.server.asked)
    assert json.loads((folder / LISTING).read_text())["revision"] == COMMIT


def test_a_pinned_copy_is_fetched_at_its_commit(copy: HubCopy, folder: Path) -> None:
    assert hub.fetch(route(revision=COMMIT), folder) == COMMIT
    assert not [asked for asked in copy.server.asked if "/revision/" in asked.path]


def test_copies_are_never_mixed_in_one_folder(copy: HubCopy, folder: Path) -> None:
    hub.fetch(route(), folder)
    with pytest.raises(SettingsError, match=f"has {REPOSITORY} at {COMMIT}, but the card wants"):
        hub.fetch(route(revision="e" * 40), folder)


def test_existing_files_are_not_fetched_again(copy: HubCopy, folder: Path) -> None:
    hub.fetch(route(), folder)
    (folder / WANTED[1]).unlink()
    copy.server.asked.clear()
    hub.fetch(route(), folder)
    assert fetched(copy) == [(WANTED[1], "")]


def fetched(copy: HubCopy) -> list[tuple[str, str]]:
    """The files that were requested, and the byte ranges."""
    return [
        (asked.path.rpartition(f"{COMMIT}/")[2], asked.headers.get("range", ""))
        for asked in copy.server.asked
        if asked.method == "GET" and "/resolve/" in asked.path
    ]


def test_a_broken_connection_resumes_where_it_stopped(copy: HubCopy, folder: Path) -> None:
    copy.files[WANTED[2]] = bytes(24 << 20)  # the library keeps pieces of 10 MiB
    copy.cut = [WANTED[2]]
    hub.fetch(route(), folder)
    ranges = [wanted for name, wanted in fetched(copy) if name == WANTED[2]]
    assert ranges == ["", f"bytes={10 << 20}-"]
    assert (folder / WANTED[2]).read_bytes() == copy.files[WANTED[2]]


def test_a_killed_process_loses_one_file(copy: HubCopy, folder: Path) -> None:
    copy.cut, copy.stalls = [WANTED[2]], True
    script = (
        "import sys; from pathlib import Path; from microclip.data.public import hub; "
        "from microclip.settings.datasets import HubRoute; "
        "hub.fetch(HubRoute.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, route().model_dump_json(), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while copy.cut or not list(folder.rglob("*.incomplete")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert here(folder) == WANTED[:2]
    assert is_partial_copy(folder)
    copy.server.asked.clear()
    hub.fetch(route(), folder)
    assert fetched(copy) == [(WANTED[2], "")]
    assert here(folder) == WANTED
    assert not list(folder.rglob("*.incomplete"))


def test_altered_bytes_are_fetched_again_when_asked(copy: HubCopy, folder: Path) -> None:
    hub.fetch(route(), folder)
    (folder / WANTED[1]).write_bytes(FILES[WANTED[1]][::-1])
    hub.fetch(route(), folder, again=True)
    assert (folder / WANTED[1]).read_bytes() == FILES[WANTED[1]]


def test_files_with_other_bytes_than_stated_are_removed(copy: HubCopy, folder: Path) -> None:
    copy.lies = {WANTED[1]}
    with pytest.raises(runtime.ServiceError, match="arrived with other bytes than the hub states"):
        hub.fetch(route(), folder)
    assert not (folder / WANTED[1]).exists()
    assert is_partial_copy(folder)
    copy.lies = set()
    hub.fetch(route(), folder)
    assert here(folder) == WANTED


@pytest.mark.parametrize(
    ("refusal", "is_gated"), [((401, "GatedRepo"), False), ((403, ""), False), ((401, ""), True)]
)
def test_unaccepted_terms_are_an_error_that_says_what_to_do(
    copy: HubCopy, folder: Path, refusal: tuple[int, str], is_gated: bool
) -> None:
    copy.refusal = refusal
    expected = f"accept them at https://huggingface.co/datasets/{REPOSITORY}, set HF_TOKEN"
    with pytest.raises(runtime.MissingDataError, match=re.escape(expected)):
        hub.fetch(route(is_gated=is_gated), folder)


def test_a_missing_repository_is_named(copy: HubCopy, folder: Path) -> None:
    copy.is_absent = True
    with pytest.raises(
        runtime.ServiceError, match="does not exist, or cannot be seen without a tok"
    ):
        hub.fetch(route(), folder)
    assert not here(folder)


def test_a_missing_commit_is_one_line(copy: HubCopy, folder: Path) -> None:
    with pytest.raises(runtime.ServiceError, match="RevisionNotFoundError") as caught:
        hub.fetch(route(revision="a" * 40), folder)
    assert "\n" not in str(caught.value)


def test_patterns_that_match_nothing_are_named(copy: HubCopy, folder: Path) -> None:
    with pytest.raises(runtime.ServiceError, match=r"no file that matches \*\.tar; it has"):
        hub.fetch(route(files=("*.tar",)), folder)


def test_a_path_that_leads_outside_is_refused(copy: HubCopy, folder: Path) -> None:
    copy.files["data/../../../evil.parquet"] = b"PAR1"
    with pytest.raises(runtime.MissingDataError, match=r"'data/\.\./.*' leads out of its folder"):
        hub.fetch(route(), folder)
    assert not here(folder)


def test_no_network_is_one_line_without_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(
        runtime.ServiceError, match=f"did not deliver {REPOSITORY}: ConnectEr"
    ) as caught:
        hub.fetch(route(), tmp_path)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_the_token_is_sent_but_never_printed(
    copy: HubCopy, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fetch(route(), folder)
    assert copy.server.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
    printed = capsys.readouterr()
    assert TOKEN not in printed.err + printed.out
    assert not [
        path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]


def test_a_copy_larger_than_the_disk_is_not_started(copy: HubCopy, folder: Path) -> None:
    real = copy.answer

    def huge(method: str, path: str, headers: dict[str, str]) -> object:
        answer = real(method, path, headers)
        if answer is not None and "/tree/" in path:
            answer.body = answer.body.replace(b'"size": 300004', b'"size": 99999999999999999')
            answer.headers["Content-Length"] = str(len(answer.body))
        return answer

    copy.server.answer = huge  # type: ignore[assignment]
    with pytest.raises(runtime.ResourceError, match="the copy someone/shapes needs 1000000000000"):
        hub.fetch(route(), folder)
    assert not here(folder)
