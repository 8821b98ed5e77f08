"""Decoding in processes: the same bytes in the same order, and crashes that are named."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from microclip.data.decoding import (
    FILES_A_PROCESS,
    Decoded,
    UnreadableError,
    _Decoder,
    _Order,
    decode_all,
    n_processes_for,
)
from microclip.runtime import MissingDataError, ResourceError
from tests.data import odd_files
from tests.data.odd_files import picture


def write_many(folder: Path, n: int) -> list[Path]:
    """Write good, odd and bad images in a mixed order."""
    folder.mkdir()
    good, bad = odd_files.write_all(folder / "odd")
    for number in range(n):
        picture(number, (40 + number % 7, 30)).save(folder / f"{number:03}.png")
    return sorted([*folder.glob("*.png"), *good, *bad], key=lambda path: path.name)


def test_processes_give_the_same_results_in_the_same_order(tmp_path: Path) -> None:
    files = write_many(tmp_path / "images", 30)
    here = list(decode_all(files, canvas_px=30, n_processes=0))
    there = list(decode_all(files, canvas_px=30, n_processes=2))
    assert len(here) == len(there) == len(files)
    for one, other in zip(here, there, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Decoded) and isinstance(other, Decoded):
            np.testing.assert_array_equal(one.pixels, other.pixels)
            assert one[1:] == other[1:]
        else:
            assert str(one) == str(other)


def test_verifying_sends_no_pixels(tmp_path: Path) -> None:
    good, bad = odd_files.write_all(tmp_path / "odd")
    files = sorted([*good, *bad])
    results = list(decode_all(files, n_processes=2, has_pixels=False))
    assert {path for path, r in zip(files, results, strict=True) if isinstance(r, Decoded)} == set(
        good
    )
    assert all(r.pixels.size == 0 for r in results if isinstance(r, Decoded))


def test_few_files_or_one_cpu_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROCLIP_THREADS", "4")
    assert n_processes_for(10) == 0
    assert n_processes_for(10 * FILES_A_PROCESS) == 4
    assert n_processes_for(3 * FILES_A_PROCESS) == 3
    monkeypatch.setenv("MICROCLIP_THREADS", "1")
    assert n_processes_for(10_000) == 0


@pytest.mark.parametrize("n_processes", [0, 2])
def test_a_missing_file_is_named(tmp_path: Path, n_processes: int) -> None:
    picture().save(tmp_path / "a.png")
    files = [tmp_path / "a.png", tmp_path / "gone.png"]
    with pytest.raises(MissingDataError, match=r"gone\.png is gone"):
        list(decode_all(files, n_processes=n_processes))


def decoding_processes() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children()
        if _Decoder.__module__ in " ".join(process.cmdline())
    ]


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGKILL, ResourceError), (signal.SIGSEGV, UnreadableError)],
)
def test_a_process_that_dies_names_its_file(
    tmp_path: Path, number: signal.Signals, error: type[Exception]
) -> None:
    """A process killed from outside is the machine's fault; a crash is the file's."""
    for name in "abc":
        picture().save(tmp_path / f"{name}.png")
    decoder, order = _Decoder(), _Order(None, stretch=False, has_pixels=True)
    try:
        assert isinstance(decoder.decode(tmp_path / "a.png", order), Decoded)
        decoder._process.send_signal(number)
        decoder._process.wait(10)
        if error is ResourceError:
            with pytest.raises(ResourceError, match=r"b\.png ended by signal 9; if memory"):
                decoder.decode(tmp_path / "b.png", order)
        else:
            said = decoder.decode(tmp_path / "b.png", order)
            assert str(said) == "crashes its decoder (SIGSEGV)"
            assert isinstance(decoder.decode(tmp_path / "c.png", order), Decoded)
    finally:
        decoder.kill()
        decoder.close()


def test_stopping_early_ends_the_processes(tmp_path: Path) -> None:
    files = write_many(tmp_path / "images", 20)
    results = decode_all(files, n_processes=2)
    next(results)
    assert len(decoding_processes()) == 2
    results.close()
    assert decoding_processes() == []


def test_processes_end_with_the_one_that_asked(tmp_path: Path) -> None:
    """Even after `kill -9`: their input closes, so they need no signal."""
    write_many(tmp_path / "images", 40)
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from microclip.data.decoding import decode_all\n"
        "files = sorted(Path('images').glob('*.png'))\n"
        "results = decode_all(files, n_processes=2)\n"
        "next(results)\n"
        "print('under way', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "under way\n"
        children = psutil.Process(asking.pid).children()
        assert len(children) == 2
        asking.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_a_users_script_is_not_run_again_nor_are_its_modules_imported(tmp_path: Path) -> None:
    """No `__main__` guard is needed, and a `random.py` beside the script does no harm."""
    write_many(tmp_path / "images", 10)
    (tmp_path / "json.py").write_text("raise RuntimeError('taken for Python own')")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "script.py").write_text(
        "from pathlib import Path\n"
        "from microclip.data.decoding import decode_all\n"
        "files = sorted(Path('images').glob('*.png'))\n"
        "print(len(list(decode_all(files, n_processes=2))))\n"
    )
    done = subprocess.run(
        [sys.executable, "mine/script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("10\n", "")
