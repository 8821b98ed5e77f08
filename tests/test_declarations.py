"""The project's declarations of the paper: datasets, backbones, descriptions, tables, methods."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from open_clip import factory, pretrained
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from microclip import settings
from microclip.data.vocabulary import load_vocabulary
from microclip.measure import published
from microclip.methods.base import declaration_of, known_methods
from microclip.settings import PublicSource, reports
from microclip.study import unavailable
from microclip.text import descriptions
from microclip.text.prompts import fill, readable

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = {  # prompts of each of the 13 datasets, counted in the released code
    "birdsnap": 1,
    "caltech101": 34,
    "cars": 8,
    "cifar100": 18,
    "dtd": 8,
    "fgvc": 2,
    "flowers": 1,
    "food101": 1,
    "imagenet": 80,
    "pets": 1,
    "resisc45": 18,
    "sun397": 2,
    "ucf101": 48,
}
TABLES = [f"table{number}" for number in range(1, 13)]


def table10() -> dict[str, dict[str, str]]:
    with (ROOT / "config/published/table10.csv").open(newline="") as stream:
        return {row["dataset"]: row for row in csv.DictReader(stream)}


def rows() -> Iterator[tuple[str, reports.TableRow]]:
    for table in [*TABLES, "table1-bounds"]:
        yield from ((table, row) for row in reports.load_table(table).rows)


def test_the_datasets_are_the_columns_of_the_papers_tables() -> None:
    assert list(published.load("table1").datasets) == list(TEMPLATES) == list(table10())
    lists = {path.stem for path in (ROOT / "resources/classes").iterdir()}
    assert lists == set(TEMPLATES)
    others = {name for name in settings.known("datasets") if name not in TEMPLATES}
    assert all(name.startswith(("icons-", "scenes-")) for name in others)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_dataset_has_the_papers_classes_and_the_released_prompts(name: str) -> None:
    dataset = settings.load_dataset(name)
    bad = "skip" if name == "birdsnap" else "error"  # one of its photographs is known to be cut
    assert dataset.source == PublicSource(dataset=name, bad_images=bad)
    assert len(set(dataset.templates)) == len(dataset.templates) == TEMPLATES[name]
    vocabulary = load_vocabulary(dataset)
    assert vocabulary.where == f"resources/classes/{name}.txt"
    printed = int(table10()[name]["classes"])
    assert len(vocabulary) == (100 if name == "fgvc" else printed)  # the paper prints 102


def test_there_are_222_prompts_in_all() -> None:
    assert sum(TEMPLATES.values()) == 222


@pytest.mark.parametrize(
    ("name", "first", "prompt"),
    [
        ("dtd", "banded", "a photo of the {} object."),
        ("resisc45", "airplane", "aerial view of a {}."),
        ("ucf101", "Apply Eye Makeup", "a demonstration of the person practicing {}."),
        ("caltech101", "accordion", "the {} in a video game."),
        ("cifar100", "apple", "a low contrast photo of the {}."),
        ("pets", "Abyssinian", "a photo of a {}, a type of pet."),
        ("flowers", "pink primrose", "a photo of a {}, a type of flower."),
        ("food101", "apple pie", "a photo of {}, a type of food."),
        ("cars", "AM General Hummer SUV 2000", "i love my {}!"),
    ],
)
def test_lists_and_prompts_are_as_published(name: str, first: str, prompt: str) -> None:
    dataset = settings.load_dataset(name)
    assert load_vocabulary(dataset).class_names[0] == first
    assert prompt in dataset.templates


def test_labels_follow_the_official_order_where_it_is_not_alphabetical() -> None:
    pets = load_vocabulary(settings.load_dataset("pets")).class_names
    assert pets[:3] == ("Abyssinian", "american bulldog", "american pit bull terrier")
    fgvc = load_vocabulary(settings.load_dataset("fgvc")).class_names
    start = fgvc.index("BAE 146-200")
    assert fgvc[start : start + 3] == ("BAE 146-200", "BAE 146-300", "BAE-125")


def test_imagenet_has_open_clips_names_and_prompts() -> None:
    """Two names stand for two classes each; the second of each ends in a silent sign."""
    dataset = settings.load_dataset("imagenet")
    names = load_vocabulary(dataset).class_names
    assert [readable(name) for name in names] == list(IMAGENET_CLASSNAMES)
    assert [name for name in names if "_" in name] == ["missile_", "sunglasses_"]
    assert list(dataset.templates) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    assert fill(["a {}."], ["missile", "missile_"]) == [["a missile."], ["a missile."]]


def test_classes_of_one_name_share_their_descriptions() -> None:
    written = descriptions.checked({"missile": ["It flies."], "owl": ["It hoots."]}, "x.json")
    vocabulary = load_vocabulary(settings.load_dataset("imagenet"))
    few = type(vocabulary)(("missile", "owl", "missile_"), "y.txt")
    assert descriptions.select(written, few) == {
        "missile": ("It flies.",),
        "owl": ("It hoots.",),
        "missile_": ("It flies.",),
    }


def test_three_datasets_use_a_hundredth_of_the_learning_rate() -> None:
    own = {
        name: settings.load_dataset(name).methods["microclip"]
        for name in TEMPLATES
        if "microclip" in settings.load_dataset(name).methods
    }
    assert own == dict.fromkeys(("food101", "imagenet", "sun397"), {"learning_rate": 1.0e-6})
    for name in own:
        assert settings.load_dataset(name).methods["dpa"]["learning_rate"] == 1.0e-6
        text = (ROOT / f"config/datasets/{name}.yaml").read_text()
        assert "# appendix" in next(line for line in text.splitlines() if "learning_rate" in line)


@pytest.mark.parametrize(
    "name", [n for n in settings.known("backbones") if not n.startswith("icon-clip")]
)
def test_open_clip_knows_each_backbone_with_the_activation_of_its_weights(name: str) -> None:
    backbone = settings.load_backbone_settings(name)
    assert backbone.model is not None
    assert backbone.pretrained is not None
    assert (backbone.model, backbone.pretrained) in pretrained.list_pretrained()
    weights = pretrained.get_pretrained_cfg(backbone.model, backbone.pretrained)
    network = factory.get_model_config(backbone.model)
    assert weights["quick_gelu"] is network["quick_gelu"] is True
    size = int(name.removeprefix("vit-b-")) if name.startswith("vit") else 32
    assert network["vision_cfg"]["patch_size"] == size


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("cupl-gpt3", "texture_prompts_full.json"), ("gpt-4o-published", "dtd.json")],
)
def test_third_party_descriptions_are_read_from_the_users_folder(name: str, theirs: str) -> None:
    written = settings.load_descriptions(name)
    assert written.engine == "file"
    assert written.frame == "{sentence}"
    file = descriptions.source_file(settings.load_dataset("dtd"), written)
    assert file.relative_to(Path.cwd()).parts[:2] == ("data", "descriptions")
    assert file.name == theirs
    with pytest.raises(settings.SettingsError, match=rf"descriptions .*{theirs} do not exist"):
        descriptions.read(file)


@pytest.mark.parametrize("table", TABLES)
def test_rows_and_the_papers_rows_match_one_to_one(table: str) -> None:
    declared = reports.load_table(table)
    assert declared.title == f"Table {table.removeprefix('table')}"
    assert declared.published == table
    printed = published.load(table).rows
    named = [row.published for row in declared.rows if row.published is not None]
    assert len(named) == len(set(named))
    if declared.kind == "accuracy":
        assert set(named) == set(printed)
    else:
        assert set(printed) == set(TEMPLATES)


def test_tables_have_different_latex_labels() -> None:
    labels = [reports.load_table(table).label for table in TABLES]
    assert len(set(labels)) == len(labels)


def test_rows_name_declared_methods_variants_backbones_and_descriptions() -> None:
    for table, row in rows():
        assert row.method in settings.known("methods"), table
        assert row.variant in settings.variants_of(row.method), table
        assert row.backbone is None or row.backbone in settings.known("backbones"), table
        assert row.descriptions is None or row.descriptions in settings.known("llms"), table


def test_every_declared_method_is_shown_under_the_same_name_everywhere() -> None:
    shown: dict[str, set[str]] = {}
    for _, row in rows():
        shown.setdefault(row.method, set()).add(row.label)
    assert set(shown) == set(settings.known("methods"))
    for method, labels in shown.items():
        if method != "microclip":  # its rows are named by what is changed
            assert labels - {"Zero-shot (CuPL)"} == {settings.load_method_file(method).title}


def test_table_1_with_bounds_is_table_1_below_all_methods_that_learn_labels() -> None:
    declared = reports.load_table("table1-bounds")
    below = [
        row.model_copy(update={"published": None}) for row in reports.load_table("table1").rows
    ]
    n_bounds = len(declared.rows) - len(below)
    assert list(declared.rows[n_bounds:]) == below
    bounds = {row.method for row in declared.rows[:n_bounds]}
    with_labels = {m for m in known_methods() if declaration_of(m).supervision == "labels"}
    assert bounds == with_labels == {"linear_probe", "oracle"}


def test_every_declared_method_has_code() -> None:
    assert set(settings.known("methods")) == set(known_methods())
    assert unavailable("later") == "method later has no code in this release"


def test_few_shot_methods_have_one_and_two_images_per_class() -> None:
    for method in ("coop", "maple", "clip_lora"):
        named = settings.variants_of(method)
        assert named["shots-1"]["shots"] == 1
        assert named["shots-2"]["shots"] == 2


def test_every_variant_file_belongs_to_a_declared_method() -> None:
    assert set(settings.known("variants")) <= set(settings.known("methods"))


def test_figures_6a_and_6b_are_figure_6_for_one_dataset_each() -> None:
    whole = reports.load_figure("figure6").plot
    assert isinstance(whole, reports.SweepPlot)
    for letter, dataset in (("a", "dtd"), ("b", "cars")):
        figure = reports.load_figure(f"figure6{letter}")
        assert isinstance(figure.plot, reports.SweepPlot)
        points = tuple(point for point in whole.published if point.dataset == dataset)
        assert figure.plot == whole.model_copy(update={"published": points})
        assert figure.title == f"Figure 6{letter}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_card_has_the_counts_of_table_10_or_says_why_not(name: str) -> None:
    card = settings.load_card(PublicSource(dataset=name))
    assert "paper" in card.splits
    assert set(card.counts) | set(card.flags) | set(card.allowed_overlap) <= set(card.splits)
    paper, printed = card.counts["paper"], table10()[name]
    assert paper.classes == len(load_vocabulary(settings.load_dataset(name)))
    for column in ("classes", "train", "test"):
        if getattr(paper, column) != int(printed[column]):
            assert any(f"{int(printed[column]):,}" in line for line in card.deviations), column


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_card_ends_with_manual_steps_for_use_offline(name: str) -> None:
    card = settings.load_card(PublicSource(dataset=name))
    last = card.routes[-1]
    assert last.kind == "local"
    assert f"data/{name}" in last.recipe
    assert "\n" not in last.recipe
    layouts = [route.layout for route in card.routes if route.kind == "hub"]
    assert len(set(layouts)) == len(layouts)  # a layout tells which copy's columns are meant
