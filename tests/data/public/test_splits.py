"""Splits: exact sizes by hand, no dependence on order, CoOp's files by their paths alone."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from microclip.data.layouts.base import Item, Listing, load_layout
from microclip.data.public.splits import Split, divide
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError
from microclip.settings.datasets import CoopRule, DrawnRule, PartsRule, SubsetRule
from tests.data import public_project

NOWHERE = Path("nowhere")
# Sizes of the 100 classes of Caltech101 that are used, recalled from its public listing: they sum
# to 8,242 and CoOp's 50/20/30 of them to its 4,128 / 1,649 / 2,465.
CALTECH = (
    *(55, 800, 42, 42, 47, 54, 46, 33, 128, 98, 43, 85, 91, 50, 43, 123, 47, 59, 62, 107),
    *(47, 69, 73, 70, 50, 51, 57, 67, 52, 65, 68, 75, 64, 53, 64, 85, 435, 67, 67, 45),
    *(34, 34, 51, 99, 100, 42, 54, 88, 80, 31, 64, 86, 114, 61, 81, 200, 78, 41, 66, 43),
    *(40, 87, 32, 76, 798, 55, 35, 39, 47, 38, 45, 53, 34, 57, 82, 59, 49, 40, 63, 39),
    *(84, 57, 35, 64, 45, 86, 59, 64, 35, 85, 49, 86, 75, 239, 37, 59, 34, 56, 39, 60),
)


def listing(*sizes: int, part: str = "") -> Listing:
    """A dataset with this many images per class; names look like those in an archive."""
    return Listing(
        tuple(
            Item(
                Path(f"{label:03}/{n:04}.jpg"), f"c{label:03}/{n:04}.jpg", label, f"c{label}", part
            )
            for label, size in enumerate(sizes)
            for n in range(size)
        )
    )


def draw(found: Listing, rule: DrawnRule | SubsetRule, seed: int = 0) -> Split:
    return divide(found, rule, folder=NOWHERE, seed=seed)


def drawn(train: float, val: float = 0.0, **options: object) -> DrawnRule:
    return DrawnRule.model_validate({"rule": "drawn", "train": train, "val": val, **options})


def names(items: tuple[Item, ...]) -> list[str]:
    return [item.name for item in items]


def sizes(split: Split) -> tuple[int, int]:
    return len(split.train), len(split.test)


def test_resisc_has_560_and_140_images_per_class() -> None:
    assert sizes(draw(listing(*[700] * 45), drawn(0.8, seed=42))) == (25200, 6300)


def test_sun_rounds_half_to_even_and_leaves_a_tenth_unused() -> None:
    """105 images: 73.5 and 10.5 become 74 and 10; 115: 80.5 and 11.5 become 80 and 12."""
    rule = drawn(0.7, 0.1, rounding="half-even")
    assert sizes(draw(listing(105), rule)) == (74, 105 - 74 - 10)
    assert sizes(draw(listing(115), rule)) == (80, 115 - 80 - 12)
    assert sizes(draw(listing(100, 105, 115), rule)) == (70 + 74 + 80, 20 + 21 + 23)


def test_coops_fractions_of_caltechs_classes_give_coops_counts() -> None:
    rule = drawn(0.5, 0.2, rounding="half-even")
    assert sum(CALTECH) == 8242
    assert sizes(draw(listing(*CALTECH), rule)) == (4128, 2465)


def test_thirty_per_class_of_caltech_leave_5242_test_images() -> None:
    assert sizes(draw(listing(*CALTECH), drawn(30))) == (3000, 5242)


def test_two_draws_of_caltech_share_images_as_table_10_implies() -> None:
    """If o images are drawn both times, 6,000 - o train and 8,242 - o test; o is 1,588 ± 17."""
    expected = sum(900 / size for size in CALTECH)
    assert expected == pytest.approx(1588.4, abs=0.1)
    split = draw(listing(*CALTECH), drawn(30, draws=2))
    twice = 6000 - len(split.train)
    assert len(split.test) == 8242 - twice
    assert abs(twice - expected) < 4 * 17
    shared = set(names(split.train)) & set(names(split.test))
    assert len(shared) == 2 * (3000 - twice)  # drawn once: train of one draw, test of the other
    assert f"union of two draws: {len(shared)} images are in train and in test" in split.notes


def test_the_union_of_two_draws_of_the_papers_sizes_shares_2806_images() -> None:
    assert 4403 + 6645 - 8242 == 2806  # Table 10's row cannot be a partition


@pytest.mark.parametrize("generator", ["python", "numpy"])
@pytest.mark.parametrize("rule", [drawn(0.6, 0.1), drawn(3, draws=2)])
def test_the_order_of_the_files_does_not_matter_and_the_seed_does(
    rule: DrawnRule, generator: str
) -> None:
    rule = rule.model_copy(update={"generator": generator})
    found = listing(9, 10, 12)
    shuffled = list(found.items)
    random.Random(5).shuffle(shuffled)
    first = draw(found, rule)
    assert draw(Listing(tuple(shuffled)), rule) == first
    assert names(draw(found, rule, seed=1).train) != names(first.train)
    assert names(first.train) == sorted(names(first.train))
    assert names(first.test) == sorted(names(first.test))


def test_a_rules_seed_overrides_the_sources_seed() -> None:
    found = listing(20)
    assert draw(found, drawn(0.5, seed=42), seed=1) == draw(found, drawn(0.5, seed=42), seed=2)
    assert draw(found, drawn(0.5, seed=42)) == draw(found, drawn(0.5, seed=None), seed=42)


def test_train_and_test_are_disjoint_within_a_draw() -> None:
    split = draw(listing(10, 11), drawn(0.5, 0.2))
    assert not set(names(split.train)) & set(names(split.test))
    assert sizes(split) == (5 + 5, 3 + 4)


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(SettingsError, match="class 'c1' has 30 images: the split takes 30"):
        draw(listing(31, 30), drawn(30))
    with pytest.raises(SettingsError, match="class 'c0' has 1 images: the split takes 0"):
        draw(listing(1, 30), drawn(0.5))


def parts() -> Listing:
    train, test = listing(60, 55, part="train"), listing(3, 2, part="test")
    renamed = [
        Item(item.path, f"val/{item.name}", item.label, item.key, "test") for item in test.items
    ]
    return Listing((*train.items, *renamed))


def test_fifty_per_class_are_drawn_by_label_and_the_note_says_so() -> None:
    rule = SubsetRule.model_validate(
        {"rule": "subset", "train": "train", "test": "test", "per_class": 50}
    )
    split = draw(parts(), rule)
    assert [sum(i.label == label for i in split.train) for label in (0, 1)] == [50, 50]
    assert len(split.test) == 5
    assert "50 per class, by label" in split.notes[0]
    assert draw(parts(), rule, seed=3) == split  # the rule's seed is 0, whatever the source's


def test_a_subset_without_labels_is_drawn_from_the_whole_part() -> None:
    rule = SubsetRule.model_validate(
        {"rule": "subset", "train": "train", "test": "test", "total": 70, "seed": None}
    )
    split = draw(parts(), rule)
    assert sizes(split) == (70, 5)
    assert "without looking at labels" in split.notes[0]
    assert draw(Listing(parts().items[::-1]), rule) == split
    assert names(draw(parts(), rule, seed=1).train) != names(split.train)
    relabelled = Listing(
        tuple(Item(i.path, i.name, 1 - i.label, i.key, i.part) for i in parts().items)
    )
    assert names(draw(relabelled, rule).train) == names(split.train)


def test_a_missing_part_is_named() -> None:
    rule = PartsRule(rule="parts", train=("train", "val"), test=("test",))
    with pytest.raises(SettingsError, match=r"needs part 'val', but this copy has \{'train': 115"):
        divide(parts(), rule, folder=NOWHERE, seed=0)


COOP = CoopRule(rule="coop", file="split_zhou_Things.json")


def coop_file(folder: Path, split: dict[str, list[list[object]]]) -> None:
    (folder / COOP.file).write_text(json.dumps(split))


def things() -> Listing:
    keys = ("BACKGROUND", "cat", "dog")
    return Listing(
        tuple(
            Item(Path(f"{key}/{n}.jpg"), f"images/{key}/image_{n}.jpg", label, key)
            for label, key in enumerate(keys)
            for n in range(4)
        )
    )


def entries(*places: tuple[str, int], label: int = 0) -> list[list[object]]:
    return [[f"{key}/image_{n}.jpg", label, "whatever CoOp calls it"] for key, n in places]


def coop(folder: Path, rule: CoopRule = COOP) -> Split:
    return divide(things(), rule, folder=folder, seed=0)


def test_coops_file_matches_images_by_the_end_of_their_paths(tmp_path: Path) -> None:
    cats, dogs = [("cat", n) for n in range(4)], [("dog", n) for n in range(4)]
    coop_file(
        tmp_path,
        {  # its labels are numbered otherwise than ours, which does not matter
            "train": entries(*dogs[:2], label=0) + entries(*cats[:2], label=7),
            "val": entries(dogs[2], label=0),
            "test": entries(dogs[3], label=0) + entries(*cats[2:], label=7),
        },
    )
    split = coop(tmp_path)
    assert names(split.train) == [
        f"images/{key}/image_{n}.jpg" for key in ("cat", "dog") for n in (0, 1)
    ]
    assert len(split.test) == 3
    assert split.notes == (
        "CoOp's split_zhou_Things.json; 1 val images are unused",
        "4 images that are not in split_zhou_Things.json are unused",
    )


def test_a_listed_path_may_have_more_folders_or_another_suffix_than_ours(tmp_path: Path) -> None:
    items = (
        Item(Path("a"), "v_One_g01.avi", 0, "One"),
        Item(Path("b"), "v_Two_g01.avi", 1, "Two"),
    )
    coop_file(
        tmp_path,
        {
            "train": [["UCF/One/v_one_g01.jpg", 0, "One"]],
            "val": [],
            "test": [["UCF/Two/v_Two_g01.avi", 1, "Two"]],
        },
    )
    split = divide(Listing(items), COOP, folder=tmp_path, seed=0)
    assert (names(split.train), names(split.test)) == (["v_One_g01.avi"], ["v_Two_g01.avi"])


def test_missing_listed_images_are_counted_and_named(tmp_path: Path) -> None:
    coop_file(
        tmp_path,
        {
            "train": entries(("cat", 0), ("cat", 8), ("owl", 1)),
            "val": [],
            "test": entries(("dog", 0)),
        },
    )
    with pytest.raises(
        MissingDataError,
        match=r"2 of 4 images that .*json lists are missing: "
        r"cat/image_8\.jpg, owl/image_1\.jpg; get",
    ):
        coop(tmp_path)


def test_an_image_listed_twice_is_named(tmp_path: Path) -> None:
    coop_file(tmp_path, {"train": entries(("cat", 0)), "val": [], "test": entries(("cat", 0))})
    with pytest.raises(SettingsError, match=r"lists 'cat/image_0\.jpg' in 'test' and in 'train'"):
        coop(tmp_path)


def test_a_coop_file_of_other_classes_is_refused(tmp_path: Path) -> None:
    coop_file(
        tmp_path,
        {"train": entries(("cat", 0), ("dog", 0)), "val": [], "test": entries(("dog", 1), label=1)},
    )
    with pytest.raises(SettingsError, match="its classes are not ours"):
        coop(tmp_path)


@pytest.mark.parametrize(
    "content", ['{"train": [["a", 0', '{"train": []}', "[1]", '{"train": [3]}']
)
def test_a_damaged_file_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / COOP.file).write_text(content)
    with pytest.raises(
        SettingsError, match=r"is not one of CoOp's files, or was cut short .*; expected"
    ):
        coop(tmp_path)


def test_without_coops_file_a_draw_replaces_it_only_if_the_card_says_so(
    tmp_path: Path,
) -> None:
    with pytest.raises(MissingDataError, match=r"split_zhou_Things\.json is missing: CoOp's"):
        coop(tmp_path)
    split = coop(tmp_path, CoopRule(rule="coop", file=COOP.file, otherwise_drawn=True))
    assert sizes(split) == (6, 3)  # of four: round(2.0), round(0.8), and what is left
    assert split.drawn_by == drawn(0.5, 0.2, rounding="half-even")
    assert "50/20/30 of each class were drawn with seed 0" in split.notes[0]
    assert "not the same ones" in split.notes[0]


def coop_frame(name: str) -> str:
    """A clip as CoOp names its middle frame: Apply_Eye_Makeup/v_ApplyEyeMakeup_….jpg."""
    key, clip = name.split("/")
    return f"{re.sub('(?<=[a-z])(?=[A-Z])', '_', key)}/{clip}.jpg"


@pytest.mark.parametrize(
    ("name", "spell"),
    [
        ("caltech101", str),
        ("cars", str),
        ("dtd", str),
        ("flowers", str),
        ("food101", str),
        ("pets", str),
        ("sun397", str),
        ("ucf101", coop_frame),
    ],
)
def test_images_are_found_in_coops_spelling_of_each_dataset(
    name: str, spell: Callable[[str], str], tmp_path: Path
) -> None:
    copy = public_project.copy_of(name)
    copy.build(tmp_path)
    found = load_layout(name).read(tmp_path, copy.CLASSES, None)
    parts: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    for number, item in enumerate(found.items):
        part = ("train", "val", "test")[number % 3]
        parts[part].append([spell(item.name), item.label + 5, item.key])
    coop_file(tmp_path, parts)
    split = divide(found, COOP, folder=tmp_path, seed=0)
    assert names(split.train) == names(found.items[0::3])
    assert names(split.test) == names(found.items[2::3])


def test_a_copy_with_other_class_names_gets_the_same_draw() -> None:
    files = [f"{label}/{number}.jpg" for label in range(3) for number in range(10)]
    one, other = (
        Listing(tuple(Item(Path(n), n, int(n[0]), keys[int(n[0])]) for n in files))
        for keys in ("abc", "zyx")
    )
    first, second = (draw(listed, drawn(0.5)).train for listed in (one, other))
    assert [i.name for i in first] == [i.name for i in second]
