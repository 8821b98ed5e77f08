"""Jobs as pods of Kubernetes: what is created and read back, and what kubectl's errors mean.

A study in pods is in tests/kubernetes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.warm import PLUGINS
from tests.kubernetes import cluster
from tests.workflow.folder import ROOT

sys.path.insert(0, str(PLUGINS))
from snakemake_interface_common.exceptions import WorkflowError  # noqa: E402

from snakemake_executor_plugin_microclip_pods import kubectl, pods  # noqa: E402

PROFILE = ROOT / "workflow" / "profiles" / "kubernetes"
TEMPLATE = (PROFILE / "job.yaml").read_text(encoding="utf-8")
FILLED = TEMPLATE.replace("registry.example/", "icons/").replace('claimName: ""', "claimName: rwx")
RUN = ("pets", "vit-b-32", "shipped", "microclip", "no_fusion", "0")


def written(tmp_path: Path, text: str = FILLED) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def asked(**changes: Any) -> pods.Asked:
    values: dict[str, Any] = {"name": "adapt", "wildcards": RUN, "key": "run 7 1", "cores": 4}
    values |= {"command": "python -m snakemake --cores 4", "folder": "/study/pets", "gpus": 1}
    return pods.Asked(**{**values, "memory_mb": 12345, "minutes": 40, **changes})


def made(tmp_path: Path, text: str = FILLED, given: dict[str, str] | None = None, **changes: Any):
    template = pods.read_template(written(tmp_path, text))
    return pods.manifest(template, asked(**changes), given or {})


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_a_job_asks_for_what_its_rule_needs(tmp_path: Path) -> None:
    job = made(tmp_path)
    pod = job["spec"]["template"]["spec"]
    assert container(job)["resources"] == {
        "requests": {"cpu": "4", "memory": "12345M"},
        "limits": {"nvidia.com/gpu": "1", "memory": "12345M"},
    }
    assert pod["activeDeadlineSeconds"] == 2400
    assert "activeDeadlineSeconds" not in job["spec"]  # it would count the wait for a GPU
    assert (job["spec"]["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert container(job)["workingDir"] == "/study/pets"
    assert pod["securityContext"]["runAsNonRoot"]
    assert cluster.fault(job) == ""


def test_a_job_without_a_gpu_has_none_and_a_cluster_names_its_own(tmp_path: Path) -> None:
    assert container(made(tmp_path, gpus=0))["resources"]["limits"] == {"memory": "12345M"}
    amd = FILLED.replace("nvidia.com/gpu", "amd.com/gpu")
    assert container(made(tmp_path, amd, gpus=2))["resources"]["limits"]["amd.com/gpu"] == "2"
    none = re.sub(r"limits: \{.*?\}", "limits: {}", FILLED)
    with pytest.raises(WorkflowError, match="job adapt pets .* needs a GPU, and resources.limits"):
        made(tmp_path, none)


def test_a_name_says_rule_and_run_and_is_no_other_attempts(tmp_path: Path) -> None:
    job = made(tmp_path)
    assert re.fullmatch(
        r"adapt-pets-vit-b-32-shipped-microclip-no-fusion-0-[0-9a-f]{8}", job["metadata"]["name"]
    )
    assert job["metadata"]["annotations"]["microclip/job"] == f"adapt {' '.join(RUN)}"
    assert asked(key="run 7 2").id != asked().id
    long = asked(name="report_" + "collect_scores_" * 9, wildcards=())
    assert len(long.id) <= 63
    assert cluster.fault(made(tmp_path, name=long.name, wildcards=())) == ""


def test_jobs_get_the_studys_variables_and_no_secret(tmp_path: Path) -> None:
    given = {"MICROCLIP_OFFLINE": "1", "MICROCLIP_WARM": "/tmp/x", "OPENAI_API_KEY": "sk-1"}
    given |= {"MLFLOW_TRACKING_URI": "http://mlflow.example:5000", "HOME": "/root"}
    found = container(made(tmp_path, given=given))
    assert found["env"] == [
        {"name": "MICROCLIP_OFFLINE", "value": "1"},
        {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow.example:5000"},
    ]
    assert found["envFrom"] == [{"secretRef": {"name": "microclip", "optional": True}}]
    given["MLFLOW_TRACKING_URI"] = "http://me:secret@mlflow.example:5000"
    assert "secret@" not in str(made(tmp_path, given=given))


def test_a_variable_of_the_template_stays(tmp_path: Path) -> None:
    own = "          env: [{name: MICROCLIP_OFFLINE, value: '0'}]\n          envFrom:"
    text = FILLED.replace("          envFrom:", own)
    found = container(made(tmp_path, text, {"MICROCLIP_OFFLINE": "1"}))
    assert found["env"] == [{"name": "MICROCLIP_OFFLINE", "value": "0"}]


def test_jobs_end_with_the_pod_that_submits_them(tmp_path: Path) -> None:
    job = made(tmp_path, given={"POD_NAME": "submit-x", "POD_UID": "1-2"})
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "submit-x", "uid": "1-2"}
    assert job["metadata"]["ownerReferences"] == [owner]
    assert "ownerReferences" not in made(tmp_path)["metadata"]


def test_all_processes_get_sigterm_and_the_shell_waits_for_them(tmp_path: Path) -> None:
    """Kubernetes sends it to the first process alone, and takes its end for the container's."""
    slow = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: None)\n"
    slow += (
        "print('ready', flush=True); signal.pause(); time.sleep(0.3); print('saved'); sys.exit(7)"
    )
    script = tmp_path / "slow.py"
    script.write_text(slow)
    found = container(
        made(tmp_path, command=f"sh -c 'trap : TERM; {sys.executable} {script}; exit $?'")
    )
    process = subprocess.Popen(
        [*found["command"], *found["args"]],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.terminate()
    assert process.stdout.read() == "saved\n"
    assert process.wait(30) == 7


@pytest.mark.parametrize("code", [0, 3])
def test_a_container_ends_as_its_command_does(tmp_path: Path, code: int) -> None:
    found = container(made(tmp_path, command=f"sh -c 'exit {code}'"))
    assert subprocess.run([*found["command"], *found["args"]], check=False).returncode == code


def test_kubernetes_puts_no_variable_into_a_command(tmp_path: Path) -> None:
    assert "echo $$(HOME) &" in container(made(tmp_path, command="echo $(HOME)"))["args"][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEMPLATE, "no image is filled in"),
        (TEMPLATE.replace("registry.example/", ""), "no volume claim is filled in"),
        (FILLED.replace("namespace: default", "labels: {}"), "metadata.namespace is missing"),
        (FILLED.replace("kind: Job", "kind: Pod"), "expected a Job of batch/v1, got Pod"),
        (
            FILLED.replace("claimName: rwx", "claimName: 5"),
            "spec.template.spec.volumes[0].persistentVolumeClaim.claimName must be text, got 5",
        ),
        (FILLED.replace("{claimName: rwx}", "rwx"), "persistentVolumeClaim must be keys with"),
        (FILLED.replace("namespace: default", "namespace: 7"), "metadata.namespace must be text"),
        (FILLED.replace("icons/microclip:latest", "5"), "containers[0].image must be text, got 5"),
        (FILLED.replace("mountPath: /study", "mountPath: [1]"), "mountPath must be text"),
        (FILLED.replace("# nodeSelector: {gpu: a100}", "nodeSelector: {gpu: 1}"), "Selector.gpu"),
        (FILLED.replace("- {secretRef", "- 3\n            - {secretRef"), "envFrom must be a list"),
        (FILLED.replace('limits: {nvidia.com/gpu: "1"}', "limits: 1"), "limits must be keys with"),
        ("[]", "expected a Job of batch/v1 with a container"),
        ("kind: {", "no YAML"),
    ],
)
def test_a_template_that_is_not_filled_in_is_refused_in_one_line(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(WorkflowError) as error:
        pods.read_template(written(tmp_path, text))
    assert said in str(error.value)
    assert "\n" not in str(error.value).strip()
    assert str(tmp_path / "job.yaml") in str(error.value)


def test_a_folder_beside_the_volume_is_refused(tmp_path: Path) -> None:
    template = pods.read_template(written(tmp_path))
    pods.check_folder(template, Path("/study/pets"))
    with pytest.raises(
        WorkflowError, match=r"/home/me/study is not on the volume .* /study; mount"
    ):
        pods.check_folder(template, Path("/home/me/study"))
    for mount in template.pod["containers"][0]["volumeMounts"]:
        del mount["mountPath"]
    with pytest.raises(WorkflowError, match="a volumeMount of the claim has no mountPath"):
        pods.check_folder(template, Path("/study/pets"))


def test_a_missing_kubectl_and_template_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WorkflowError, match=r"none\.yaml: cannot be read \(No such file"):
        pods.read_template(tmp_path / "none.yaml")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkflowError, match="kubectl, .* is not on the PATH; install it"):
        kubectl.Kubectl("default", "a=b")


