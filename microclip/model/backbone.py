"""The CLIP network: any open_clip vision transformer, from its YAML file to its tokens.

What its image tower computes is in `vision_transformer.py`.

This is longer than most modules because loading, checking and running a network is one subject:
what `_check_tower` refuses is what `_hidden` and `_last_block` cannot compute.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from microclip.model import weights
from microclip.model.vision_transformer import (
    embedded,
    enter_tower,
    finish_tower,
    is_plain,
    run_block,
)
from microclip.paths import project_root
from microclip.settings.base import SettingsError, read_yaml, validated
from microclip.settings.study import BackboneSettings

Tokenizer = Callable[[list[str]], Tensor]

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")  # what open_clip keeps of a tag
# Few lengths rather than each text's own, so that batches have few shapes.
_TEXT_LENGTHS = (16, 24, 32, 48)  # tokens


def read_backbone(name: str) -> BackboneSettings:
    """Return `config/backbones/<name>.yaml`, or the YAML file whose path `name` is.

    In a file outside `config/backbones`, relative paths start at the file's folder.

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
        FileNotFoundError: a local file is missing, or pretrained weights are and must not be
            fetched.
        ServiceError: pretrained weights cannot be fetched.
        ValueError: a file is damaged, of another network, or needs the other activation; or
            pretrained weights are not those of earlier results.
    """
    name, files = backbone.model, backbone.files
    if backbone.pretrained is not None:
        assert name is not None
        _check_tag(name, backbone.pretrained)
        with weights.network_as_allowed():
            network = weights.load(backbone, lambda path: _read(name, backbone.pretrained, path))
            return network, _tokenizer(name)
    from open_clip.tokenizer import SimpleTokenizer, tokenize

    if backbone.is_left_out:
        weights.check_files(backbone)
    config = _named_config(name) if name is not None else _read_config(files["config"])
    model = _build(config, where=str(files.get("config", name)))
    weights.load_local(
        model, files["weights"], sha256=backbone.sha256, quick_gelu=config.get("quick_gelu")
    )
    if name is not None:
        return model, _tokenizer(name)
    text = config["text_cfg"]
    context = text.get("context_length", 77)
    if options := text.get("tokenizer_kwargs"):
        return model, SimpleTokenizer(context_length=context, **options)
    # open_clip's own: to make another takes longer than to load a small network.
    return model, partial(tokenize, context_length=context)


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


def _check_tag(model: str, tag: str) -> None:
    """Refuse a tag that open_clip has not, or of the other activation."""
    from open_clip import pretrained

    if (model, tag) not in pretrained.list_pretrained():
        tags = pretrained.list_pretrained_tags_by_model(model)
        raise ValueError(f"open_clip has the tags {tags} for model '{model}', got '{tag}'; use one")
    trained_with = bool(pretrained.get_pretrained_cfg(model, tag).get("quick_gelu", False))
    if trained_with != bool(_named_config(model).get("quick_gelu", False)):
        raise ValueError(
            f"QuickGELU mismatch: weights '{tag}' were trained with quick_gelu={trained_with}, "
            f"model '{model}' has the other; use its '-quickgelu' twin, or the plain one"
        )


def _read(model: str, tag: str | None, path: Path) -> nn.Module:
    """Return an open_clip network with the weights of one of its pretrained tags."""
    from open_clip import factory, pretrained

    said = pretrained.get_pretrained_cfg(model, tag)
    try:
        if path.suffix == ".pt":  # OpenAI's own file: the only one that is not from the hub
            network = _build(_named_config(model), where=model)
            network.load_state_dict(weights.torchscript_state(path))
            return network
        # By its path, which open_clip loads as it loads the tag; a pickle only as bare tensors.
        created: nn.Module = factory.create_model(
            model,
            pretrained=str(path),
            force_preprocess_cfg={key: said[key] for key in _PREPROCESSING if key in said},
            weights_only=True,
        )
    except Exception as error:
        raise SettingsError(
            f"the weights {path} cannot be loaded into '{model}' ({_one_line(error)[:300]}); "
            "delete the file and fetch it again"
        ) from error
    return created


def _tokenizer(model: str) -> Tokenizer:
    """Return the tokenizer of one of open_clip's architectures."""
    from open_clip import factory

    tokenizer: Tokenizer = factory.get_tokenizer(model)
    return tokenizer


