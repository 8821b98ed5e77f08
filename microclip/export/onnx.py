"""An adapted classifier as an ONNX file, compared with the network that it was made of."""

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
from jaxtyping import Float
from torch import Tensor

import microclip
from microclip import runtime
from microclip.api import Adapted
from microclip.data.decoding import MAX_SHORTER_SIDE_PX
from microclip.export.network import FusionNetwork, LinearNetwork, network_of, similarities
from microclip.measure.evaluation import CONFIDENCE_SCALE
from microclip.own_images.record import RECORD

MODEL, PREPROCESS, SCRIPT = "model.onnx", "preprocess.json", "onnx_predict.py"
OPSET = 20  # the first with Gelu and all that the exporter writes for these networks
_SAME = 1e-4  # cosines closer than this are the same but for rounding
# Where two patches tie for the seed of the cut, or a similarity is the threshold itself, rounding
# decides the mask, in every solver. More than a few such images mean another classifier.
_LEAST_AGREEMENT = 0.9


@dataclass(frozen=True)
class Agreement:
    """How the ONNX file's answers compare with the adapted classifier's own.

    Attributes:
        n_images: that were compared.
        n_same_class: whose class is the same.
        n_same: whose fused similarities are all within 1e-4.
        max_deviation: greatest absolute difference of a similarity, a cosine, in those.
        max_other: likewise in the rest; 0 without any.
    """

    n_images: int
    n_same_class: int
    n_same: int
    max_deviation: float
    max_other: float

    def __str__(self) -> str:
        """Return it for people."""
        n_other = self.n_images - self.n_same
        rest = f"; {n_other} images apart by up to {self.max_other:.1e}: rounding decides their cut"
        return (
            f"onnxruntime and torch: {self.n_same_class} of {self.n_images} images of the same "
            f"class; similarities of {self.n_same} at most {self.max_deviation:.1e} apart"
            f"{rest if n_other else ''}"
        )


def require_onnx() -> None:
    """Refuse to go on without ONNX's packages.

    Raises:
        ResourceError: one is not installed.
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
    `probabilities` and `logits` (fused cosines), for methods with two tokens also `global_logits`
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
    told = {
        "preprocess": json.dumps(how),
        "classes": json.dumps(classes, ensure_ascii=False),
        "microclip": microclip.__version__,
        "method": adapted.record.method,
        "backbone": adapted.record.backbone,
    }
    _write_model(network, folder / MODEL, probe(adapted), told)
    runtime.write_json(folder / PREPROCESS, {**how, "classes": classes})
    runtime.write_json(folder / RECORD, asdict(adapted.record))
    shutil.copyfile(Path(__file__).with_name(SCRIPT), folder / SCRIPT)
    return folder / MODEL


def preprocessing(adapted: Adapted, outputs: Iterable[str]) -> dict[str, Any]:
    """Return how an image file becomes the model's input, for programs that are not this one."""
    tower = adapted.backbone
    return {
        "input": "images: [batch, 3, size, size], float32, RGB",
        "outputs": list(outputs),
        "orientation": "exif",
        "transparency": "on white",
        "max_shorter_side": MAX_SHORTER_SIDE_PX,  # larger images are reduced to it first
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
    """Return how the ONNX file and the classifier agree on batches of normalised images.

    Raises:
        VerificationError: more than a tenth of the images is classified otherwise.
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
            f"{model} is not the classifier that it was made of ({agreement}); report this"
        )
    return agreement


def probe(adapted: Adapted) -> Float[Tensor, "2 3 size size"]:
    """Return images to trace with; two, since a batch of one would be taken for a constant."""
    size = adapted.backbone.image_size
    generator = runtime.generator(0, "export")
    return torch.randn(2, 3, size, size, generator=generator)


def _write_model(
    network: FusionNetwork | LinearNetwork, path: Path, example: Tensor, told: dict[str, str]
) -> None:
    """Trace a network and write it, checked, with metadata and without this machine's paths."""
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
    ClearMetadataAndDocStringPass()(program.model)  # stack traces: files of whoever exported
    program.model.metadata_props.update(told)
    program.save(str(path))
    onnx.checker.check_model(str(path), full_check=True)
