"""Flowers102: labels and parts by number; the names are ours, so they are checked too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import Flowers102

from microclip import runtime, settings
from microclip.data.layouts import flowers
from microclip.data.vocabulary import load_vocabulary
from microclip.settings import SettingsError
from microclip.text.prompts import letters
from tests.data.layouts import flowers as copy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path / "flowers-102"


def test_the_nth_label_is_of_the_nth_image(root: Path) -> None:
    items = flowers.read(root.parent, copy.CLASSES, None).items
    assert [item.label for item in items] == (copy.labels() - 1).tolist()
    assert [item.key for item in items] == [str(number) for number in copy.labels()]
    assert items[0].name == "image_00001.jpg"  # as CoOp's file has it


def test_our_names_are_torchvisions_in_order_except_two() -> None:
    """OpenAI renamed two flowers; a shifted id would show as more differences."""
    ours = load_vocabulary(settings.load_dataset("flowers")).class_names
    differ = {
        (label + 1, their, our)
        for label, (their, our) in enumerate(zip(Flowers102.classes, ours, strict=True))
        if letters(their) != letters(our)
    }
    assert differ == {
        (60, "pink-yellow dahlia?", "pink and yellow dahlia"),
        (93, "ball moss", "air plant"),
    }


@pytest.mark.parametrize("share", [0, 0.03, 0.5, 0.97])
@pytest.mark.parametrize("file", ["imagelabels.mat", "setid.mat"])
def test_a_file_cut_short_is_refused(root: Path, file: str, share: float) -> None:
    whole = (root / file).read_bytes()
    (root / file).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(runtime.MissingDataError, match="get the dataset again") as raised:
        flowers.read(root.parent, copy.CLASSES, None)
    assert file in str(raised.value)
    assert "\n" not in str(raised.value)


def test_labels_that_do_not_match_the_parts_are_refused(root: Path) -> None:
    copy.write_labels(root / "imagelabels.mat", copy.labels()[:-2])
    with pytest.raises(runtime.MissingDataError, match=r"differ in 2 \(image_00029\.jpg, image_00"):
        flowers.read(root.parent, copy.CLASSES, None)


def test_an_image_in_two_parts_is_refused(root: Path) -> None:
    numbers = np.arange(1, 31, dtype=np.uint16)[None]
    savemat(root / "setid.mat", {"trnid": numbers, "valid": numbers[:, :1], "tstid": numbers})
    with pytest.raises(SettingsError, match=r"image_00001\.jpg is listed twice .*train and in val"):
        flowers.read(root.parent, copy.CLASSES, None)


def test_a_label_without_a_class_is_refused(root: Path) -> None:
    ids = copy.labels()
    ids[4] = 0
    copy.write_labels(root / "imagelabels.mat", ids)
    with pytest.raises(SettingsError, match=r"expected 1 to 3: 1 \(0\) not in the class list"):
        flowers.read(root.parent, copy.CLASSES, None)
