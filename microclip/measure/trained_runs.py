"""A complete run read back: its test images, its predictions, its network and the token maps.

The maps show where [CLS] and [FG] look. They come from the features that the classifier itself
uses; the released figures cut other features than the training does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from microclip import paths, runtime
from microclip.adaptation.checkpoint import read_weights
from microclip.data import loading
from microclip.data.decoding import Pixels
from microclip.data.loading import (
    Examples,
    LabelledImages,
    ViewRecipe,
    evaluation_views,
    image_embeddings,
)
from microclip.data.manifest import SPLITS, read_manifest
from microclip.data.views import Crop
from microclip.data.vocabulary import load_vocabulary
from microclip.measure.evaluation import ViewReader, collect_heads
from microclip.methods.base import Classifier, Sight, Silence, Task, grant, load_method
from microclip.methods.fusion import FusionClassifier
from microclip.model import embeddings, weights
from microclip.model.backbone import ImageTokens, load_backbone
from microclip.model.token_fusion import FusionOutput, TokenFusion
from microclip.settings.base import SettingsError, read_yaml, validated
from microclip.settings.reports import FailuresPlot, MapsPlot, MasksPlot
from microclip.study import FigureSelection, RunSettings, RunSpec
from microclip.tracking.run import check_complete, check_written

_PICTURE_PX = 224  # side of pictures shown to people, unless the image is smaller


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """Maps of a batch of images over the patch grid.

    Attributes:
        global_map: cosine of each patch with the class token, in [-1, 1].
        local_map: the pooling's attention to the patches, without the empty token; at least 0.
        mask: the salient patches that the query is made of.
        output: the predictions.
    """

    global_map: Float[Tensor, "batch row column"]
    local_map: Float[Tensor, "batch row column"]
    mask: Bool[Tensor, "batch row column"]
    output: FusionOutput


@torch.no_grad()
def token_maps(
    fusion: TokenFusion,
    images: Float[Tensor, "batch 3 height width"],
    generator: torch.Generator | None = None,
) -> TokenMaps:
    """Maps of normalised images; only query "random" needs a `generator`."""
    fusion.eval()
    grid = (-1, *fusion.backbone.patch_grid)
    output = fusion(images, generator=generator)
    return TokenMaps(
        global_map=class_token_map(fusion.backbone.encode_image(images)).reshape(grid),
        local_map=pooling_map(output.attention).reshape(grid),
        mask=output.saliency.mask.reshape(grid),
        output=output,
    )


def class_token_map(tokens: ImageTokens) -> Float[Tensor, "batch patch"]:
    """Cosine of each patch token with the class token, both after the last LayerNorm."""
    return functional.cosine_similarity(tokens.patches, tokens.cls[:, None], dim=-1)


def pooling_map(attention: Float[Tensor, "batch slot"]) -> Float[Tensor, "batch patch"]:
    """Attention to the patches: all slots but the last, which is the empty token's."""
    return attention[:, :-1]


def min_max(maps: Float[Tensor, "batch row column"]) -> Float[Tensor, "batch row column"]:
    """Each map scaled to [0, 1] by its own minimum and maximum; a flat map becomes 0."""
    least = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - least
    return torch.where(span > 0, (maps - least) / span, torch.zeros_like(maps))


def enlarge(maps: Float[Tensor, "batch row column"], size: int) -> Float[Tensor, "batch size size"]:
    """Maps enlarged to `size` px, bilinear between patch centres."""
    grown = functional.interpolate(
        maps[:, None].float(), (size, size), mode="bilinear", align_corners=False
    )
    return grown[:, 0]


def enlarge_mask(
    masks: Bool[Tensor, "batch row column"], size: int
) -> Bool[Tensor, "batch size size"]:
    """Masks enlarged to `size` px; each pixel takes the value of its patch."""
    grown = functional.interpolate(masks[:, None].float(), (size, size), mode="nearest-exact")
    return grown[:, 0] > 0


