"""The page of a study: one file, all text escaped, readable in a real browser."""

import base64
import io
import json
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from microclip import paths, runtime, settings, study
from microclip.measure import ledger, page, tables
from microclip.measure.scores import COLUMNS
from microclip.methods.base import SHARED_RECIPE
from microclip.settings import reports
from microclip.study import Plan
from tests.browser import DESKTOP, PHONE, Browser

ROOT = Path(__file__).resolve().parents[2]
STUDY = {
    "study": "toy",
    "title": 'A study <script>alert("of")</script> two & more',
    "datasets": ["cats", "cars"],
    "backbones": ["icon-clip"],
    "descriptions": ["shipped"],
    "seeds": [0, 1],
    "runs": [{"methods": ["clip", "microclip"]}],
    "methods": {"microclip": {"epochs": 2}},
    "tables": ["tableA", "tableB"],
    "figures": ["figureA", "figureB"],
    "device": "cpu",
}
RUN_ID = "0123456789abcdef0123456789abcdef"
PUBLISHED = "method,cats,cars,avg\nCLIP,40.10,55.00,\nWCA,41.00,,\n"
SLIP = {"table": "tableA", "row": "CLIP", "note": "A slip & its reason."}


def dataset(name: str, drawings: str, difficulty: float) -> dict[str, Any]:
    source = {"kind": "icons", "drawings": drawings, "classes": 4, "difficulty": difficulty}
    source |= {"train_scenes": 5, "test_scenes": 3}
    return {"title": name.capitalize(), "source": source, "templates": ["a {}"]}


def write_config(root: Path) -> None:
    for kind in ("methods", "variants", "backbones", "llms"):
        shutil.copytree(ROOT / "config" / kind, root / "config" / kind)
    plot = {"kind": "sweep", "setting": "gamma", "prefix": "gamma", "x_label": "x"}
    files = {
        "datasets/cats": dataset("cats", "animals", 0.4),
        "datasets/cars": dataset("cars", "objects", 0.6),
    }
    files["datasets/cars"]["methods"] = {"microclip": {"batch_size": 7}}
    for letter in "AB":
        files[f"tables/table{letter}"] = {
            "title": f"Table {letter}",
            "caption": "As declared.",
            "label": f"tab:{letter}",
            "rows": [
                {"method": "clip", "label": "CLIP <all>", "group": "Zero-shot"},
                {"method": "microclip", "label": "microCLIP"},
                {"method": "microclip", "variant": "paper-text", "label": "As the text says"},
                {"method": "later", "label": "Later"},
            ],
        }
        files[f"figures/figure{letter}"] = {
            "title": f"Figure {letter}",
            "caption": "Accuracy <over> gamma. More words.",
            "plot": {**plot, "values": [0.5]},
        }
    first, *_, last = files["tables/tableA"]["rows"]
    files["tables/tableA"]["published"] = "tableA"
    first["published"], last["published"] = "CLIP", "WCA"
    files["published/slips"] = {"slips": [SLIP]}
    runtime.write_text(root / "config" / "published" / "tableA.csv", PUBLISHED)
    for name, values in files.items():
        path = root / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values))
    later = {"title": "Later", "source": "not published", "seeded": False}
    (root / "config" / "methods" / "later.yaml").write_text(yaml.safe_dump(later))


def write_runs(declared: study.Study) -> None:
    """Write all scores and most records: clip takes 1 s, microclip 60 s more per seed."""
    lines = []
    for spec in declared.runs:
        is_trained = spec.method == "microclip"
        scores = {
            **asdict(spec),
            "top1_pct": 44.0 + spec.seed if is_trained else 40.0,
            "seconds": 60.0 * (1 + spec.seed) if is_trained else 1.0,
            "device": "cpu",
            "shared_recipe": SHARED_RECIPE,
        }
        lines.append(",".join(str(scores.get(column, "")) for column in COLUMNS))
        runtime.write_json(
            spec.folder / paths.RUN_RECORD,
            {
                "commit": "f" * 40,
                "dirty": spec.seed == 1,
                "platform": "Linux-1",
                "gpu": "Fast GPU" if spec.dataset == "cars" and is_trained else None,
                "cpus": 2,
                "python": "3.11.7",
                "packages": {"torch": "2.0"},
                "settings": declared.resolve(spec).as_dict(),
            },
        )
    text = "\n".join([",".join(COLUMNS), *lines, ""])
    runtime.write_text(Path(paths.STUDY_SCORES.format(study="toy")), text)
    first, second, *_ = declared.runs
    marks = {"uri": "sqlite:////x/mlflow.db", "digest": "d", "run_id": RUN_ID}
    runtime.write_json(first.folder / paths.RUN_MIRRORED, marks)
    runtime.write_json(second.folder / paths.RUN_MIRRORED, {**marks, "uri": "https://ml.example/"})
    runtime.write_text(first.folder / "gallery.html", "gallery")


