"""A small imitation of a Kubernetes cluster: an API server whose one node runs pods as processes.

It takes what `kubectl --raw` asks of Jobs (batch/v1) and of pods and their logs (v1), and refuses
what a real server would refuse of it: unknown fields, names, labels, quantities and namespaces. A
container is a process group in the folder that stands for the volume claim; it gets no variables
of this process but what an image would have. Jobs and pods go through the conditions and reasons
that Kubernetes has for them. A pod can be evicted, its time limit lowered, and the server be away.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import psutil
import yaml

from tests.fixtures.servers import listening
from tests.fixtures.warm import variables

GRACE_S = 20.0  # from SIGTERM to SIGKILL; 30 by default
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
PATH = re.compile(r"/(?:apis/batch|api)/v1/namespaces/([^/]+)/(jobs|pods)(?:/([^/]+)(/log)?)?")
# Fields that are known here, by the place in a Job.
KNOWN = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "namespace", "labels", "annotations", "ownerReferences"},
    "spec": {"backoffLimit", "ttlSecondsAfterFinished", "template"},
    "spec.template": {"metadata", "spec"},
    "spec.template.spec": {
        *("restartPolicy", "activeDeadlineSeconds", "securityContext", "containers", "volumes"),
        *("nodeSelector", "tolerations"),
    },
    "container": {
        *("name", "image", "command", "args", "workingDir", "env", "envFrom", "resources"),
        "volumeMounts",
    },
}


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


@dataclass
class Pod:
    """A pod, and the process that it is."""

    job: dict[str, Any]
    described: dict[str, Any]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    ends_as: tuple[str, str] | None = None  # a reason and a message, if the node ends it
    killed_at: float | None = None

    @property
    def spec(self) -> dict[str, Any]:
        found: dict[str, Any] = self.described["spec"]
        return found

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.described["status"]
        return found

    def variables(self, name: str) -> set[str]:
        """The values that a variable has in the processes that the container's have started."""
        assert self.process is not None
        given = set()
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                given.add(child.environ().get(name, ""))
        return given - {""}

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the container, as the end of its cgroup does."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(number)
            os.killpg(self.process.pid, number)