@dataclass(frozen=True, eq=False)
class TestedRun:
    """A complete run without its network: settings, test images and predictions.

    Attributes:
        predictions: one row per test image, in the order of `test`: file, label, prediction,
            confidence, correct, and `prediction_<head>` of each other head.
        inputs: hashes of the files that the run read, by kind.
    """

    folder: Path
    settings: RunSettings
    class_names: tuple[str, ...]
    test: LabelledImages
    predictions: pd.DataFrame
    inputs: Mapping[str, str]

    @property
    def has_tokens(self) -> bool:
        """Whether the predictions fuse [CLS] and [FG]."""
        return self.settings.method.get("train_head") == "fusion"

    def class_of(self, column: str, index: int) -> str:
        """Class name in an image's column "label" or "prediction"."""
        return self.class_names[int(self.predictions[column].iloc[index])]

    def choose(self, images: int | Sequence[str]) -> list[int]:
        """Indices of the named test images, or of that many, taken class by class in turn.

        Raises:
            SettingsError: a named file is not a test image.
        """
        if isinstance(images, int):
            return _class_by_class(self.test.labels.tolist(), images)
        place = {name: index for index, name in enumerate(self.test.files)}
        unknown = [name for name in images if name not in place]
        if unknown:
            raise SettingsError(
                f"{unknown[0]} is not a test image of {self.settings.spec.dataset}; "
                f"use a name from {paths.MANIFEST.format(dataset=self.settings.spec.dataset)}"
            )
        return [place[name] for name in images]

    def draw(
        self, indices: Sequence[int], recipe: ViewRecipe, crop: Crop
    ) -> Iterator[Float[Tensor, "1 3 size size"]]:
        """Yield views of the test images, in test-set order whatever the order of `indices`.

        Earlier images are read too: a random crop is seeded by its place in the whole test set.
        """
        wanted = set(indices)
        views = evaluation_views(self.test.images, recipe, crop=crop, batch_size=1)
        last = max(wanted, default=-1)
        yield from (view for index, view in enumerate(islice(views, last + 1)) if index in wanted)

    def pictures(self, indices: Sequence[int], size: int) -> dict[int, Pixels]:
        """Central squares of the test images, `size` px, by index."""
        plain = ViewRecipe(self.settings.spec.seed, size, (0.0,) * 3, (1.0,) * 3)
        views = self.draw(indices, plain, "center")
        return {index: as_pixels(v[0]) for index, v in zip(sorted(indices), views, strict=True)}

    def shorter_side(self, indices: Sequence[int]) -> int:
        """Shortest side among the test images, px."""
        return min(int(min(self.test.images.pixels(index).shape[:2])) for index in indices)


class FusedRun:
    """A run of TokenFusion with its network before and after training, on the CPU."""

    def __init__(self, tested: TestedRun) -> None:
        """Restore the trained network of `tested`.

        Raises:
            SettingsError: the run has no [FG] token, or its inputs have changed since.
        """
        self.tested = tested
        spec, self._method = tested.settings.spec, load_method(tested.settings.spec.method)
        where = f"the settings of {spec.name}"
        self._options = validated(self._method.Settings, tested.settings.method, where)
        if not tested.has_tokens:
            raise SettingsError(
                f"run {spec.name} has no trained [FG] token to show; "
                "choose a method and variant that train TokenFusion"
            )
        _check_inputs(tested)
        state, _ = read_weights(tested.folder / paths.RUN_WEIGHTS)
        self.after = _fusion_of(self._method.restore(self._task(), self._options, state))

    @cached_property
    def before(self) -> FusionClassifier:
        """The network before training, in a separate backbone."""
        # Adapting for no epochs gives exactly the initial network, however the method builds it.
        # With the online prior, no logits of the training images are cached first.
        changes = {"epochs": 0, "prior": "online"}
        own = type(self._options).model_fields
        known = {name: value for name, value in changes.items() if name in own}
        untouched = self._options.model_copy(update=known)
        task = self._task()
        assert task.backbone is not None
        tower, splits = task.backbone, loading.load(self.tested.settings.dataset)
        train, test = (
            Sight(splits[split].images, partial(image_embeddings, tower, splits[split].images))
            for split in SPLITS
        )
        # An oracle must get labels before it says how it starts; no epoch learns them.
        examples = Examples(splits["train"].labels, images=splits["train"].images)
        granted = grant(task, self._method, train=train, test=test, examples=examples)
        return _fusion_of(self._method.adapt(granted, untouched, Silence()))

    def views(self, indices: Sequence[int]) -> Float[Tensor, "batch 3 size size"]:
        """The views that the run tested these images on, in the order of `indices`."""
        by_index = dict(zip(sorted(indices), self.each_view(indices), strict=True))
        return torch.cat([by_index[index] for index in indices])

    def each_view(self, indices: Sequence[int]) -> Iterator[Float[Tensor, "1 3 size size"]]:
        """Yield those views one by one, in test-set order."""
        return self.tested.draw(indices, self._recipe, self.after.views.crop)

    def pictures(self, indices: Sequence[int], size: int = _PICTURE_PX) -> list[Pixels]:
        """What the views show, for people: up to `size` px, or less for smaller images."""
        if self.after.views.crop == "random":  # drawn at another size, it would be another crop
            tower = self.after.fusion.backbone
            shift, factor = (torch.tensor(v)[:, None, None] for v in (tower.mean, tower.std))
            return [as_pixels(view * factor + shift) for view in self.views(indices)]
        drawn = self.tested.pictures(indices, min(size, self.tested.shorter_side(indices)))
        return [drawn[index] for index in indices]

    def generator(self) -> torch.Generator:
        """Random numbers for query "random", the same as in the run's test."""
        drawn: torch.Generator = runtime.generator(self._seed, "test-query")
        return drawn

    def heads(self) -> dict[str, Float[Tensor, "image classes"]]:
        """Fused, global and local similarities of all test images, batched as in the run's test."""
        views = ViewReader(self.tested.test.images, self._seed, tower=self.after.fusion.backbone)
        return collect_heads(self.after, views(self.after.views))

    @property
    def _seed(self) -> int:
        return self.tested.settings.spec.seed

    @property
    def _recipe(self) -> ViewRecipe:
        tower = self.after.fusion.backbone
        return ViewRecipe(self._seed, tower.image_size, tower.mean, tower.std)

    def _task(self) -> Task:
        settings = self.tested.settings
        return Task(
            class_names=self.tested.class_names,
            texts=embeddings.load_texts(settings.dataset, settings.backbone, settings.descriptions),
            seed=self._seed,
            device="cpu",
            precision="fp32",
            backbone=load_backbone(settings.backbone),
        )


