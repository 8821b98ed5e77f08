"""Files of weights: local ones, and those that open_clip's registry names, fetched and recorded.

open_clip's registry says where the weights of a tag are published, and the files stay where
open_clip keeps them. Its own download is not used: it asks the hub at each load, takes a pickled
file when the connection to the safe one breaks, writes under the final name while bytes arrive, and
compares no hash of what the hub sends.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from microclip import paths, runtime
from microclip.data.public import downloads, sources
from microclip.settings.base import (
    Frozen,
    SettingsError,
    digest,
    loads,
    read_record,
    refuse_pickle,
)
from microclip.settings.datasets import RemoteFile
from microclip.settings.study import BackboneSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ALIAS = "_open_clip_registry"  # open_clip's folder as another package
_ZIP = b"PK\x03\x04"
_MOST_HEADER = 100_000_000  # bytes; safetensors refuses a longer header too


def backbone_key(backbone: BackboneSettings) -> str:
    """Key of a backbone: architecture, activation and weights, but not its title.

    Raises:
        MissingDataError: the weights or the configuration do not exist.
    """
    check_files(backbone)
    parts: dict[str, Any] = {"model": backbone.model, "pretrained": backbone.pretrained}
    parts |= {field: runtime.sha256(path) for field, path in backbone.files.items()}
    return digest(parts)


def check_files(backbone: BackboneSettings) -> None:
    """Raise MissingDataError, with the remedy, if the weights or the configuration are missing."""
    for field, path in backbone.files.items():
        if not path.is_file():
            raise runtime.MissingDataError(
                f"{field} of backbone {backbone.name!r}, {path}, is not there; "
                f"{backbone.remedy(field)}"
            )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors' names, types, shapes and bytes, whatever file holds them."""
    import torch

    found = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_whole(path: Path) -> None:
    """Refuse a file of weights that ends too early, as far as the file itself tells.

    Raises:
        SettingsError: it is shorter or longer than its header says, or an archive without its end.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        if path.suffix != ".safetensors":
            if head.startswith(_ZIP) and not zipfile.is_zipfile(path):
                raise SettingsError(
                    f"{path} is truncated: its {size} bytes lack the end of the archive; "
                    "delete it and fetch it again"
                )
            return
        length = int.from_bytes(head, "little")
        wanted = 8 + length
        if length < _MOST_HEADER and size >= wanted:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, IndexError):
                entries = dict(loads(stream.read(length)))
                entries.pop("__metadata__", None)
                wanted += max((own["data_offsets"][1] for own in entries.values()), default=0)
    if len(head) < 8 or (length < _MOST_HEADER and size != wanted):
        least = "at least " if size < 8 + length else ""
        total = 8 if len(head) < 8 else wanted
        word = "truncated" if size < total else "damaged"
        raise SettingsError(
            f"{path} is {word}: {size} of {least}{total} bytes; delete it and fetch it again"
        )


def load_local(
    model: nn.Module, path: Path, *, sha256: str | None, quick_gelu: bool | None
) -> None:
    """Load a safetensors file that must fit the network exactly.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, damaged, of another network, or of the other GELU.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist; fetch them or correct 'weights'")
    refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights must be a .safetensors file, got {path}; convert it first")
    if sha256 is not None:
        found = runtime.sha256(path)
        if found != sha256.lower():
            raise ValueError(f"{path} must have sha256 {sha256}, got {found}; fetch it again")
    check_whole(path)
    try:
        state = load_file(path)
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({' '.join(str(error).split())}); fetch it again"
        ) from error
    _check_activation(path, trained_with=metadata.get("quick_gelu"), built_with=bool(quick_gelu))
    _check_state(path, state, model.state_dict())
    model.load_state_dict(state)


def _check_activation(path: Path, *, trained_with: str | None, built_with: bool) -> None:
    """Refuse weights whose file says that they belong to the other GELU."""
    if trained_with is not None and (trained_with.lower() == "true") != built_with:
        raise ValueError(
            f"{path} was trained with quick_gelu={trained_with.lower()}, the network is built with "
            f"quick_gelu={str(built_with).lower()}; QuickGELU mismatch, change the configuration"
        )


