"""A study in MLflow: a run for the study, and a parent run for each of its sweeps.

They are made from files and from the runs that MLflow holds (`study_cards`). A card that is there
unchanged is left alone; a changed one is written anew and takes the old one's place and children,
so that doing it twice doubles nothing. With `tracking`, the only module that imports mlflow.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from microclip import paths, runtime, study_cards
from microclip.run_facts import DESCRIPTION, PARENT, RUN_NAME
from microclip.runs import Plan, RunSpec
from microclip.study_cards import Card, Mirrored
from microclip.tracking import run as tracking
from microclip.tracking_server import failure, shown_uri

log = logging.getLogger(__name__)

_CONTENT = "content"  # tag: the card's digest
_KINDS = ("study", "sweep")


def mirror(plan: Plan) -> bool:
    """Show a study in MLflow and write its record; return whether the mirror is whole.

    The record names MLflow's run of the study and of each sweep, and what is missing. With MLflow
    out of reach all of it is missing, which is no error: `microclip sync` adds it later.

    Raises: MissingDataError if the study has no scores.
    """
    scores = study_cards.read_scores(plan)
    target = Path(paths.STUDY_MIRRORED.format(study=plan.study))
    record: dict[str, Any] = {"uri": shown_uri(), "study": None, "sweeps": {}, "missing": []}
    try:
        shown = _Shown(plan, scores)
        record |= {"study": shown.write_all(), "sweeps": shown.sweeps, "missing": shown.missing}
    except Exception as error:  # noqa: BLE001  whatever the store raises, the files are there
        log.warning("MLflow at %s: %s; `microclip sync` shows the study later", *failure(error))
        record["missing"] = _names(plan)
    if not target.is_file() or json.loads(target.read_text(encoding="utf-8")) != record:
        runtime.write_json(target, record)
    return not record["missing"]


def sync(results: Path) -> tuple[int, int]:
    """Bring the studies that were shown, or should have been, up to date.

    Returns: how many records changed, and how many mirrors are still not whole.
    """
    changed = failed = 0
    for record in sorted(results.glob(f"*/{Path(paths.STUDY_MIRRORED).name}")):
        plan = record.with_name(Path(paths.STUDY_PLAN).name)
        if not plan.is_file() or not record.with_name(Path(paths.STUDY_SCORES).name).is_file():
            continue
        before = record.read_bytes()
        failed += not mirror(Plan.from_file(plan))
        changed += record.read_bytes() != before
    return changed, failed


def _names(plan: Plan) -> list[str]:
    return [f"study/{plan.study}", *(sweep.name for sweep in study_cards.sweeps(plan))]


class _Shown:
    """What MLflow shows of a study, brought up to date."""

    def __init__(self, plan: Plan, scores: dict[str, dict[str, str]]) -> None:
        """Look up which runs of the study, and which cards, are there."""
        self._plan = plan
        self._scores = scores
        self._mlflow = tracking.connect()
        self._experiment = tracking.experiment(self._mlflow, plan.study)
        there = tracking.complete_runs(self._mlflow)
        self._runs: dict[str, Any] = {}
        for name, row in scores.items():
            folder = RunSpec.of(row).folder
            if run := tracking.held(folder, row["digest"], there):
                self._runs[name] = run
        self.missing = [name for name in scores if name not in self._runs]
        if self.missing:
            lacks = f"{len(self.missing)} of {len(scores)} runs"
            log.warning("MLflow at %s lacks %s; `microclip sync` adds them", shown_uri(), lacks)
        self._cards: list[Any] = []
        self._others: list[Any] = []
        for run in tracking.all_runs(self._mlflow, [self._experiment]):
            is_card = run.data.tags.get("kind") in _KINDS
            (self._cards if is_card else self._others).append(run)
        self.sweeps: dict[str, str] = {}

    def write_all(self) -> str:
        """Write the sweeps, place their runs below them, write the study; return its id."""
        known = Mirrored(
            {name: run.info.run_id for name, run in self._runs.items()},
            {name: run.info.experiment_id for name, run in self._runs.items()},
        )
        planned = study_cards.sweeps(self._plan)
        for sweep in planned:
            self.sweeps[sweep.name] = self._put(study_cards.sweep_card(sweep, self._scores, known))
        self._place(study_cards.parents(planned))
        found = replace(
            known,
            ids={**known.ids, **self.sweeps},
            homes={**known.homes, **dict.fromkeys(self.sweeps, self._experiment)},
        )
        study = self._put(study_cards.study_card(self._plan, self._scores, found))
        self._introduce(study)
        kept = {study, *self.sweeps.values()}
        for run in self._cards:
            if run.info.run_id not in kept:
                self._mlflow.delete_run(run.info.run_id)
        return study

    def _introduce(self, study: str) -> None:
        """Lead from the experiment's page to the study's run, unless people wrote there."""
        link = study_cards.address(self._experiment, study)
        text = f"Tables, figures and ledger: [study/{self._plan.study}]({link})"
        now = self._mlflow.get_experiment(self._experiment).tags.get(DESCRIPTION, "")
        if now != text and (not now or f"[study/{self._plan.study}]" in now):
            self._mlflow.set_experiment_tag(self._experiment, DESCRIPTION, text)

    def _put(self, card: Card) -> str:
        """Return the id of the run that shows a card, written if there is none."""
        digest = card.digest()
        for run in self._cards:
            tags = run.data.tags
            is_whole = tags.get("complete") == "true" and tags.get(_CONTENT) == digest
            if is_whole and run.info.run_name == card.name:
                return str(run.info.run_id)
        return self._write(card, digest)

    def _write(self, card: Card, digest: str) -> str:
        from mlflow.entities import Metric, Param

        tags = {RUN_NAME: card.name, "kind": card.kind, _CONTENT: digest, **card.tags}
        run_id = str(self._mlflow.create_run(self._experiment, tags=tags).info.run_id)
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value, step in card.metrics]
        params = [Param(key, value) for key, value in card.params.items()]
        self._mlflow.log_batch(run_id, params=params)
        tracking.log_metrics(self._mlflow, run_id, metrics)
        self._mlflow.set_tag(run_id, DESCRIPTION, card.note.replace("{run}", run_id))
        for path, folder in card.files:
            self._mlflow.log_artifact(run_id, str(path), folder or None)
        self._check(run_id, card)
        self._mlflow.set_tag(run_id, "complete", "true")
        self._mlflow.set_terminated(run_id, "FINISHED")
        return run_id

    def _check(self, run_id: str, card: Card) -> None:
        """Raise OSError if a file did not arrive."""
        wanted = {str(Path(folder, path.name)) for path, folder in card.files}
        there: set[str] = set()
        for folder in {folder for _, folder in card.files}:
            there |= {item.path for item in self._mlflow.list_artifacts(run_id, folder or None)}
        if lost := wanted - there:
            raise OSError(f"artifacts {', '.join(sorted(lost))} did not arrive")

    def _place(self, above: Mapping[str, str]) -> None:
        """Put runs below their sweeps, and take them from sweeps that they no longer belong to.

        A run that another study has made stays in that study's experiment, without a parent.
        """
        cards = {run.info.run_id for run in self._cards}
        wanted = {
            self._runs[name].info.run_id: self.sweeps[sweep]
            for name, sweep in above.items()
            if name in self._runs
        }
        for run in self._others:
            run_id, now = run.info.run_id, run.data.tags.get(PARENT)
            if wanted.get(run_id, now) != now:
                self._mlflow.set_tag(run_id, PARENT, wanted[run_id])
            elif run_id not in wanted and now in cards:
                self._mlflow.delete_tag(run_id, PARENT)