def read(folder: Path) -> TestedRun:
    """Read a complete run, without its network.

    Raises:
        MissingDataError: the run is not complete, or its dataset is gone.
        SettingsError: the dataset's images have changed since the run; or it is none of a study.
    """
    check_complete(folder)
    check_written(folder, paths.RUN_PREDICTIONS)
    settings = RunSettings.from_dict(read_yaml(folder / paths.RUN_SETTINGS))
    record = json.loads((folder / paths.RUN_RECORD).read_text(encoding="utf-8"))
    manifest = read_manifest(settings.dataset.name)
    if manifest.images_sha256 != record["inputs"]["images"]:
        raise _stale(folder, "images")
    return TestedRun(
        folder=folder,
        settings=settings,
        class_names=load_vocabulary(settings.dataset).class_names,
        test=loading.load(settings.dataset)["test"],
        predictions=pd.read_parquet(folder / paths.RUN_PREDICTIONS),
        inputs=record["inputs"],
    )


def selected(
    plot: MapsPlot | MasksPlot | FailuresPlot, selection: FigureSelection
) -> Iterable[FusedRun]:
    """Yield the run of each dataset that a figure of images shows.

    Where the figure selects several backbones, descriptions or seeds, the first is taken.
    """
    for dataset in selection.datasets:
        spec = RunSpec(
            dataset=dataset,
            backbone=selection.backbones[0],
            descriptions=selection.descriptions[0],
            method=plot.method,
            variant=plot.variant,
            seed=selection.seeds[0],
        )
        yield FusedRun(read(spec.folder))


def _fusion_of(classifier: Classifier) -> FusionClassifier:
    if not isinstance(classifier, FusionClassifier):
        raise SettingsError(
            f"expected a run of TokenFusion, got a {type(classifier).__name__}; "
            "choose a method that trains TokenFusion"
        )
    return classifier


def as_pixels(picture: Float[Tensor, "3 height width"]) -> Pixels:
    """A picture with values in [0, 1] as bytes, channels last."""
    levels = (255 * picture).round().clamp(0, 255).byte()
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())


def _class_by_class(labels: Sequence[int], count: int) -> list[int]:
    """`count` images: the first of each class in turn, then the second of each, and so on."""
    queues: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        queues.setdefault(label, []).append(index)
    chosen: list[int] = []
    for label in cycle(sorted(queues)):
        if len(chosen) == min(count, len(labels)):
            return chosen
        if queues[label]:
            chosen.append(queues[label].pop(0))
    return chosen


def _check_inputs(tested: TestedRun) -> None:
    """Refuse a network whose backbone or class vectors have changed since the run."""
    settings = tested.settings
    today = {
        "backbone": weights.backbone_key(settings.backbone),
        "class_vectors": embeddings.file_sha256(
            settings.dataset, settings.backbone, settings.descriptions
        ),
    }
    for kind, value in today.items():
        if tested.inputs[kind] != value:
            raise _stale(tested.folder, kind.replace("_", " "))


def _stale(folder: Path, kind: str) -> SettingsError:
    return SettingsError(
        f"run {folder} was made with a different version of its {kind} from the current one; "
        "run `snakemake` again for it"
    )
