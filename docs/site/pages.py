"""Pages of the site that no one writes by hand, and links that lead out of `docs/`.

MkDocs calls the functions `on_*` (mkdocs.yml names this file). The command line's page comes from
its parsers, the gallery from `results/reference`, notebooks from their committed cells and outputs;
a few files outside `docs/` become pages, so that links work in the repository and on the site.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import pkgutil
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import microclip

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {  # file of the repository -> page of the site
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
}
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
_ITEM = re.compile(r"^(?:[-*] |\d+\. )")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages and pictures that are made here."""
    made = {
        "cli.md": command_line(),
        "api.md": python_pages(),
        "gallery.md": gallery(),
        **{page: (ROOT / file).read_text(encoding="utf-8") for file, page in OUTSIDE.items()},
    }
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text, pictures = notebook(path)
        made[f"notebooks/{path.stem}.md"] = text
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for path in [*ROOT.glob("results/reference/*/figures/*.png"), *ROOT.glob("benchmarks/*.png")]:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(text: str, page: Page, **_: Any) -> str:
    """Make links relative to the site, and lists as GitHub shows them."""
    source = page.file.src_uri
    origin = next((file for file, made in OUTSIDE.items() if made == source), f"docs/{source}")

    def moved(found: re.Match[str]) -> str:
        return (
            found[0] if "://" in found[0] else _moved(found[1], origin, source) + (found[2] or "")
        )

    # Code blocks, and the text between them, in order.
    parts = re.split(r"(^```.*?^```$\n?)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(p if p.startswith("```") else _spaced(_LINK.sub(moved, p)) for p in parts)


def _moved(target: str, origin: str, source: str) -> str:
    """Where a link in the file `origin` leads from the page `source` of the site."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    path = "docs/index.md" if path == "README.md" else path.replace(".ipynb", ".md")
    site = OUTSIDE.get(path) or path.removeprefix("docs/")
    return posixpath.relpath(site, posixpath.dirname(source) or ".")


def _spaced(text: str) -> str:
    """Put an empty line before lists: Python's Markdown wants one, GitHub's does not."""
    lines: list[str] = []
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        follows_text = before and not before.startswith((" ", "|", "#")) and not _ITEM.match(before)
        if _ITEM.match(line) and follows_text:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def command_line() -> str:
    """The page of all verbs, their arguments and options, from the parsers that read them."""
    from microclip.cli.tree import Tree

    root = Tree()
    lines = ["# Command line", "", str(root.help), ""]
    lines += ["`microclip --help` and `microclip VERB --help` print the same.", ""]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    fails = readme.split("## If something fails")[1].split("## ")[0].replace("](docs/", "](")
    lines += [f"## If something fails{fails}", ""]
    for words, command in verbs(root):
        lines += [
            f"## microclip {' '.join(words)}",
            "",
            str(command.help or ""),
            "",
            *_table(command),
        ]
    return "\n".join(lines) + "\n"


def verbs(group: Any, *above: str) -> Iterator[tuple[list[str], Any]]:
    """Yield the words and the parser of every verb, except those for programs alone."""
    if not hasattr(group, "commands"):  # not isinstance: typer has its own copy of click
        yield list(above), group
        return
    for name, command in sorted(group.commands.items()):
        if not command.hidden:
            yield from verbs(command, *above, name)


def _table(command: Any) -> Iterator[str]:
    """Yield a table of a verb's arguments and options."""
    rows = [one for one in command.params if one.name != "help" and not one.hidden]
    if rows:
        yield from ("| argument or option | what it is | default |", "| --- | --- | --- |")
    for one in rows:
        name = ", ".join(one.opts)
        if one.param_type_name == "argument":
            name = (one.metavar or one.name).upper()
        elif not one.is_flag:
            name += f" {one.metavar or one.name.strip('_').upper()}"
        about = html.escape(one.help or "", quote=False).replace("|", "\\|")
        about += f" (environment: `{one.envvar}`)" if one.envvar else ""
        yield f"| `{name}` | {about} | {_default(one)} |"
    yield ""


def _default(one: Any) -> str:
    if one.required:
        return "required"
    is_shown = not getattr(one, "is_flag", False) and not callable(one.default)
    return f"`{one.default}`" if is_shown and one.default is not None and one.default != "" else ""


def python_pages() -> str:
    """The page of the public functions, and of the modules that an extension meets."""
    lines = [
        "# Python",
        "",
        "`import microclip` has two functions and two classes; below them are the modules that you",
        "meet when you read the method or extend it. All else is in the code.",
        "",
        "::: microclip.adapt",
        "::: microclip.load",
        "::: microclip.api.Adapted",
        "::: microclip.own_images.prediction.Prediction",
        "",
    ]
    wanted = ("microclip.methods.base", "microclip.settings.declarations")
    for module in wanted:
        lines += [f"::: {module}"]
    for package in ("adaptation", "model"):
        folder = Path(str(microclip.__file__)).parent / package
        names = sorted(found.name for found in pkgutil.iter_modules([str(folder)]))
        lines += [f"::: microclip.{package}.{name}" for name in names]
    return "\n".join(lines) + "\n"


def gallery() -> str:
    """The page of all tables and figures in `results/reference`, as the studies wrote them."""
    lines = [
        "# Tables and figures",
        "",
        "What the studies on the icons wrote, as it is in `results/reference`. "
        "[The icon benchmark](icons.md) explains the numbers.",
        "",
    ]
    for study in sorted(path for path in (ROOT / "results/reference").iterdir() if path.is_dir()):
        lines += [f"## {study.name}", ""]
        tables = sorted(study.glob("tables/*.md"), key=_by_number)
        for path in tables:
            lines += [f"### {path.stem} {{: #{study.name}-{path.stem} }}", ""]
            lines += [*path.read_text(encoding="utf-8").splitlines(), ""]
        for path in sorted(study.glob("figures/*.png"), key=_by_number):
            name = path.relative_to(ROOT).as_posix()
            lines += [f"### {path.stem} {{: #{study.name}-{path.stem} }}", ""]
            lines += [f"![{path.stem} of {study.name}]({name})", ""]
    return "\n".join(lines) + "\n"


def _by_number(path: Path) -> tuple[int, str]:
    return len(path.stem), path.stem


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A committed notebook as Markdown, and its pictures by file name."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        for output in cell["outputs"]:
            lines += [*_output(output, path.stem, pictures), ""]
    return "\n".join(lines) + "\n", pictures


def _output(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """Yield an output as Markdown: a picture, a table, or text."""
    data = output.get("data", {})
    if "image/png" in data:
        content = base64.b64decode("".join(data["image/png"]))
        name = f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.png"
        pictures[name] = content
        yield f"![output]({name})"
    elif "text/html" in data:
        yield re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
    elif text := "".join(output.get("text") or data.get("text/plain") or ""):
        yield from ("```text", text.rstrip("\n"), "```")
