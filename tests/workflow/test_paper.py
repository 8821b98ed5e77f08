"""The paper's studies as planned: every run once, every hole listed, in a few seconds.

The numbers are worked out by hand from the paper's tables. A method whose code comes turns from
holes into runs: what is asked for (`WANTED`) stays the same.
"""

from __future__ import annotations

import resource
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from microclip import settings, study
from microclip.methods.base import known_methods, reads_of
from microclip.study import Study
from tests.workflow import folder
from tests.workflow.folder import ROOT

LIMIT_S = 30.0  # of a CPU that other tests share; about 7 alone
HERE = ("clip", "cupl", "microclip")  # have code
# One dataset of Tables 2, 3, 4, 5 and 7: 4 + 4 + 5 + 2 + 4 variants beside the default run.
ABLATIONS = 4 + 4 + 5 + 2 + 4
# On DTD gammas but 0, 1 (rows of Table 4) and 0.5 (the default), 8 of 11; crops but 8, 6 of 7;
# rates but 1e-4, 6 of 7. On Cars crops but 8, 6 of 7. Other figures show runs of tables.
SWEEPS = 8 + 6 + 6 + 6
RULES = 3  # test-random, ncut-as-computed and released, beside the default run
SEEDS = 3  # of `six` and `paper`; CLIP and CuPL draw nothing, so one is enough
WANTED = {
    "paper": {
        "clip": 13 + 6,  # Table 1; Table 6
        "cupl": 13 + 6 + 6 + 2 * 6,  # Table 1 (and 8); Table 6; Table 9; both MetaCLIPs of Table 12
        # the same, Tables 2 to 7, and the released rules
        "microclip": SEEDS * (13 + 6 + 6 + 2 * 6 + 6 * ABLATIONS + SWEEPS + 13 * RULES),
        "wca": SEEDS * (13 + 6),  # Table 1 (and 8); Table 9
        "upl": SEEDS * (13 + 6),  # Table 1; Table 6
        "pouf": SEEDS * (13 + 6),
        "lafter": SEEDS * (13 + 6 + 6),  # Table 1 (and 8); Table 6; Table 9
        "reclip": SEEDS * 13,  # Table 1
        "dpa": SEEDS * (13 + 6 + 6 + 6 + 2 * 6),  # Table 1; Table 8; Table 6; Table 9; Table 12
        "coop": SEEDS * 2 * 6,  # Table 11: one and two shots
        "maple": SEEDS * 2 * 6,
        "clip_lora": SEEDS * 2 * 6,
    },
    "six": {  # as above for six datasets, without Table 1 and the figures
        "clip": 6,
        "cupl": 6 + 6 + 6 + 2 * 6,  # Table 8; Table 6; Table 9; Table 12
        "microclip": SEEDS * (6 + 6 + 6 + 2 * 6 + 6 * ABLATIONS + 6 * RULES),
        "wca": SEEDS * (6 + 6),
        "upl": SEEDS * 6,
        "pouf": SEEDS * 6,
        "lafter": SEEDS * (6 + 6 + 6),
        "dpa": SEEDS * (6 + 6 + 6 + 2 * 6),
        "coop": SEEDS * 2 * 6,
        "maple": SEEDS * 2 * 6,
        "clip_lora": SEEDS * 2 * 6,
    },
    "pets": {  # Table 1's methods; gamma 0, 0.5 (the default) and 1
        "clip": 1,
        "cupl": 1,
        "microclip": 3 + RULES,
        "reclip": 1,
        "dpa": 1,
        "upl": 1,
        "wca": 1,
        "pouf": 1,
        "lafter": 1,
    },
}
# Jobs that do not depend on how many methods have code.
JOBS = {
    "paper": {
        "fetch_dataset": 13,
        "store_images": 13,
        "describe": 13 + 6,  # GPT-3 for all; GPT-4o for six
        "embed_descriptions": 13 + 6 + 6 + 2 * 6,  # B/32; B/16; GPT-4o; both MetaCLIPs
        "encode_images": 13 + 6 + 2 * 6,  # by backbone and dataset: authors share the images
        "check_zero_shot": 13 + 6 + 2 * 6,  # B/32 (Table 1), B/16 (Table 6), MetaCLIPs (Table 12)
        "tabulate": 13,
        "plot": 9,  # Figures 1, 3, 4, 5, 6a, 6b, 8, 9 and 11
    },
    "six": {
        "fetch_dataset": 6,
        "store_images": 6,
        "describe": 6 + 6,
        "embed_descriptions": 6 + 6 + 6 + 2 * 6,
        "encode_images": 6 + 6 + 2 * 6,
        "check_zero_shot": 6 + 6 + 2 * 6,
        "tabulate": 11,  # all but 1 and 10
    },
    "pets": {
        "fetch_dataset": 1,
        "store_images": 1,
        "describe": 1,
        "embed_descriptions": 1,
        "encode_images": 1,
        "check_zero_shot": 1,
        "tabulate": 2,
        "plot": 1,
    },
}
ONCE = ("collect_scores", "typeset", "ledger", "report", "mirror_study", "all")


