"""`snakemake --report`: a real tiny study, then Snakemake's own page with our captions."""

import html
import json
import re
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.browser import Browser
from tests.workflow import folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_warm")]
FIGURE = {
    "title": "Figure 3",
    "caption": "Test accuracy by epoch.",
    "plot": {
        "kind": "history",
        "method": "clip",
        "y_label": "Top-1 accuracy (%)",
        "lines": [{"label": "CLIP", "column": "test_fused_pct"}],
    },
}
TABLE = {
    "title": "Table 1",
    "caption": "Top-1 accuracy (%).",
    "label": "tab:one",
    "rows": [{"method": "clip", "label": "CLIP"}],
}


@pytest.fixture(scope="module")
def study(shared_warm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where a study of one run, without training, is complete."""
    made = folder.write(
        tmp_path_factory.mktemp("report") / "study",
        title="A tiny study",
        runs=[{"methods": ["clip"]}],
        methods={},
        tables=["table1"],
        figures=["figure3"],
    )
    (made / "config" / "tables" / "table1.yaml").write_text(yaml.safe_dump(TABLE))
    (made / "config" / "figures" / "figure3.yaml").write_text(yaml.safe_dump(FIGURE))
    page = "results/tiny/index.html"
    done = folder.snakemake(made, *folder.MACHINE, "--", page)
    assert done.returncode == 0, done.stdout
    return made


def report(study: Path, name: str) -> Path:
    done = folder.snakemake(
        study, *folder.MACHINE, "--report", name, "--", "results/tiny/index.html"
    )
    assert done.returncode == 0, done.stdout
    return study / name


def test_the_workflow_makes_the_studys_page(study: Path) -> None:
    text = (study / "results" / "tiny" / "index.html").read_text()
    assert "A tiny study" in text
    assert "data:image/png;base64," in text
    assert "1 of 1 planned runs are complete." in text
    plan = json.loads((study / "results" / "tiny" / "plan.json").read_text())
    assert [run["method"] for run in plan["runs"]] == ["clip"]


def test_snakemake_reports_tables_figures_and_pages_with_captions(
    study: Path, browser: Browser
) -> None:
    made = report(study, "report.html")
    text = html.unescape(made.read_text())
    for said in (
        "Table 1 of the paper, on the data of study tiny. Rows are",
        "A cell is one run, with seed 0",
        'Made from <tt class="docutils literal">results/tiny/scores.csv</tt>',
        "Figure 3 of the paper",
        "The paper's printed numbers beside ours",
        "Study tiny on one page",
    ):
        assert said in re.sub(r"\s+", " ", text.replace("\\n", " ").replace('\\"', '"')), said
    with browser.visit(made.as_uri()) as seen:
        assert seen.outside() == []
        for category in ("Tables", "Figures", "Paper ledger", "Study"):
            assert seen.page.get_by_text(category, exact=True).first.is_visible()


def test_a_zip_report_contains_the_same_files(study: Path) -> None:
    with zipfile.ZipFile(report(study, "report.zip")) as archive:
        names = archive.namelist()
    for name in ("table1.csv", "figure3.png", "ledger.csv", "index.html"):
        assert any(Path(found).name == name for found in names), names
