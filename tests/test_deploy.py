"""What is in deploy/, as far as it can be checked without what it is for."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from tests.programs import ROOT, SECONDS

DEPLOY = ROOT / "deploy"
KUBERNETES = ("1.30", "1.37")
"""Versions whose schemas the manifests satisfy: one that is old, and one that is new."""


def test_every_file_has_a_test() -> None:
    assert {path.name for path in DEPLOY.iterdir()} == {
        "Dockerfile",
        "Dockerfile.dockerignore",
        "kubernetes.yaml",
        "slurm.sh",
        "wool-worker.service",
        "worker.env",
    }


# Docker


@pytest.fixture
def image(tmp_path: Path) -> DockerfileParser:
    """The Dockerfile, in a copy: the parser opens files for writing."""
    shutil.copy(DEPLOY / "Dockerfile", tmp_path)
    return DockerfileParser(str(tmp_path / "Dockerfile"))


def instructions(image: DockerfileParser, name: str) -> list[str]:
    return [each["value"] for each in image.structure if each["instruction"] == name]


def test_image_runs_the_command_as_somebody_else(image: DockerfileParser) -> None:
    last = [each["instruction"] for each in image.structure]

    assert json.loads(instructions(image, "ENTRYPOINT")[-1]) == ["wool", "worker"]
    assert instructions(image, "USER") == ["10001"]
    assert last.index("USER") < last.index("ENTRYPOINT")
    assert all(base.startswith("python:3.13-slim") for base in instructions(image, "FROM"))


def test_image_is_made_of_what_is_sent_to_the_builder(image: DockerfileParser) -> None:
    ignoring = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    sent = {line.removeprefix("!") for line in ignoring if line.startswith("!")}
    copied = {
        source
        for value in instructions(image, "COPY")
        if not value.startswith("--from")
        for source in shlex.split(value)[:-1]
    }

    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {project["project"]["readme"], *project["project"]["license-files"]}
    assert needed <= copied


# systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that is here."""
    text = (DEPLOY / "wool-worker.service").read_text(encoding="utf-8")
    assert "\nExecStart=/opt/wool/bin/wool worker\n" in text
    path = tmp_path / "wool-worker.service"
    path.write_text(text.replace("/opt/wool/bin/wool", "/bin/true"), encoding="utf-8")
    return path


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here"
)


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@needs_systemd
def test_systemd_takes_the_unit(unit: Path) -> None:
    verified = systemd_analyze("verify", unit)

    assert (verified.returncode, verified.stderr) == (0, "")


@needs_systemd
def test_systemd_finds_little_that_the_unit_exposes(unit: Path) -> None:
    """Of ten; a service without any hardening has 9.6."""
    rated = systemd_analyze("security", "--offline=true", "--no-pager", "--threshold=25", unit)

    assert rated.returncode == 0, rated.stdout


def test_unit_lets_workers_drain() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(DEPLOY / "wool-worker.service")
    service = unit["Service"]

    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= 60
    assert service["DynamicUser"] == "yes"


# Kubernetes


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_satisfy_the_schemas(manifests: dict[str, Any], version: str) -> None:
    assert set(manifests) == {"Service", "Deployment"}
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_schemas_refuse_what_they_do_not_know(manifests: dict[str, Any]) -> None:
    """So that the test before could fail."""
    manifest = {**manifests["Service"], "spec": {"clusterIp": "None"}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES[0], strict=True)


def test_headless_service_leads_to_the_pods(manifests: dict[str, Any]) -> None:
    service, deployment = manifests["Service"]["spec"], manifests["Deployment"]["spec"]
    [container] = deployment["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    [port] = service["ports"]

    assert service["clusterIP"] == "None"
    labels = deployment["template"]["metadata"]["labels"]
    assert service["selector"] == deployment["selector"]["matchLabels"] == labels
    assert ports[port["targetPort"]] == port["port"]


def test_pods_listen_and_are_probed_where_they_say(manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    given = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}

    assert given["workers"] == "1"
    assert ports == {
        "grpc": given["port"],
        "health": given["health-port"],
        "metrics": given["metrics-port"],
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": int(given["health-port"])}
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {given[option].rpartition("/")[0] for option in ("ca", "key", "cert")} < mounted


def test_pods_are_not_killed_while_they_drain(manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    liveness = container["livenessProbe"]

    grace = pod["terminationGracePeriodSeconds"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= grace >= 60


def test_pods_run_as_the_user_of_the_image(
    manifests: dict[str, Any], image: DockerfileParser
) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"]
    assert [str(pod["securityContext"]["runAsUser"])] == instructions(image, "USER")
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


# Slurm


def test_batch_script_is_one() -> None:
    script = DEPLOY / "slurm.sh"
    shellcheck = Path(sys.executable).with_name("shellcheck")

    subprocess.run(["bash", "-n", script], check=True, timeout=SECONDS)
    subprocess.run([shellcheck, script], check=True, timeout=SECONDS)
    text = script.read_text(encoding="utf-8")
    before = text.partition("set -euo pipefail")[0].splitlines()[1:]
    asked = [line for line in before if re.fullmatch(r"#SBATCH --[a-z-]+=\S+", line)]
    assert len(asked) == text.count("#SBATCH")
