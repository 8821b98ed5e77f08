"""Archives, annotation files of public datasets, files of tensors, and images."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from microclip.adaptation import checkpoint
from microclip.data import decoding
from microclip.data.layouts.base import Item, load_layout
from microclip.data.public import splits, unpacking
from microclip.model import embeddings, weights
from microclip.own_images import record
from tests.data.layouts import hub_parquet
from tests.data.public_project import copy_of
from tests.fuzz.judge import few, judged
from tests.fuzz.strategies import BOMBS, SIGNS, VALUES, dumped, mutated

FILES = {"a/one.txt": b"one", "a/b/two.txt": b"two" * 300, "three": b""}


def tar(mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name, content in {**FILES, "é" * 60 + "/long": b"x"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


ARCHIVES = [tar("w"), tar("w:gz"), tar("w:xz"), tar("w:bz2"), zipped()]
TOKENS = [b"\x00" * 512, b"../", b"/", b"\xff\xfe", b"PK\x03\x04", b"9" * 12, b"25 path=../../x\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@few(2)
@given(mutated(ARCHIVES, TOKENS))
def test_an_archive(folder: Path, data: bytes) -> None:
    path, into = folder / "archive", folder / "into"
    shutil.rmtree(into, ignore_errors=True)
    path.write_bytes(data)
    before = sorted(folder.iterdir())
    with judged("unpacking"):
        unpacking.unpack(path, into, again=True)
    record_ = folder / "archive.unpacked.json"
    assert sorted(folder.iterdir()) in (before + [into], sorted({*before, into, record_}))
    assert not list(into.glob(".unpacking*"))


LISTS = {
    "birdsnap": ("birdsnap/species.txt", "birdsnap/images.txt", "birdsnap/test_images.txt"),
    "cars": ("stanford_cars/devkit/cars_meta.mat", "stanford_cars/devkit/cars_train_annos.mat"),
    "cifar100": ("cifar-100-binary/fine_label_names.txt", "cifar-100-binary/test.bin"),
    "dtd": ("dtd/labels/train1.txt", "dtd/labels/test1.txt"),
    "fgvc": (
        "fgvc-aircraft-2013b/data/variants.txt",
        "fgvc-aircraft-2013b/data/images_variant_val.txt",
    ),
    "flowers": ("flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
    "food101": ("food-101/meta/train.json", "food-101/meta/test.txt", "food-101/meta/classes.txt"),
    "hub_parquet": ("hub/data/test-00000-of-00001.parquet",),
    "pets": ("oxford-iiit-pet/annotations/trainval.txt", "oxford-iiit-pet/annotations/test.txt"),
    "sun397": ("SUN397/ClassName.txt",),
    "ucf101": ("ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt"),
    "webdataset": ("hub/classnames.txt", "hub/test/0.tar"),
}


@pytest.fixture(scope="module", params=sorted(LISTS))
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small copy of a public dataset: its name, its folder, and its lists as they are."""
    name = request.param
    root = tmp_path_factory.mktemp(name)
    module = copy_of(name)
    getattr(module, "build_frames", module.build)(root)
    listed = [root / one for one in LISTS[name] if (root / one).is_file()]
    assert listed
    return name, module, root, {path: path.read_bytes() for path in listed}


@few(3)
@given(data=st.data())
def test_an_annotation_file(copy: Any, data: st.DataObject) -> None:
    name, module, root, whole = copy
    path = data.draw(st.sampled_from(sorted(whole)))
    tokens = [sign.encode("utf-8", "replace") for sign in SIGNS]
    path.write_bytes(data.draw(mutated([whole[path]], tokens)))
    try:
        with judged(f"layouts.{name}"):
            route = hub_parquet.ROUTE if name == "hub_parquet" else None
            load_layout(name).read(root, module.CLASSES, route)
    finally:
        path.write_bytes(whole[path])


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


ITEMS = [Item(Path(f"{n}.jpg"), f"fox/{n}.jpg", n % 2, "fox") for n in range(4)]
SPLIT = {
    "train": [["fox/0.jpg", 0, "fox"], ["fox/1.jpg", 1, "wolf"]],
    "val": [],
    "test": [["fox/2.jpg", 0, "fox"]],
}


