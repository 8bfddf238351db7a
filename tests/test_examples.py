"""Scripts for clusters: the shell and YAML read them, numbers that belong together fit, docs name them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloze.recipes.load import shipped
from cloze.training.budget import Budget

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def test_every_example_is_named_in_the_docs() -> None:
    page = (ROOT / "docs" / "several-machines.md").read_text("utf-8")
    assert {path.name for path in EXAMPLES.iterdir()} == set(
        re.findall(r"\]\(\.\./examples/([\w.]+)\)", page)
    )


def assert_trains(arguments: list[str]) -> None:
    """What torchrun is given is a run of cloze that goes on with itself."""
    command = arguments[arguments.index("-m") :]
    assert command[:3] == ["-m", "cloze", "pretrain"]
    assert command[3] in shipped()
    assert "--resume" in command
    options = dict(re.findall(r"--(data|out|budget)[ =](\S+)", " ".join(command)))
    assert set(options) == {"data", "out", "budget"}
    Budget.parse(options["budget"])


# -- SLURM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_the_shell_reads_it(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    broken = subprocess.run(
        ["bash", "-n"], input=script.read_text("utf-8") + "\nif", capture_output=True, text=True
    )
    assert broken.returncode != 0  # the control


def test_slurm_starts_one_torchrun_a_machine(tmp_path: Path) -> None:
    """Run with programs in place of SLURM's and torchrun that say what they are given."""
    content = (EXAMPLES / "slurm.sh").read_text("utf-8")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", content, re.MULTILINE))
    assert options["ntasks-per-node"] == "1"  # torchrun starts the others
    assert options["signal"].startswith("TERM@")
    assert "requeue" in options
    for name, body in {
        "scontrol": '[ "$*" = "show hostnames node[7-10]" ] && printf "node7\\nnode8\\n"',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "torchrun": 'printf "%s\\n" "$@" "threads $OMP_NUM_THREADS" "cache $CLOZE_CACHE"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-10]", "SLURM_NNODES": options["nodes"], "SLURM_JOB_ID": "42"}
    known = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ["bash", str(EXAMPLES / "slurm.sh")]
    done = subprocess.run(
        script, env=known | slurm | {"SCRATCH": "/scratch"}, capture_output=True, text=True, check=True
    )
    *arguments, threads, cache = done.stdout.splitlines()
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    assert given["--nnodes"] == options["nodes"]
    assert given["--nproc-per-node"] == options["gpus-per-node"]
    assert (given["--rdzv-id"], given["--rdzv-backend"]) == ("42", "c10d")
    assert given["--rdzv-endpoint"] == "node7:29500"
    assert int(threads.split()[1]) * int(options["gpus-per-node"]) <= int(options["cpus-per-task"])
    assert cache == "cache /scratch/cloze"
    assert_trains(arguments)
    missing = subprocess.run(script, env=known | slurm, capture_output=True, text=True)
    assert missing.returncode != 0  # a folder that is not known is no root of the disk
    assert missing.stdout == ""


# -- Kubernetes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    """The service and the job."""
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text("utf-8"))
    return service, job


def test_a_pod_a_machine(kubernetes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, job = kubernetes
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = container["args"]
    given = dict(a.removeprefix("--").split("=", 1) for a in arguments if "=" in a)
    assert container["command"] == ["torchrun"]
    assert spec["completionMode"] == "Indexed"  # or pods have no names
    assert spec["parallelism"] == spec["completions"] == int(given["nnodes"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(given["nproc-per-node"])
    assert_trains(arguments)


def test_pods_find_each_other(kubernetes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    service, job = kubernetes
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert service["spec"]["clusterIP"] == "None"  # quoted in YAML's sense: a text, not null
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    (port,) = service["spec"]["ports"]
    endpoint = f"--rdzv-endpoint={name}-0.{pod['subdomain']}:{port['port']}"
    assert endpoint in pod["containers"][0]["args"]
    assert "--rdzv-backend=c10d" in pod["containers"][0]["args"]


def test_a_pod_that_is_preempted_saves_and_is_made_anew(
    kubernetes: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    spec, pod = kubernetes[1]["spec"], kubernetes[1]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for; the job makes new pods
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "Ignore"
    assert rule["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert spec["backoffLimit"] > 0
    assert pod["terminationGracePeriodSeconds"] > 30  # torchrun's own patience with its processes


def test_every_folder_is_on_a_volume(kubernetes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    pod = kubernetes[1]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    options = dict(re.findall(r"--(data|out)=(/\w+)", " ".join(container["args"])))
    cache = {entry["name"]: entry["value"] for entry in container["env"]}["CLOZE_CACHE"]
    for path in (*options.values(), "/" + cache.split("/")[1]):
        assert "persistentVolumeClaim" in volumes[mounts[path]]
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}  # NCCL needs more than 64 MiB
