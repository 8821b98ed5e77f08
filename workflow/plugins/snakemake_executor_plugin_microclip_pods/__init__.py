"""The project's executor plugin for Snakemake: each job, or group of jobs, is a pod of Kubernetes.

The pods mount the volume that the study's folder is on, so that they read and write its files as
local jobs do. `workflow/profiles/kubernetes` uses it; docs/cluster.md says how.
"""

# No annotations from __future__: Snakemake takes the types of options from them.
import os
import secrets
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

from snakemake_executor_plugin_microclip_pods import pods
from snakemake_executor_plugin_microclip_pods.kubectl import Away, Kubectl, Refused

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

LOGS = Path("logs", "kubernetes")
_PODLESS_S = 60.0  # from the Job to its pod; a quota or an admission hook may forbid pods
_ENDING_S = 60.0  # until the processes of an earlier start have ended; a pod has 30 s for it
_TRIES = 5


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """The options of the plugin."""

    template: str = field(
        default="workflow/profiles/kubernetes/job.yaml",
        metadata={"help": "Job that is filled in for each job", "env_var": False},
    )


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_envvar_declarations_to_cmd=False,  # keys would be in the Job, for all to read
    auto_deploy_default_storage_provider=False,
)


@dataclass
class _Submission:
    """What is known of a job that was handed over."""

    manifest: dict[str, Any]
    title: str
    is_created: bool = False
    since: float = field(default_factory=time.monotonic)
    said: set[str] = field(default_factory=set)  # reasons to wait that people have read


