"""What a job is as a Job of Kubernetes, and what has become of it; no requests."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from snakemake_interface_common.exceptions import WorkflowError

JOB_LABEL = "job-name"  # which Kubernetes gives to a Job's pods
FOLDER_LABEL = "microclip/folder"
_LONGEST = 52  # letters of a name; with a digest and what Kubernetes adds it has at most 63
# Of this process alone; all other MICROCLIP_ variables hold for jobs, wherever they are.
_OWN = {"MICROCLIP_WARM", "MICROCLIP_MIRROR", "MICROCLIP_WORKER", "MICROCLIP_THREADS"}
_PASSED = {"MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE"}
_PASSWORD = re.compile(r"//[^/]*@")
# The first process of a container gets SIGTERM alone, before a time limit or an eviction. All its
# processes should, as on other clusters, to save what they have; the shell waits until they did.
_SHELL = """trap 'trap : TERM; kill -TERM 0' TERM
{command} &
child=$!
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
exit $status
"""
# What a Job must have under these names, wherever they are, or the cluster refuses it at the first
# job. A number or a bare yes for a text is the usual slip.
_TEXTS = {
    *("apiVersion", "kind", "name", "namespace", "image", "imagePullPolicy", "claimName"),
    *("mountPath", "subPath", "medium", "serviceAccountName", "priorityClassName"),
    *("key", "operator", "effect", "value"),
}
_LISTS = {
    *("containers", "initContainers", "volumes", "volumeMounts", "env", "envFrom"),
    *("tolerations", "imagePullSecrets"),
}
_OF_TEXTS = {"labels", "annotations", "nodeSelector", "matchLabels"}
_MAPPINGS = {
    *("metadata", "spec", "template", "securityContext", "resources", "limits", "requests"),
    *("persistentVolumeClaim", "emptyDir", "secretRef", "configMapRef", *_OF_TEXTS),
}
_PULLING = {"ContainerCreating", "PodInitializing"}


@dataclass(frozen=True)
class Template:
    """The Job that people fill in; the first container is the job's."""

    path: Path
    job: dict[str, Any]

    @property
    def namespace(self) -> str:
        """The namespace of all Jobs."""
        return str(self.job["metadata"]["namespace"])

    @property
    def pod(self) -> dict[str, Any]:
        """The description of a pod."""
        found: dict[str, Any] = self.job["spec"]["template"]["spec"]
        return found


@dataclass(frozen=True)
class Asked:
    """One job, and what it needs."""

    name: str  # Snakemake's rule or group
    wildcards: Sequence[str]
    key: str  # differs from all other jobs and attempts
    command: str
    folder: str  # where the command starts
    cores: int
    gpus: int
    memory_mb: int | None = None
    minutes: int | None = None

    @property
    def title(self) -> str:
        """The job in words."""
        return " ".join((self.name, *self.wildcards))

    @property
    def id(self) -> str:
        """The Job's name: letters, digits and hyphens, and its own."""
        words = re.sub(r"[^a-z0-9]+", "-", self.title.lower())[:_LONGEST].strip("-")
        return f"{words}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class State:
    """What has become of a Job: why it failed, or what it waits for."""

    end: Literal["running", "succeeded", "failed"]
    reason: str = ""


def _wrong(path: Path, what: str) -> WorkflowError:
    return WorkflowError(f"microclip: {path}: {what}; docs/cluster.md says how to fill it in")


