"""Downloads from mirrors that break off, lie, stall and vanish end with the right file or none."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.public import downloads
from microclip.data.public.downloads import hashes
from microclip.settings.datasets import RemoteFile
from tests.file_server import FileServer, serving

CONTENT = b"\x1f\x8b" + random.Random(0).randbytes(700_001)
NAME = "set.tar.gz"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    with serving() as state:
        state.files[NAME] = CONTENT
        yield state


def wanted(server: FileServer, *paths: str, stated: bool = True) -> RemoteFile:
    return RemoteFile(
        name=NAME,
        urls=tuple(server.url(path) for path in paths or (NAME,)),
        md5=hashlib.md5(CONTENT).hexdigest() if stated else None,
    )


def begin(target: Path, n: int = 200_000, content: bytes = CONTENT) -> None:
    """Write what a killed process would leave behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(f"{target.name}.part").write_bytes(content[:n])


def test_a_file_is_downloaded_whole_and_its_hash_returned(
    server: FileServer, tmp_path: Path
) -> None:
    target = tmp_path / "new" / NAME
    assert downloads.fetch(wanted(server), target) == hashlib.sha256(CONTENT).hexdigest()
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [NAME]


def test_a_correct_file_is_not_requested_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    downloads.fetch(wanted(server), tmp_path / NAME)
    assert not server.asked


