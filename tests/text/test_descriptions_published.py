"""Published files: paths and addresses, hashes, faults of a real server, matched keys."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from microclip import runtime, settings
from microclip.settings import DescriptionSettings, SettingsError
from microclip.text import descriptions
from microclip.text.descriptions import PublishedList, fetch

ROOT = Path(__file__).resolve().parents[2]
# Keys as in CuPL's files: another name, another spelling, one that belongs to no class.
PUBLISHED = {
    "disc of red": ["A disc is round.", "."],
    "Green-Square": [" It is green.\n\nAnd square."],
    "blue bar": ["It is long."],
    "background": ["Nothing."],
}
URL = f"https://example.org/x.json#sha256={'0' * 64}"
CONTENT = json.dumps(PUBLISHED).encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT, after one failed request for each entry of `faults`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.n_requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/shapes.json"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.n_requests += 1
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault.isdigit():
            self.send_error(int(fault))
            return
        self.send_response(200)
        size = 10**9 if fault == "huge" else len(CONTENT)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if fault == "cut" else CONTENT)
        if fault == "huge":
            self.wfile.write(b" " * 5000)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("time.sleep", lambda _: None)
    found = Server()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def listed(own_project: Path) -> Path:
    """List of published files of a project that knows one."""
    path = own_project / "config" / "published" / "descriptions.yaml"
    path.parent.mkdir(exist_ok=True)
    known = {"repository": "me/mine", "files": {"shapes": {"file": "s.json", "sha256": SHA256}}}
    values = {
        "files": {"by-me": known},
        "keys": {"shapes": {"red_disc": "disc of red"}},
        "unused": {"shapes": ["background"]},
    }
    path.write_text(yaml.safe_dump(values))
    descriptions._read_list.cache_clear()
    return path


def llm(files: str, prompts: str = "by-me") -> DescriptionSettings:
    return DescriptionSettings(
        name="theirs", title="theirs", engine="file", model="m", prompts=prompts, files=files
    )


def place(project: Path, name: str) -> Path:
    path = project / "data" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("name", ["s.json", "shapes.json"])
def test_keys_are_resolved_by_rule_and_reported(
    listed: Path, own_project: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    place(own_project, name)
    written = descriptions.write(settings.load_dataset("shapes"), llm("data/{published}"))
    values = json.loads(written.read_text())
    assert values["descriptions"] == {
        "red_disc": ["A disc is round.", "."],
        "green square": [" It is green.\n\nAnd square."],
        "blue bar": ["It is long."],
    }
    assert values["keys"] == {
        "red_disc": {"key": "disc of red", "rule": "listed"},
        "green square": {"key": "Green-Square", "rule": "letters"},
    }
    assert (values["source"], values["source_sha256"]) == (f"data/{name}", SHA256)
    assert (values["published_by"], values["is_as_published"]) == ("me/mine", True)
    assert "2 of 3 classes of shapes have another key" in caplog.text
    assert "'red_disc' is 'disc of red' (listed)" in caplog.text
    assert "belong to no class" not in caplog.text  # background is known


def test_an_edited_copy_is_read_and_reported_as_different(
    listed: Path, own_project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = place(own_project, "s.json")
    path.write_text(path.read_text().replace("long", "very long"))
    written = descriptions.write(settings.load_dataset("shapes"), llm("data/{published}"))
    assert json.loads(written.read_text())["is_as_published"] is False
    assert "differs from the file that me/mine published" in caplog.text


def test_an_address_is_fetched_once_and_stored_by_its_hash(
    listed: Path, own_project: Path, server: Server
) -> None:
    dataset, theirs = settings.load_dataset("shapes"), llm(server.url)
    before = descriptions.identity(dataset, theirs)
    for _ in range(2):
        written = descriptions.write(dataset, theirs)
    assert server.n_requests == 1
    assert json.loads(written.read_text())["source"] == server.url
    assert descriptions.is_remote(dataset, theirs)
    assert descriptions.identity(dataset, theirs) == before  # fetching changes nothing
    kept = descriptions.source_file(dataset, theirs)
    assert kept.name == f"{SHA256}.json"
    kept.write_bytes(b"rotten")
    descriptions.write(dataset, theirs)
    assert server.n_requests == 2
    assert kept.read_bytes() == CONTENT


def test_an_address_without_a_known_hash_is_refused_and_the_hash_shown(
    own_project: Path, server: Server
) -> None:
    with pytest.raises(SettingsError, match=f"shapes.json#sha256={SHA256}$"):
        fetch(server.url)
    assert not (own_project / "results" / "downloads").exists()
    assert fetch(f"{server.url}#sha256={SHA256}").sha256 == SHA256


def test_content_with_another_hash_is_refused(own_project: Path, server: Server) -> None:
    with pytest.raises(SettingsError, match=f"has sha256 {SHA256}, expected {'0' * 64}"):
        fetch(f"{server.url}#sha256={'0' * 64}")
    path = place(own_project, "own.json")
    with pytest.raises(SettingsError, match="expected " + "1" * 64):
        fetch(f"{path}#sha256={'1' * 64}")
    assert fetch(f"{path}#sha256={SHA256}").shown == "data/own.json"
    with pytest.raises(SettingsError, match="must end with #sha256= and 64 hex digits"):
        fetch(f"{path}#sha256=abc")


@pytest.mark.usefixtures("own_project")
@pytest.mark.parametrize("faults", [["503"], ["429", "500"], ["cut"], ["cut", "502"]])
def test_passing_faults_are_retried(server: Server, faults: list[str]) -> None:
    server.faults = list(faults)
    assert fetch(f"{server.url}#sha256={SHA256}").path.read_bytes() == CONTENT
    assert server.n_requests == len(faults) + 1


@pytest.mark.usefixtures("own_project")
@pytest.mark.parametrize(
    ("faults", "expected", "n_requests"),
    [
        (["404"], "status 404", 1),
        (["503"] * 5, "status 503", 3),
        (["cut"] * 5, "IncompleteRead", 3),
        (["huge"], "has more than 0 MiB", 1),
    ],
)
def test_lasting_faults_are_reported_in_one_line(
    server: Server,
    faults: list[str],
    expected: str,
    n_requests: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "huge" in faults:
        monkeypatch.setattr(descriptions, "MAX_BYTES", 1000)
    server.faults = list(faults)
    with pytest.raises(runtime.ServiceError, match=expected):
        fetch(f"{server.url}#sha256={SHA256}")
    assert server.n_requests == n_requests


def test_user_and_query_of_an_address_are_never_shown(
    own_project: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.url.replace("127", "me:secret@127") + "?token=secret"
    with pytest.raises(SettingsError, match="contains a user name or password") as caught:
        fetch(url)
    assert "secret" not in str(caught.value) + caplog.text
    assert "secret" not in fetch(f"{server.url}?token=secret#sha256={SHA256}").shown


def test_the_error_for_a_missing_file_says_where_to_correct_it(own_project: Path) -> None:
    with pytest.raises(runtime.MissingDataError, match=r"correct `files` in config/llms/"):
        fetch("data/none.json")


def test_the_list_of_published_files_names_only_existing_classes_and_datasets() -> None:
    values = yaml.safe_load((ROOT / "config" / "published" / "descriptions.yaml").read_text())
    known = PublishedList.model_validate(values)
    assert {name: len(own.files) for name, own in known.files.items()} == {
        "cupl-full": 12,
        "gpt-4o": 7,
    }
    for own in known.files.values():
        assert set(own.files) <= set(settings.known("datasets"))
    for dataset, keys in known.keys.items():
        names = (ROOT / "resources" / "classes" / f"{dataset}.txt").read_text().splitlines()
        assert set(keys) <= set(names)
        assert not set(keys.values()) & set(names)
    for name in ("cupl-gpt3", "gpt-4o-published"):
        assert settings.load_descriptions(name).prompts in known.files


# Keys of CuPL's file for Caltech101 that are no class names, and those that no class uses.
CALTECH_KEYS = {
    "car side": "side of a car",
    "cougar body": "body of a cougar cat",
    "cougar face": "face of a cougar cat",
    "crocodile head": "head of a crocodile",
    "face": "centered face",
    "flamingo head": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)",
    "yin yang": "yin and yang symbol",
}
CALTECH_UNUSED = ("background", "off-center face")


@pytest.mark.usefixtures("own_project")
def test_caltechs_classes_take_the_sentences_that_the_released_code_gives_them(
    own_project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("datasets/caltech101.yaml", "published/descriptions.yaml"):
        target = own_project / "config" / folder
        target.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "config" / folder, target)
    names = (ROOT / "resources/classes/caltech101.txt").read_text().splitlines()
    (own_project / "resources/classes").mkdir(exist_ok=True)
    (own_project / "resources/classes/caltech101.txt").write_text("\n".join(names) + "\n")
    descriptions._read_list.cache_clear()
    keys = [CALTECH_KEYS.get(name, name) for name in names]
    theirs = {key: [f"A sentence of {key}."] for key in (*keys, *CALTECH_UNUSED)}
    assert len(theirs) == 102  # as in the published file
    (own_project / "data").mkdir()
    (own_project / "data/caltech101.json").write_text(json.dumps(theirs))
    dataset = settings.load_dataset("caltech101")
    written = descriptions.write(dataset, llm("data/{published}", "cupl-full"))
    values = json.loads(written.read_text())
    assert values["descriptions"] == {
        name: [f"A sentence of {key}."] for name, key in zip(names, keys, strict=True)
    }
    assert {name: match["key"] for name, match in values["keys"].items()} == CALTECH_KEYS
    assert "belong to no class" not in caplog.text


def test_missing_files_are_listed_in_one_line(own_project: Path) -> None:
    dataset = settings.load_dataset("shapes")
    pairs = [(dataset, llm("data/a.json")), (dataset, llm("data/b.json")), (dataset, llm(URL))]
    place(own_project, "b.json")
    assert descriptions.notice(pairs) == (
        f"descriptions: 1 of 2 files here; missing: {own_project / 'data/a.json'}; "
        "docs/reproduce-the-paper.md says where to get them"
    )
    assert descriptions.notice(pairs[1:]) == ""


def test_another_key_of_a_class_makes_the_workflow_describe_again(
    listed: Path, own_project: Path
) -> None:
    place(own_project, "s.json")
    dataset, theirs = settings.load_dataset("shapes"), llm("data/{published}")
    before = descriptions.identity(dataset, theirs)
    values = yaml.safe_load(listed.read_text())
    values["keys"]["shapes"] = {"red_disc": "background"}
    listed.write_text(yaml.safe_dump(values))
    descriptions._read_list.cache_clear()
    assert descriptions.identity(dataset, theirs) != before


def test_select_logs_other_spellings_quietly(caplog: pytest.LogCaptureFixture) -> None:
    from microclip.data.vocabulary import Vocabulary

    found = descriptions.checked({"Red-Disc": ["It is red."], "bar": ["Long."]}, "given")
    with caplog.at_level(logging.INFO):
        chosen = descriptions.select(found, Vocabulary(("red_disc", "bar"), "classes.txt"))
    assert chosen == {"red_disc": ("It is red.",), "bar": ("Long.",)}
    assert "'red_disc' is 'Red-Disc' (letters)" in caplog.text


def test_the_error_names_both_keys_that_would_fit_a_class() -> None:
    from microclip.data.vocabulary import Vocabulary

    found = descriptions.checked({"DC-10": ["Old."], "DC 10": ["Old."], "bar": ["Long."]}, "given")
    with pytest.raises(SettingsError, match=r"for 'dc10' choose between DC-10, DC 10"):
        descriptions.select(found, Vocabulary(("dc10", "bar"), "classes.txt"))
