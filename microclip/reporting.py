"""The verbs that turn a study's scores into what people read; each is a rule of report.smk.

Heavy imports stand inside the verbs, so that light ones are quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from microclip import paths, runtime
from microclip.cli import StudyOption, app, say
from microclip.runs import Plan
from microclip.settings import reports


@app.command()
def tabulate(
    table: Annotated[str, typer.Argument(help="name of a file in config/tables")],
    study: StudyOption,
) -> None:
    """Build a table from scores.csv as CSV, Markdown and LaTeX."""
    from microclip.measure import tables

    say(f"wrote {tables.write(reports.load_table(table), Plan.read(study))}.csv, .md, .tex")


@app.command()
def typeset(study: StudyOption) -> None:
    """Gather all tables of a study in one LaTeX document."""
    from microclip.measure import typesetting

    say(f"wrote {typesetting.write(Plan.read(study))}")


@app.command()
def plot(
    figure: Annotated[str, typer.Argument(help="name of a file in config/figures")],
    study: StudyOption,
) -> None:
    """Draw a figure as PDF and PNG, and write the plotted numbers as CSV."""
    from microclip.measure import figures

    runtime.use_all_cpus()
    say(f"wrote {figures.write(reports.load_figure(figure), Plan.read(study))}.pdf, .png, .csv")


@app.command()
def compare(study: StudyOption) -> None:
    """Write the ledger: each published cell beside ours."""
    from microclip.measure import ledger

    say(f"wrote {ledger.write(Plan.read(study))}.csv, .md")


@app.command()
def report(study: StudyOption) -> None:
    """Write the study's page: one file that works from disk."""
    from microclip.measure import page

    say(f"wrote {page.write(Plan.read(study))}")


@app.command()
def gallery(
    run: Annotated[Path, typer.Argument(help="a complete run: its folder, or its scores.json")],
) -> None:
    """Draw a run's test images: right and wrong, confidence, saliency, attention, top classes."""
    from microclip.measure import gallery as pages

    runtime.use_all_cpus()
    say(f"wrote {pages.write(run.parent if run.is_file() else run)}")


@app.command()
def mirror_study(study: StudyOption) -> None:
    """Show a study's tables, figures and sweeps in MLflow."""
    from microclip.tracking import study as study_tracking

    study_tracking.mirror(Plan.read(study))
    say(f"wrote {paths.STUDY_MIRRORED.format(study=study)}")