def test_a_file_without_a_stated_hash_is_kept(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"your own")
    downloads.fetch(wanted(server, stated=False), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == b"your own"


def test_a_wrong_file_is_reported_and_moved_aside(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / NAME).write_bytes(b"not this")
    downloads.fetch(wanted(server), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert (tmp_path / f"{NAME}.wrong-1").read_bytes() == b"not this"
    assert f"{NAME} is not the published file (md5 " in capsys.readouterr().err


@pytest.mark.parametrize("stated", [True, False])
def test_an_interrupted_download_resumes_where_it_stopped(
    server: FileServer, tmp_path: Path, stated: bool
) -> None:
    server.faults[NAME] = ["cut"]
    downloads.fetch(wanted(server, stated=stated), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    first, second = server.asked
    assert "range" not in first.headers
    assert int(second.headers["range"].removeprefix("bytes=").rstrip("-")) > 300_000
    assert server.sent(NAME) < 1.2 * len(CONTENT)


def test_a_download_that_keeps_breaking_fails_in_the_end(
    server: FileServer, tmp_path: Path
) -> None:
    server.faults[NAME] = ["cut"] * 4
    downloads.fetch(wanted(server), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "fault", ["deaf", "elsewhere", "slow", "trickle", "endless"], ids=lambda fault: str(fault)
)
def test_the_rest_is_right_whatever_status_the_server_sends(
    server: FileServer, tmp_path: Path, fault: str
) -> None:
    begin(tmp_path / NAME)
    server.faults[NAME] = [fault]
    downloads.fetch(wanted(server), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_half_of_another_file_is_detected_and_fetched_again(
    server: FileServer, tmp_path: Path
) -> None:
    begin(tmp_path / NAME, content=bytes(len(CONTENT)))
    downloads.fetch(wanted(server), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert [("range" in asked.headers) for asked in server.asked] == [True, False]


def test_a_file_that_changed_on_the_server_is_not_resumed(
    server: FileServer, tmp_path: Path
) -> None:
    server.faults[NAME] = ["cut", "503", "503", "503", "503"]
    file = wanted(server, stated=False)
    with pytest.raises(runtime.ServiceError):
        downloads.fetch(file, tmp_path / NAME)
    server.files[NAME] = CONTENT[:2] + CONTENT[:1:-1] + b"new"
    downloads.fetch(file, tmp_path / NAME)
    assert server.asked[-1].headers["if-range"].startswith('"')
    assert (tmp_path / NAME).read_bytes() == server.files[NAME]


def test_without_hash_or_validator_nothing_is_resumed(server: FileServer, tmp_path: Path) -> None:
    server.tags = False
    begin(tmp_path / NAME)
    downloads.fetch(wanted(server, stated=False), tmp_path / NAME)
    assert "range" not in server.asked[0].headers
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_complete_part_needs_no_server(server: FileServer, tmp_path: Path) -> None:
    begin(tmp_path / NAME, n=len(CONTENT))
    downloads.fetch(wanted(server), tmp_path / NAME, is_offline=True)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert not server.asked


def test_a_part_that_the_server_calls_complete_is_accepted(
    server: FileServer, tmp_path: Path
) -> None:
    server.faults[NAME] = ["cut", "503", "503", "503", "503"]
    file = wanted(server, stated=False)
    with pytest.raises(runtime.ServiceError):
        downloads.fetch(file, tmp_path / NAME)
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    before = server.sent(NAME)
    downloads.fetch(file, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.sent(NAME) == before


def test_a_part_longer_than_the_file_is_started_again(server: FileServer, tmp_path: Path) -> None:
    begin(tmp_path / NAME, n=len(CONTENT) + 9, content=CONTENT + b"too long.")
    downloads.fetch(wanted(server), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("404", "HTTP 404"),
        ("403", "HTTP 403"),
        ("page", "it sent an HTML page instead of the file"),
        ("hidden-page", "it sent an HTML page instead of the file"),
    ],
)
def test_the_next_mirror_is_asked_if_one_lacks_the_file(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, reason: str
) -> None:
    server.files["old.tar.gz"] = CONTENT
    server.faults["old.tar.gz"] = [fault]
    downloads.fetch(wanted(server, "old.tar.gz", NAME), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert f"127.0.0.1:{server.http.server_address[1]}: {reason}" in capsys.readouterr().err


def test_an_html_page_leaves_nothing_behind(server: FileServer, tmp_path: Path) -> None:
    server.faults[NAME] = ["hidden-page"]
    with pytest.raises(runtime.ServiceError, match="an HTML page instead of the file"):
        downloads.fetch(wanted(server, stated=False), tmp_path / NAME)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_an_archive_is_refused_without_a_hash(
    server: FileServer, tmp_path: Path
) -> None:
    server.files[NAME] = b"error: quota exceeded"
    with pytest.raises(
        runtime.ServiceError, match=r"not a \.gz file \(it begins with b'error: q'\)"
    ):
        downloads.fetch(wanted(server, stated=False), tmp_path / NAME)


def test_one_line_says_how_every_mirror_failed(server: FileServer, tmp_path: Path) -> None:
    server.files["wrong.tar.gz"] = CONTENT
    server.faults["wrong.tar.gz"] = ["wrong"]
    server.faults["busy.tar.gz"] = ["503"] * 9
    absent = RemoteFile(
        name=NAME,
        urls=(
            "http://127.0.0.1:1/gone.tar.gz",
            "no-address",
            *(server.url(f"{name}.tar.gz") for name in ("absent", "wrong", "busy")),
        ),
        md5=hashlib.md5(CONTENT).hexdigest(),
    )
    with pytest.raises(runtime.ServiceError) as caught:
        downloads.fetch(absent, tmp_path / NAME)
    text = str(caught.value)
    for reason in (
        "Connection refused",
        "HTTP 404",
        "not a .gz file",
        "HTTP 503",
        "place the file",
    ):
        assert reason in text
    assert "\n" not in text
    assert not (tmp_path / NAME).exists()


def test_wrong_bytes_are_never_put_in_place(server: FileServer, tmp_path: Path) -> None:
    other = b"\x1f\x8b" + CONTENT[:1:-1]
    server.files[NAME] = other
    got = hashlib.md5(other).hexdigest()
    with pytest.raises(runtime.ServiceError, match=rf"another file than .*\(md5 {got}, expected"):
        downloads.fetch(wanted(server), tmp_path / NAME)
    assert not list(tmp_path.iterdir())


def test_a_busy_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.faults[NAME] = ["503", "503"]
    downloads.fetch(wanted(server), tmp_path / NAME)
    assert len(server.asked) == 3


def test_a_file_larger_than_the_disk_is_not_started(server: FileServer, tmp_path: Path) -> None:
    server.faults[NAME] = ["huge"]
    with pytest.raises(
        runtime.ResourceError, match=r"needs 100000000000000000 bytes .* \d+ \(.*\) are free"
    ):
        downloads.fetch(wanted(server), tmp_path / NAME)
    assert server.sent(NAME) <= len(CONTENT)
    assert not (tmp_path / NAME).exists()


def test_offline_sends_no_request(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(runtime.ServiceError, match=r"the network is forbidden"):
        downloads.fetch(wanted(server), tmp_path / NAME, is_offline=True)
    assert not server.asked


def test_a_killed_process_loses_only_what_had_not_arrived(
    server: FileServer, tmp_path: Path
) -> None:
    big = b"\x1f\x8b" + random.Random(1).randbytes(4_000_000)
    server.files[NAME] = big
    server.faults[NAME] = ["trickle"]
    script = (
        "import sys; from pathlib import Path; from microclip.data.public import downloads; "
        "from microclip.settings.datasets import RemoteFile; "
        "downloads.fetch(RemoteFile(name='set.tar.gz', urls=(sys.argv[1],)), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, server.url(NAME), str(tmp_path / NAME)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        part = tmp_path / f"{NAME}.part"
        deadline = time.monotonic() + 60
        while not part.is_file() or part.stat().st_size < 1_000_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    had = part.stat().st_size
    assert not (tmp_path / NAME).exists()
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / NAME).read_bytes() == big
    assert server.asked[-1].sent == len(big) - had


def test_without_a_terminal_progress_is_printed_in_lines(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    downloads.fetch(wanted(server), tmp_path / NAME)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"{NAME}: 700.0 kB of 700.0 kB, 100 %"
    assert 5 <= len(lines) <= 11


def test_hashes_are_those_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    assert hashes(tmp_path / "a").sha256 == hashlib.sha256(CONTENT).hexdigest()
