"""Export an adapted classifier in MLflow's model format; what MLflow runs when it serves one.

Apart from the packages it lists, the folder is self-contained: this package's code, the classifier,
and the backbone's files. Nothing in it is pickled: the model is code (`served.py`), its arrays are
safetensors. MLflow requires a subclass of its own class, so besides `tracking.mirror` and
`tracking.study` this is the only module that imports MLflow.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property
from PIL import Image

from microclip import runtime
from microclip.api import Adapted, load
from microclip.methods.base import load_method
from microclip.own_images import prediction
from microclip.settings.base import SettingsError, cut
from microclip.settings.declarations import Supervision
from microclip.settings.study import load_backbone_settings
from microclip.tracking import mirror
from microclip.tracking.database import make_own_database

EXPERIMENT = "exports"  # MLflow's experiment for registered models
_NOT_IN_NAMES = frozenset("/:.%\"'")  # of models: MLflow's rule
IMAGE, TOP = "image", "top"  # the input column; the parameter, also a column of the answer
_CODE = '''"""What MLflow runs: an adapted classifier."""

from mlflow.models import set_model

from microclip.export.mlflow_model import ServedClassifier

set_model(ServedClassifier())
'''
_UNNEEDED = frozenset({"snakemake", "openai", "matplotlib"})  # a served model imports none of these


class ServedClassifier(PythonModel):
    """Classifies the images of a request; `signature` describes input and output."""

    def load_context(self, context: Any) -> None:
        """Load the classifier, with the backbone from the same folder, on MICROCLIP_DEVICE."""
        device = os.environ.get("MICROCLIP_DEVICE") or "auto"
        with _project(Path(context.artifacts["project"])):
            self._adapted = load(context.artifacts["adapted"], device)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Class, confidence and the most probable classes of each image.

        Raises:
            MlflowException: a bad request: no image, bytes that are not an image, no class asked.
        """
        del context
        top = int((params or {}).get(TOP, prediction.TOP))
        try:
            with tempfile.TemporaryDirectory(prefix="microclip-") as name:
                for row, image in enumerate(model_input[IMAGE]):
                    Path(name, f"image-{row:06}").write_bytes(_bytes(image, row))
                found = self._adapted.predict(sorted(Path(name).iterdir()), top=top)
        except ValueError as error:
            # Name images by number: the server's temporary paths mean nothing to the client.
            message = re.sub(r"\S*/image-0*(\d+)", r"image \1", str(error))
            message = message.rpartition("; ")[0] or message  # the advice is for the command line
            raise MlflowException(message, error_code=BAD_REQUEST) from error
        return pd.DataFrame(
            {
                "class": [one.class_name for one in found],
                "confidence": [one.confidence for one in found],
                TOP: [[{"class": n, "confidence": c} for n, c in one.top] for one in found],
            }
        )


def to_mlflow(adapted: Adapted, out: Path, name: str | None = None) -> str | None:
    """Write the MLflow model folder `out`; with `name`, also register it and return its version.

    A folder whose model could not be registered does not stay: the same command can be repeated.

    Raises:
        SettingsError: `out` already exists, or MLflow takes no such name.
        ServiceError: MLflow's store cannot be reached, or refuses the model.
    """
    experiment = None if name is None else _experiment(name)
    with runtime.whole_folder(out) as folder:
        write_model(adapted, folder)
        if name is None or experiment is None:
            return None
        try:
            return log_model(adapted, name, experiment)
        except MlflowException as error:
            raise _unregistered(error) from error


def _experiment(name: str) -> str:
    """Id of the exports' experiment, asked for before anything is written."""
    is_usable = name.strip() and name.isprintable() and len(name) <= mirror.KEY_LENGTH
    if not is_usable or set(name) & _NOT_IN_NAMES:
        raise SettingsError(
            f"--log {cut(name)!r} cannot name a model; give up to {mirror.KEY_LENGTH} letters, "
            "digits, blanks, - and _, such as food-icons"
        )
    make_own_database()  # what it raises says more than that MLflow cannot be reached
    try:
        return mirror.experiment(mirror.connect(), EXPERIMENT)
    except Exception as error:
        raise _unregistered(error) from error


def _unregistered(error: Exception) -> runtime.ServiceError:
    return runtime.ServiceError(
        f"MLflow at {': '.join(mirror.failure(error))}; nothing was written: start it or correct "
        "MLFLOW_TRACKING_URI and repeat the command, or leave out --log"
    )


def write_model(adapted: Adapted, folder: Path) -> None:
    """Write MLflow's model folder, which `mlflow models serve -m FOLDER` serves."""
    _be_quiet()
    with _parts(adapted) as parts:
        mlflow.pyfunc.save_model(path=str(folder), **parts)