class Executor(RemoteExecutor):
    """Creates Jobs, asks for their states, and deletes those that have ended."""

    def __post_init__(self) -> None:
        """Check everything that would make all jobs fail, and end what an earlier start left.

        Raises:
            WorkflowError: the template, kubectl, or the cluster's rules.
        """
        self._run = secrets.token_hex(4)
        self._folder = Path(self.workflow.workdir_init)
        self._cores: int | str = "all"
        self._is_away = False
        self._is_cancelled = False
        self._ended: set[str] = set()  # Jobs that are still to be deleted
        self._creating = threading.Lock()
        self._template = pods.read_template(Path(self.workflow.executor_settings.template))
        pods.check_folder(self._template, self._folder)
        label = f"{pods.FOLDER_LABEL}={pods.folder_label(self._folder)}"
        self._kubectl = Kubectl(self._template.namespace, label)
        trial = pods.Asked("microclip", (), self._run, "true", str(self._folder), 1, 0)
        try:
            self._kubectl.create(self._manifest(trial), is_rehearsal=True)
            self._end_earlier()
        except Refused as error:
            raise WorkflowError(
                f"microclip: the cluster refuses what {self._template.path} asks for, in namespace "
                f"{self._template.namespace} ({error.reason}): {error}; see docs/cluster.md, "
                "Kubernetes, for the rights that it takes"
            ) from error
        except Away as error:
            raise WorkflowError(
                f"microclip: the cluster does not answer kubectl: {error}; `kubectl get jobs "
                f"--namespace {self._template.namespace}` must work here"
            ) from error

    def _end_earlier(self) -> None:
        """Delete the Jobs of a start that was killed, and wait for their processes to end."""
        if not self._kubectl.jobs():
            self._kubectl.delete_all()  # so that a missing right shows now, and not at Ctrl-C
            return
        self.logger.info("ending the pods that an earlier start of this study has left")
        self._kubectl.delete_all()
        end = time.monotonic() + _ENDING_S
        while time.monotonic() < end and self._kubectl.pods():
            time.sleep(2)

    def _manifest(self, asked: pods.Asked) -> dict[str, Any]:
        return pods.manifest(self._template, asked, os.environ)

    @property
    def cores(self) -> int | str:
        """The cores that the job's own Snakemake may use: as many as its pod has."""
        return self._cores

    def get_job_args(self, job: JobExecutorInterface) -> str:
        """The arguments of the job's own Snakemake."""
        self._cores = max(1, job.threads)
        return str(super().get_job_args(job))

    def run_job(self, job: JobExecutorInterface) -> None:
        """Create the Job of a job or group; if the server is away, later."""
        asked = pods.Asked(
            name=str(job.name),
            wildcards=() if job.is_group() else tuple(map(str, job.wildcards)),
            key=f"{self._run} {job.jobid} {job.attempt}",
            command=self.format_job_exec(job),
            folder=str(self._folder),
            cores=max(1, job.threads),
            gpus=_number(job, "gpu") or 0,
            memory_mb=_number(job, "mem_mb"),
            minutes=_number(job, "runtime"),
        )
        submission = _Submission(self._manifest(asked), asked.title)
        info = SubmittedJobInfo(job, external_jobid=asked.id, aux={"pod": submission})
        if self._create(info, submission):
            self.report_job_submission(info)

    def _create(self, info: SubmittedJobInfo, submission: _Submission) -> bool:
        """Create a Job, later if the server is away; report and return False if it is refused."""
        try:
            with self._creating:
                if not self._is_cancelled:
                    self._kubectl.create(submission.manifest)
                    submission.is_created = True
        except Away as error:
            self._say_away(error)
        except Refused as error:
            self.report_job_error(info, msg=f"{submission.title}: {error} ({error.reason}). ")
            return False
        return True

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report the jobs that have ended, and yield the others: all, while the server is away."""
        if not active_jobs:  # Snakemake asks for the first time before `__post_init__`
            return
        try:
            jobs, found = self._kubectl.jobs(), self._kubectl.pods()
        except (Away, Refused) as error:  # a right that is taken away may be given back
            self._say_away(error)
            for info in active_jobs:
                yield info
            return
        if self._is_away:
            self._is_away = False
            self.logger.info("the cluster answers again")
            self._delete_ended()
        named = {job["metadata"]["name"]: job for job in jobs}
        for info in active_jobs:
            own = [
                pod
                for pod in found
                if (pod["metadata"].get("labels") or {}).get(pods.JOB_LABEL) == info.external_jobid
            ]
            if self._goes_on(info, named.get(str(info.external_jobid)), own):
                yield info

    def _goes_on(
        self, info: SubmittedJobInfo, job: dict[str, Any] | None, own: list[dict[str, Any]]
    ) -> bool:
        """Report a job that has ended; return whether it has not."""
        if self._is_cancelled:  # its Job is gone by our own doing
            return True
        submission: _Submission = (info.aux or {})["pod"]
        if not submission.is_created:
            return self._create(info, submission)
        state = pods.state_of(job, own)
        if state.end == "running":
            waited = time.monotonic() - submission.since
            hint = f"no pod after a minute; `kubectl describe job {info.external_jobid}` says why"
            self._say_waiting(
                submission, state.reason or (hint if self._lacks(own, waited) else "")
            )
            return True
        if state.end == "succeeded":
            self.report_job_success(info)
        else:
            log = self._keep_log(info, own, f"{submission.title}: {state.reason}")
            self.logger.warning(f"pod of {submission.title} failed: {state.reason} (log: {log})")
            self.report_job_error(info, msg=f"{state.reason}. ", aux_logs=[str(log)])
        self._ended.add(str(info.external_jobid))
        self._delete_ended()
        return False

    @staticmethod
    def _lacks(own: list[dict[str, Any]], waited_s: float) -> bool:
        return not own and waited_s > _PODLESS_S

    def _say_away(self, error: Exception) -> None:
        """Tell people once that nothing is known of the jobs for now."""
        if not self._is_away:
            self._is_away = True
            self.logger.warning(f"the cluster does not answer, its jobs go on: {error}")

    def _say_waiting(self, submission: _Submission, reason: str) -> None:
        kind = reason.partition(":")[0]
        if reason and kind not in submission.said:
            submission.said.add(kind)
            self.logger.info(f"{submission.title} waits: {reason}")

    def _keep_log(self, info: SubmittedJobInfo, own: list[dict[str, Any]], title: str) -> Path:
        """Write what the pods of a failed job printed; they are deleted then."""
        path = LOGS / f"{info.external_jobid}.log"
        texts = [title]
        for pod in own:
            try:
                texts.append(self._kubectl.log(pod["metadata"]["name"]))
            except (Away, Refused) as error:
                texts.append(f"its log is lost: {error}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    def _delete_ended(self) -> None:
        """Delete the Jobs that have ended; if that fails to the last, Kubernetes does in a day."""
        for job in sorted(self._ended):
            try:
                self._kubectl.delete(job)
            except (Away, Refused) as error:
                self._say_away(error)
                return
            self._ended.discard(job)

    def shutdown(self) -> None:
        """Delete what is left, and stop asking for states."""
        self._delete_ended()
        super().shutdown()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Delete all Jobs, also those that are not in the list as they are just looked at."""
        with self._creating:
            self._is_cancelled = True
        for attempt in range(_TRIES):
            try:
                self._kubectl.delete_all()
            except (Away, Refused) as error:
                self._say_away(error)
                time.sleep(2**attempt)
            else:
                return
        self.logger.error(
            f"the cluster does not answer, and {len(active_jobs)} jobs go on; the next start ends "
            f"them, or `kubectl delete jobs --namespace {self._template.namespace} --selector "
            f"{pods.FOLDER_LABEL}={pods.folder_label(self._folder)}`"
        )


def _number(job: JobExecutorInterface, resource: str) -> int | None:
    """A resource of a job; None if it says nothing of it."""
    found = job.resources.get(resource)
    return int(found) if isinstance(found, (int, float)) else None