def conditions(*names: str) -> dict[str, Any]:
    word = {"status": "True", "reason": "BackoffLimitExceeded", "message": "Job has failed"}
    return {"status": {"conditions": [{"type": name, **word} for name in names]}}


def pod(phase: str, **status: Any) -> dict[str, Any]:
    return {"status": {"phase": phase, **status}}


def ended(code: int, reason: str) -> list[dict[str, Any]]:
    return [{"state": {"terminated": {"exitCode": code, "reason": reason}}}]


UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
LOST = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}


@pytest.mark.parametrize(
    ("job", "found", "end", "reason"),
    [
        ({}, [], "running", ""),
        ({"status": {"active": 1}}, [pod("Running")], "running", ""),
        (conditions("SuccessCriteriaMet"), [pod("Succeeded")], "running", ""),
        (conditions("SuccessCriteriaMet", "Complete"), [], "succeeded", ""),
        (None, [], "failed", "somebody has deleted its Job"),
        (conditions("Failed"), [], "failed", "BackoffLimitExceeded: Job has failed"),
        (
            conditions("FailureTarget", "Failed"),
            [pod("Failed", containerStatuses=ended(137, "OOMKilled"))],
            "failed",
            "OOMKilled, exit code 137",
        ),
        (
            conditions("Failed"),
            [pod("Failed", reason="Evicted", message="low on memory: \n ")],
            "failed",
            "Evicted: low on memory:",
        ),
        # The node of a pod is lost: the Job knows that it failed, and waits for the pod's end.
        (
            conditions("FailureTarget"),
            [pod("Running", conditions=[{**LOST, "message": "node is unreachable"}])],
            "failed",
            "DeletionByTaintManager: node is unreachable",
        ),
        (
            {},
            [pod("Pending", conditions=[{**UNSCHEDULED, "message": "0/3 nodes"}])],
            "running",
            "Unschedulable: 0/3 nodes",
        ),
        (
            {},
            [
                pod(
                    "Pending",
                    containerStatuses=[
                        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}
                    ],
                )
            ],
            "running",
            "ImagePullBackOff: no",
        ),
        (
            {},
            [
                pod(
                    "Pending",
                    containerStatuses=[{"state": {"waiting": {"reason": "ContainerCreating"}}}],
                )
            ],
            "running",
            "",
        ),
    ],
)
def test_a_state_is_read_from_the_job_and_its_pods(
    job: dict[str, Any] | None, found: list[dict[str, Any]], end: str, reason: str
) -> None:
    state = pods.state_of(job, found)
    assert (state.end, state.reason) == (end, reason)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ('Error from server (Forbidden): jobs.batch is forbidden: User "x"', "Forbidden"),
        ('W1127 a warning\nError from server (NotFound): namespaces "a" not found', "NotFound"),
        ('The request is invalid: Job.batch "a" is invalid', "Invalid"),
        ("The request is invalid", "Invalid"),
        ('Error from server (Forbidden): jobs "a" is forbidden: exceeded quota: q', ""),
        ("Error from server (ServiceUnavailable): busy", ""),
        ("Error from server (InternalError): etcdserver: leader changed", ""),
        ("error: You must be logged in to the server (Unauthorized)", ""),
        ("The connection to the server 10.0.0.1:6443 was refused - did you specify", ""),
        ("", ""),
    ],
)
def test_only_an_answer_that_would_stay_the_same_is_final(said: str, reason: str) -> None:
    """The errors are those that kubectl 1.20 and 1.32 print for `--raw`."""
    found = kubectl.failure(said)
    assert (found.reason if isinstance(found, kubectl.Refused) else "") == reason
    assert "\n" not in str(found)


def test_the_pod_that_submits_may_do_what_is_asked_and_no_more() -> None:
    account, role, binding, job = yaml.safe_load_all((PROFILE / "submit.yaml").read_text())
    source = Path(kubectl.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'_ask\("(\w+)"', source)) == {"create", "get", "delete"}
    rights = {(name, verb) for r in role["rules"] for name in r["resources"] for verb in r["verbs"]}
    assert rights == {
        *(("jobs", verb) for verb in ("create", "list", "delete", "deletecollection")),
        ("pods", "list"),
        ("pods/log", "get"),
    }
    pod_spec = job["spec"]["template"]["spec"]
    assert pod_spec["serviceAccountName"] == account["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (submit,) = pod_spec["containers"]
    subprocess.run(["/bin/sh", "-n", "-c", submit["args"][0]], check=True)
    template = yaml.safe_load(TEMPLATE)["spec"]["template"]["spec"]
    assert submit["image"] == template["containers"][0]["image"]
    assert submit["volumeMounts"][0] == template["containers"][0]["volumeMounts"][0]
    assert {each["name"] for each in submit["env"]} == {"POD_NAME", "POD_UID"}
    assert "--microclip-pods-template /etc/microclip/job.yaml" in submit["args"][0]
