"""The sentences of one's own classes: filled templates, a file, or what a language model wrote."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microclip.data.vocabulary import Vocabulary
from microclip.model.embeddings import TextClassifiers
from microclip.safe_files import refuse_pickle
from microclip.settings import SettingsError
from microclip.text import descriptions, examination
from microclip.text.doctor import Options
from microclip.text.findings import Report
from microclip.text.prompts import fill
from microclip.text.similar_classes import Pair, most_similar, pairs_above

BLOCKING = ("missing", "empty", "key-twice", "stub", "url", "refused")
STUB_CHARACTERS = 8  # sentences of one's own may be short: "It is red."; a language model's are not
_TWINS = 0.999  # cosine from which two classes cannot be told apart


@dataclass(frozen=True)
class Texts:
    """Sentences by class, in label order, where they are from, and what is odd about them."""

    sentences: dict[str, tuple[str, ...]]
    where: str
    findings: Report | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_sentences(self) -> int:
        """Return the number of sentences."""
        return sum(map(len, self.sentences.values()))


def from_templates(vocabulary: Vocabulary, templates: Sequence[str]) -> Texts:
    """Return filled templates. Raises ValueError: a template without exactly one {}."""
    prompts = fill(templates, vocabulary.class_names)
    sentences = dict(zip(vocabulary.class_names, map(tuple, prompts), strict=True))
    return Texts(sentences, "templates")


def from_file(path: Path, vocabulary: Vocabulary) -> Texts:
    """Return the sentences of a descriptions file, looked at by the doctor.

    Raises:
        MissingDataError: no such file.
        SettingsError: no descriptions, or with defects that must not be encoded, by their counts.
    """
    refuse_pickle(path, "JSON, class name to sentences")
    raw = examination.read_raw(path)
    options = Options(min_characters=STUB_CHARACTERS)
    report = examination.check_file(path, vocabulary.class_names, options=options)
    counts = report.counts()
    wrong = {kind: counts[kind] for kind in BLOCKING if counts[kind]}
    if wrong:
        raise SettingsError(_complaint(report, wrong, path))
    unused = counts["unknown"]
    notes: tuple[str, ...] = ()
    if unused:
        notes = (f"{unused} descriptions of other classes are not used",)
    odd = {kind: n for kind, n in counts.items() if n and kind not in ("unknown", "unnamed")}
    if odd:
        listed = ", ".join(f"{n} x {kind}" for kind, n in odd.items())
        notes += (f"the doctor notes {listed}: `microclip describe --check {path}` shows them",)
    given = {name: own for name, own in raw.sentences.items() if own}
    sentences = descriptions.select(
        descriptions.checked(given, str(path)), vocabulary, unused_level=logging.INFO
    )
    return Texts(sentences, str(path), report, notes)


def _complaint(report: Report, wrong: dict[str, int], path: Path) -> str:
    shown = []
    for kind, n in wrong.items():
        first = report.of_kind(kind)[0]
        example = first.class_name if kind in ("missing", "empty", "key-twice") else first.text
        shown.append(f"{kind} {n} (first {example.strip()[:40]!r})")
    remedies = []
    if {"missing", "empty"} & set(wrong):
        remedies.append("write the sentences that lack")
    if set(wrong) - {"missing", "empty"}:
        remedies.append(
            f"`microclip describe --check {path}` shows the rest, --fix writes a mended copy"
        )
    return (
        f"descriptions {path} of {report.n_classes} classes must not be encoded: "
        f"{', '.join(shown)}; {'; '.join(remedies)}"
    )


def closest(class_names: Sequence[str], vectors: TextClassifiers) -> tuple[Pair, list[Pair]]:
    """Return the two classes whose sentences are most alike, and all that cannot be told apart."""
    cosines = (vectors.uniform @ vectors.uniform.T).cpu().numpy()
    return most_similar(cosines, class_names), pairs_above(cosines, class_names, _TWINS)