def _named_config(model: str) -> dict[str, Any]:
    """Return open_clip's own configuration of an architecture."""
    from open_clip import factory

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
        raise ValueError(f"{path} is not a JSON object ({_one_line(error)}); correct it") from error
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}; write an open_clip configuration there")
    return config


def _build(config: dict[str, Any], *, where: str) -> nn.Module:
    """Return a network with random weights."""
    from open_clip.model import CLIP, CustomTextCLIP

    settings = {key: value for key, value in config.items() if key != "custom_text"}
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    try:
        built: nn.Module = kind(**settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"open_clip cannot build the network of {where} ({_one_line(error)}); correct it"
        ) from error
    return built


def _one_line(error: Exception) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())


_CPU_SLICE = 32  # images at a time without gradient: activations stay in the cache, 1.4 x as fast


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """The image tower's output for a batch.

    Attributes:
        embedding: the projected class token, unit norm.
        cls: the class token after the final LayerNorm.
        patches: the value path's patch tokens after the final LayerNorm, row by row.
    """

    embedding: Float[Tensor, "batch embedding"]
    cls: Float[Tensor, "batch width"]
    patches: Float[Tensor, "batch patch width"]


def unit_norm(vectors: Float[Tensor, "*lead size"]) -> Float[Tensor, "*lead size"]:
    """Return vectors of length one, in float32 or better; a zero vector stays zero."""
    return functional.normalize(
        vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1
    )


Given = ParamSpec("Given")
Result = TypeVar("Result")