@dataclass
class Cluster:
    """The state of the server and of its node."""

    place: Path  # for logs and homes
    claims: dict[str, Path]
    namespaces: tuple[str, ...] = ("default",)
    gpus: int = 1
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    forbidden: set[tuple[str, str]] = field(default_factory=set)  # method and resource
    is_away: bool = False
    refused: Counter[str] = field(default_factory=Counter)  # by connections that were cut
    history: list[dict[str, Any]] = field(default_factory=list)  # Jobs as they were created
    guard: threading.RLock = field(default_factory=threading.RLock)
    is_over: bool = False

    # ---- what kubectl asks

    def create(self, namespace: str, job: dict[str, Any], query: Mapping[str, str]) -> Any:
        """Take in a Job."""
        if namespace not in self.namespaces:
            raise RefusedError(404, "NotFound", f'namespaces "{namespace}" not found')
        if wrong := fault(job):
            raise RefusedError(
                422, "Invalid", f'Job.batch "{job["metadata"]["name"]}" is invalid: {wrong}'
            )
        name = job["metadata"]["name"]
        if name in self.jobs:
            raise RefusedError(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
        if "dryRun" in query:
            return job
        job["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": namespace}
        job["status"] = {}
        self.history.append(job)
        self.jobs[name] = job
        self._add_pod(job)
        return job

    def _add_pod(self, job: dict[str, Any]) -> None:
        name = f"{job['metadata']['name']}-{uuid.uuid4().hex[:5]}"
        template = job["spec"]["template"]
        labels = {**template["metadata"]["labels"], "job-name": job["metadata"]["name"]}
        described = {
            "metadata": {"name": name, "labels": labels, "uid": str(uuid.uuid4())},
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self.pods[name] = Pod(job, described, self.place / f"{name}.log")

    def listed(self, kind: str, selector: str) -> list[dict[str, Any]]:
        """Jobs or pods that have a label."""
        every = self.jobs.values() if kind == "jobs" else [p.described for p in self.pods.values()]
        key, _, value = selector.partition("=")
        return [one for one in every if one["metadata"]["labels"].get(key) == value or not selector]

    def delete(self, name: str) -> None:
        """Delete a Job; its pods are ended, then deleted."""
        if name not in self.jobs:
            raise RefusedError(404, "NotFound", f'jobs.batch "{name}" not found')
        job = self.jobs.pop(name)
        for key, pod in list(self.pods.items()):
            if pod.job is job and (pod.process is None or pod.process.poll() is not None):
                del self.pods[key]
            elif pod.job is job:
                self._end(pod, "Deleted", "")

    # ---- what the node does

    def live(self) -> None:
        """Start and end pods until the test is over."""
        while not self.is_over:
            with self.guard:
                for pod in list(self.pods.values()):
                    self._look_at(pod)
            time.sleep(0.1)

    def _look_at(self, pod: Pod) -> None:
        if pod.status["phase"] in ("Succeeded", "Failed"):
            return
        if pod.process is None:
            self._schedule(pod)
            return
        code = pod.process.poll()
        limit = pod.spec.get("activeDeadlineSeconds")
        now = time.monotonic()
        if code is not None:
            pod.signal(signal.SIGKILL)
            self._finish(pod, code)
        elif pod.killed_at is not None:
            if now > pod.killed_at + GRACE_S:
                pod.signal(signal.SIGKILL)
        elif limit is not None and now > pod.started + limit:
            late = "Pod was active on the node longer than the specified deadline"
            self._end(pod, "DeadlineExceeded", late)

    def _schedule(self, pod: Pod) -> None:
        """Start a pod if its volume is there and a GPU is free."""
        (container,) = pod.spec["containers"]
        claims = [volume.get("persistentVolumeClaim") for volume in pod.spec["volumes"]]
        names = [claim["claimName"] for claim in claims if claim]
        lacking = [f'persistentvolumeclaim "{n}" not found' for n in names if n not in self.claims]
        running = [p for p in self.pods.values() if p.process and p.process.poll() is None]
        if number_of_gpus(pod.spec) > self.gpus - sum(number_of_gpus(p.spec) for p in running):
            lacking.append("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
        if lacking:
            why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            pod.status["conditions"] = [{**why, "message": lacking[0]}]
            return
        mounted = {
            mount["mountPath"]: self.claims[volume["persistentVolumeClaim"]["claimName"]]
            for volume in pod.spec["volumes"]
            for mount in container["volumeMounts"]
            if mount["name"] == volume["name"] and "persistentVolumeClaim" in volume
        }
        # A claim's folder has the path at which it is mounted.
        assert all(Path(path) == folder for path, folder in mounted.items()), mounted
        given = {each["name"]: each["value"] for each in container.get("env", [])}
        with pod.log.open("wb") as log:
            pod.process = subprocess.Popen(
                [*container["command"], *(arg.replace("$$(", "$(") for arg in container["args"])],
                cwd=container["workingDir"],
                env={**self._of_image(), **given},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        pod.started = time.monotonic()
        pod.status.update(phase="Running", conditions=[])
        pod.job["status"]["active"] = 1

    def _of_image(self) -> dict[str, str]:
        """The variables that an image with microclip in it has."""
        home = self.place / "home"
        home.mkdir(exist_ok=True)
        own = variables()
        programs = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"])
        return {"PYTHONPATH": own["PYTHONPATH"], "PATH": programs, "HOME": str(home)}

    def _end(self, pod: Pod, reason: str, message: str) -> None:
        """Ask the processes of a pod to end; they have a while for it."""
        if pod.killed_at is None and pod.process is not None:
            pod.ends_as, pod.killed_at = (reason, message), time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pod.process.pid, signal.SIGTERM)  # the first process alone

    def _finish(self, pod: Pod, code: int) -> None:
        reason, message = pod.ends_as or ("", "")
        if reason == "Deleted":
            del self.pods[pod.described["metadata"]["name"]]
            return
        is_good = code == 0 and not reason
        ended = {"exitCode": code if code >= 0 else 128 - code}
        ended["reason"] = "Completed" if is_good else "Error"
        pod.status["phase"] = "Succeeded" if is_good else "Failed"
        pod.status["containerStatuses"] = [{"name": "job", "state": {"terminated": ended}}]
        if reason:
            pod.status.update(reason=reason, message=message)
        word = {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified limit"}
        kinds = ("SuccessCriteriaMet", "Complete") if is_good else ("FailureTarget", "Failed")
        pod.job["status"] = {
            "conditions": [
                {"type": kind, "status": "True", **({} if is_good else word)} for kind in kinds
            ]
        }

    # ---- what a test does

    def running(self, words: str) -> Pod | None:
        """The running pod of a job whose name begins so."""
        with self.guard:
            for name, pod in self.pods.items():
                if name.startswith(words) and pod.status["phase"] == "Running":
                    return pod
        return None

    def evict(self, pod: Pod) -> None:
        """End a pod at once, as a node that runs out of memory does."""
        with self.guard:
            text = "The node was low on resource: memory."
            pod.ends_as, pod.killed_at = ("Evicted", text), time.monotonic()
            pod.signal(signal.SIGKILL)

    def limit(self, pod: Pod, seconds: int) -> None:
        """Lower a pod's time limit."""
        with self.guard:
            pod.described["spec"] = {**pod.spec, "activeDeadlineSeconds": seconds}

    def end(self) -> None:
        """Kill everything."""
        self.is_over = True
        with self.guard:
            for pod in self.pods.values():
                pod.signal(signal.SIGKILL)


def number_of_gpus(spec: Mapping[str, Any]) -> int:
    """The GPUs that a pod has."""
    limits = spec["containers"][0]["resources"]["limits"]
    return int(limits.get("nvidia.com/gpu", 0))


def fault(job: Mapping[str, Any]) -> str:
    """What a real server would not take; "" if nothing is found."""
    return next(faults(job), "")


def faults(job: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a real server would not take: of fields, names, labels, and quantities."""
    head, template = job["metadata"], job["spec"]["template"]
    pod = template["spec"]
    (container,) = pod["containers"]
    places = {"": job, "metadata": head, "spec": job["spec"], "spec.template": template}
    for place, values in {**places, "spec.template.spec": pod, "container": container}.items():
        yield from (f'unknown field "{place}.{name}"' for name in set(values) - KNOWN[place])
    if not NAME.fullmatch(head["name"]) or len(head["name"]) > 63:
        yield f'metadata.name: Invalid value: "{head["name"]}"'
    for value in (*head["labels"].values(), *template["metadata"]["labels"].values()):
        if not LABEL.fullmatch(value) or len(value) > 63:
            yield f'metadata.labels: Invalid value: "{value}"'
    resources = container["resources"]
    amounts = (*resources["requests"].values(), *resources["limits"].values())
    wrong = [each for each in amounts if not QUANTITY.fullmatch(str(each))]
    yield from (f"spec.containers[0].resources: Invalid value: {each!r}" for each in wrong)
    if pod["restartPolicy"] not in ("Never", "OnFailure"):
        yield "spec.template.spec.restartPolicy: Required value"
    if not all(isinstance(each["value"], str) for each in container["env"]):
        yield "spec.containers[0].env: Invalid value"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    state: Cluster

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def reply(self, values: Any, code: int = 200) -> None:
        data = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        """What was sent; kubectl sends it in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self) -> None:
        state, data = self.state, self.body()
        if state.is_away:
            state.refused[self.command] += 1
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        url = urlsplit(self.path)
        try:
            with state.guard:
                found = self.found(url.path, dict(parse_qsl(url.query)), data)
            self.reply(found)
        except RefusedError as error:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            status |= {"message": str(error), "reason": error.reason}
            self.reply({**status, "code": error.code}, error.code)

    def found(self, path: str, query: dict[str, str], data: bytes) -> Any:
        state, matched = self.state, PATH.fullmatch(path)
        if matched is None:
            return {"major": "1", "minor": "30"} if path == "/version" else {}
        namespace, kind, name, log = matched.groups()
        if (self.command, kind) in state.forbidden:
            who = "system:serviceaccount:default:microclip"
            raise RefusedError(
                403,
                "Forbidden",
                f'{kind} is forbidden: User "{who}" cannot {self.command} resource "{kind}" in API '
                f'group "batch" in the namespace "{namespace}"',
            )
        if self.command == "POST":
            return state.create(namespace, json.loads(data), query)
        if self.command == "DELETE":
            selected = state.listed(kind, query.get("labelSelector", ""))
            for one in [name] if name else [job["metadata"]["name"] for job in selected]:
                state.delete(one)
            return {"kind": "Status", "status": "Success"}
        if log:
            return state.pods[name].log.read_bytes()
        return {"kind": "List", "items": state.listed(kind, query.get("labelSelector", ""))}

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_DELETE(self) -> None:
        self.answer()


@contextlib.contextmanager
def running(place: Path, claims: dict[str, Path]) -> Iterator[tuple[Cluster, Path]]:
    """Run a cluster until the block ends; the second is the file by which kubectl finds it."""
    state = Cluster(place, claims)
    node = threading.Thread(target=state.live, daemon=True)
    with listening(Handler, state) as server:
        node.start()
        file = place / "kubeconfig"
        file.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "here",
                            "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"},
                        }
                    ],
                    "users": [{"name": "me", "user": {}}],
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                    "current-context": "here",
                }
            )
        )
        try:
            yield state, file
        finally:
            state.end()
            node.join()
