"""`microclip bundle`: one archive for a report, when a study's or a run's numbers are off.

It holds what a reader needs to find the first difference: settings, logs, histories, first batches,
versions and hashes. Images, weights and checkpoints stay where they are. Every text is scrubbed of
secrets and of the names of people and machines. The same files give the same bytes.
"""

from __future__ import annotations

import contextlib
import getpass
import gzip
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from microclip import paths, runtime, settings
from microclip.settings.base import SettingsError, read_yaml
from microclip.study import Plan, RunSpec, Study

_ROOT = "microclip-bundle"
_HALF = 256 << 10  # bytes kept of each end of a longer file
_UNSURE = 1 << 10  # bytes dropped at a cut without line breaks: half a secret is not recognised
_N_WORKFLOW_LOGS = 2  # of Snakemake's own logs, the latest
_RUN_FILES = (
    paths.RUN_SETTINGS,
    paths.RUN_HISTORY,
    paths.RUN_FIRST_BATCH,
    paths.RUN_JOURNAL,
    paths.RUN_SCORES,
    paths.RUN_RECORD,
    "adapted.json",  # of your own images
)
_STUDY_FILES = ("plan.json", "scores.csv", "ledger.csv", "ledger.md")
_DATASET_FILES = ("passport.json", "origin.json", paths.BAD_FILES, "zero-shot-*.json")
_ABOUT = """\
A report of microclip {version}: {what}.

settings.yaml, history.csv, first_batch.json, journal.jsonl, scores.json, run.json
    in runs/: a run's settings with their digest, its epochs, its first batch (pixels, tokens,
    labels, losses, gradients, precision), what happened when, its result, its machine
adapted.json
    the description of a classifier for own images
data/
    each dataset's passport, where it came from, files that could not be used, and CLIP's accuracy
    beside the paper's (zero-shot-*.json; "refused" if it is too far off)
backbones/
    where downloaded weights came from, and the hash of what was loaded
study/
    the study's file, its plan, scores, ledger and tables
verify/
    what `microclip verify` prints
logs/, snakemake/
    logs of the jobs, and of the workflow
identity.json
    hashes of descriptions, class vectors and trained tensors; settings and keys of the backbones
machine.json, packages.txt, torch.txt, nvidia-smi.txt, environment.txt, changes.txt
    commit, platform, GPU; versions; how torch was built; the driver's view; variables
    that change how microclip runs; which committed files were changed

Left out: images, weights, checkpoints, predictions. In all texts, keys and passwords are replaced
by ***, the home folder by ~, and the names of the user and the computer by <user> and <host>.
Look through the files before you send them.
{cuts}"""


@dataclass(frozen=True)
class Member:
    """A text of the archive; `n_cut` bytes from its middle are missing."""

    name: str
    text: str
    n_cut: int = 0

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Scope:
    """What a report is about.

    Attributes:
        what: for readers, as "study pets".
        folders: folders of runs, by their place in the archive.
        specs: the runs by their names, as far as they are known.
        plans: studies to verify.
        config: the study's file, if a study is reported.
    """

    what: str
    folders: dict[str, Path]
    specs: tuple[RunSpec, ...]
    plans: tuple[Plan, ...] = ()
    config: Path | None = None


def of_study(study: Study, config: Path) -> Scope:
    """The scope of a whole study."""
    plan = study.plan()
    folders = {str(Path("runs", spec.name)): spec.folder for spec in study.runs}
    return Scope(f"study {plan.study}", folders, study.runs, (plan,), config)


