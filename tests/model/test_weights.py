"""Weights that open_clip's registry names: a local hub and web server, real files, real loading."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from huggingface_hub import constants
from open_clip import pretrained
from open_clip.model import CLIP
from safetensors.torch import save
from torch import nn

from microclip import runner
from microclip.cli import main
from microclip.data.public import downloads
from microclip.model import weights
from microclip.model.backbone import load_backbone
from microclip.runtime import MissingDataError, ResourceError, ServiceError
from microclip.settings import SettingsError
from microclip.settings.study import BackboneSettings
from tests.file_server import Answer, FileServer, serving
from tests.fixtures.project import BACKBONE, Journal, prepare, settings_of

MODEL, TAG, REPOSITORY = "tiny-test-clip", "published", "someone/tiny-clip"
SAFE, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BACKBONE_SETTINGS = BackboneSettings(name="tiny", title="Tiny", model=MODEL, pretrained=TAG)
RECORD = Path("results/backbones/tiny.json")


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return CLIP(**BACKBONE).eval()


def safe(seed: int = 0) -> bytes:
    return save({name: value.contiguous() for name, value in network(seed).state_dict().items()})


def torchscript(path: Path) -> bytes:
    """The file that OpenAI publishes: a traced network in float16 and three numbers."""

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in network().named_children():
                self.add_module(name, child)
            for name, value in network().named_parameters(recurse=False):
                self.register_parameter(name, value)
            for number in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(number, torch.tensor(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Traced(), torch.zeros(1)), path)
    return path.read_bytes()


class Hub:
    """A model repository of the hub."""

    def __init__(self, server: FileServer) -> None:
        self.server, self.files = server, {SAFE: safe()}
        self.lies, self.status = False, 0
        server.answer = self.answer

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer | None:
        start = f"/{REPOSITORY}/resolve/main/"
        if not path.startswith(start):
            return None  # a plain file, or 404
        name = path.removeprefix(start)
        if self.status:
            return Answer(status=self.status)
        if name not in self.files:
            return Answer(status=404, headers={"X-Error-Code": "EntryNotFound"})
        content = self.files[name]
        tag = hashlib.sha256(content).hexdigest()
        body = content[::-1] if self.lies else content
        return Answer(body=body, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})

    def asked(self, method: str = "GET") -> list[str]:
        return [one.path.rpartition("/")[2] for one in self.server.asked if one.method == method]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A tag of open_clip's registry on servers of this machine; empty caches, empty work folder."""
    (tmp_path / f"{MODEL}.json").write_text(json.dumps(BACKBONE))
    open_clip.add_model_config(tmp_path / f"{MODEL}.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    monkeypatch.setattr(weights, "_loaded", {})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for switch in ("MICROCLIP_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        told = {"hf_hub": f"{REPOSITORY}/", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
        monkeypatch.setitem(pretrained._PRETRAINED, MODEL, {TAG: told})
        yield Hub(server)


def openai_file(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Publish OpenAI's kind of file, under an address that states its hash."""
    content = torchscript(folder / "traced.pt")
    path = f"clip/models/{hashlib.sha256(content).hexdigest()}/tiny.pt"
    hub.server.files[path] = content
    told = {**pretrained._PRETRAINED[MODEL][TAG], "url": hub.server.url(path)}
    monkeypatch.setitem(pretrained._PRETRAINED, MODEL, {TAG: told})
    return content


def cached() -> Path:
    (found,) = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/*")
    return found


def place(content: bytes, name: str = SAFE) -> Path:
    """Put a file where one copies it by hand."""
    target = weights.published(MODEL, TAG).hub_target.with_name(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def test_a_tag_is_downloaded_once_and_then_asks_for_nothing(hub: Hub) -> None:
    hub.files[PICKLED] = b"never wanted"
    first = load_backbone(BACKBONE_SETTINGS)
    assert torch.equal(first.visual.proj, network().visual.proj)
    assert first.mean == (0.1, 0.2, 0.3)
    assert first.std == (0.4, 0.5, 0.6)
    assert hub.asked() == [SAFE]
    n_asked = len(hub.server.asked)
    load_backbone(BACKBONE_SETTINGS)
    assert len(hub.server.asked) == n_asked
    assert not RECORD.exists()  # only a study's steps write it


@pytest.mark.parametrize("switch", ["MICROCLIP_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_sends_no_request_and_names_the_file_and_its_folder(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv(switch, "1")
    folder = Path(constants.HF_HUB_CACHE) / "models--someone--tiny-clip" / "snapshots" / "main"
    with pytest.raises(MissingDataError) as caught:
        load_backbone(BACKBONE_SETTINGS)
    told = f"copy {SAFE} of https://huggingface.co/{REPOSITORY} to the folder {folder}"
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hub.server.asked
    folder.mkdir(parents=True)
    (folder / SAFE).write_bytes(safe())  # as told
    assert torch.equal(load_backbone(BACKBONE_SETTINGS).visual.proj, network().visual.proj)
    assert not hub.server.asked


def test_offline_reaches_the_libraries_below_and_ends_with_the_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("MICROCLIP_OFFLINE", "1")
    with weights.network_as_allowed():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_truncated_file_is_called_so_with_both_sizes(hub: Hub) -> None:
    content = safe()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path = place(content[:length])
        least = str(len(content)) if length > 100 else r"at least \d+"
        with pytest.raises(
            SettingsError, match=f"is truncated: {length} of {least} bytes; delete it and fetch"
        ):
            load_backbone(BACKBONE_SETTINGS)
        path.unlink()
    load_backbone(BACKBONE_SETTINGS)  # fetched anew


def test_a_truncated_archive_is_called_so(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "weights.bin")
    whole = (tmp_path / "weights.bin").read_bytes()
    weights.check_whole(tmp_path / "weights.bin")
    (tmp_path / "weights.bin").write_bytes(whole[:-50])
    with pytest.raises(SettingsError, match=f"truncated: its {len(whole) - 50} bytes lack the end"):
        weights.check_whole(tmp_path / "weights.bin")


def test_a_turned_bit_is_found_by_the_hash_that_the_hub_states(hub: Hub) -> None:
    load_backbone(BACKBONE_SETTINGS)
    path = cached().resolve()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    stated = hashlib.sha256(hub.files[SAFE]).hexdigest()
    with pytest.raises(SettingsError, match=f"must have sha256 {stated}, got "):
        load_backbone(BACKBONE_SETTINGS)


def test_the_hash_of_the_settings_holds_for_a_downloaded_file(hub: Hub) -> None:
    own = BACKBONE_SETTINGS.model_copy(update={"sha256": "00" * 32})
    with pytest.raises(SettingsError, match="must have sha256 0000"):
        load_backbone(own)
    right = hashlib.sha256(hub.files[SAFE]).hexdigest().upper()
    load_backbone(BACKBONE_SETTINGS.model_copy(update={"sha256": right}))


def test_other_bytes_than_the_hub_states_are_removed(hub: Hub) -> None:
    hub.lies = True
    with pytest.raises(ServiceError, match="other bytes than the hub states"):
        load_backbone(BACKBONE_SETTINGS)
    assert not list(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/*"))
    assert not list(Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*"))
    hub.lies = False
    load_backbone(BACKBONE_SETTINGS)


def test_a_hub_in_trouble_is_one_line_and_no_reason_to_take_the_pickle(hub: Hub) -> None:
    hub.status, hub.files[PICKLED] = 503, b"a pickle"
    with pytest.raises(ServiceError, match=r"hub, someone/tiny-clip/open_clip_model.*503") as said:
        load_backbone(BACKBONE_SETTINGS)
    assert "\n" not in str(said.value)
    assert set(hub.asked("HEAD")) == {SAFE}
    assert not hub.asked()


def test_without_a_network_the_error_is_one_line_and_says_what_to_do(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai_file(hub, tmp_path, monkeypatch)
    told = {**pretrained._PRETRAINED[MODEL][TAG]}
    told["url"] = told["url"].replace(hub.server.address, "http://127.0.0.1:1")
    monkeypatch.setitem(pretrained._PRETRAINED, MODEL, {TAG: told})
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ServiceError) as caught:
        load_backbone(BACKBONE_SETTINGS)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"could not download the weights {MODEL}:{TAG} (hub, ")
    assert "run the same command again, or copy" in text
    assert str(tmp_path / "home/.cache/clip") in text


def test_a_full_disk_is_known_before_the_download(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 9}))
    with pytest.raises(ResourceError, match=r"9 bytes are free.*set HF_HOME"):
        load_backbone(BACKBONE_SETTINGS)
    assert not hub.asked()


def test_openais_file_is_taken_resumed_and_gives_the_same_state(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_backbone(BACKBONE_SETTINGS)
    ((_, by_hub),) = weights._loaded.items()
    weights._loaded.clear()
    content = openai_file(hub, tmp_path, monkeypatch)
    (path,) = hub.server.files
    hub.status, hub.server.faults[path] = 503, ["cut"]
    cached().unlink()
    load_backbone(BACKBONE_SETTINGS)
    ((_, by_url),) = weights._loaded.items()
    assert by_url.file == "tiny.pt"
    assert by_url.published_sha256 == by_url.file_sha256 == hashlib.sha256(content).hexdigest()
    assert by_url.file_sha256 != by_hub.file_sha256
    assert by_url.state_sha256 == by_hub.state_sha256
    assert hub.server.sent(path) < 1.2 * len(content)  # the rest alone, not all again


def test_openais_file_cut_by_another_program_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = openai_file(hub, tmp_path, monkeypatch)
    target = tmp_path / "home/.cache/clip/tiny.pt"
    target.parent.mkdir(parents=True)
    target.write_bytes(content[: len(content) // 2])
    with pytest.raises(SettingsError, match="is truncated"):
        load_backbone(BACKBONE_SETTINGS)


def test_a_repository_with_a_pickle_alone_gives_bare_tensors_and_runs_no_code(
    hub: Hub, tmp_path: Path
) -> None:
    torch.save(network().state_dict(), tmp_path / "w.bin")
    hub.files = {PICKLED: (tmp_path / "w.bin").read_bytes()}
    assert torch.equal(load_backbone(BACKBONE_SETTINGS).visual.proj, network().visual.proj)
    cached().unlink()

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"a": Harm()}, tmp_path / "w.bin")
    place((tmp_path / "w.bin").read_bytes(), PICKLED)
    with pytest.raises(SettingsError, match="cannot be loaded") as caught:
        load_backbone(BACKBONE_SETTINGS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def keep_record() -> weights.LoadedWeights:
    load_backbone(BACKBONE_SETTINGS)
    weights.record(BACKBONE_SETTINGS)
    return weights.LoadedWeights(**json.loads(RECORD.read_text()))


@pytest.mark.usefixtures("hub")
def test_recorded_weights_are_not_hashed_again_until_the_file_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = keep_record()
    assert kept.state_sha256 == weights.tensors_sha256(network().state_dict())
    assert kept.published_sha256 == kept.file_sha256
    weights._loaded.clear()  # as another process
    with monkeypatch.context() as patched:
        patched.setattr(weights, "tensors_sha256", lambda _: pytest.fail("hashed"))
        patched.setattr(weights.runtime, "sha256", lambda _: pytest.fail("hashed"))
        load_backbone(BACKBONE_SETTINGS)
    cached().resolve().touch()
    load_backbone(BACKBONE_SETTINGS)  # hashed again, and the same
    weights.record(BACKBONE_SETTINGS)
    again = weights.LoadedWeights(**json.loads(RECORD.read_text()))
    assert again.mtime_ns != kept.mtime_ns
    assert again.state_sha256 == kept.state_sha256


@pytest.mark.usefixtures("hub")
def test_other_weights_than_those_of_earlier_results_are_refused() -> None:
    place(safe())
    keep_record()
    path = place(safe(seed=1))
    with pytest.raises(SettingsError, match=r"other weights than the results here.*tiny\.json"):
        load_backbone(BACKBONE_SETTINGS)
    path.write_bytes(safe())
    load_backbone(BACKBONE_SETTINGS)
    path.write_bytes(safe(seed=1))
    RECORD.unlink()
    load_backbone(BACKBONE_SETTINGS)


def test_a_record_of_another_tag_does_not_count(hub: Hub) -> None:
    keep_record()
    other = BACKBONE_SETTINGS.model_copy(update={"pretrained": "later"})
    hub.files[SAFE] = safe(seed=1)
    assert weights.recorded(other) is None
    assert weights.recorded(BACKBONE_SETTINGS.model_copy(update={"name": "other"})) is None


def test_weights_can_be_fetched_ahead_and_the_doctor_then_shows_them(
    hub: Hub, own_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = {"title": "Tiny", "model": MODEL, "pretrained": TAG}
    (own_project / "config/backbones/public.yaml").write_text(yaml.safe_dump(declared))
    assert main.main(["fetch-weights", "public"]) == 0
    state = weights.tensors_sha256(network().state_dict())
    assert f"public: loaded, state sha256 {state}" in capsys.readouterr().err
    assert hub.asked() == [SAFE]
    weights.record(BACKBONE_SETTINGS.model_copy(update={"name": "public"}))
    assert main.main(["doctor"]) == 0
    assert f"backbone public: {cached()}, state {state[:16]}\n" in capsys.readouterr().out
    cached().resolve().write_bytes(b"")
    assert main.main(["fetch-weights", "public"]) == 2
    assert "is truncated" in capsys.readouterr().err


def test_a_run_names_the_state_of_downloaded_weights(hub: Hub, own_project: Path) -> None:
    del hub
    declared = {"title": "Tiny", "model": MODEL, "pretrained": TAG}
    (own_project / "config/backbones/tiny.yaml").write_text(yaml.safe_dump(declared))
    settings = settings_of("clip")
    prepare(settings)
    runner.run(settings, settings.spec.folder, Journal())
    inputs = json.loads((settings.spec.folder / "run.json").read_text())["inputs"]
    assert inputs["weights"] == weights.tensors_sha256(network().state_dict())
    assert (own_project.parent / "work" / RECORD).is_file()


def test_the_registry_states_openais_hashes_and_safe_files_first() -> None:
    found = weights.published("ViT-B-32-quickgelu", "openai")
    assert found.repository == "timm/vit_base_patch32_clip_224.openai"
    assert found.files == (SAFE, PICKLED)
    assert found.sha256 == "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
    assert found.url_target.name == "ViT-B-32.pt"
    assert not weights.published("ViT-B-32-quickgelu", "metaclip_400m").url  # states no hash
    named = weights.published("ViTamin-S", "datacomp1b")
    assert named.files == ("pytorch_model.safetensors", "pytorch_model.bin")


def test_the_table_of_weights_is_the_same_without_torch() -> None:
    program = (
        "import sys; from microclip.model import weights;"
        "print(weights._registry()._PRETRAINED);"
        "sys.exit('torch' in sys.modules or 'safetensors.torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(pretrained._PRETRAINED)
