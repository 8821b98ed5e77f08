"""A hub's parquet files: labels by name, parts by file name, images byte for byte."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from microclip import runtime
from microclip.data.layouts import hub_parquet
from microclip.data.layouts.base import Item
from microclip.settings import HubRoute, SettingsError
from tests.data.layouts import hub_parquet as copy

DATA = Path("hub/data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path


def read(folder: Path, route: HubRoute = copy.ROUTE) -> tuple[Item, ...]:
    return hub_parquet.read(folder, copy.CLASSES, route).items


def test_each_row_is_an_image_of_the_class_that_its_integer_names(folder: Path) -> None:
    items = read(folder)
    assert [i.name for i in items] == sorted(i.name for i in items)
    assert [sum(i.part == part for i in items) for part in ("train", "test")] == [36, 9]
    for item in items:
        assert item.name.startswith(item.key)
        assert copy.CLASSES[item.label] == item.key.replace("_", " ")


def test_images_keep_their_bytes_and_get_the_suffix_of_their_content(folder: Path) -> None:
    table = pq.read_table(folder / DATA / "train-00001-of-00002.parquet").to_pylist()
    wanted = {row["image"]["path"]: row["image"]["bytes"] for row in table}
    found = {i.name: i.path for i in read(folder)}
    assert all(found[name].read_bytes() == content for name, content in wanted.items())
    assert {path.suffix for path in found.values()} == {".jpg", ".png", ".webp"}
    for path in found.values():
        with Image.open(path) as image:
            image.load()


def test_a_part_that_the_route_does_not_name_is_left_out_and_noted(folder: Path) -> None:
    (note,) = hub_parquet.read(folder, copy.CLASSES, copy.ROUTE).notes
    assert note == "parts of the copy left out: contrast; used: train, test"


def test_a_route_without_parts_reads_all(folder: Path) -> None:
    items = read(folder, copy.ROUTE.model_copy(update={"parts": {}}))
    assert {(i.part, len(items)) for i in items} == {("", 48)}


def test_images_are_written_once_and_again_only_if_missing(folder: Path) -> None:
    items = read(folder)
    times = {i.path: i.path.stat().st_mtime_ns for i in items}
    items[3].path.unlink()
    assert read(folder) == items
    assert [p for p, time in times.items() if p.stat().st_mtime_ns != time] == [items[3].path]


def test_another_revision_uses_no_image_of_the_old_one(folder: Path) -> None:
    old = {i.path for i in read(folder)}
    rows = [(f"new_{number:03}.jpg", "sea_ice") for number in range(9)]
    copy.write_shard(folder / DATA / "test-00000-of-00001.parquet", rows, copy.Shape())
    new = {i.path for i in read(folder) if i.part == "test"}
    assert len(new) == 9
    assert not new & old


@pytest.mark.parametrize(
    ("shape", "route"),
    [
        (copy.Shape(labels="names"), copy.ROUTE),
        (
            copy.Shape(image_column="img", label_column="fine_label"),
            copy.ROUTE.model_copy(update={"image_column": "img", "label_column": "fine_label"}),
        ),
        (
            copy.Shape(labels="names", names=("/a/airplane", "/b/baseball_diamond", "/s/sea/ice")),
            copy.ROUTE,
        ),
    ],
)
def test_other_columns_and_names_for_integers_are_read(
    tmp_path: Path, shape: copy.Shape, route: HubRoute
) -> None:
    copy.build(tmp_path, shape)
    items = read(tmp_path, route)
    assert len(items) == 45
    for item in items:
        folded = "".join(character for character in item.key if character.isalpha())
        assert folded.endswith(copy.CLASSES[item.label].replace(" ", ""))


def test_images_without_paths_are_named_by_file_and_row(tmp_path: Path) -> None:
    copy.build(tmp_path, copy.Shape(is_struct=False))
    listing = hub_parquet.read(tmp_path, copy.CLASSES, copy.ROUTE)
    assert [i.name for i in listing.items][:2] == [
        "test/test-00000-of-00001/0000000",
        "test/test-00000-of-00001/0000001",
    ]
    assert listing.notes[1].startswith("the copy has no unique file names")


def test_paths_that_two_images_share_are_not_their_names(folder: Path) -> None:
    rows = [("train_001.jpg", "airplane"), ("train_001.jpg", "sea_ice")]
    copy.write_shard(folder / DATA / "test-00000-of-00001.parquet", rows, copy.Shape())
    names = [i.name for i in read(folder) if i.part == "test"]
    assert names == ["test/test-00000-of-00001/0000000", "test/test-00000-of-00001/0000001"]


def test_the_hubs_own_conversion_is_read_by_its_folders(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / f"hub/default/{part}").mkdir(parents=True)
        for number, path in enumerate(sorted((folder / DATA).glob(f"{part}-*"))):
            path.rename(folder / f"hub/default/{part}/{number:04}.parquet")
    assert [sum(i.part == part for i in read(folder)) for part in ("train", "test")] == [36, 9]


@pytest.mark.parametrize("kind", ["readme", "list"])
def test_integers_that_only_the_readme_or_a_list_names_are_read(tmp_path: Path, kind: str) -> None:
    copy.build(tmp_path, copy.Shape(header=False))
    with pytest.raises(SettingsError, match="has integers, and neither its files nor README"):
        read(tmp_path)
    if kind == "readme":
        names = {str(number): name for number, name in enumerate(copy.ORDER)}
        feature = {"name": "label", "dtype": {"class_label": {"names": names}}}
        header = yaml.safe_dump({"dataset_info": {"features": [{"name": "image"}, feature]}})
        (tmp_path / "hub/README.md").write_text(f"---\n{header}---\n# RESISC45\n")
    else:
        (tmp_path / "hub/names.txt").write_text("\n".join(copy.ORDER))
    assert all(item.name.startswith(item.key) for item in read(tmp_path))


def test_two_files_that_name_integers_differently_are_refused(folder: Path) -> None:
    rows = [("a.jpg", "airplane")]
    shape = copy.Shape(names=("airplane", "sea_ice", "baseball_diamond"))
    copy.write_shard(folder / DATA / "test-00000-of-00001.parquet", rows, shape)
    with pytest.raises(SettingsError, match="name the integers of 'label' differently"):
        read(folder)


def test_another_datasets_names_are_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="1 classes of .* are not in the class list: 'sea_ice'"):
        hub_parquet.read(folder, copy.CLASSES[:2], copy.ROUTE)
    assert not (folder / "images").exists()


@pytest.mark.parametrize("keep", [0, 3, 1000, -1])
def test_a_file_cut_short_is_refused(folder: Path, keep: int) -> None:
    path = folder / DATA / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        runtime.MissingDataError, match=r"train-00001-of-00002\.parquet is cut short or"
    ):
        read(folder)


def test_damage_within_a_file_is_refused(folder: Path) -> None:
    path = folder / DATA / "train-00001-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(bytes(content))
    with pytest.raises(runtime.MissingDataError, match="is cut short or not a parquet file"):
        read(folder)


def test_a_missing_file_of_a_series_is_named(folder: Path) -> None:
    (folder / DATA / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(runtime.MissingDataError, match="1 of 2 files .* the first is number 00000"):
        read(folder)


def test_a_part_without_files_is_named(folder: Path) -> None:
    (folder / DATA / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(runtime.MissingDataError, match="no parquet file of part 'test'"):
        read(folder)


def test_a_missing_column_is_named_with_the_existing_ones(folder: Path) -> None:
    route = copy.ROUTE.model_copy(update={"label_column": "fine_label"})
    with pytest.raises(SettingsError, match="no column 'fine_label', only image, label"):
        read(folder, route)


def test_without_a_route_nothing_is_guessed(folder: Path) -> None:
    with pytest.raises(SettingsError, match="no hub route in the card names their columns"):
        hub_parquet.read(folder, copy.CLASSES, None)


def test_a_header_that_is_not_json_is_refused(folder: Path) -> None:
    path = folder / DATA / "test-00000-of-00001.parquet"
    table = pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps("x")[:-1]})
    pq.write_table(table, path)
    with pytest.raises(SettingsError, match="about its columns cannot be read"):
        read(folder)


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    copy.build(tmp_path, copy.Shape(is_struct=False))
    path = tmp_path / DATA / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[7]["image"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(SettingsError, match="row 7 of .* has no image"):
        read(tmp_path)


def test_a_column_without_images_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="column 'label' of .* has type int64, not images"):
        read(folder, copy.ROUTE.model_copy(update={"image_column": "label"}))


def test_a_label_without_a_name_is_refused(folder: Path) -> None:
    path = folder / DATA / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[2]["label"] = -1
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(
        SettingsError, match="row 2 of .* has label -1, but there are 3 classes; 1 rows"
    ):
        read(folder)
