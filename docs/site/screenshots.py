"""Take the pictures of docs/mlflow.md: real pages of MLflow, by chromium without a window.

make ui                                              # in another terminal
python docs/site/screenshots.py --study icons        # writes docs/pictures/mlflow-*.png
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from mlflow import MlflowClient
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).resolve().parents[1] / "pictures"
SIZE = {"width": 1280, "height": 800}
WORKFLOW = "workflowType=machine_learning"


def pages(address: str, study: str) -> dict[str, tuple[str, str]]:
    """The addresses to take, by name, each with a text that shows that the page is complete."""
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name(study).experiment_id
    where = f"{address}/#/experiments/{experiment}"
    found = client.search_runs(
        [experiment], "tags.method = 'microclip' and tags.seed = '0' and metrics.top1_pct > 0"
    )
    run = next(run for run in found if run.data.tags["variant"] == "default")
    others = [one for one in found if one.data.tags["variant"] != "default"]
    pair = ",".join(f'"{one.info.run_id}"' for one in (run, *others[:1]))
    compared = f'runs=[{pair}]&experiments=["{experiment}"]&{WORKFLOW}'
    name = run.info.run_name
    one = f"{where}/runs/{run.info.run_id}"
    return {
        "runs": (f"{where}/runs?{WORKFLOW}", name[:16]),
        "run": (f"{one}?{WORKFLOW}", name),
        "metrics": (f"{one}/model-metrics?{WORKFLOW}", name),
        "system": (f"{one}/system-metrics?{WORKFLOW}", name),
        "compare": (f"{address}/#/compare-runs?{compared}", name),
    }


def main() -> None:
    """Take all pictures."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--address", default="http://127.0.0.1:5000")
    asked.add_argument("--study", default="icons")
    asked.add_argument("--only", default="", help="name of one picture, for example compare")
    given = asked.parse_args()
    PICTURES.mkdir(exist_ok=True)
    program = os.environ.get("MICROCLIP_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        wanted = pages(given.address, given.study)
        for name in [given.only] if given.only else list(wanted):
            address, text = wanted[name]
            page = chromium.new_page(viewport=SIZE)
            page.goto(address)
            page.get_by_text(text).first.wait_for(timeout=120_000)
            close = page.get_by_role("button", name="Close")  # of the assistant, beside the page
            if close.count():
                close.first.dispatch_event("click")
            page.wait_for_timeout(10_000)  # plots are drawn after their data are there
            page.screenshot(
                path=PICTURES / f"mlflow-{name}.png", animations="disabled", timeout=120_000
            )
            page.close()


if __name__ == "__main__":
    main()
