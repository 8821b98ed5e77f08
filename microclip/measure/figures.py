"""Every figure of a study: what draws it, and where it is saved."""

from __future__ import annotations

from pathlib import Path

from microclip import paths
from microclip.measure import drawing
from microclip.measure.curve_numbers import Results
from microclip.measure.drawing import Drawn
from microclip.runs import Plan
from microclip.settings import SettingsError, reports


def write(figure: reports.FigureSettings, plan: Plan) -> Path:
    """Draw a figure of a planned study and save it; return its path without suffix.

    Writes `<path>.png`, `<path>.pdf` and the plotted numbers, `<path>.csv`.

    Raises:
        SettingsError: the study does not list the figure.
        MissingDataError: a file that the figure is drawn from is not there.
    """
    file = paths.FIGURE.format(study=plan.study, figure=figure.name, format="png")
    stem = Path(file).with_suffix("")
    with drawing.house_style():
        drawing.save(draw(figure, plan), stem)
    return stem


def draw(figure: reports.FigureSettings, plan: Plan) -> Drawn:
    """Return a figure of a planned study. Raises SettingsError if the study does not list it.

    Imports stand inside, so that curves need no torch.
    """
    listed = plan.figures
    if figure.name not in listed:
        raise SettingsError(
            f"study {plan.study} lists no figure {figure.name!r}; "
            f"listed: {', '.join(listed) or 'none'}"
        )
    selection = listed[figure.name]
    match figure.plot:
        case reports.SweepPlot():
            from microclip.measure import curves

            return curves.draw_sweep(figure.name, figure.plot, selection, Results.of(plan))
        case reports.HistoryPlot():
            from microclip.measure import curves

            return curves.draw_history(figure.plot, selection, Results.of(plan))
        case reports.MapsPlot():
            from microclip.measure import attention_figures

            return attention_figures.draw_maps(figure.plot, selection)
        case reports.MasksPlot():
            from microclip.measure import mask_figures

            return mask_figures.draw_masks(figure.plot, selection)
        case reports.FailuresPlot():
            from microclip.measure import failure_figures

            return failure_figures.draw_failures(figure.plot, selection)