def _check_state(path: Path, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse weights of another network, or values that are not numbers."""
    differing = sorted(state.keys() ^ expected.keys())
    if differing:
        raise ValueError(
            f"{path} holds {len(state)} tensors, the network {len(expected)}, {len(differing)} "
            f"names differ, first '{differing[0]}'; use the configuration it was trained with"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"tensor '{name}' must have shape {tuple(expected[name].shape)}, got "
                f"{tuple(tensor.shape)} in {path}; use the configuration it was trained with"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"tensor '{name}' in {path} is not finite; fetch the file again")


@dataclass(frozen=True)
class Published:
    """Where the weights of a tag are published.

    Attributes:
        tag: open_clip's `model:tag`.
        repository: on the Hugging Face hub; "" if there is none.
        files: names in the repository that open_clip loads, the safe kind first.
        url: OpenAI's own file; "" unless its address states its hash.
        sha256: that hash.
    """

    tag: str
    repository: str
    files: tuple[str, ...]
    url: str = ""
    sha256: str = ""

    @property
    def url_target(self) -> Path:
        """Where open_clip, as OpenAI's package, keeps the file of `url`."""
        return Path("~/.cache/clip").expanduser() / self.url.rpartition("/")[2]

    @property
    def hub_target(self) -> Path:
        """Where a copy of the repository's first file is found, also if placed by hand."""
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"models--{self.repository.replace('/', '--')}"
        named = folder / "refs" / "main"
        commit = named.read_text().strip() if named.is_file() else "main"
        return folder / "snapshots" / commit / self.files[0]


def published(model: str, tag: str) -> Published:
    """Return where open_clip's registry says that the weights of a tag are."""
    registry = _registry()
    said = registry.get_pretrained_cfg(model, tag)
    repository, _, named = said.get("hf_hub", "").rpartition("/")
    files: tuple[str, ...] = (registry.HF_SAFE_WEIGHTS_NAME, registry.HF_WEIGHTS_NAME)
    if named:
        stem, _, suffix = named.rpartition(".")
        files = (f"{stem}.safetensors", named) if suffix in ("bin", "pth") else (named,)
    url = said.get("url", "")
    sha256 = next((part for part in url.split("/") if _SHA256.fullmatch(part)), "")
    return Published(f"{model}:{tag}", repository, files, url if sha256 else "", sha256)


def _registry() -> Any:
    """Return open_clip's table of published weights; without torch, if that is not imported yet.

    The table is one file, but its package imports torch, torchvision and timm, which takes seconds:
    longer than all else that `microclip doctor` does.
    """
    if "torch" in sys.modules:
        from open_clip import pretrained

        return pretrained
    if f"{_ALIAS}.pretrained" not in sys.modules:
        found = importlib.util.find_spec("open_clip")
        assert found is not None
        package = ModuleType(_ALIAS)  # the same folder, without what its __init__ imports
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules[_ALIAS] = package
        # The file takes it only for downloads, and does without if it is missing. It imports torch.
        sys.modules["safetensors.torch"] = None  # type: ignore[assignment]
        try:
            importlib.import_module(f"{_ALIAS}.pretrained")
        finally:
            del sys.modules["safetensors.torch"]
    return sys.modules[f"{_ALIAS}.pretrained"]


def is_offline() -> bool:
    """Is the network forbidden, by our variable or the hub's?"""
    return any(map(sources.is_offline, ("MICROCLIP_OFFLINE", "HF_HUB_OFFLINE")))


@contextlib.contextmanager
def network_as_allowed() -> Iterator[None]:
    """Keep every request of the hub's library from the network if that is forbidden.

    A tokenizer or text tower of the hub is fetched by other libraries, deep inside open_clip.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or is_offline()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def locate(place: Published) -> Path | None:
    """Return the file of a tag's weights that is on this machine, or None."""
    from huggingface_hub import try_to_load_from_cache

    for name in place.files if place.repository else ():
        found = try_to_load_from_cache(place.repository, name)
        if isinstance(found, str):
            return Path(found)
    return place.url_target if place.url and place.url_target.is_file() else None


def fetch(place: Published) -> Path:
    """Return the file of a tag's weights, downloaded if it is not here.

    Raises:
        MissingDataError: it is not here, and the network is forbidden.
        ServiceError: it cannot be downloaded.  ResourceError: the disk is too small.
    """
    found = locate(place)
    if found is not None:
        return found
    if is_offline():
        raise runtime.MissingDataError(
            f"the weights {place.tag} are not on this machine and the network is forbidden "
            f"(MICROCLIP_OFFLINE or HF_HUB_OFFLINE); {_by_hand(place)}"
        )
    failures = []
    for fetched in (_from_hub, _from_url):
        try:
            path = fetched(place)
        except runtime.ServiceError as error:
            failures.append(str(error))
        else:
            if path is not None:
                return path
    raise runtime.ServiceError(
        f"could not download the weights {place.tag} ({'; '.join(failures) or 'no address'}); "
        f"run the same command again, or {_by_hand(place)}"
    )


def _by_hand(place: Published) -> str:
    """What to copy where, on a machine without network."""
    ways = []
    if place.repository:
        page = f"https://huggingface.co/{place.repository}"
        target = place.hub_target
        ways.append(f"copy {target.name} of {page} to the folder {target.parent}")
    if place.url:
        ways.append(f"copy {place.url} to the folder {place.url_target.parent}")
    return ", or ".join([*ways, "name a local 'weights' file in the backbone's YAML"])


def _from_url(place: Published) -> Path | None:
    """Download OpenAI's own file, resumed where an earlier attempt stopped."""
    if not place.url:
        return None
    target = place.url_target
    about = {"name": target.name, "urls": (place.url,), "sha256": place.sha256}
    file = RemoteFile.model_validate(about)
    downloads.fetch(file, target)
    return target


def _from_hub(place: Published) -> Path | None:
    """Download the safe file of a repository, or the other one if it has no safe one."""
    import httpx2
    from huggingface_hub import errors

    for name in place.files if place.repository else ():
        try:
            return _from_repository(place.repository, name)
        except errors.RemoteEntryNotFoundError:
            continue  # the repository answers, and has no file of this name
        except (errors.HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            text = " ".join(str(error).split())
            if token := os.environ.get("HF_TOKEN"):
                text = text.replace(token, "***")
            raise runtime.ServiceError(
                f"hub, {place.repository}/{name}: {type(error).__name__}: {text[:200]}"
            ) from error
    return None


def _from_repository(repository: str, name: str) -> Path:
    """Download one file into the hub's own cache and compare it with the stated hash."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils.tqdm import disable_progress_bars

    endpoint = os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(repository, name, endpoint=endpoint)
    size = get_hf_file_metadata(url, endpoint=endpoint).size
    if not sys.stderr.isatty():
        disable_progress_bars()
    _check_space(Path(constants.HF_HUB_CACHE), size or 0, f"{repository}/{name}")
    downloads.tell(f"{repository}: {name}, {downloads.in_words(size or 0)}")
    # Whole or absent: the library writes under another name and checks the size.
    path = Path(hf_hub_download(repository, name, endpoint=endpoint))
    stated = published_sha256(path)
    if stated and runtime.sha256(path) != stated:
        path.resolve().unlink()
        path.unlink()
        raise runtime.ServiceError(
            f"{name} of {repository} arrived with other bytes than the hub states and was removed"
        )
    return path


def _check_space(cache: Path, needed: int, what: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise runtime.ResourceError(
            f"{what} needs {downloads.in_words(needed)} in {cache}, {downloads.in_words(free)} are "
            "free; free some space, or set HF_HOME to a folder on a larger disk"
        )


def published_sha256(path: Path) -> str | None:
    """Return the hash that the hub states for a file of its cache: the name of the real file."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


class LoadedWeights(Frozen):
    """`results/backbones/<name>.json`: the downloaded weights that results are made with.

    Attributes:
        state_sha256: of the loaded tensors, float32, whatever file they came in.
        file: its name; `size`, `mtime_ns` and `ctime_ns` tell whether it was changed since.
        published_sha256: of the file, by OpenAI or the hub; None for a file placed by hand.
    """

    model: str
    pretrained: str
    state_sha256: str
    file: str
    size: int
    mtime_ns: int
    ctime_ns: int
    file_sha256: str
    published_sha256: str | None

    def is_of(self, path: Path) -> bool:
        """Is this the file that was hashed, unchanged?"""
        about = path.stat()
        return (self.file, self.size, self.mtime_ns, self.ctime_ns) == (
            path.name,
            about.st_size,
            about.st_mtime_ns,
            about.st_ctime_ns,
        )


_loaded: dict[str, LoadedWeights] = {}  # of this process, by path: a file is hashed once


def load(backbone: BackboneSettings, read: Callable[[Path], nn.Module]) -> nn.Module:
    """Return the network that `read` makes of a tag's weights, after checking their file.

    The file's hash is compared with the published one and that of the settings; the loaded state
    with that of earlier results in this folder. A file that is unchanged since is not hashed again.

    Raises:
        MissingDataError, ServiceError, ResourceError: as `fetch`.
        SettingsError: the file is truncated or damaged, or the weights are not the earlier ones.
    """
    assert backbone.model is not None
    assert backbone.pretrained is not None
    place = published(backbone.model, backbone.pretrained)
    path = fetch(place)
    kept = recorded(backbone)
    known = next((own for own in (kept, _loaded.get(str(path))) if own and own.is_of(path)), None)
    stated = published_sha256(path) or (place.sha256 if path == place.url_target else None)
    file_sha256 = known.file_sha256 if known else _hashed(path)
    for expected in (stated, backbone.sha256 and backbone.sha256.lower()):
        if expected and expected != file_sha256:
            raise SettingsError(
                f"{path} must have sha256 {expected}, got {file_sha256}: it is damaged or another "
                "file; delete it and fetch it again"
            )
    network = read(path)
    about = path.stat()
    found = known or LoadedWeights(
        model=backbone.model,
        pretrained=backbone.pretrained,
        state_sha256=tensors_sha256(network.state_dict()),
        file=path.name,
        size=about.st_size,
        mtime_ns=about.st_mtime_ns,
        ctime_ns=about.st_ctime_ns,
        file_sha256=file_sha256,
        published_sha256=stated,
    )
    _refuse_others(backbone, path, found, kept)
    _loaded[str(path)] = found
    return network


def _hashed(path: Path) -> str:
    check_whole(path)
    return runtime.sha256(path)


def _refuse_others(
    backbone: BackboneSettings, path: Path, found: LoadedWeights, kept: LoadedWeights | None
) -> None:
    """Refuse weights other than those that earlier results were made with."""
    if kept is None or kept.state_sha256 == found.state_sha256:
        return
    record = _record(backbone)
    raise SettingsError(
        f"{path} holds other weights than the results here were made with (state sha256 "
        f"{found.state_sha256[:16]}, {kept.state_sha256[:16]} in {record}); put the earlier file "
        f"back, or delete {record} and all results of backbone {backbone.name!r}"
    )


def _record(backbone: BackboneSettings) -> Path:
    return Path(paths.LOADED_WEIGHTS.format(backbone=backbone.name))


def recorded(backbone: BackboneSettings) -> LoadedWeights | None:
    """Return the record of a backbone's downloaded weights; None for local files, or before it.

    Raises:
        SettingsError: the record is damaged.
    """
    path = _record(backbone)
    if backbone.pretrained is None or not path.is_file():
        return None
    found = read_record(LoadedWeights, path, remedy="delete it; the next load writes it again")
    is_same = (found.model, found.pretrained) == (backbone.model, backbone.pretrained)
    return found if is_same else None


def record(backbone: BackboneSettings) -> None:
    """Write down the weights that this process loaded for results in this folder."""
    if backbone.pretrained is None or backbone.model is None:
        return
    path = locate(published(backbone.model, backbone.pretrained))
    found = None if path is None else _loaded.get(str(path))
    if found is not None and found != recorded(backbone):
        runtime.write_json(_record(backbone), found.model_dump())


def torchscript_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of OpenAI's file, a TorchScript archive; its code is not run.

    Only for a file whose hash is the published one.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but nothing else reads it
        script: Any = torch.jit
        state: dict[str, Tensor] = script.load(path, map_location="cpu").state_dict()
    about = ("input_resolution", "context_length", "vocab_size")
    return {name: tensor for name, tensor in state.items() if name not in about}
