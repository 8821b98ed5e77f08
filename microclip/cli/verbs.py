"""All verbs, each with its module and one line of help: what `--help` shows without importing any.

The line is the first of the verb's docstring; a test compares them. The order is that of the help.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """Where a verb is, in `microclip.cli`, and what it does."""

    module: str
    about: str
    is_hidden: bool = False


_ABOUT = {  # by module
    "describe": {
        "describe": "Describe the classes of a dataset, or of your own list, in sentences.",
    },
    "init": {
        "init": "Write a folder for a study of your own: Snakefile, rules, profiles, and config to "
        "edit.",
    },
    "own_images": {
        "adapt": "Adapt to a folder of unlabelled images; repeat the command to continue an "
        "interrupted one.",
        "predict": "Classify images with an adapted classifier; prints CSV on standard output.",
        "export": "Export an adapted classifier as an ONNX file or in MLflow's model format.",
    },
    "runs": {
        "status": "List the runs of a study as done, running, failed or pending; exit code 1 if "
        "one failed.",
        "retry": "Run failed runs again through Snakemake, and nothing else of the study.",
        "explain": "Say why a run would or would not run again: settings, code, inputs, "
        "Snakemake's reasons.",
    },
    "study": {
        "plan": "Write a study's plan and print what it takes: time, downloads, disk, memory.",
        "plan-overview": "Print the shipped studies as a Markdown table: GPU hours by card, disk, "
        "download, memory.",
        "mirror": "Show runs in MLflow while they write their journals, until standard input is "
        "closed.",
        "fetch-dataset": "Put a dataset's images and manifest into results/data.",
        "store-images": "Decode a dataset's images once, and write its split passport.",
        "passport": "Print a dataset's split passport: images, classes, counts, overlap, warnings.",
        "embed-descriptions": "Encode class descriptions into class vectors, W_LLM.",
        "encode-images": "Embed a dataset's images with the frozen backbone.",
        "check-zero-shot": "Compare CLIP's accuracy on a dataset with the paper's; exit code 6 if "
        "it is far off.",
        "run": "Adapt a method to a dataset and score it.",
        "collect-scores": "Collect a study's scores in one file; stale scores are refused.",
        "tabulate": "Build a table from scores.csv as CSV, Markdown and LaTeX.",
        "typeset": "Write one LaTeX document with all tables of a study.",
        "plot": "Draw a figure as PDF and PNG, and write the plotted numbers as CSV.",
        "ledger": "Write the ledger: each number of the paper beside ours.",
        "compare": "Compare two methods image by image on one test set: difference, interval, p, "
        "classes.",
        "report": "Write the study's page: one HTML file that opens from disk.",
        "gallery": "Write a page of a run's test images: predictions, confidence, saliency, "
        "attention.",
        "mirror-study": "Show a study's tables, figures and sweeps in MLflow; in a workflow, once "
        "all else is done.",
    },
    "project": {
        "show": "Print a study's tables in numerical order.",
        "verify": "Compare a study with the paper; exit code 6 if a number is outside its "
        "tolerance.",
        "bundle": "Pack settings, logs, versions and hashes for a report; no images, weights or "
        "keys.",
        "unlock": "Clean up after an interrupted workflow in this folder.",
        "export-schema": "Write JSON schemas of all config files to config/schema.",
        "sync": "Copy finished runs that MLflow lacks, then update its studies and sweeps.",
        "ui": "Serve MLflow's pages on this machine only (127.0.0.1).",
    },
    "machine": {
        "doctor": "List what is installed on this machine, and what is missing.",
        "fetch-weights": "Download a backbone's weights, check their hashes and load them once.",
    },
    "data": {
        "data": "Public datasets: get, verify, list.",
    },
}
_HIDDEN = {"mirror"}  # a workflow starts it

VERBS = {
    name: Verb(module, about, name in _HIDDEN)
    for module, verbs in _ABOUT.items()
    for name, about in verbs.items()
}