def read_template(path: Path) -> Template:
    """Read the Job that people fill in.

    Raises:
        WorkflowError: it is not there, no Job, or not filled in.
    """
    import yaml  # Snakemake imports this module whenever it starts

    try:
        job = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _wrong(path, f"cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _wrong(path, f"no YAML ({' '.join(str(error).split())})") from error
    try:
        is_job = job["kind"] == "Job" and job["apiVersion"] == "batch/v1"
        containers = job["spec"]["template"]["spec"]["containers"]
        image = str(containers[0].get("image") or "")
    except (LookupError, TypeError, AttributeError) as error:
        raise _wrong(path, "expected a Job of batch/v1 with a container") from error
    if not is_job:
        raise _wrong(path, f"expected a Job of batch/v1, got {job['kind']} of {job['apiVersion']}")
    found = Template(path, job)
    if wrong := next(itertools.chain(_misfits(job), _unfilled(found, image)), None):
        raise _wrong(path, wrong)
    return found


def _unfilled(found: Template, image: str) -> Iterator[str]:
    """Yield what people have yet to fill in."""
    if not (found.job.get("metadata") or {}).get("namespace"):
        yield "metadata.namespace is missing (`namespace: default`, if you have none)"
    if not image or image.startswith("registry.example/"):
        yield f"no image is filled in (image: {image or 'missing'})"
    if not _shared(found):
        yield "no volume claim is filled in (claimName), and all jobs share its files"


def _misfits(value: Any, place: str = "", *, only_texts: bool = False) -> Iterator[str]:
    """Yield what Kubernetes would refuse: "spec.image must be text, got 5"."""
    named = value.items() if isinstance(value, dict) else ()
    for key, inner in named:
        here = f"{place}.{key}" if place else str(key)
        if inner is None:  # as if it were not there
            continue
        if (only_texts or key in _TEXTS) and not isinstance(inner, str):
            yield f"{here} must be text, got {inner!r}: write it in quotes"
        elif key in _MAPPINGS and not isinstance(inner, dict):
            yield f"{here} must be keys with values, got {inner!r}"
        elif key in _LISTS and not (
            isinstance(inner, list) and all(isinstance(each, dict) for each in inner)
        ):
            yield f"{here} must be a list of entries with keys, got {inner!r}"
        else:
            yield from _misfits(inner, here, only_texts=key in _OF_TEXTS)
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _misfits(inner, f"{place}[{number}]")


def _shared(template: Template) -> list[str]:
    """The paths at which the job's container mounts a volume claim."""
    volumes = template.pod.get("volumes") or []
    claimed = {
        volume.get("name")
        for volume in volumes
        if (volume.get("persistentVolumeClaim") or {}).get("claimName")
    }
    mounts = template.pod["containers"][0].get("volumeMounts") or []
    return [str(each.get("mountPath") or "") for each in mounts if each.get("name") in claimed]


def check_folder(template: Template, folder: Path) -> None:
    """Check that jobs find a folder.

    Raises:
        WorkflowError: it is not on a volume claim that pods mount.
    """
    mounted = _shared(template)
    if "" in mounted:
        raise _wrong(template.path, "a volumeMount of the claim has no mountPath")
    if not any(folder.is_relative_to(path) for path in mounted):
        raise WorkflowError(
            f"microclip: {folder} is not on the volume that {template.path} mounts at "
            f"{' or '.join(mounted)}; mount it here, too, at that path, and start there"
        )


def passed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that jobs get from this process; nothing that is secret.

    A tracking address with a password in it belongs into the Secret that the template names.
    """
    return {
        name: value
        for name, value in sorted(variables.items())
        if (name.startswith("MICROCLIP_") and name not in _OWN) or name in _PASSED
        if not _PASSWORD.search(value)
    }


def folder_label(folder: Path) -> str:
    """A label's value for a folder: all Jobs that a study's folder has."""
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def manifest(template: Template, asked: Asked, variables: Mapping[str, str]) -> dict[str, Any]:
    """A Job: the template, filled in for one job.

    Raises:
        WorkflowError: the job needs a GPU, of which the template says nothing.
    """
    job = copy.deepcopy(template.job)
    labels = {
        "app.kubernetes.io/name": "microclip",
        "microclip/rule": asked.name[:63].strip("-_."),
        FOLDER_LABEL: folder_label(Path(asked.folder)),
    }
    head = job["metadata"]
    head["name"] = asked.id
    head.pop("generateName", None)
    head["annotations"] = {**(head.get("annotations") or {}), "microclip/job": asked.title}
    if variables.get("POD_NAME") and variables.get("POD_UID"):
        # With the pod that submits, Kubernetes deletes its jobs.
        owner = {"apiVersion": "v1", "kind": "Pod"}
        owner |= {"name": variables["POD_NAME"], "uid": variables["POD_UID"]}
        head["ownerReferences"] = [owner]
    job["spec"]["backoffLimit"] = 0  # Snakemake repeats a job, with more memory and time
    inner = job["spec"]["template"].setdefault("metadata", {})
    for place in (head, inner):
        place["labels"] = {**(place.get("labels") or {}), **labels}
    pod = job["spec"]["template"]["spec"]
    pod["restartPolicy"] = "Never"
    if asked.minutes:
        # The pod's own, which runs from its start. The Job's would count the wait for a GPU.
        pod["activeDeadlineSeconds"] = 60 * asked.minutes
    _fill(pod["containers"][0], asked, template)
    given = pod["containers"][0].setdefault("env", [])
    named = {each.get("name") for each in given}
    more = {name: value for name, value in passed_on(variables).items() if name not in named}
    given += [{"name": name, "value": value} for name, value in more.items()]
    return job


def _fill(container: dict[str, Any], asked: Asked, template: Template) -> None:
    container["workingDir"] = asked.folder
    container["command"] = ["/bin/sh", "-c"]
    # Kubernetes would put variables in for $(NAME).
    container["args"] = [_SHELL.format(command=asked.command).replace("$(", "$$(")]
    resources = container.get("resources") or {}
    requests, limits = (dict(resources.get(kind) or {}) for kind in ("requests", "limits"))
    devices = [name for name in limits if "/" in name]  # `nvidia.com/gpu`
    if asked.gpus and not devices:
        raise _wrong(template.path, f"job {asked.title} needs a GPU, and resources.limits has none")
    for name in devices:
        requests.pop(name, None)
        limits.pop(name)
        if asked.gpus:
            limits[name] = str(asked.gpus)
    requests["cpu"] = str(asked.cores)
    if asked.memory_mb:
        requests["memory"] = limits["memory"] = f"{asked.memory_mb}M"
    container["resources"] = {"requests": requests, "limits": limits}


def state_of(job: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]]) -> State:
    """What has become of a Job.

    Args:
        job: as the server describes it; None if it has none of that name any more
        pods: those of this Job
    """
    if job is None:
        return State("failed", "somebody has deleted its Job")
    conditions = {
        each["type"]: each
        for each in (job.get("status") or {}).get("conditions") or []
        if each.get("status") == "True"
    }
    if "Complete" in conditions:
        return State("succeeded")
    # FailureTarget comes first. Failed waits for the pod to end, for ever if its node is lost.
    for name in ("Failed", "FailureTarget"):
        if name in conditions:
            return State("failed", _first(map(_death, pods)) or _said(conditions[name]))
    return State("running", _first(map(_wait, pods)))


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")


def _said(found: Mapping[str, Any]) -> str:
    """A reason and a message of Kubernetes, as one line."""
    parts = (str(found.get(key) or "") for key in ("reason", "message"))
    return " ".join(": ".join(filter(None, parts)).split())


def _container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    found: Mapping[str, Any] = statuses[0].get("state") or {}
    return found


def _death(pod: Mapping[str, Any]) -> str:
    """Why a pod failed: evicted, out of time or memory, its node lost, or its exit code."""
    status = pod.get("status") or {}
    if status.get("reason"):
        return _said(status)
    for each in status.get("conditions") or []:
        if each.get("type") == "DisruptionTarget" and each.get("status") == "True":
            return _said(each)
    ended = _container(pod).get("terminated")
    if ended and ended.get("exitCode") != 0:
        return f"{ended.get('reason') or 'Error'}, exit code {ended.get('exitCode')}"
    return ""


def _wait(pod: Mapping[str, Any]) -> str:
    """What a pod that has not started waits for; "" if it runs or is about to."""
    status = pod.get("status") or {}
    if status.get("phase") != "Pending":
        return ""
    waiting = _container(pod).get("waiting") or {}
    if waiting.get("reason") and waiting["reason"] not in _PULLING:
        return _said(waiting)
    for each in status.get("conditions") or []:
        if each.get("type") == "PodScheduled" and each.get("status") == "False":
            return _said(each)
    return ""
