"""Export an adapted classifier as an ONNX file, and compare its answers with the original's.

ONNX has no eigensolver, so the normalised cut's eigenvector comes from repeated squaring of a
matrix (`fiedler_by_squaring`). Only exports use it: run identities depend on the exact numbers of
the eigensolver in `model.saliency`. `network_of` then wraps the classifier as one network,
`write_onnx` traces and writes it, and `to_onnx` writes the whole folder or nothing.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from microclip import runtime
from microclip.api import Adapted
from microclip.data.loading import ViewRecipe, evaluation_views
from microclip.measure.evaluation import CONFIDENCE_SCALE
from microclip.methods.base import Views
from microclip.methods.fusion import FusionClassifier
from microclip.methods.linear import LinearClassifier
from microclip.model.backbone import Backbone, ImageTokens
from microclip.model.saliency import Saliency, affinity, laplacian, salient_side
from microclip.model.token_fusion import TokenFusion, cosine_similarity, uncut_mask
from microclip.own_images.prediction import Images, stored, usable
from microclip.own_images.record import RECORD
from microclip.settings.base import SettingsError
from microclip.settings.datasets import CANVAS_PX
from microclip.settings.fusion import NCutOptions

# After 20 squarings, exp(-2**20 * gap / 2) of the third eigenvector remains: 1e-228 at a gap of
# 1e-3, below which no cut is defined, and still 1e-16 at a gap of 7e-5.
STEPS = 20
MODEL, PREPROCESS, SCRIPT = "model.onnx", "preprocess.json", "onnx_predict.py"
OPSET = 20  # the first with Gelu and everything else the exporter emits for these networks
_SAME = 1e-4  # cosines closer than this differ only by rounding
# Where two patches tie for the seed of the cut, or a similarity equals the threshold, rounding
# decides the mask, in every solver. More than a few such images mean a different classifier.
_LEAST_AGREEMENT = 0.9
_BATCH = 64


def fiedler_by_squaring(
    weights: Float[Tensor, "batch patch patch"], steps: int = STEPS
) -> tuple[Float[Tensor, "batch patch"], Float[Tensor, " batch"]]:
    """The result of `saliency.fiedler_vector`, up to the vector's sign.

    With the normalised Laplacian L and its null vector v, the matrix I - L/2 - v v' has eigenvalues
    1 - lambda/2 >= 0, and 0 for v, so its largest one belongs to the Fiedler vector. `weights` must
    be float64: in float32, rounding decides the result where the gap is below 1e-3. Where the
    second and third eigenvalues are too close for `steps` squarings to separate, the vector is a
    mixture of both, and the gap is small.
    """
    matrix, null = laplacian(weights)
    unit = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    deflated = unit - matrix / 2 - null[:, :, None] * null[:, None, :]
    vector, second = _dominant(deflated, steps)
    if weights.shape[-1] == 2:  # two patches have no third eigenvalue
        return vector, torch.full_like(second, torch.inf)
    rest = deflated - second[:, None, None] * vector[:, :, None] * vector[:, None, :]
    _, third = _dominant(rest, steps)
    return vector, 2 * (second - third)


def cut_by_squaring(
    tokens: Float[Tensor, "batch patch width"], options: NCutOptions
) -> Bool[Tensor, "batch patch"]:
    """The mask of `saliency.normalized_cut`, without an eigensolver.

    Raises:
        ValueError: sign "as-computed", which is a property of the eigensolver.
    """
    if options.sign != "seed":
        raise ValueError(f"a cut by squaring has sign 'seed', got {options.sign!r}")
    weights = affinity(tokens, tau=options.tau, eps=options.eps, normalize=options.normalize)
    vector, gap = fiedler_by_squaring(weights.double())
    mask, _ = salient_side(vector, threshold=options.threshold, sign="seed")
    return mask | (gap < options.min_gap)[:, None]


def _dominant(
    matrix: Float[Tensor, "batch patch patch"], steps: int
) -> tuple[Float[Tensor, "batch patch"], Float[Tensor, " batch"]]:
    """Unit eigenvector and largest eigenvalue of positive semidefinite matrices."""
    power = matrix
    for _ in range(steps):
        power = power @ power
        # Rescaled each time: the entries would underflow after a few squarings.
        power = power / power.square().sum(dim=(1, 2), keepdim=True).sqrt()
    # All columns are now multiples of the eigenvector; the longest has the least rounding error.
    longest = power.square().sum(dim=1).argmax(dim=-1)[:, None, None]
    column = power.gather(-1, longest.expand(-1, power.shape[1], 1))[..., 0]
    vector = column / column.square().sum(dim=-1, keepdim=True).sqrt()
    value = torch.einsum("b n, b n m, b m -> b", vector, matrix, vector)
    return vector, value


class FusionNetwork(nn.Module):
    """TokenFusion with the cut by squaring, so that ONNX supports every operation."""

    outputs = ("probabilities", "logits", "global_logits", "local_logits")

    def __init__(self, fusion: TokenFusion) -> None:
        """Classify like `fusion`, sharing its weights."""
        super().__init__()
        self.fusion = fusion

    def forward(self, images: Float[Tensor, "batch 3 rows columns"]) -> tuple[Tensor, ...]:
        """Probabilities, then cosine similarities: fused, of [CLS], of [FG]."""
        tokens = self.fusion.backbone.encode_image(images)
        mask = self._mask(tokens)
        seen = self.fusion.read(tokens, Saliency(mask, torch.zeros_like(tokens.patches[..., 0])))
        return probabilities(seen.logits), seen.logits, seen.global_logits, seen.local_logits

    def _mask(self, tokens: ImageTokens) -> Bool[Tensor, "batch patch"]:
        options = self.fusion.options
        if options.query == "ncut":
            return cut_by_squaring(tokens.patches, options.ncut)
        return uncut_mask(options.query, tokens.patches, None)


class LinearNetwork(nn.Module):
    """A linear classifier: the class token's embedding against fixed class vectors."""

    outputs = ("probabilities", "logits")

    def __init__(self, tower: Backbone, vectors: Float[Tensor, "classes embedding"]) -> None:
        """Classify by cosine with `vectors`."""
        super().__init__()
        self.tower = tower
        self.register_buffer("vectors", vectors)

    def forward(self, images: Float[Tensor, "batch 3 rows columns"]) -> tuple[Tensor, ...]:
        """Probabilities, then cosine similarities."""
        vectors = self.get_buffer("vectors")
        logits = cosine_similarity(self.tower.encode_global(images), vectors)
        return probabilities(logits), logits


