"""DTD's layout: its lists decide, and folders name the classes."""

from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.layouts import dtd
from microclip.settings import SettingsError
from tests.data.layouts import dtd as copy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path


def test_each_listed_image_is_read_once_with_its_class(folder: Path) -> None:
    items = dtd.read(folder, copy.CLASSES, None).items
    assert len(items) == 27
    assert {(i.key, copy.CLASSES[i.label]) for i in items} == {(c, c) for c in copy.CLASSES}
    assert [i.name for i in items] == sorted(i.name for i in items)
    assert {i.part for i in items} == {"train", "val", "test"}


def test_an_unlisted_image_is_left_out(folder: Path) -> None:
    (folder / "dtd/images/banded/extra.jpg").write_bytes(b"no image")
    assert len(dtd.read(folder, copy.CLASSES, None).items) == 27


def test_a_missing_image_is_named(folder: Path) -> None:
    (folder / "dtd/images/banded/banded_0003.jpg").unlink()
    with pytest.raises(runtime.MissingDataError, match=r"1 of 27 .*banded_0003\.jpg"):
        dtd.read(folder, copy.CLASSES, None)


def test_an_image_in_two_parts_is_refused(folder: Path) -> None:
    with (folder / "dtd/labels/test1.txt").open("a") as stream:
        stream.write("banded/banded_0000.jpg\n")
    with pytest.raises(
        SettingsError, match=r"banded_0000\.jpg is listed twice .*in train and in test"
    ):
        dtd.read(folder, copy.CLASSES, None)


def test_another_class_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="1 classes of .* are not in the class list: 'zigzag"):
        dtd.read(folder, copy.CLASSES[:2], None)
