"""A study's measurements as curves read them; test_curves.py tests each curve's numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from microclip.measure.curves import Results
from microclip.runtime import MissingDataError
from microclip.study import Hole, Plan, RunSpec

RUN = RunSpec("icons-food-small", "icon-clip", "shipped", "microclip")


def test_results_match_the_files_they_are_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hole = Hole(replace(RUN, variant="NA"), "no code")
    plan = Plan("s", "", (), (hole,), {}, {})
    with pytest.raises(MissingDataError, match=r"results/s/scores\.csv .*snakemake"):
        Results.of(plan)
    (tmp_path / "results" / "s").mkdir(parents=True)
    (tmp_path / "results" / "s" / "scores.csv").write_text(
        "dataset,backbone,descriptions,method,variant,seed,top1_pct,seconds,device\n"
        "1,b,d,m,default,3,43.7500,,cpu\n"
    )
    results = Results.of(plan)
    spec = RunSpec("1", "b", "d", "m", seed=3)
    assert results.score(spec, "top1_pct") == 43.75
    assert results.device(spec) == "cpu"
    with pytest.raises(MissingDataError, match=r"scores\.csv has no seconds"):
        results.score(spec, "seconds")
    with pytest.raises(MissingDataError, match="no code"):
        results.score(replace(RUN, variant="NA"), "top1_pct")
