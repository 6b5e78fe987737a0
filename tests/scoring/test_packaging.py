"""Manifests of schedulers for batch scoring: syntax, fields, and the options that they use."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from edgetl.cli.app import app
from tests.docs.pages import ROOT

SLURM = ROOT / "packaging/slurm/predict.sbatch"
KUBERNETES = ROOT / "packaging/kubernetes/predict-job.yaml"
RAY = ROOT / "packaging/kubernetes/predict-rayjob.yaml"
# Fields of RayJobSpec, RayClusterSpec, HeadGroupSpec and WorkerGroupSpec (ray.io/v1) of KubeRay 1.4. No package on PyPI has its schema. The
# fields that the manifest uses were compared with the Go types (ray-operator/apis/ray/v1).
_RAY_JOB = {
    *"activeDeadlineSeconds backoffLimit clusterSelector deletionPolicy entrypoint entrypointNumCpus entrypointNumGpus jobId".split(),
    *"entrypointResources managedBy metadata rayClusterSpec runtimeEnvYAML shutdownAfterJobFinishes submissionMode".split(),
    *"submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished".split(),
}
_RAY_CLUSTER = {
    *"autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec headServiceAnnotations managedBy".split(),
    *"rayVersion suspend workerGroupSpecs".split(),
}
_RAY_HEAD = set("enableIngress headService rayStartParams serviceType template".split())
_RAY_WORKERS = {
    *"groupName idleTimeoutSeconds maxReplicas minReplicas numOfHosts rayStartParams replicas scaleStrategy suspend template".split()
}
# Fields of JobSpec (batch/v1) and PodSpec (v1) of Kubernetes 1.33.
_JOB = {
    *"activeDeadlineSeconds backoffLimit backoffLimitPerIndex completionMode completions managedBy manualSelector maxFailedIndexes".split(),
    *"parallelism podFailurePolicy podReplacementPolicy selector successPolicy suspend template ttlSecondsAfterFinished".split(),
}
_CONTAINER = set("name image command args env resources volumeMounts workingDir imagePullPolicy securityContext".split())


def _options_exist(text: str) -> None:
    group: Any = typer.main.get_command(app)
    known = {name for parameter in group.commands["predict"].params for name in parameter.opts}
    used = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", " ".join(line for line in text.splitlines() if "edgetl predict" in line)))
    assert used and used - {"--array", "--dependency"} <= known


def _run(script: Path, code: int, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the Slurm script with a program called edgetl that prints its arguments and ends with ``code``."""
    stand_in = tmp_path / "edgetl"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s|" "$@"\nexit {code}\n')
    stand_in.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_MAX": "63",
        "SLURM_CPUS_PER_TASK": "4",
    }
    command = ["bash", str(script), "bundle", "out", "shards/{00000..00999}.tar"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_slurm_array_predicts_the_shard_of_its_task(tmp_path: Path) -> None:
    done = _run(SLURM, 0, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "predict|bundle|shards/{00000..00999}.tar|--out|out|--shard|3/64|--threads|4|"
    _options_exist(SLURM.read_text("utf-8"))


@pytest.mark.parametrize(("code", "expected"), [(5, 0), (3, 3), (143, 143)])
def test_the_slurm_array_fails_only_if_the_shard_is_not_complete(tmp_path: Path, code: int, expected: int) -> None:
    assert _run(SLURM, code, tmp_path).returncode == expected


def test_the_kubernetes_job_is_an_indexed_job_with_known_fields() -> None:
    yaml = pytest.importorskip("yaml")
    (job,) = yaml.safe_load_all(KUBERNETES.read_text("utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job") and re.fullmatch(r"[a-z0-9-]{1,63}", job["metadata"]["name"])
    spec = job["spec"]
    assert spec.keys() <= _JOB and spec["completionMode"] == "Indexed" and spec["parallelism"] <= spec["completions"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "podFailurePolicy needs it"
    (container,) = pod["containers"]
    assert container.keys() <= _CONTAINER
    assert container["env"] == [{"name": "SHARDS", "value": str(spec["completions"])}]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule["onExitCodes"]
        assert rule["action"] == "FailJob" and codes["containerName"] == container["name"]
        assert codes["operator"] == "In" and 0 not in codes["values"] and len(set(codes["values"])) == len(codes["values"])
    script = container["command"][-1]
    assert container["command"][:2] == ["sh", "-c"] and '--shard "$JOB_COMPLETION_INDEX/$SHARDS"' in script
    assert subprocess.run(["sh", "-n", "-c", script], check=False).returncode == 0
    _options_exist(script)


def test_the_ray_job_has_known_fields_and_a_valid_entrypoint(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    (job,) = yaml.safe_load_all(RAY.read_text("utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec.keys() <= _RAY_JOB and cluster.keys() <= _RAY_CLUSTER and cluster["headGroupSpec"].keys() <= _RAY_HEAD
    (workers,) = cluster["workerGroupSpecs"]
    assert workers.keys() <= _RAY_WORKERS and workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container.keys() <= _CONTAINER
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    _options_exist(spec["entrypoint"].split(";")[0])
    for code, expected in ((5, 0), (3, 3)):
        stand_in = tmp_path / "edgetl"
        stand_in.write_text(f"#!/bin/sh\nexit {code}\n")
        stand_in.chmod(0o755)
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        assert subprocess.run(["sh", "-c", spec["entrypoint"]], check=False, env=environment).returncode == expected
