"""Fetch a dataset's copy on the Hugging Face hub at one commit, and check its files.

The commit is the card's, or that of `main` at the first request. It is recorded before anything is
fetched, so that a download that continues tomorrow fetches the same files.

`huggingface_hub` does the transfer, retries and resumes within its process. We call it file by file
rather than by `snapshot_download` for three reasons: it names partial files at random, so another
process cannot resume them and its eight parallel transfers would lose eight files to a kill; it
does not compare bytes with the stated SHA-256; and paths, sizes and free space must be checked
before the first file is written.
"""

from __future__ import annotations

import fnmatch
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from microclip import runtime
from microclip.data.public.downloads import check_space, in_words, tell
from microclip.data.public.unpacking import name_problem
from microclip.settings.base import SettingsError
from microclip.settings.datasets import HubRoute

if TYPE_CHECKING:
    from huggingface_hub import HfApi


LISTING = "copy.json"  # in data/<dataset>/hub: repository, commit and, once complete, the files


@dataclass(frozen=True)
class CopiedFile:
    """A file of the copy."""

    path: str  # below data/<dataset>/hub
    size: int  # bytes
    sha256: str | None  # the hub states it for large files only


@dataclass(frozen=True)
class CopyRecord:
    """The content of `copy.json`."""

    repository: str
    revision: str  # commit
    files: tuple[CopiedFile, ...] | None = None  # None: the download is not finished


def read_listing(folder: Path) -> CopyRecord | None:
    """Read `copy.json` in the folder of a copy; None if the copy was placed by hand."""
    path = folder / LISTING
    if not path.is_file():
        return None
    said = json.loads(path.read_text(encoding="utf-8"))
    files = said.get("files")
    return CopyRecord(
        repository=said["repository"],
        revision=said["revision"],
        files=None if files is None else tuple(CopiedFile(**file) for file in files),
    )


def write_listing(folder: Path, record: CopyRecord) -> None:
    """Write `copy.json`; without the files while they are still being fetched."""
    said = {key: value for key, value in asdict(record).items() if value is not None}
    runtime.write_json(folder / LISTING, said)


def files_of_copy(folder: Path) -> tuple[CopiedFile, ...]:
    """Files of a complete copy as the hub stated them; none if it was placed by hand."""
    found = read_listing(folder)
    return () if found is None or found.files is None else found.files


def is_partial_copy(folder: Path) -> bool:
    """Was a download into the folder started and not finished?"""
    found = read_listing(folder)
    return found is not None and found.files is None


_ALWAYS = ("README.md",)  # may name the classes
_REFUSED = (401, 403)
_SHOWN = 3

Answer = TypeVar("Answer")


