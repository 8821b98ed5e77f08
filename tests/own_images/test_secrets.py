"""No secret of the environment reaches a file, MLflow or the screen, in any common spelling."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest

from microclip import paths
from tests.own_images.folder import adapt, place

__all__ = ["place"]
KEY, TOKEN, PASSWORD, HUB = (
    "sk-planted/key+1=",
    "planted:token~2",
    "planted pass@word/3",
    "hf_Planted4",
)


def spellings(secret: str) -> list[bytes]:
    """A secret as it is, percent-encoded, and as base64 at each of the three offsets."""
    plain = secret.encode()
    shifted = (base64.b64encode(b"x" * n + plain)[4 if n else 0 : -4] for n in range(3))
    return [plain, quote(secret, safe="").encode(), quote(secret).encode(), *shifted]


def leaks(folder: Path, *said: str) -> list[str]:
    """Files below a folder, and texts, that hold a planted secret."""
    contents = {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    contents |= {f"text {n}": text.encode() for n, text in enumerate(said)}
    found = [part for secret in (KEY, TOKEN, PASSWORD, HUB) for part in spellings(secret)]
    return [name for name, content in contents.items() if any(part in content for part in found)]


def test_the_scan_finds_what_is_there(tmp_path: Path) -> None:
    for n, part in enumerate(spellings(PASSWORD)):
        (tmp_path / f"{n}.log").write_bytes(b"before " + part + b" after")
    (tmp_path / "basic").write_bytes(base64.b64encode(f"mona:{PASSWORD}".encode()))
    (tmp_path / "clean").write_bytes(b"nothing")
    assert sorted(leaks(tmp_path)) == [*(f"{n}.log" for n in range(6)), "basic"]


@pytest.mark.parametrize("server", ["own", "gone"])
def test_planted_secrets_are_nowhere(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], server: str
) -> None:
    planted = {"OPENAI_API_KEY": KEY, "MLFLOW_TRACKING_TOKEN": TOKEN, "HF_TOKEN": HUB}
    for name, value in {**planted, "MLFLOW_TRACKING_PASSWORD": PASSWORD}.items():
        monkeypatch.setenv(name, value)
    if server == "gone":
        address = f"http://mona:{quote(PASSWORD, safe='')}@127.0.0.1:1"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert adapt("--method", "cupl") == 0
    said = capfd.readouterr()
    assert ("MLflow at http" in said.err) == (server == "gone")
    assert Path("adapted/predictions.csv").is_file()
    assert server == "gone" or Path(paths.TRACKING_DATABASE).stat().st_size > 0
    assert leaks(place, said.out, said.err) == []