def of_runs(folders: Sequence[Path]) -> Scope:
    """The scope of some runs, or of folders that `microclip adapt` wrote.

    Raises:
        MissingDataError: a folder does not exist, or holds no file of a run.
    """
    found, specs, plans = {}, [], {}
    for folder in folders:
        if not any((folder / name).is_file() for name in _RUN_FILES):
            raise runtime.MissingDataError(
                f"{folder} holds no file of a run, such as {paths.RUN_SETTINGS} or "
                f"{paths.RUN_JOURNAL}; name a folder below results/runs, or an --out of adapt"
            )
        spec, study = _named(folder / paths.RUN_SETTINGS)
        place = folder.name if spec is None or spec.folder.name != folder.name else spec.name
        found[str(Path("runs", place))] = folder
        specs += [] if spec is None else [spec]
        if study and Path(paths.STUDY_PLAN.format(study=study)).is_file():
            plans[study] = Plan.read(study)
    if len(found) < len(set(folders)):
        raise SettingsError("two folders have the same name; bundle them one by one")
    what = ", ".join(place.removeprefix("runs/") for place in found)
    return Scope(what, found, tuple(specs), tuple(plans.values()))


def _named(path: Path) -> tuple[RunSpec | None, str]:
    """The run and the study that a settings.yaml names; a damaged file names none."""
    try:
        values = read_yaml(path)
        return RunSpec.of(values["spec"]), str(values.get("study", ""))
    except (SettingsError, OSError, KeyError, TypeError, ValueError):
        return None, ""


def gather(scope: Scope) -> list[Member]:
    """Everything that a report holds, scrubbed, by name.

    Raises:
        MissingDataError: nothing of it has been run here.
    """
    files = dict(_files(scope))
    if not files:
        raise runtime.MissingDataError(
            f"nothing of {scope.what} is in {Path.cwd()}: no run, log, plan or dataset; start it "
            "first, or call this from the folder it was started in"
        )
    scrub = Scrubber.of_this_machine()
    members = [_read(name, path, scrub) for name, path in files.items()]
    if scope.config is not None and scope.config.is_file():
        members.append(_read(f"study/{scope.config.name}", scope.config, scrub))
    facts = {**_verified(scope), **_machine(), "identity.json": _json(_identity(scope))}
    members += [Member(name, scrub(text)) for name, text in facts.items()]
    cuts = [f"{each.name}: {each.n_cut} bytes from its middle" for each in members if each.n_cut]
    about = _ABOUT.format(
        version=runtime.version(),
        what=scope.what,
        cuts="\nCut, because too long:\n  " + "\n  ".join(sorted(cuts)) + "\n" if cuts else "",
    )
    members.append(Member("README.txt", scrub(about)))
    # Names too: a folder may be called after its owner.
    renamed = [replace(each, name=scrub(each.name)) for each in members]
    return sorted(renamed, key=lambda each: each.name)


