"""Artists are on one side of the split only, and what we ship is redistributable."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from microclip import paths
from microclip.icons.catalogue import (
    BENCHMARK_ARTISTS,
    PRETRAINING_ARTISTS,
    REDISTRIBUTABLE,
    SETS,
    slug,
    squash,
)

ICONS = paths.project_root() / "resources" / "icons"


def rows_of(name: str) -> list[dict[str, str]]:
    with (ICONS / name / "drawings.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_no_artist_is_in_both_benchmark_and_pretraining() -> None:
    assert not set(BENCHMARK_ARTISTS) & set(PRETRAINING_ARTISTS)
    assert len(set(PRETRAINING_ARTISTS)) == len(PRETRAINING_ARTISTS)


@pytest.mark.parametrize("name", SETS)
def test_every_shipped_drawing_is_by_a_benchmark_artist_and_redistributable(name: str) -> None:
    for row in rows_of(name):
        assert row["artist"] in BENCHMARK_ARTISTS
        assert row["licence"] in REDISTRIBUTABLE


@pytest.mark.parametrize("name", SETS)
def test_drawings_csv_lists_exactly_the_files(name: str) -> None:
    listed = {row["file"] for row in rows_of(name)}
    found = {p.relative_to(ICONS / name).as_posix() for p in (ICONS / name).glob("*/*.webp")}
    assert listed == found


@pytest.mark.parametrize("name", SETS)
def test_every_class_has_two_drawings_or_more_and_at_most_two_per_artist(name: str) -> None:
    classes = (ICONS / name / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(classes)) == len(classes)
    hands = Counter((row["class"], row["artist"]) for row in rows_of(name))
    assert max(hands.values()) <= 2
    drawings = Counter(row["class"] for row in rows_of(name))
    assert set(drawings) == set(classes)
    assert min(drawings.values()) >= 2


def test_the_drawings_stay_under_40_megabytes() -> None:
    assert sum(p.stat().st_size for p in ICONS.rglob("*.webp")) < 40e6


def test_notice_names_every_artist_and_licence() -> None:
    notice = (paths.project_root() / "NOTICE.md").read_text(encoding="utf-8")
    for artist in (*BENCHMARK_ARTISTS, *PRETRAINING_ARTISTS):
        assert f"`{artist}`" in notice
    for licence in {row["licence"] for name in SETS for row in rows_of(name)}:
        assert f"({licence})" in notice


def test_slugs_drop_accents_and_punctuation() -> None:
    assert slug("flag: São Tomé & Príncipe") == "flag-sao-tome-principe"
    assert squash("french-fries") == squash("French fries") == "frenchfries"


def test_the_folder_is_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (paths.project_root() / "resources" / "icons").is_dir()
