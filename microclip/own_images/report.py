"""`README.md` of an adapted folder: the model card."""

from __future__ import annotations

from collections.abc import Iterator

from microclip import __version__, runtime
from microclip.own_images.results import Results

_SHOWN = 20  # classes named in the table

FILES = (
    (
        "predictions.csv",
        "every image: class, confidence, runner-up, zero-shot's class",
    ),
    ("label_these_first.csv", "the most uncertain images, spread over the classes"),
    ("gallery.html", "images with predictions and maps; opens without a network"),
    ("adapted.safetensors", "what was trained: image tower's LayerNorms, class vectors, pooling"),
    ("class_vectors.safetensors", "the texts as vectors"),
    ("adapted.json", "what the classifier is, for `microclip.load` and `microclip predict`"),
    ("settings.yaml", "all settings, with the digest that names them"),
    ("history.csv", "a row an epoch: losses and the signs that the verdict rests on"),
    ("journal.jsonl", "what happened when"),
    ("bad_files.csv", "files that were left out, and why; absent if there were none"),
    ("scores.json", "accuracy on labelled images; absent without labels"),
)


def write(results: Results) -> str:
    """Return the model card as Markdown."""
    parts = (
        _head(results),
        _verdict(results),
        _made_from(results),
        _classes(results),
        _use(),
        _limits(results),
        _settings(results),
    )
    return "\n".join(line for part in parts for line in part)


def _head(results: Results) -> Iterator[str]:
    record = results.outcome.record
    yield f"# A classifier for {_plain(results.title)}"
    yield ""
    kept = results.outcome.verdict.keeps_zero_shot
    what = "Zero-shot" if kept else f"Method `{record.method}`"
    yield (
        f"{what} on the backbone `{record.backbone}`, for {len(record.class_names)} classes, "
        f"adapted to {len(results.files)} images without labels by microclip {__version__}."
    )
    yield ""


def _verdict(results: Results) -> Iterator[str]:
    verdict = results.outcome.verdict
    yield f"**Verdict, told without labels: {verdict.kind}.** {'; '.join(verdict.reasons)}."
    if verdict.keeps_zero_shot:
        yield ""
        yield (
            "The adapted network was put aside: what is saved here is the zero-shot classifier, "
            "which compares images with the texts and was trained on none of these images."
        )
    yield ""
    if verdict.numbers:
        yield "| sign | at the end of the training |"
        yield "|---|---|"
        yield from (f"| {name} | {value:.4g} |" for name, value in verdict.numbers.items())
        yield ""
    if (scores := results.scores()) is not None:
        yield (
            f"On {scores['n_labelled']} labelled images, which the training saw without their "
            f"labels: **{scores['top1_pct']:.2f} %** right, zero-shot "
            f"{scores['top1_zero_shot_pct']:.2f} %."
        )
        yield ""


def _made_from(results: Results) -> Iterator[str]:
    materials, texts = results.materials, results.texts
    survey = materials.survey
    yield "## Made from"
    yield ""
    yield (
        f"- {len(results.files)} images ({survey.told() or 'kinds not counted'}); SHA-256 of their "
        f"names and bytes `{materials.images_sha256}`; {len(survey.bad)} bad files left out"
    )
    yield (
        f"- {texts.n_sentences} sentences for {len(results.class_names)} classes, from "
        f"{_plain(texts.where)}; {results.n_cut} were longer than the text tower reads"
    )
    first, second, cosine = results.closest
    yield f"- most alike by their texts: {_plain(first)} and {_plain(second)} (cosine {cosine:.3f})"
    yield f"- class names from {_plain(materials.vocabulary.where)}"
    yield ""


def _classes(results: Results) -> Iterator[str]:
    counts = results.per_class()
    yield "## What the images are taken for"
    yield ""
    yield f"{len(counts)} of {len(results.class_names)} classes are predicted for some image."
    yield ""
    yield "| class | images |"
    yield "|---|---|"
    yield from (f"| {_plain(name)} | {n} |" for name, n in counts[:_SHOWN])
    if len(counts) > _SHOWN:
        yield f"| {len(counts) - _SHOWN} more | {sum(n for _, n in counts[_SHOWN:])} |"
    yield ""


def _use() -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "```"
    yield "microclip predict THIS_FOLDER image.jpg folder/"
    yield "```"
    yield ""
    yield "```python"
    yield "import microclip"
    yield 'microclip.load("THIS_FOLDER").predict(["image.jpg"])'
    yield "```"
    yield ""
    yield "| file | what it holds |"
    yield "|---|---|"
    yield from (f"| `{name}` | {what} |" for name, what in FILES)
    yield ""


def _limits(results: Results) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield (
        "- Every image is given one of the classes, also one that shows none of them; a "
        "confidence is high where classes are told apart, not where the answer is known to be "
        "right."
    )
    yield (
        "- The verdict is a guess from pseudo-labels: it notices collapse, not errors that all "
        "views of an image share. Label some images of `label_these_first.csv` to measure."
    )
    if results.outcome.record.backbone == "icon-clip":
        yield (
            "- The backbone icon-clip was made for drawings of icons and is small; for photographs "
            "use `--backbone vit-b-32`."
        )
    yield "- The backbone's own weights are not in this folder; they must be the same when loaded."
    yield ""


def _settings(results: Results) -> Iterator[str]:
    record = runtime.record()
    yield "## Settings and versions"
    yield ""
    yield "| setting | value |"
    yield "|---|---|"
    rows = {
        "asked method": results.settings.spec.method,
        "seed": results.settings.spec.seed,
        "digest": results.settings.digest(),
        "backbone key": results.outcome.record.backbone_key,
        **results.settings.method,
    }
    yield from (f"| {name} | {value} |" for name, value in rows.items())
    versions = {"microclip": __version__, "commit": record["commit"], "python": record["python"]}
    versions |= {name: version for name, version in record["packages"].items() if version}
    yield from (f"| {name} | {value} |" for name, value in versions.items())
    yield ""


def _plain(text: str) -> str:
    """Return a name as it can stand in Markdown, within a table too."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text