def write(members: Iterable[Member], target: Path) -> None:
    """Write the archive, whole or not at all.

    Raises:
        SettingsError: the name does not end in .tar.gz or .tgz.
    """
    if not target.name.endswith((".tar.gz", ".tgz")):
        raise SettingsError(f"--out {target} is a gzipped archive; end its name in .tar.gz")
    with (
        runtime.atomic_path(target) as path,
        path.open("wb") as stream,
        # Without the file's name and time, which gzip would write into the archive.
        gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for member in members:
            content = member.text.encode()
            entry = tarfile.TarInfo(f"{_ROOT}/{member.name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def listing(members: Sequence[Member]) -> Iterator[str]:
    """Yield a line a folder: its size, its name and its files; then what was cut."""
    by_folder: dict[str, list[Member]] = {}
    for member in members:
        by_folder.setdefault(str(Path(member.name).parent), []).append(member)
    for folder, own in by_folder.items():
        names = ", ".join(Path(member.name).name for member in own)
        where = "" if folder == "." else f"{folder}/: "
        yield f"{_size(sum(member.size for member in own)):>10}  {where}{names}"
    for member in members:
        if member.n_cut:
            yield f"{'cut':>10}  {member.name}: {_size(member.n_cut)} from its middle"


def _size(n: int) -> str:
    return f"{n} B" if n < 1024 else f"{n / 1024:.1f} KiB"


def _files(scope: Scope) -> Iterator[tuple[str, Path]]:
    """Yield the files of a report that exist, with their names in the archive."""
    for place, folder in scope.folders.items():
        yield from ((f"{place}/{n}", folder / n) for n in _RUN_FILES if (folder / n).is_file())
    for dataset in sorted({spec.dataset for spec in scope.specs}):
        folder = Path(paths.MANIFEST.format(dataset=dataset)).parent
        for pattern in _DATASET_FILES:
            yield from ((f"data/{dataset}/{path.name}", path) for path in folder.glob(pattern))
    for backbone in sorted({spec.backbone for spec in scope.specs}):
        if (path := Path(paths.LOADED_WEIGHTS.format(backbone=backbone))).is_file():
            yield f"backbones/{path.name}", path
    for plan in scope.plans:
        folder = Path(paths.STUDY.format(study=plan.study))
        found = [folder / name for name in _STUDY_FILES if (folder / name).is_file()]
        for path in [*found, *folder.glob("tables/*.md")]:
            yield f"study/{plan.study}/{path.relative_to(folder)}", path
    yield from _logs(scope)


def _logs(scope: Scope) -> Iterator[tuple[str, Path]]:
    """Yield the logs of the jobs behind the runs and, of a study, those of the workflow."""
    stems = _log_names(scope)
    for path in Path("logs").glob("*/*"):
        if path.suffix in (".log", ".tsv") and (path.stem in stems or _is_of_study(path, scope)):
            yield str(path), path
    if scope.config is not None:
        latest = sorted(Path(".snakemake/log").glob("*.log"))[-_N_WORKFLOW_LOGS:]
        yield from ((f"snakemake/{path.name}", path) for path in latest)


def _log_names(scope: Scope) -> set[str]:
    """Names of the logs of all jobs behind some runs, as in workflow/rules."""
    found = set()
    for spec in scope.specs:
        run = f"{spec.dataset}.{spec.backbone}.{spec.descriptions}.{spec.method}.{spec.variant}"
        found |= {
            spec.dataset,
            f"{spec.descriptions}.{spec.dataset}",
            f"{spec.backbone}.{spec.dataset}",
            f"{spec.backbone}.{spec.descriptions}.{spec.dataset}",
            f"{run}.seed-{spec.seed}",
        }
    return found


def _is_of_study(path: Path, scope: Scope) -> bool:
    return any(f"{path.stem}.".startswith(f"{plan.study}.") for plan in scope.plans)


def _read(name: str, path: Path, scrub: Scrubber) -> Member:
    """A file's text, without the middle if it is long."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= 2 * _HALF:
            return Member(name, scrub(_decoded(stream.read())))
        head = stream.read(_HALF)
        stream.seek(-_HALF, os.SEEK_END)
        tail = stream.read(_HALF)
    # Whole lines only: a secret that the cut halves would not be recognised.
    end, start = head.rfind(b"\n") + 1, tail.find(b"\n") + 1
    head, tail = head[: end or -_UNSURE], tail[start or _UNSURE :]
    n_cut = size - len(head) - len(tail)
    parts = [_decoded(head).rstrip("\n"), f"[... {n_cut} bytes left out ...]", _decoded(tail)]
    return Member(name, scrub("\n".join(parts)), n_cut)


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")


def _json(values: Any) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _verified(scope: Scope) -> dict[str, str]:
    """What `microclip verify` prints of each study, its error included."""
    from microclip.measure import ledger

    found = {}
    for plan in scope.plans:
        lines: list[str] = []
        try:
            lines.extend(ledger.verify(plan))
        except (runtime.VerificationError, FileNotFoundError, ValueError) as error:
            lines.append(f"microclip: {error}")
        found[f"verify/{plan.study}.txt"] = "\n".join(lines) + "\n"
    return found


def _identity(scope: Scope) -> dict[str, Any]:
    """Hashes of what the runs were made from, besides images."""
    names = [asdict(spec) for spec in scope.specs]
    texts = sorted({paths.DESCRIPTIONS.format(**each) for each in names})
    vectors = sorted({paths.CLASSIFIER.format(**each) for each in names})
    backbones = sorted({spec.backbone for spec in scope.specs})
    return {
        "backbones": {name: _told(_backbone, name) for name in backbones},
        "descriptions": {path: _told(runtime.sha256, Path(path)) for path in texts},
        "class_vectors": {path: _told(_vectors, Path(path)) for path in vectors},
        "trained": {
            place: runtime.sha256(folder / paths.RUN_WEIGHTS)
            for place, folder in scope.folders.items()
            if (folder / paths.RUN_WEIGHTS).is_file()
        },
    }


def _told(ask: Callable[[Any], Any], what: Any) -> Any:
    """An answer, or why there is none: a report is most needed where something is missing."""
    try:
        return ask(what)
    except (OSError, ValueError) as error:
        return f"not available: {' '.join(str(error).split())}"


def _backbone(name: str) -> dict[str, Any]:
    from microclip.model.weights import backbone_key

    found = settings.load_backbone_settings(name)
    return {"settings": found.model_dump(mode="json"), "key": backbone_key(found)}


def _vectors(path: Path) -> dict[str, Any]:
    """Hash of a file of class vectors, and what it says of itself."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            said = json.loads((opened.metadata() or {}).get("microclip", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return {"sha256": runtime.sha256(path), **{k: v for k, v in said.items() if k != "classes"}}


_SHOWN = re.compile(r"^(MICROCLIP_|SNAKEMAKE_|CUDA_|NVIDIA_|TORCH_|PYTORCH_|OMP_|MKL_|MLFLOW_|HF_)")
_GPU = "index,name,driver_version,vbios_version,memory.total,compute_cap,power.limit"
_NO_GPU = "nvidia-smi: not available\n"


def torch_facts() -> dict[str, Any]:
    """Return what torch says of its build and of this machine's GPUs; imports it."""
    import torch

    is_usable = torch.cuda.is_available()
    n_gpus = torch.cuda.device_count() if is_usable else 0
    gpus = [str(torch.cuda.get_device_properties(gpu)) for gpu in range(n_gpus)]
    return {
        "gpu": runtime.record()["gpu"],  # after the properties: only if CUDA is in use
        "torch_cuda": torch.version.cuda,
        "torch_sees_gpus": gpus,
        "cudnn": torch.backends.cudnn.version() if is_usable else None,  # type: ignore[no-untyped-call]
        "threads": torch.get_num_threads(),
        "build": torch.__config__.show() + torch.__config__.parallel_info(),
    }


_ASK_TORCH = "import json; from microclip import bundle; print(json.dumps(bundle.torch_facts()))"


def _asked_torch() -> dict[str, Any]:
    """`torch_facts`, from a process of its own: a broken torch is a reason to send a report."""
    if "torch" in sys.modules:
        return torch_facts()
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        return {"build": f"torch cannot be imported, exit code {asked.returncode}\n{asked.stderr}"}
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


def _machine() -> dict[str, str]:
    """Facts about the machine, the packages and the code, by file of the report."""
    asked = _asked_torch()
    build = asked.pop("build")
    facts: dict[str, Any] = {**runtime.record(), "microclip": runtime.version(), **asked}
    nvidia = runtime.output("nvidia-smi", f"--query-gpu={_GPU}", "--format=csv")
    changes = runtime.output("git", "diff", "--stat", "HEAD")
    del facts["tf32"]  # of this process; a run's own is in its run.json and first_batch.json
    installed = {f"{each.name}=={each.version}" for each in importlib.metadata.distributions()}
    shown = [
        f"{name}={HIDDEN if _SECRET_NAME.search(name) else value}"
        for name, value in os.environ.items()
        if _SHOWN.match(name)
    ]
    return {
        "machine.json": _json(facts),
        "packages.txt": "\n".join(sorted(installed, key=str.casefold)) + "\n",
        "torch.txt": build,
        "environment.txt": "\n".join(sorted(shown)) + "\n",
        # Fields that stay the same: the plain table has the time and other people's processes.
        "nvidia-smi.txt": f"{nvidia}\n" if nvidia else _NO_GPU,
        "changes.txt": f"{changes}\n" if changes else "no changes, or no repository\n",
    }


HIDDEN = "***"
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|COOKIE|USERNAME", re.IGNORECASE)
_SHORTEST = 6  # characters of a value worth hiding: a shorter one would hide ordinary words
_COMMON_USERS = {"root", "user", "admin", "ubuntu", "runner", "nobody", "jovyan"}
_COMMON_HOSTS = {"localhost"}
_SECRETS = tuple(
    (re.compile(pattern), replaced)
    for pattern, replaced in (
        (r"//[^/@\s\"']+@", f"//{HIDDEN}@"),  # password in an address
        (
            r"(?i)([?&][\w-]*(?:token|key|sig|signature|password|credential)=)[^&\s\"']+",
            rf"\1{HIDDEN}",
        ),
        (r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", rf"\1 {HIDDEN}"),
        (
            r"(?i)([\w-]*(?:api[_-]?key|token|secret|passw(?:or)?d|credential)s?"
            r"[\"']?\s*[:=]\s*[\"']?)(?!\*\*\*)[^\s\"',;]{8,}",
            rf"\1{HIDDEN}",
        ),
        # Keys that services give out: OpenAI, Hugging Face, GitHub, AWS, Google, Slack, JSON Web.
        (r"\b[sprk]k-[\w-]{16,}", HIDDEN),
        (r"\bhf_\w{16,}", HIDDEN),
        (r"\b(?:gh[pousr]_|github_pat_)\w{20,}", HIDDEN),
        (r"\bAKIA[0-9A-Z]{16}\b", HIDDEN),
        (r"\bAIza[\w-]{30,}", HIDDEN),
        (r"\bxox[abprs]-[\w-]{10,}", HIDDEN),
        (r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+", HIDDEN),
        (r"(?<=/home/)[^/\s\"':]+|(?<=/Users/)[^/\s\"':]+", "<user>"),
    )
)


@dataclass(frozen=True)
class Scrubber:
    """Removes secrets and names of people and machines from texts.

    Attributes:
        values: texts to hide, such as the values of variables that hold keys.
        names: whole words to replace, as the user's name by "<user>".
    """

    values: tuple[str, ...] = ()
    home: str = ""
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_this_machine(cls) -> Scrubber:
        """Hide this environment's secrets, home folder, user and host."""
        keys = _key_variables()
        held = {
            value
            for name, value in os.environ.items()
            if (_SECRET_NAME.search(name) or name in keys) and len(value) >= _SHORTEST
        }
        names = {}
        if (user := _user()) not in _COMMON_USERS:
            names[user] = "<user>"
        if (host := platform.node()) not in _COMMON_HOSTS:
            names[host] = "<host>"
        return cls(
            # Longest first: a key may begin with another one.
            values=tuple(sorted(held, key=len, reverse=True)),
            home=str(Path.home()),
            names={name: word for name, word in names.items() if len(name) > 2},
        )

    def __call__(self, text: str) -> str:
        """Return a text without them."""
        for value in self.values:
            text = text.replace(value, HIDDEN)
        if len(self.home) > 1:
            text = re.sub(rf"{re.escape(self.home)}(?=[/\s\"':,;)]|$)", "~", text)
        for pattern, replaced in _SECRETS:
            text = pattern.sub(replaced, text)
        for name, word in self.names.items():
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", word, text)
        return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


def _key_variables() -> set[str]:
    """Variables that the files of config/llms name as holding keys."""
    found = set()
    for name in settings.known("llms"):
        with contextlib.suppress(SettingsError):  # a broken file must not hold up a report
            author = settings.load_descriptions(name)
            if author.ask is not None and author.ask.key_variable:
                found.add(author.ask.key_variable)
    return found
