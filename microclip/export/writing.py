"""Exports as whole folders: made beside their place, and moved there when they are complete."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microclip.api import Adapted
from microclip.data.loading import ViewRecipe, evaluation_views
from microclip.export import onnx
from microclip.own_images.prediction import Images, stored, usable
from microclip.settings import SettingsError

_BATCH = 64


def to_onnx(adapted: Adapted, out: Path, check_on: Images | None = None) -> str:
    """Write the ONNX folder `out`, and return what was compared in words.

    `check_on` are image files or folders that both are asked; without, random pixels.

    Raises:
        SettingsError: `out` is there already, or the classifier cannot be exported.
        ResourceError: packages are missing.  VerificationError: the file answers otherwise.
    """
    with whole_folder(out) as folder:
        model = onnx.write_onnx(adapted, folder)
        if check_on is None:
            return f"{onnx.compare(adapted, model, [onnx.probe(adapted)])} (random pixels)"
        tower = adapted.backbone
        recipe = ViewRecipe(0, tower.image_size, tower.mean, tower.std)
        with stored(usable(check_on)) as images:
            views = evaluation_views(images, recipe, crop="center", batch_size=_BATCH)
            return str(onnx.compare(adapted, model, views))


def to_mlflow(adapted: Adapted, out: Path) -> None:
    """Write the MLflow model folder `out`.

    Raises:
        SettingsError: `out` is there already.
    """
    from microclip.export import mlflow_model  # MLflow takes seconds to import

    with whole_folder(out) as folder:
        mlflow_model.write_model(adapted, folder)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which takes its name at the end and goes on an error.

    Raises:
        SettingsError: `out` is there already and is no empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"--out {out} is there already; delete it, or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