@given(
    mutated([json.dumps(SPLIT).encode()], [b"NaN", b"[0]", b"null", b"-", b"9" * 5000])
    | dumped(st.fixed_dictionaries(dict.fromkeys(("train", "val", "test"), VALUES))).map(as_bytes)
    | BOMBS.map(as_bytes)
)
def test_a_split_of_coop(folder: Path, data: bytes) -> None:
    path = folder / "split.json"
    path.write_bytes(data)
    with judged("coop split"):
        splits.read_coop_split(path, ITEMS)


def tensors(metadata: dict[str, Any], **values: torch.Tensor) -> bytes:
    return save(values, metadata={"microclip": json.dumps(metadata)})


UNIT = torch.eye(2)
CLASSIFIERS = embeddings.TextClassifiers(*(UNIT.clone() for _ in range(4)), n_truncated=0)
ADAPTED = {
    "class_names": ["fox", "wolf"],
    "backbone": "icon-clip",
    "backbone_key": "0",
    "method": "clip",
    "settings": {},
    "seed": 0,
}


@pytest.fixture(scope="module")
def adapted(folder: Path) -> dict[Path, bytes]:
    """The files of an adapted classifier, as they are written."""
    own = {"classes": ["fox", "wolf"]}
    (folder / "adapted").mkdir()
    embeddings.save_classifiers(folder / "adapted" / record.TEXTS, CLASSIFIERS, own)
    (folder / "adapted" / record.WEIGHTS).write_bytes(tensors(own, weight=UNIT))
    (folder / "adapted" / record.RECORD).write_text(json.dumps(ADAPTED))
    return {path: path.read_bytes() for path in sorted((folder / "adapted").iterdir())}


JSON_TOKENS = [b"null", b"[", b"{}", b'""', b"1e999", b"-1", b"true", b"\x80\x02", b"9" * 30]


@given(st.data())
def test_an_adapted_classifier(adapted: dict[Path, bytes], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(adapted)))
    path.write_bytes(data.draw(mutated([adapted[path]], JSON_TOKENS)))
    try:
        with judged("adapted bundles"):
            found, _, _ = record.read_adapted(path.parent)
            assert all(isinstance(name, str) for name in found.class_names)
        with judged("weights.check_whole"):
            weights.check_whole(path)
    finally:
        path.write_bytes(adapted[path])


@given(dumped(VALUES) | st.sampled_from(("{}", "[]", "1", "null")))
def test_any_metadata_of_tensors(adapted: dict[Path, bytes], text: str) -> None:
    values = {"microclip": text.encode("utf-8", "replace").decode()}
    for name, content in ((record.WEIGHTS, {"weight": UNIT}), (record.TEXTS, vars(CLASSIFIERS))):
        path = next(p for p in adapted if p.name == name)
        own = {k: v.clone() for k, v in content.items() if isinstance(v, torch.Tensor)}
        path.write_bytes(save(own, metadata=values))
        try:
            with judged("adapted bundles"):
                record.read_adapted(path.parent)
        finally:
            path.write_bytes(adapted[path])


STATE = checkpoint.Checkpoint(3, {"w": UNIT}, {"0/step": torch.ones(())})


@given(st.data())
def test_a_checkpoint(folder: Path, data: st.DataObject) -> None:
    path = checkpoint.save(folder, STATE, "key")
    whole = path.read_bytes()
    path.write_bytes(data.draw(mutated([whole], JSON_TOKENS)))
    with judged("checkpoints"):
        found = checkpoint.load(folder, "key")
        assert found is None or found.epoch == 3 or path.read_bytes() != whole


def image(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    pixels = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


SAVED: list[Callable[[], bytes]] = [
    lambda: image("PNG"),
    lambda: image("JPEG"),
    lambda: image("GIF"),
    lambda: image("TIFF"),
    lambda: image("BMP"),
    lambda: image("WEBP"),
]


@given(mutated([one() for one in SAVED], [b"IHDR", b"\xff\xd9", b"\x7f\xff\xff\xff", b"\x00" * 64]))
def test_an_image(folder: Path, data: bytes) -> None:
    path = folder / "image"
    path.write_bytes(data)
    with judged("images", decoding.UnreadableError):
        found = decoding.decode(path)
        assert found.pixels.dtype == np.uint8
        assert found.pixels.ndim == 3
