"""From a backbone's settings to an open_clip network with its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from open_clip import factory, pretrained
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from microclip.paths import project_root
from microclip.safe_files import refuse_pickle
from microclip.settings import BackboneSettings, read_yaml, validated

Tokenizer = Callable[[list[str]], Tensor]


def read_backbone(name: str) -> BackboneSettings:
    """Return `config/backbones/<name>.yaml`, or the YAML file whose path `name` is.

    Relative paths in a file outside a `config/backbones` count from its own folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown key, or not exactly one architecture and one source of weights.
    """
    path = _locate(name)
    content = read_yaml(path)
    known = [field for field in BackboneSettings.model_fields if field != "name"]
    if set(content) - set(known):
        found = sorted(map(str, content))
        raise ValueError(f"{path} may hold the keys {known}, got {found}; remove what is unknown")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "backbone"
    declared = validated(BackboneSettings, {"name": plain, "title": plain, **content}, str(path))
    folder = path.resolve().parent
    root = folder.parents[1] if folder.parts[-2:] == ("config", "backbones") else folder
    if root == project_root():
        return declared  # paths stay as they are written, as in the settings of a run
    moved = {"config": declared.config, "weights": declared.weights}
    return declared.model_copy(
        update={field: root / path for field, path in moved.items() if path is not None}
    )


def load_open_clip(backbone: BackboneSettings) -> tuple[nn.Module, Tokenizer]:
    """Return the network on the CPU, in float32, and its tokenizer.

    Raises:
        FileNotFoundError: a local file is missing, or the pretrained weights cannot be fetched.
        ValueError: a file is damaged, of another network, or needs the other activation.
    """
    name, files = backbone.model, backbone.files
    if backbone.pretrained is not None:
        assert name is not None
        return _download(name, backbone.pretrained), _tokenizer(name)
    config = _named_config(name) if name is not None else _read_config(files["config"])
    model = _build(config, where=str(files.get("config", name)))
    _load_weights(
        model, files["weights"], sha256=backbone.sha256, quick_gelu=config.get("quick_gelu")
    )
    if name is not None:
        return model, _tokenizer(name)
    text = config["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    return model, SimpleTokenizer(context_length=text.get("context_length", 77), **options)


def _locate(name: str) -> Path:
    """Return the YAML file of a backbone."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml"):
        if given.is_file():
            return given
        raise FileNotFoundError(f"backbone file {given} does not exist; correct its path")
    folder = project_root() / "config" / "backbones"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise FileNotFoundError(
            f"backbone must be one of {known} or the path of a .yaml file, got '{name}'; "
            f"add {path} for a new one"
        )
    return path


def _download(model: str, tag: str) -> nn.Module:
    """Return an open_clip network with the weights of one of its pretrained tags."""
    if (model, tag) not in pretrained.list_pretrained():
        tags = pretrained.list_pretrained_tags_by_model(model)
        raise ValueError(f"open_clip has the tags {tags} for model '{model}', got '{tag}'; use one")
    trained_with = bool(pretrained.get_pretrained_cfg(model, tag).get("quick_gelu", False))
    if trained_with != bool(_named_config(model).get("quick_gelu", False)):
        raise ValueError(
            f"QuickGELU mismatch: weights '{tag}' were trained with quick_gelu={trained_with}, "
            f"model '{model}' has the other; use its '-quickgelu' twin, or the plain one"
        )
    try:
        created: nn.Module = factory.create_model(model, pretrained=tag)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"weights '{tag}' of '{model}' could not be fetched ({_one_line(error)}); fetch "
            "them once with a network, or name a local 'weights' file"
        ) from error
    return created


def _tokenizer(model: str) -> Tokenizer:
    """Return the tokenizer of one of open_clip's architectures."""
    tokenizer: Tokenizer = factory.get_tokenizer(model)
    return tokenizer


def _named_config(model: str) -> dict[str, Any]:
    """Return open_clip's own configuration of an architecture."""
    configs: Any = factory
    config: dict[str, Any] | None = configs.get_model_config(model)
    if config is None:
        raise ValueError(f"open_clip knows no model '{model}'; see open_clip.list_models()")
    return config


def _read_config(path: Path) -> dict[str, Any]:
    """Return the architecture in a JSON file: bare, or under `model_cfg` or `open_clip`."""
    if not path.is_file():
        raise FileNotFoundError(f"network description {path} does not exist; correct 'config'")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config: dict[str, Any] = dict(
            content.get("model_cfg") or content.get("open_clip") or content
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no JSON object ({_one_line(error)}); correct it") from error
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}; write an open_clip configuration there")
    return config


def _build(config: dict[str, Any], *, where: str) -> nn.Module:
    """Return a network with random weights."""
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    try:
        built: nn.Module = kind(**settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"open_clip cannot build the network of {where} ({_one_line(error)}); correct it"
        ) from error
    return built


def _load_weights(
    model: nn.Module, path: Path, *, sha256: str | None, quick_gelu: bool | None
) -> None:
    """Load a safetensors file that must fit the network exactly."""
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist; fetch them or correct 'weights'")
    refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights must be a .safetensors file, got {path}; convert it first")
    if sha256 is not None:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256.lower():
            raise ValueError(f"{path} must have sha256 {sha256}, got {found}; fetch it again")
    try:
        state = load_file(path)
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({_one_line(error)}); fetch it again"
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
    """Refuse weights of another network, or with values that are no numbers."""
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


def _one_line(error: Exception) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())