CANDIDATE, ZERO_SHOT = "candidate", "zero-shot"


def alias_of(adapted: Adapted) -> str:
    """The alias of a classifier in the registry: whether it has learnt from images or not."""
    is_untrained = load_method(adapted.record.method).supervision is Supervision.NONE
    return ZERO_SHOT if is_untrained else CANDIDATE


def log_model(adapted: Adapted, name: str, experiment: str) -> str:
    """Log the model to the tracking store under a registered name; return its version.

    The version gets the alias of `alias_of`, which an older version loses by that, and tags with
    the method, the backbone and the verdict.
    """
    _be_quiet()
    with (
        _our_store(),
        _parts(adapted) as parts,
        mlflow.start_run(experiment_id=experiment, run_name=name),
    ):
        logged = mlflow.pyfunc.log_model(name=name, registered_model_name=name, **parts)
        version = str(logged.registered_model_version)
        client, about = mlflow.MlflowClient(), adapted.record.about
        client.set_registered_model_alias(name, alias_of(adapted), version)
        known = {"method": adapted.record.method, "backbone": adapted.record.backbone}
        known |= {key: str(about[key]) for key in ("verdict", "asked_method") if key in about}
        for key, value in known.items():
            client.set_model_version_tag(name, version, key, value)
    return version


@contextlib.contextmanager
def _our_store() -> Iterator[None]:
    """Point MLflow's global functions at our store; restore the environment they change."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(mirror.tracking_uri())
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if named is not None:
            os.environ["MLFLOW_TRACKING_URI"] = named


def _be_quiet() -> None:
    mirror.be_quiet()
    logging.getLogger("mlflow").setLevel(logging.WARNING)


def signature() -> ModelSignature:
    """Input: a column of image files' bytes (base64 in JSON). Output: one row per image."""
    likeliest = Object(
        [Property("class", DataType.string), Property("confidence", DataType.double)]
    )
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, IMAGE)]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "class"),
                ColSpec(DataType.double, "confidence"),
                ColSpec(Array(likeliest), TOP),
            ]
        ),
        params=ParamSchema([ParamSpec(TOP, DataType.long, prediction.TOP)]),
    )


@contextlib.contextmanager
def _parts(adapted: Adapted) -> Iterator[dict[str, Any]]:
    """Yield the arguments for MLflow, with their files in a folder deleted after the block."""
    with tempfile.TemporaryDirectory(prefix="microclip-") as name:
        root = Path(name)
        (root / "served.py").write_text(_CODE, encoding="utf-8")
        _copy_backbone(adapted.record.backbone, root / "project")
        package = Path(__file__).resolve().parents[1]
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, root / "microclip", ignore=ignored)
        yield {
            "python_model": str(root / "served.py"),
            "artifacts": {
                "adapted": str(adapted.save(root / "adapted")),
                "project": str(root / "project"),
            },
            "code_paths": [str(root / "microclip")],
            "signature": signature(),
            "input_example": pd.DataFrame({IMAGE: [_example(root)]}),
            "pip_requirements": requirements(),
            "metadata": {
                "method": adapted.record.method,
                "backbone": adapted.record.backbone,
                "classes": list(adapted.record.class_names),
            },
        }


def requirements() -> list[str]:
    """This package's pinned requirements, without those that only studies need."""
    found = [text for text in metadata.requires("microclip") or [] if "extra ==" not in text]
    return [text for text in found if re.split(r"[=<>!~\[ ;]", text)[0] not in _UNNEEDED]


def _copy_backbone(name: str, root: Path) -> None:
    """Copy a backbone's description and local files, so that `root` can serve as the project."""
    settings = load_backbone_settings(name)
    content = settings.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    for field, source in settings.files.items():
        target = root / "resources" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        content[field] = str(target.relative_to(root))
    file = root / "config" / "backbones" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")


@contextlib.contextmanager
def _project(root: Path) -> Iterator[None]:
    """Use `root` as the project's root within the block."""
    before = os.environ.get("MICROCLIP_ROOT")
    os.environ["MICROCLIP_ROOT"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MICROCLIP_ROOT"]
        else:
            os.environ["MICROCLIP_ROOT"] = before


def _example(folder: Path) -> bytes:
    """A small PNG, as an example of a request."""
    Image.new("RGB", (64, 64), (200, 120, 40)).save(folder / "example.png")
    return (folder / "example.png").read_bytes()


def _bytes(image: Any, row: int) -> bytes:
    """An image file's bytes; text is decoded as base64. Raises ValueError for anything else."""
    try:
        return base64.b64decode(image, validate=False) if isinstance(image, str) else bytes(image)
    except (ValueError, TypeError) as error:
        raise ValueError(f"image {row} is not base64 ({error})") from error
