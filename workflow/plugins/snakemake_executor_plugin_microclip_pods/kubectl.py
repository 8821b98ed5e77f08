"""Requests to a cluster's API server, made by `kubectl`, which knows how to log in.

They go out as they are (`--raw`), so that kubectl of any age will do and none asks the server first
what it offers.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any, Literal
from urllib.parse import urlencode

from snakemake_interface_common.exceptions import WorkflowError

Verb = Literal["create", "get", "delete"]
_SECONDS = 30  # until the server answers
_KUBECTL_SECONDS = 90  # with all that kubectl does first: a cloud's own program may log in
_REASON = re.compile(r"Error from server \((\w+)\): (.*)", re.DOTALL)
_INVALID = "The request is invalid"
# Asked again, these get the same answer. All others may pass: a server away, busy, or starting, a
# login that is just renewed, a quota that other jobs will free.
_FINAL = {"Forbidden", "NotFound", "Invalid", "BadRequest", "AlreadyExists", "MethodNotAllowed"}
_QUOTA = "exceeded quota"
_NO_REHEARSAL = "does not support dry run"


class Refused(Exception):  # noqa: N818  it is an answer
    """The server said no, and would again; `reason` is its word for it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Away(Exception):  # noqa: N818  it may come back
    """No answer, or one that another try may change."""


class Kubectl:
    """The Jobs and pods of one namespace that have one label."""

    def __init__(self, namespace: str, label: str) -> None:
        """Find kubectl.

        Args:
            namespace: of all Jobs
            label: `key=value`, which all Jobs of this folder and their pods have

        Raises:
            WorkflowError: there is no kubectl.
        """
        found = shutil.which("kubectl")
        if found is None:
            raise WorkflowError(
                "microclip: kubectl, which starts the pods, is not on the PATH; install it "
                "(Debian: apt install kubernetes-client), or use one pod: docs/cluster.md"
            )
        self._program = found
        self._jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._label = label

    def create(self, manifest: dict[str, Any], *, is_rehearsal: bool = False) -> None:
        """Create a Job, or only ask whether it could be created; one that exists is left alone."""
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if is_rehearsal else {})
        try:
            self._ask("create", self._jobs, query, json.dumps(manifest))
        except Refused as error:
            # The answer to an earlier request may have been lost. Of a cluster's own checks
            # (webhooks), not all can be rehearsed.
            is_unknown = is_rehearsal and _NO_REHEARSAL in str(error)
            if error.reason != "AlreadyExists" and not is_unknown:
                raise

    def jobs(self) -> list[dict[str, Any]]:
        """All Jobs, as the server describes them."""
        return self._listed(self._jobs)

    def pods(self) -> list[dict[str, Any]]:
        """All pods of all Jobs."""
        return self._listed(self._pods)

    def log(self, pod: str) -> str:
        """What a pod's container has printed."""
        return self._ask("get", f"{self._pods}/{pod}/log", {"limitBytes": str(10 << 20)})

    def delete(self, job: str) -> None:
        """Delete a Job and its pods; their processes are ended."""
        try:
            self._ask("delete", f"{self._jobs}/{job}", {"propagationPolicy": "Background"})
        except Refused as error:
            if error.reason != "NotFound":
                raise

    def delete_all(self) -> None:
        """Delete all Jobs and their pods."""
        query = {"labelSelector": self._label, "propagationPolicy": "Background"}
        self._ask("delete", self._jobs, query)

    def _listed(self, path: str) -> list[dict[str, Any]]:
        answer = self._ask("get", path, {"labelSelector": self._label})
        try:
            found: list[dict[str, Any]] = json.loads(answer)["items"]
        except (ValueError, LookupError, TypeError) as error:  # a proxy's page
            raise Away(f"no list came from {path}: {answer[:80]!r}") from error
        return found

    def _ask(self, verb: Verb, path: str, query: dict[str, str], body: str | None = None) -> str:
        command = [self._program, f"--request-timeout={_SECONDS}s", verb, "--raw"]
        command += [f"{path}?{urlencode(query)}", *(() if body is None else ("-f", "-"))]
        try:
            done = subprocess.run(
                command,
                input=body or "",
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_KUBECTL_SECONDS,
                # Ctrl-C is Snakemake's, which then has kubectl delete the Jobs.
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise Away(f"kubectl took more than {_KUBECTL_SECONDS} s") from error
        if done.returncode == 0:
            return done.stdout
        raise failure(done.stderr)


def failure(said: str) -> Refused | Away:
    """What kubectl's standard error means."""
    text = " ".join(said.split()) or "kubectl failed and said nothing"
    found = _REASON.search(text)
    if found and found[1] in _FINAL and _QUOTA not in text:
        return Refused(found[1], found[2])
    if _INVALID in text:
        return Refused("Invalid", text[text.index(_INVALID) :])
    return Away(text)