def fetch(route: HubRoute, folder: Path, *, again: bool = False) -> str:
    """Fetch the files of a copy into `folder` and return their commit.

    Files that are already there are recognised by size; with `again` they are hashed as well. A
    killed process loses the one file that it was fetching, because the library can resume only
    within a process.

    Raises:
        MissingDataError: someone must accept the copy's terms first.
        ServiceError: the hub cannot be reached, or has no such files.
        SettingsError: the folder contains another copy.  ResourceError: the disk is too small.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = HfApi(endpoint=endpoint)
    _clear(folder)
    commit = _pinned(api, route, folder)
    files = _list(api, route, commit)
    rest = [file for file in files if not _is_there(folder, file, hashed=again)]
    check_space(folder, sum(file.size for file in rest), f"the copy {route.repository}")
    if not sys.stderr.isatty():
        disable_progress_bars()
    for number, file in enumerate(rest, len(files) - len(rest) + 1):
        tell(f"{route.repository}: {file.path}, {in_words(file.size)}, {number} of {len(files)}")
        _fetch_one(api, route, commit, folder, file)
    write_listing(folder, CopyRecord(route.repository, commit, tuple(files)))
    return commit


def _clear(folder: Path) -> None:
    """Remove killed processes' partial files: the library never resumes another process's file."""
    for path in sorted((folder / ".cache/huggingface/download").rglob("*.incomplete")):
        path.unlink()


def _pinned(api: HfApi, route: HubRoute, folder: Path) -> str:
    """Return the commit to fetch; it is recorded in the folder before the first file."""
    said = read_listing(folder)
    wanted = route.revision or (said.revision if said else None)
    if said and (said.repository, said.revision) != (route.repository, wanted):
        raise SettingsError(
            f"{folder} has {said.repository} at {said.revision}, but the card wants "
            f"{route.repository} at {wanted}; move the folder away, or pin the card to what is "
            "there"
        )
    if wanted is None:
        info = _asked(route, lambda: api.dataset_info(route.repository, revision="main"))
        wanted = str(info.sha)
        tell(
            f"{route.repository} is not pinned; today's commit is kept. To pin it for everyone, "
            f"add this to the card: revision: {wanted}"
        )
    if not said:
        write_listing(folder, CopyRecord(route.repository, wanted))
    return wanted


def _list(api: HfApi, route: HubRoute, commit: str) -> list[CopiedFile]:
    """The wanted files of a commit, sorted."""
    from huggingface_hub.hf_api import RepoFile

    tree = _asked(
        route,
        lambda: list(
            api.list_repo_tree(
                route.repository, recursive=True, revision=commit, repo_type="dataset"
            )
        ),
    )
    known = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    names = sorted(
        path
        for path in known
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in (*route.files, *_ALWAYS))
    )
    if not set(names) - set(_ALWAYS):
        raise runtime.ServiceError(
            f"{route.repository} at {commit} has no file that matches {', '.join(route.files)}; it "
            f"has {', '.join(sorted(known)[:_SHOWN]) or 'none'}; correct the card"
        )
    _refuse_paths(route, names)
    return [
        CopiedFile(name, entry.size, entry.lfs.sha256 if entry.lfs else None)
        for name in names
        for entry in [known[name]]
    ]


def _refuse_paths(route: HubRoute, names: Sequence[str]) -> None:
    for name in names:
        problem = name_problem(name)
        if problem:
            raise runtime.MissingDataError(f"{route.repository}: {name!r} {problem}; refused")


def _is_there(folder: Path, file: CopiedFile, *, hashed: bool) -> bool:
    """Is the file there with the stated size and, if `hashed`, the stated hash?"""
    path = folder / file.path
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return not hashed or file.sha256 is None or runtime.sha256(path) == file.sha256


def _fetch_one(api: HfApi, route: HubRoute, commit: str, folder: Path, file: CopiedFile) -> None:
    """Fetch one file; the library resumes broken connections."""
    path = folder / file.path
    path.unlink(missing_ok=True)  # it is not the stated file, but the library would keep it
    _asked(
        route,
        lambda: api.hf_hub_download(
            route.repository,
            file.path,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
        ),
    )
    if not _is_there(folder, file, hashed=True):
        path.unlink(missing_ok=True)
        raise runtime.ServiceError(
            f"{file.path} of {route.repository} arrived with other bytes than the hub states and "
            "was removed; run the same command again"
        )


def _asked(route: HubRoute, ask: Callable[[], Answer]) -> Answer:
    """Ask the hub; its errors become one line that never contains the token."""
    import httpx2
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{route.repository}"
    try:
        return ask()
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        if _is_refused(route, error):
            raise runtime.MissingDataError(
                f"{route.repository} can be fetched only after accepting its terms: accept them at "
                f"{page}, set HF_TOKEN to your token, then run the same command again"
            ) from error
        if isinstance(error, errors.RepositoryNotFoundError):
            raise runtime.ServiceError(
                f"{page} does not exist, or cannot be seen without a token (HF_TOKEN)"
            ) from error
        raise runtime.ServiceError(_failed(route, error)) from error
    except (httpx2.HTTPError, OSError) as error:
        raise runtime.ServiceError(_failed(route, error)) from error


def _is_refused(route: HubRoute, error: BaseException) -> bool:
    """Must someone accept terms or log in first? The hub also sends 401 for what does not exist."""
    from huggingface_hub import errors

    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return True
    responses = [getattr(cause, "response", None) for cause in causes]
    is_denied = any(r is not None and r.status_code in _REFUSED for r in responses)
    is_absent = any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes)
    return is_denied and (route.is_gated or not is_absent)


def _failed(route: HubRoute, error: BaseException) -> str:
    from huggingface_hub import get_token

    text = " ".join(str(error).split())
    token = get_token()
    if token:
        text = text.replace(token, "***")
    return (
        f"the hub did not deliver {route.repository}: {type(error).__name__}: {text[:300]}; run "
        "the same command again to continue"
    )