class Backbone(nn.Module):
    """An open_clip ViT with the two outputs that this project needs.

    Attributes:
        model: the wrapped open_clip network.
        width: of the image tower's tokens.
        embedding_dim: of the space shared by images and texts.
        patch_grid: rows and columns of patches.
        image_size: side of the square input, px.
        mean: of each colour channel, in [0, 1]; images are normalised with it.
        std: deviation of each channel, as `mean`.
        n_parts: how many parts a batch of images goes through the tower in, where a GPU's memory is
            short. While training, each part is computed again in the backward pass.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer | None = None) -> None:
        """Wrap `model`; without `tokenizer` it must use open_clip's own vocabulary.

        Raises:
            ValueError: the image tower is not a plain vision transformer with a class token.
        """
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        super().__init__()
        _check_tower(model)
        self.model = model
        self.n_parts = 1
        self._tokenizer = tokenizer
        visual = self.visual
        self.width = int(visual.class_embedding.shape[-1])
        self.embedding_dim = self.width if visual.proj is None else int(visual.proj.shape[1])
        self.patch_grid: tuple[int, int] = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self.image_size = int(visual.image_size[0])
        preprocessing = getattr(visual, "preprocess_cfg", None) or {}
        self.mean: tuple[float, ...] = tuple(preprocessing.get("mean", OPENAI_DATASET_MEAN))
        self.std: tuple[float, ...] = tuple(preprocessing.get("std", OPENAI_DATASET_STD))

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.visual

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.visual.class_embedding.device
        return device

    @property
    def logit_scale(self) -> float:
        """The temperature that CLIP was trained with, 100 for OpenAI's; reading it syncs a GPU."""
        model: Any = self.model
        return float(model.logit_scale.detach().exp())

    def encode_image(self, images: Float[Tensor, "batch 3 rows columns"]) -> ImageTokens:
        """Return embedding, class token and value-path patch tokens of normalised images.

        Source: Eq. 1 and 2, arXiv:2510.02270v1, with the LayerNorms, biases and output projection
        of the released code. Departs: fidelity.md#patch-tokens.

        Raises:
            ValueError: images of another size than `image_size`.
        """
        return self.image_tokens(self.kept_tokens(images))

    def kept_tokens(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch token width"]:
        """Return the class token and the value path's patch tokens after the final LayerNorm.

        Raises:
            ValueError: images of another size than `image_size`.
        """
        return self._encode(images, with_patches=True)

    def image_tokens(self, kept: Float[Tensor, "batch token width"]) -> ImageTokens:
        """Return what `encode_image` does, of its images' `kept_tokens`."""
        cls = kept[:, 0]
        return ImageTokens(unit_norm(self.project(cls)), cls, kept[:, 1:])

    def encode_global(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch embedding"]:
        """Return the embedding alone, without the patches' share of the last block.

        Raises:
            ValueError: images of another size than `image_size`.
        """
        return unit_norm(self.project(self._encode(images, with_patches=False)[:, 0]))

    @torch.no_grad()
    def encode_text(
        self, texts: Sequence[str], batch_size: int = 256
    ) -> Float[Tensor, "text embedding"]:
        """Return unit embeddings of sentences; texts too long for the tower are cut.

        Raises:
            ValueError: the tower's vocabulary is not open_clip's and no tokenizer was given.
        """
        parts = [
            self.encode_tokens(self.tokenize(list(texts[start : start + batch_size])))
            for start in range(0, len(texts), batch_size)
        ]
        return torch.cat([torch.empty(0, self.embedding_dim, device=self.device), *parts])

    @torch.no_grad()
    def encode_tokens(
        self, tokens: Int[Tensor, "text context"], *, normalize: bool = True
    ) -> Float[Tensor, "text embedding"]:
        """Return embeddings of token ids, normalised or as the tower returns them."""
        length = int(self.text_lengths(tokens).max()) if len(tokens) else tokens.shape[1]
        model: Any = self.model
        given = tokens[:, :length].to(self.device)
        raw: Tensor = (
            model.encode_text(given) if length == tokens.shape[1] else _encode_start(model, given)
        )
        return unit_norm(raw) if normalize else raw

    def text_lengths(self, tokens: Int[Tensor, "text context"]) -> Int[Tensor, " text"]:
        """Return how many tokens the text tower reads of each row: one of a few lengths.

        CLIP's tower is causal and pools at the end-of-text token, so what follows that token
        cannot change the embedding. Any other tower reads its whole context.
        """
        context = tokens.shape[1]
        if not ends_at_end_of_text(self.model):
            return torch.full((len(tokens),), context)
        lengths = torch.tensor([*(n for n in _TEXT_LENGTHS if n < context), context])
        return lengths[torch.bucketize(tokens.argmax(dim=-1).cpu() + 1, lengths)]

    def fused(self, function: Callable[Given, Result]) -> Callable[Given, Result]:
        """Return a function of an owner, then of a batch's tensors, as it is to be computed.

        Here that is the function itself.
        """
        return function

    def layer_norms(self) -> dict[str, nn.Parameter]:
        """Gains and biases of the image tower's LayerNorms, by name."""
        return {
            f"{path}.{name}": parameter
            for path, module in self.visual.named_modules()
            if isinstance(module, nn.LayerNorm)
            for name, parameter in module.named_parameters(recurse=False)
        }

    def project(self, tokens: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead embedding"]:
        """Return tokens in the joint space, not normalised; float32 under autocast too."""
        with torch.autocast(device_type=tokens.device.type, enabled=False):
            tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            projection = self.visual.proj
            projected: Tensor = tokens if projection is None else tokens @ projection
            return projected

    def tokenize(self, texts: list[str]) -> Int[Tensor, "text context"]:
        """Return token ids, padded with 0; texts too long for the tower are cut."""
        if self._tokenizer is None:
            from open_clip.tokenizer import SimpleTokenizer

            model: Any = self.model
            tokenizer = SimpleTokenizer(context_length=model.context_length)
            if tokenizer.vocab_size != model.vocab_size:
                raise ValueError(
                    f"open_clip's tokenizer has {tokenizer.vocab_size} words, this network "
                    f"{model.vocab_size}; pass its own tokenizer to from_open_clip"
                )
            self._tokenizer = tokenizer
        return self._tokenizer(texts)

    def _encode(self, images: Tensor, *, with_patches: bool) -> Tensor:
        """Return the tokens that the last block keeps, in slices that fit the memory or a cache."""
        tokens = partial(self._tokens, with_patches=with_patches)
        is_sliced = not torch.is_grad_enabled() and images.device.type == "cpu"
        if self.n_parts == 1 and not is_sliced:
            return tokens(images)  # an exported or compiled tower must not depend on the batch size
        size = max(1, math.ceil(len(images) / self.n_parts))
        if torch.is_grad_enabled():
            # Only the tokens of a part are kept; the losses still see the whole batch.
            tokens = partial(checkpoint, tokens, use_reentrant=False)
        elif is_sliced:
            size = min(size, _CPU_SLICE)
        return torch.cat([tokens(part) for part in torch.split(images, size)])

    def _tokens(
        self, images: Float[Tensor, "batch 3 rows columns"], *, with_patches: bool
    ) -> Float[Tensor, "batch kept width"]:
        return self._last_block(self._hidden(images), with_patches=with_patches)

    def embed_patches(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch token width"]:
        """Return class token and patches with their positions, before the first LayerNorm.

        Raises:
            ValueError: images of another size than `image_size`.
        """
        self._check_size(images)
        return embedded(self.visual, images)

    def _check_size(self, images: Tensor) -> None:
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images must be {self.image_size} x {self.image_size} px, got "
                f"{images.shape[-2]} x {images.shape[-1]}; resize them for this backbone"
            )

    def read_class(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch embedding"]:
        """Return the projected class token, not normalised, of tokens that enter the last block."""
        return self.project(self._last_block(hidden, with_patches=False)[:, 0])

    def _hidden(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch token width"]:
        """Return all tokens as they enter the last block."""
        self._check_size(images)
        hidden = self._entered(images)
        for block in self.visual.transformer.resblocks[:-1]:
            hidden = self._block(block, hidden)
        return hidden

    def _entered(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch token width"]:
        """Return all tokens as they enter the first block."""
        return enter_tower(self.visual, images)

    def _block(
        self, block: nn.Module, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """Return a block's output, any but the last one's."""
        return run_block(block, hidden)

    def _last_block(
        self, hidden: Float[Tensor, "batch token width"], *, with_patches: bool
    ) -> Float[Tensor, "batch kept width"]:
        """Return the class token by attention, then the patches by the value path if asked for."""
        return finish_tower(self.visual, hidden, with_patches=with_patches)


def from_open_clip(model: nn.Module, tokenizer: Tokenizer | None = None) -> Backbone:
    """Return a Backbone around any open_clip ViT CLIP, sharing its weights, in evaluation mode.

    Raises:
        ValueError: the image tower is not a plain vision transformer with a class token.
    """
    return Backbone(model, tokenizer).eval()


def load_backbone(backbone: str | BackboneSettings, device: str | torch.device = "cpu") -> Backbone:
    """Return a backbone by its settings, its name in `config/backbones`, or a YAML file's path.

    A run passes the settings that it holds: its class vectors and features are keyed by them,
    and the YAML file of that name may have changed since.

    Raises:
        FileNotFoundError: a file is missing, or pretrained weights cannot be fetched.
        ValueError: the description or the weights are damaged, or of an unsuitable network.
    """
    declared = read_backbone(backbone) if isinstance(backbone, str) else backbone
    model, tokenizer = load_open_clip(declared)
    return from_open_clip(model, tokenizer).to(device)


def ends_at_end_of_text(model: nn.Module) -> bool:
    """True for CLIP's own text tower: causal, pooled at the token of the highest number."""
    from open_clip.model import CLIP

    return (
        isinstance(model, CLIP)
        and model.text_pool_type == "argmax"
        and isinstance(model.attn_mask, Tensor)
    )


def _encode_start(model: Any, tokens: Tensor) -> Tensor:
    """Return what `model.encode_text` returns for texts that end within these first tokens."""
    length, kind = tokens.shape[1], model.transformer.get_cast_dtype()
    place = model.positional_embedding[:length].to(kind)
    hidden = model.token_embedding(tokens).to(kind) + place
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    rows = torch.arange(len(tokens), device=tokens.device)
    pooled = model.ln_final(hidden)[rows, tokens.argmax(dim=-1)]
    projection = model.text_projection
    if projection is None:
        return cast(Tensor, pooled)
    return cast(Tensor, projection(pooled) if callable(projection) else pooled @ projection)


def _check_tower(model: nn.Module) -> None:
    """Refuse image towers that the forward pass above cannot compute."""
    from open_clip.transformer import VisionTransformer

    tower = getattr(model, "visual", None)
    if not isinstance(tower, VisionTransformer):
        raise ValueError(  # noqa: TRY004  a wrong network, as the other refusals here
            f"the backbone must be an open_clip vision transformer, got {type(tower).__name__}; "
            "the method uses patch tokens, take for example ViT-B-32-quickgelu or ViT-B-16"
        )
    visual: Any = tower
    blocks = list(visual.transformer.resblocks)
    problems = {
        "pools without its class token": visual.attn_pool is not None or visual.pool_type != "tok",
        "takes images that are not square": visual.image_size[0] != visual.image_size[1],
        "has no block": not blocks,
        "has attention of a special kind": any(not is_plain(block) for block in blocks),
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise ValueError(
            f"the image tower must be a plain ViT with a class token, this one {found[0]}; "
            "take for example ViT-B-32-quickgelu or ViT-B-16"
        )