@dataclass(frozen=True)
class Planned:
    """A dry run's output, and its CPU time."""

    jobs: dict[str, int]
    seconds: float


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Planned]:
    """The dry run of each study, in a folder without results."""
    place = folder.write(tmp_path_factory.mktemp("paper") / "clone")
    shutil.copy(folder.ROOT / "config/tables/table1.yaml", place / "config/tables")  # all rows
    found = {}
    for name in WANTED:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        jobs = folder.dry(place, "--configfile", f"config/{name}.yaml")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        found[name] = Planned(jobs, used)
    assert not (place / "results").exists()
    return found


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    return {
        name: study.load(settings.read_yaml(ROOT / "config" / f"{name}.yaml")) for name in WANTED
    }


@pytest.mark.parametrize("name", WANTED)
def test_every_distinct_run_is_planned_once(name: str, studies: dict[str, Study]) -> None:
    found = studies[name].expansion
    assert len({spec.folder for spec in studies[name].runs}) == len(studies[name].runs)
    assert set(found.runs).isdisjoint(found.holes)
    wanted = Counter(spec.method for spec in (*found.runs, *found.holes))
    assert wanted == WANTED[name]


def test_with_three_methods_the_papers_1226_runs_are_704_runs_and_522_holes() -> None:
    """Six other methods in Table 1 (78), four in Table 6 (24), DPA from descriptions in Table 8
    (6), three in Table 9 (18), three with two shots each in Table 11 (36), DPA on two MetaCLIPs in
    Table 12 (12), all with three seeds.
    """
    wanted = WANTED["paper"]
    runs = sum(count for method, count in wanted.items() if method in HERE)
    assert runs == 19 + 37 + SEEDS * (177 + 39) == 704
    assert sum(wanted.values()) - runs == SEEDS * (78 + 24 + 6 + 18 + 36 + 12) == 522


@pytest.mark.parametrize("name", WANTED)
def test_holes_are_the_methods_without_code(name: str, studies: dict[str, Study]) -> None:
    holes = Counter(spec.method for spec in studies[name].expansion.holes)
    here = set(known_methods())
    assert set(WANTED[name]) <= here
    assert holes == {m: count for m, count in WANTED[name].items() if m not in here}
    assert {hole.spec.method for hole in studies[name].plan().holes} == set(holes)


@pytest.mark.parametrize("name", WANTED)
def test_a_dry_run_lists_the_jobs_by_rule(name: str, planned: dict[str, Planned]) -> None:
    here = set(known_methods())
    runs = sum(count for method, count in WANTED[name].items() if method in here)
    assert planned[name].jobs == {**JOBS[name], **dict.fromkeys(ONCE, 1), "adapt": runs}


def test_clip_and_cupl_read_embeddings_so_each_backbone_encodes_each_dataset() -> None:
    assert reads_of("clip") == reads_of("cupl") == "embeddings"
    assert reads_of("microclip") == "images"


@pytest.mark.parametrize("name", WANTED)
def test_a_dry_run_is_quick(name: str, planned: dict[str, Planned]) -> None:
    assert planned[name].seconds < LIMIT_S


def test_the_paper_study_shows_every_table_and_figure() -> None:
    declared = settings.load_study(settings.read_yaml(Path(ROOT / "config/paper.yaml")))
    assert [table.name for table in declared.tables] == [
        *(f"table{n}" for n in range(1, 13)),
        "rules",
    ]
    shown = [figure.name.removeprefix("figure") for figure in declared.figures]
    assert shown == ["1", "3", "4", "5", "6a", "6b", "8", "9", "11"]


def test_the_papers_sweeps_reuse_runs_of_its_tables(studies: dict[str, Study]) -> None:
    points = studies["paper"].expansion.points
    gammas = {point.value: point.variant for point in points["figure5"]}
    assert (gammas[0.0], gammas[1.0]) == ("gamma-0", "gamma-1")  # rows of Table 4
    assert gammas[0.5] == "default"
    assert {p.variant for p in points["figure6a"]} == {p.variant for p in points["figure6b"]}
    assert {p.dataset for p in points["figure6b"]} == {"cars"}


def test_the_page_on_reproducing_the_paper_gives_these_numbers(studies: dict[str, Study]) -> None:
    lines = (ROOT / "docs/reproduce-the-paper.md").read_text(encoding="utf-8").splitlines()
    for name, declared in studies.items():
        [row] = [line for line in lines if line.startswith(f"| `config/{name}.yaml`")]
        listed = [int(cell) for cell in row.strip("| ").split("|")[2:]]
        assert listed == [len(declared.runs), len(declared.expansion.holes)]