def network_of(adapted: Adapted) -> FusionNetwork | LinearNetwork:
    """An adapted classifier as one network, in evaluation mode.

    Raises:
        SettingsError: it draws at random, uses the eigensolver's own sign, or its method has no
            exported form yet.
    """
    classifier = adapted.classifier
    if classifier.views.crop == "random":
        raise _refused("test_view 'random' draws a new square for each image; use 'center'")
    match classifier:
        case FusionClassifier(fusion=fusion) if fusion.options.train_head == "cls":
            return LinearNetwork(fusion.backbone, fusion.classifier.detach()).eval()
        case FusionClassifier(fusion=fusion):
            options = fusion.options
            if options.query == "random":
                raise _refused("query 'random' draws a new patch for each image; use another")
            if options.query == "ncut" and options.ncut.sign == "as-computed":
                raise _refused(
                    "ncut_sign 'as-computed' is the eigensolver's own sign, and ONNX has no "
                    "eigensolver; adapt with ncut_sign 'seed'"
                )
            return FusionNetwork(fusion).eval()
        case LinearClassifier(vectors=vectors):
            return LinearNetwork(adapted.backbone, vectors).eval()
        case _:
            raise _refused(
                f"method {adapted.record.method!r} has no network in microclip.export.onnx; "
                "known: microclip, clip, cupl, coop"
            )


@torch.no_grad()
def similarities(
    adapted: Adapted, images: Float[Tensor, "batch 3 rows columns"]
) -> Float[Tensor, "batch classes"]:
    """The classifier's own similarities for normalised images, computed as `predict` does."""
    images = images.to(adapted.backbone.device)
    if adapted.classifier.views.kind == "embedding":
        return adapted.classifier.logits(Views(embeddings=adapted.backbone.encode_global(images)))
    return adapted.classifier.logits(Views(images=images))


def probabilities(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Softmax of cosines at CLIP's temperature."""
    return (CONFIDENCE_SCALE * logits).softmax(dim=-1)


def _refused(reason: str) -> SettingsError:
    return SettingsError(f"this classifier cannot be exported: {reason}")


@dataclass(frozen=True)
class Agreement:
    """How the ONNX file's answers compare with the adapted classifier's own.

    Attributes:
        n_images: images compared.
        n_same_class: images with the same class.
        n_same: images whose fused similarities (cosines) all agree within 1e-4.
        max_deviation: largest absolute difference of a similarity among those.
        max_other: the same among the remaining images; 0 if there are none.
    """

    n_images: int
    n_same_class: int
    n_same: int
    max_deviation: float
    max_other: float

    def __str__(self) -> str:
        """One line for people."""
        n_other = self.n_images - self.n_same
        rest = (
            f"; {n_other} images differ by up to {self.max_other:.1e}: rounding decides their cut"
        )
        return (
            f"onnxruntime and torch: {self.n_same_class} of {self.n_images} images have the same "
            f"class; similarities of {self.n_same} differ by at most {self.max_deviation:.1e}"
            f"{rest if n_other else ''}"
        )


def require_onnx() -> None:
    """Check that ONNX's packages are installed.

    Raises:
        ResourceError: one is missing.
    """
    try:
        import onnx  # noqa: F401  all three are needed
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise runtime.ResourceError(
            f"the export to ONNX needs {error.name}; pip install 'microclip[export]'"
        ) from error


def write_onnx(adapted: Adapted, folder: Path) -> Path:
    """Write model, preprocessing, record and an example script into `folder`; return the model.

    Input `images`: [batch, 3, size, size], RGB, normalised as `preprocess.json` says. Outputs:
    `probabilities` and `logits` (fused cosines), and for methods with two tokens `global_logits`
    and `local_logits`, each [batch, classes].

    Raises:
        SettingsError: the classifier cannot be exported.
        ResourceError: packages of the extra `export` are missing.
    """
    require_onnx()
    network = network_of(adapted)
    how = preprocessing(adapted, network.outputs)
    classes = list(adapted.record.class_names)
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "preprocess": json.dumps(how),
        "classes": json.dumps(classes, ensure_ascii=False),
        "microclip": runtime.version(),
        "method": adapted.record.method,
        "backbone": adapted.record.backbone,
    }
    _write_model(network, folder / MODEL, probe(adapted), described)
    runtime.write_json(folder / PREPROCESS, {**how, "classes": classes})
    runtime.write_json(folder / RECORD, asdict(adapted.record))
    shutil.copyfile(Path(__file__).with_name(SCRIPT), folder / SCRIPT)
    return folder / MODEL