def write_reports(plan: Plan) -> None:
    """Write one of the two tables, one of the two figures, and the ledger."""
    tables.write(reports.load_table("tableA"), plan)
    ledger.write(plan)
    figure = paths.FIGURE.format(study="toy", figure="figureA", format="{}")
    Path(figure.format("png")).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1500, 600), "navy").save(figure.format("png"), dpi=(300, 300))
    runtime.write_text(Path(figure.format("csv")), "dataset,gamma,value\ncats,0.5,44\ncats,1,43\n")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    write_config(tmp_path / "root")
    monkeypatch.setenv("MICROCLIP_ROOT", str(tmp_path / "root"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    declared = study.load(STUDY)
    write_runs(declared)
    found = declared.plan()
    write_reports(found)
    return found


class Words(HTMLParser):
    """The words that a reader sees, and the tags by name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._is_code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._is_code = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._is_code = False

    def handle_data(self, data: str) -> None:
        if not self._is_code and data.strip():
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def read(plan: Plan) -> Words:
    return Words(page.write(plan).read_text())


def test_the_page_shows_each_number_with_its_mark(plan: Plan) -> None:
    target = page.write(plan)
    assert target == Path("results/toy/index.html")
    text = target.read_text()
    assert "<u>40.00</u>" in text
    assert "<strong>44.50</strong> <small>± 0.71</small>" in text
    assert '<td class="right hole">—</td>' in text
    words = Words(text)
    assert "— Later: method later has no code in this release" in words.text
    assert (
        "As declared. Study toy; mean ± sample deviation, 2 seeds; a number alone is of one run."
        in words.text
    )


def test_rows_columns_and_groups_are_headings(plan: Plan) -> None:
    text = page.write(plan).read_text()
    assert '<th scope="rowgroup" colspan="5"><span>Zero-shot</span></th>' in text
    assert '<th scope="row">CLIP &lt;all&gt;</th>' in text
    assert '<th scope="col" class="right">Cars</th>' in text
    assert '<th scope="col" class="right">Supervision</th>' in text
    assert '<td class="right">unlabelled</td>' in text
    words = Words(text)
    assert all(t.get("scope") for t in words.of("th"))
    assert all(image.get("alt") for image in words.of("img"))
    ids = [attributes["id"] for _, attributes in words.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {a["aria-labelledby"] for _, a in words.tags if "aria-labelledby" in a}
    inside = {str(a["href"])[1:] for a in words.of("a") if str(a["href"]).startswith("#")}
    assert (named | inside) <= set(ids)


def test_a_missing_table_or_figure_is_noted_in_its_place(plan: Plan) -> None:
    words = read(plan)
    assert (
        "Table B As declared. Not made yet. results/toy/tables/tableB.md is missing" in words.text
    )
    assert "results/toy/figures/figureB.png is missing" in words.text
    Path("results/toy/ledger.csv").unlink()
    assert "results/toy/ledger.csv is missing" in read(plan).text


def test_existing_files_are_linked(plan: Plan) -> None:
    page_folder = page.write(plan).parent
    links = [str(a["href"]) for a in Words((page_folder / "index.html").read_text()).of("a")]
    files = [link for link in links if not link.startswith(("#", "http"))]
    assert {"tables/tableA.tex", "figures/figureA.png", "ledger.csv", "scores.csv"} <= set(files)
    assert not {"figures/figureA.pdf", "tables/all.tex", "tables/tableB.csv"} & set(files)
    assert all((page_folder / name).exists() for name in files)


def test_pictures_are_embedded_and_shown_at_their_printed_size(
    plan: Plan,
) -> None:
    [image] = read(plan).of("img")
    head, _, data = str(image["src"]).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == Path("results/toy/figures/figureA.png").read_bytes()
    assert (image["width"], image["height"]) == ("750", "300")  # 5 by 2 inches, 150 px an inch
    assert image["alt"] == "Figure A: Accuracy <over> gamma."


def test_a_large_picture_is_shrunk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 2400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", dpi=(300, 300))
    uri, size = page.embedded(tmp_path / "noise.png", limit_bytes=10**6)
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (2000, 750)
    assert size == (1200, 450)
    assert len(data) < (tmp_path / "noise.png").stat().st_size


def test_constant_columns_are_left_out_of_the_numbers(plan: Plan) -> None:
    text = page.write(plan).read_text()
    heads = re.search(r"Figure A, the numbers</span></caption>\s*<thead>(.*?)</thead>", text)
    assert heads is not None
    assert re.findall(r">([^<]+)</th>", heads[1]) == ["gamma", "value"]


def test_all_text_is_escaped(plan: Plan) -> None:
    text = page.write(plan).read_text()
    assert '<script>alert("of")' not in text
    assert text.count("<script>") == 1
    words = Words(text)
    assert 'A study <script>alert("of")</script> two & more' in words.text
    assert "A slip & its reason." in words.text


def test_nothing_is_requested_over_the_network(plan: Plan) -> None:
    words = read(plan)
    loaded = [*words.of("img"), *words.of("link"), *words.of("script"), *words.of("iframe")]
    sources = [str(value) for one in loaded for key in ("src", "href") if (value := one.get(key))]
    assert all(source.startswith("data:") for source in sources)
    [policy] = [m for m in words.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:;")


def test_the_same_results_give_the_same_bytes(plan: Plan) -> None:
    first = page.write(plan).read_bytes()
    assert page.write(Plan.from_dict(json.loads(json.dumps(plan.as_dict())))).read_bytes() == first


def test_the_ledger_is_shown_with_its_counts(plan: Plan) -> None:
    text = read(plan).text
    assert "Cells that match the paper 1 of 2" in text
    assert "Match 1 Differs 1 Cannot run 1" in text
    assert "tableA CLIP cars 55.00 40.00 1 -15.00 0.50 differs" in text


def test_a_ledger_without_cells_says_so(plan: Plan) -> None:
    without = replace(plan, tables={"tableB": plan.tables["tableB"]})
    assert "No table of this study has published numbers." in read(without).text


def test_runs_link_to_mlflow_their_folder_and_their_gallery(plan: Plan) -> None:
    links = [str(a["href"]) for a in read(plan).of("a")]
    clip = "../runs/cats/icon-clip/shipped/clip/default/seed-0"
    assert f"http://127.0.0.1:5000/#/runs/{RUN_ID}" in links
    assert f"https://ml.example/#/runs/{RUN_ID}" in links
    assert [link for link in links if link.endswith("gallery.html")] == [f"{clip}/gallery.html"]
    assert f"{clip}/" in links


def test_runs_show_their_best_epoch_beside_the_last_one(plan: Plan) -> None:
    file = Path(paths.STUDY_SCORES.format(study="toy"))
    head, first, second, *rest = file.read_text().splitlines()
    cells = dict(zip(head.split(","), second.split(","), strict=True))
    cells |= {"best_top1_pct": "57.75", "best_epoch": "3"}
    runtime.write_text(file, "\n".join([head, first, ",".join(cells.values()), *rest, ""]))
    text = page.write(plan).read_text()
    assert text.count('<td class="right">57.75</td><td class="right">3</td>') == 1
    assert "The best epoch is selected with test labels: its accuracy is no fair result." in text


def test_a_planned_run_without_a_score_is_listed_as_such(plan: Plan) -> None:
    path = Path("results/toy/scores.csv")
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    text = read(plan).text
    n = len(plan.runs)
    assert f"{n - 1} of {n} planned runs are complete." in text
    assert "not run yet" in text


def test_differences_from_the_methods_file_are_listed(plan: Plan) -> None:
    text = read(plan).text
    assert "In all runs of this study: epochs: 2 . On Cars: batch_size: 7 ." in text
    [changes] = re.findall(r"paper-text ((?:[a-z_]+: [a-z]+ )+)4 ", text)
    assert sorted(re.findall(r"[a-z_]+: [a-z]+", changes)) == [
        "fairness: paper",
        "ncut_threshold: mean",
        "prior: frozen",
        "pseudo_label_fusion: logits",
        "text_weighting: uniform",
        "weak_view: center",
    ]
    assert "default nothing 4" in text


def test_holes_show_their_reason(plan: Plan) -> None:
    assert "Later method later has no code in this release 2 Cats, Cars" in read(plan).text


def test_durations_are_added_up_by_method(plan: Plan) -> None:
    """Clip: two runs of 1 s. microCLIP: 2 datasets, 2 variants, seeds of 60 and 120 s."""
    text = read(plan).text
    assert "CLIP 2 2.0 s 1.0 s 1.0 s" in text
    assert "microCLIP 8 12 min 00 s 1 min 30 s 2 min 00 s" in text
    assert "All runs 10 12 min 02 s 1 min 12 s 2 min 00 s" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.062, "0.06 s"),
        (4.24, "4.2 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7980, "2 h 13 min"),
    ],
)
def test_a_duration_is_written_for_people(seconds: float, text: str) -> None:
    assert runtime.duration(seconds, decimals=True) == text


def test_machines_and_versions_are_those_of_the_runs(plan: Plan) -> None:
    text = read(plan).text
    assert "6 runs on CPU Device CPU, 2 CPUs System Linux-1, Python 3.11.7" in text
    assert "4 runs on Fast GPU" in text
    assert "ffffffffffff , ffffffffffff with uncommitted changes" in text
    assert "torch 2.0" in text


def test_images_are_counted_in_the_manifest_or_as_declared(plan: Plan) -> None:
    manifest = "split,file,label\ntrain,a,0\ntrain,b,1\ntest,c,1\n"
    runtime.write_text(Path(paths.MANIFEST.format(dataset="cats")), manifest)
    text = read(plan).text
    assert "Cats cats 2 2 1 drawings animals, difficulty 0.4" in text
    assert "Cars cars 4 20 12 drawings objects, difficulty 0.6" in text
    assert "Common source: icons, size 96 px, seed 0." in text


def test_without_scores_the_error_is_one_line(plan: Plan) -> None:
    Path("results/toy/scores.csv").unlink()
    with pytest.raises(runtime.MissingDataError, match="results/toy/scores.csv"):
        page.write(plan)


def test_a_table_that_is_not_declared_is_refused(plan: Plan) -> None:
    with pytest.raises(settings.SettingsError, match="unknown table 'table9'"):
        page.write(replace(plan, tables={"table9": plan.tables["tableA"]}))


@pytest.fixture
def url(plan: Plan) -> str:
    return page.write(plan).resolve().as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_browser_opens_it_from_disk(
    browser: Browser, url: str, size: tuple[int, int], scheme: str
) -> None:
    with browser.visit(url, size, color_scheme=scheme) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert seen.errors == []
        assert seen.outside() == []
        assert seen.overflow_px() == 0
        assert seen.page.locator("img").evaluate("image => image.naturalWidth") == 1500
        nav = seen.page.locator("nav.contents")
        position = nav.evaluate("nav => getComputedStyle(nav).position")
        assert position == ("sticky" if size == DESKTOP else "static")


def column(page: Any, heading: str) -> list[str]:
    script = """heading => {
        const table = document.querySelector("table.sortable");
        const at = [...table.tHead.rows[0].cells].findIndex(c => c.textContent === heading);
        return [...table.tBodies[0].rows].map(row => row.cells[at].textContent);
    }"""
    found: list[str] = page.evaluate(script, heading)
    return found


def test_a_heading_sorts_the_runs_both_ways(browser: Browser, url: str) -> None:
    with browser.visit(url) as seen:
        before = column(seen.page, "Seconds")
        button = seen.page.get_by_role("button", name="Seconds")
        button.focus()
        seen.page.keyboard.press("Enter")
        assert column(seen.page, "Seconds") == sorted(before, key=float)
        head = seen.page.locator("table.sortable th", has_text="Seconds")
        assert head.get_attribute("aria-sort") == "ascending"
        button.click()
        assert column(seen.page, "Seconds") == sorted(before, key=float, reverse=True)
        assert head.get_attribute("aria-sort") == "descending"
        seen.page.get_by_role("button", name="Method").click()
        assert column(seen.page, "Method") == ["CLIP"] * 2 + ["microCLIP"] * 8
        assert head.get_attribute("aria-sort") is None


def test_everything_is_shown_without_scripts(browser: Browser, url: str) -> None:
    with browser.visit(url, PHONE, java_script_enabled=False) as seen:
        assert seen.page.locator("table.sortable tbody tr").count() == 10
        assert seen.page.get_by_role("button").count() == 0
        assert not seen.page.get_by_text("Click a heading to sort.").is_visible()


def test_a_wide_picture_stays_readable_on_a_phone(browser: Browser, plan: Plan) -> None:
    png = Path("results/toy/figures/figureA.png")
    Image.new("RGB", (2000, 600), "navy").save(png, dpi=(300, 300))
    with browser.visit(page.write(plan).resolve().as_uri(), PHONE) as seen:
        assert seen.page.locator("img").evaluate("image => image.clientWidth") == 640
        assert seen.overflow_px() == 0
    with browser.visit(page.write(plan).resolve().as_uri(), DESKTOP) as seen:
        width = "image => [image.clientWidth, image.parentElement.clientWidth]"
        image, box = seen.page.locator("img").evaluate(width)
        assert image <= box


def test_wide_tables_scroll_in_their_own_box_by_keyboard(browser: Browser, url: str) -> None:
    with browser.visit(url, PHONE) as seen:
        box = seen.page.locator(".scroll", has=seen.page.locator("table.sortable"))
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
        box.focus()
        seen.page.keyboard.press("ArrowRight")
        seen.page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())
