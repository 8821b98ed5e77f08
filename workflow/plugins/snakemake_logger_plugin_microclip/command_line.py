"""What people type as `snakemake --cores 1 --resources gpu=1 all`, as Snakemake needs it.

`--resources` takes every word up to the next option, so Snakemake refuses `all` as a resource; it
wants `--resources gpu=1 -- all`. Here the `--` is put in. Snakemake looks for a default profile
beside the Snakefile only, so ours in `workflow/` is named; and this plugin is the logger where none
is named. A study file that cannot be read is refused in one line, where Snakemake shows a traceback
or no name. All that only for this project's Snakefile: others keep Snakemake's behaviour.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

_OPTIONS = ("--resources", "--res")
_STUDIES = ("--configfile", "--configfiles")
_PROFILE = "--workflow-profile"
_SNAKEFILES = ("Snakefile", "snakefile", "workflow/Snakefile", "workflow/snakefile")
_OURS = '"""microclip:'  # how the project's Snakefile begins


def mend() -> None:
    """Change this process's command line, if it is Snakemake's and the Snakefile is ours.

    The logger is not named in a profile: each of the project's, and of its users', would have to.
    """
    program, *words = sys.argv
    found = snakefile(words)
    if found is not None and _is_snakemake(Path(program)) and is_ours(found):
        check_studies(words)
        sys.argv[1:] = with_logger(with_profile(with_targets_apart(words), found))


def check_studies(words: Sequence[str]) -> None:
    """End the process if a file of `--configfile` cannot be read.

    Raises:
        SystemExit: with the exit code of microclip's verbs.
    """
    end = words.index("--") if "--" in words else len(words)
    if "--mode" in words[:end]:  # a job, whose study has been read
        return
    named = list(configfiles(words[:end]))
    if not named:
        return
    from microclip.settings.base import MissingFileError, SettingsError, read_yaml

    try:
        for path in named:
            read_yaml(path)
    except SettingsError as error:
        sys.stderr.write(f"microclip: {error}\n")
        sys.exit(3 if isinstance(error, MissingFileError) else 2)


def configfiles(words: Sequence[str]) -> Iterator[Path]:
    """Yield the study files that these arguments name."""
    for option, values in _groups(words):
        name, _, value = option.partition("=")
        if name in _STUDIES:
            yield from map(Path, [value, *values] if value else values)


def with_profile(words: Sequence[str], snakefile: Path) -> list[str]:
    """Return the words with the default profile before them, unless they name one."""
    profile = snakefile.parent / "workflow" / "profiles" / "default"
    named = any(word.partition("=")[0] == _PROFILE for word in words)
    return list(words) if named or not profile.is_dir() else [_PROFILE, str(profile), *words]


def with_targets_apart(words: Sequence[str]) -> list[str]:
    """Return the words with targets that follow `--resources NAME=INT ...` at the end, after `--`.

    Words are left alone if they could be meant as resources, or if there is a `--` already.
    """
    if "--" in words:
        return list(words)
    kept: list[str] = []
    targets: list[str] = []
    for option, values in _groups(words):
        resources = list(takewhile(_defines, values)) if option in _OPTIONS else values
        others = values[len(resources) :]
        is_clear = bool(resources) and not any(map(_defines, others))
        kept += [option, *(resources if is_clear else values)]
        targets += others if is_clear else []
    return [*kept[1:], "--", *targets] if targets else list(words)


def with_logger(words: Sequence[str]) -> list[str]:
    """Return the words with this plugin as the logger, unless they name one.

    `--logger snakemake`, which Snakemake does not know, becomes no logger: its own lines.
    """
    end = words.index("--") if "--" in words else len(words)
    if "--mode" in words[:end]:  # a job that Snakemake starts itself shows nothing
        return list(words)
    kept: list[str] = []
    targets: list[str] = []
    is_named = False
    for option, values in _groups(words[:end]):
        name, _, value = option.partition("=")
        given = [value, *values] if value else values
        is_named |= name == "--logger"
        if name == "--logger" and given[:1] == ["snakemake"]:
            targets += given[1:]
        else:
            kept += [option, *values] if option else values
    chosen = [] if is_named else ["--logger=microclip"]
    apart = ["--", *targets, *words[end + 1 :]] if targets else words[end:]
    return [*chosen, *kept, *apart]


def snakefile(words: Sequence[str]) -> Path | None:
    """Return the Snakefile that these arguments name, or the one that Snakemake finds by itself.

    `--directory` is of no account: Snakemake goes there after it has found the Snakefile.
    """
    for option, values in _groups(words):
        if option in ("-s", "--snakefile") and values:
            return Path(values[0])
        for prefix in ("-s", "--snakefile="):
            if option.startswith(prefix) and option != prefix:
                return Path(option.removeprefix(prefix))
    return next((path for path in map(Path, _SNAKEFILES) if path.is_file()), None)


def is_ours(path: Path | None) -> bool:
    """Whether a file is this project's Snakefile."""
    try:
        if path is None:
            return False
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.readline().startswith(_OURS)
    except OSError:  # Snakemake reports what is wrong with its Snakefile
        return False


def _is_snakemake(program: Path) -> bool:
    return program.stem == "snakemake" or program.parts[-2:] == ("snakemake", "__main__.py")


def _defines(word: str) -> bool:
    """Whether a word can be a resource; jobs that Snakemake starts itself have them encoded."""
    return "=" in word or word.startswith("base64//")


def _groups(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option with the words up to the next; words before any option go with ""."""
    option, values = "", list[str]()
    for word in words:
        if word.startswith("-"):
            yield option, values
            option, values = word, []
        else:
            values.append(word)
    yield option, values