def preprocessing(adapted: Adapted, outputs: Iterable[str]) -> dict[str, Any]:
    """How an image file becomes the model's input, for other programs."""
    tower = adapted.backbone
    return {
        "input": "images: [batch, 3, size, size], float32, RGB",
        "outputs": list(outputs),
        "orientation": "exif",
        "transparency": "on white",
        "max_shorter_side": CANVAS_PX,  # larger images are first reduced to this
        "resize": "shorter side to size, longer side cut down to whole pixels",
        "size": tower.image_size,
        "interpolation": "bicubic, antialiased",
        "crop": "center",
        "scale": "divide by 255",
        "mean": list(tower.mean),
        "std": list(tower.std),
        "temperature": CONFIDENCE_SCALE,  # of the probabilities' softmax over logits
    }


@torch.no_grad()
def compare(
    adapted: Adapted, model: Path, images: Iterable[Float[Tensor, "batch 3 size size"]]
) -> Agreement:
    """Compare the ONNX file with the classifier on batches of normalised images.

    Raises:
        VerificationError: more than a tenth of the images get different classes.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    apart, n_same_class = [], 0
    for batch in images:
        expected = similarities(adapted, batch).cpu().numpy()
        (found,) = session.run(["logits"], {"images": batch.cpu().numpy()})
        n_same_class += int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
        apart.append(np.abs(found - expected).max(axis=1))
    by_image = np.concatenate(apart)
    is_same = by_image < _SAME
    agreement = Agreement(
        n_images=len(by_image),
        n_same_class=n_same_class,
        n_same=int(is_same.sum()),
        max_deviation=float(by_image[is_same].max(initial=0)),
        max_other=float(by_image[~is_same].max(initial=0)),
    )
    if n_same_class < _LEAST_AGREEMENT * len(by_image):
        raise runtime.VerificationError(
            f"{model} is not the classifier it was exported from ({agreement}); please report this"
        )
    return agreement


def probe(adapted: Adapted) -> Float[Tensor, "2 3 size size"]:
    """Random images to trace the network with."""
    size = adapted.backbone.image_size
    generator = runtime.generator(0, "export")
    # Two images: the tracer would take a batch size of 1 for a constant.
    return torch.randn(2, 3, size, size, generator=generator)


def _write_model(
    network: FusionNetwork | LinearNetwork, path: Path, example: Tensor, described: dict[str, str]
) -> None:
    """Trace a network and write it, checked and with metadata."""
    import onnx
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    program = torch.onnx.export(
        copy.deepcopy(network).cpu(),
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=["images"],
        output_names=list(network.outputs),
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
    )
    assert program is not None
    # The exporter adds stack traces, which contain this machine's paths.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(described)
    program.save(str(path))
    onnx.checker.check_model(str(path), full_check=True)


def to_onnx(adapted: Adapted, out: Path, check_on: Images | None = None) -> str:
    """Write the ONNX folder `out`; return the result of the comparison in words.

    `check_on` are image files or folders to compare on; by default, random pixels.

    Raises:
        SettingsError: `out` already exists, or the classifier cannot be exported.
        ResourceError: packages are missing.
        VerificationError: the file's answers differ from the classifier's.
    """
    with runtime.whole_folder(out) as folder:
        model = write_onnx(adapted, folder)
        if check_on is None:
            return f"{compare(adapted, model, [probe(adapted)])} (random pixels)"
        tower = adapted.backbone
        recipe = ViewRecipe(0, tower.image_size, tower.mean, tower.std)
        stretch = adapted.record.stretch
        files = usable(check_on, stretch=stretch, advice="name others with --check")
        with stored(files, stretch=stretch) as images:
            views = evaluation_views(images, recipe, crop="center", batch_size=_BATCH)
            return str(compare(adapted, model, views))
