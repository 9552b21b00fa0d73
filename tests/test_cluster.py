"""cluster/: the job templates against what Slurm, Kubeflow's operator and the Makefile say they read; no cluster is needed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

SBATCH = ROOT / "cluster" / "slurm.sbatch"
PYTORCHJOB = ROOT / "cluster" / "pytorchjob.yaml"
# Fields of the operator's PyTorchJob v1 (manifests/base/crds/kubeflow.org_pytorchjobs.yaml) and, of Kubernetes' own, of a pod.
RUN_POLICY = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "cleanPodPolicy",
    "managedBy",
    "schedulingPolicy",
    "suspend",
    "ttlSecondsAfterFinished",
}
REPLICA = {"replicas", "restartPolicy", "template"}
POD = {
    "containers",
    "volumes",
    "securityContext",
    "terminationGracePeriodSeconds",
    "nodeSelector",
    "tolerations",
    "affinity",
}
CONTAINER = {"name", "image", "command", "args", "env", "resources", "volumeMounts", "ports"}
# What its controller (pkg/controller.v1/pytorch/envvar.go) sets in every pod of a job without elasticPolicy.
OPERATOR = {
    "PYTHONUNBUFFERED": "1",
    "MASTER_ADDR": "vikhr-cpt-master-0",
    "MASTER_PORT": "23456",
    "WORLD_SIZE": "2",
    "PET_NNODES": "2",
}


def tool(name):
    """A program, in this virtual environment or on the PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("command", [["bash", "-n"], ["shellcheck"]], ids=lambda command: command[0])
def test_the_slurm_script_is_a_sound_one(command):
    run = subprocess.run([tool(command[0]), *command[1:], str(SBATCH)], capture_output=True, text=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def job_step(folder, *arguments, machines=2):
    """What each machine's make would run, by a stand-in for srun that starts the step's command once for each."""
    (folder / "scontrol").write_text('#!/bin/bash\n[[ "$*" == "show hostnames n[0-1]" ]] && printf "n0\\nn1\\n"\n')
    (folder / "srun").write_text(
        "#!/bin/bash\n"
        'printf "%s\\n" "$@" > "$0.flags"\n'
        "while [[ $1 == --* ]]; do shift; done\n"
        f'for node in $(seq 0 {machines - 1}); do SLURM_NODEID=$node "$@" -n; done\n'
    )
    for name in ("scontrol", "srun"):
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "n[0-1]",
        "SLURM_JOB_ID": "30007",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }
    environment = {**os.environ, **slurm, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    where = [f"K={folder}/k", f"C={folder}/c", f"D={folder}/d", "PYTHON=py"]
    return subprocess.run(
        ["bash", str(SBATCH), *arguments, *where], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_under_slurm_all_machines_train_and_only_the_first_makes_the_rest(tmp_path):
    done = job_step(tmp_path, "cpt", "PROFILE=demo")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("py ")]
    first, second = [line for line in lines if "scripts/cpt.py --" in line]
    launch = "py scripts/launch.py --nproc_per_node=8 --nnodes=2 --rdzv_conf=timeout=3600 --node_rank=0 --rdzv_endpoint=n0:20007 "
    assert first.startswith(launch)
    assert second == first.replace("--node_rank=0", "--node_rank=1")
    assert lines[-1] == second
    assert "scripts/pack.py" in lines[-3]


def test_under_slurm_the_image_is_pyxis_affair(tmp_path, monkeypatch):
    job_step(tmp_path, "cpt", "PROFILE=demo")
    assert "--container" not in (tmp_path / "srun.flags").read_text()
    monkeypatch.setenv("IMAGE", "registry/vikhr:gpu")
    job_step(tmp_path, "cpt", "PROFILE=demo")
    assert (tmp_path / "srun.flags").read_text().splitlines()[2:5] == [
        "--container-image=registry/vikhr:gpu", f"--container-mounts={ROOT}:{ROOT}", f"--container-workdir={ROOT}"
    ]  # fmt: skip


def test_under_slurm_what_is_up_to_date_needs_no_other_machine(tmp_path):
    (tmp_path / "make").write_text("#!/bin/bash\necho 'make: Nothing to be done'\n")
    (tmp_path / "make").chmod(0o755)
    done = job_step(tmp_path, "cpt")
    assert (done.returncode, done.stdout) == (0, "cpt is up to date\n")
    assert not (tmp_path / "srun.flags").exists()


def test_a_slurm_job_says_what_it_trains(tmp_path):
    done = subprocess.run(["bash", str(SBATCH)], capture_output=True, text=True)
    assert done.returncode
    assert "say what is to be trained: cpt or sft" in done.stderr


@pytest.fixture
def job():
    return yaml.safe_load(PYTORCHJOB.read_text(encoding="utf-8"))


def test_the_kubernetes_job_has_the_operators_fields(job):
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(job["spec"]) == {"runPolicy", "pytorchReplicaSpecs"}
    assert set(job["spec"]["runPolicy"]) <= RUN_POLICY
    assert job["spec"]["runPolicy"]["cleanPodPolicy"] in ("All", "Running", "None")
    assert set(job["spec"]["pytorchReplicaSpecs"]) == {"Master", "Worker"}
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        assert set(replica) == REPLICA
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        pod = replica["template"]["spec"]
        assert set(pod) <= POD
        (container,) = pod["containers"]
        assert set(container) <= CONTAINER
        assert container["name"] == "pytorch"  # the operator refuses a job without a container of this name
        assert all(isinstance(argument, str) for argument in container["args"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/vikhr/data", "/vikhr/checkpoints"}
    assert job["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] == 1


def test_under_kubernetes_all_pods_train_and_only_the_first_makes_the_rest(job, tmp_path):
    found = []
    for rank, replica in enumerate(("Master", "Worker")):
        (container,) = job["spec"]["pytorchReplicaSpecs"][replica]["template"]["spec"]["containers"]
        told = OPERATOR | {"RANK": str(rank), "PET_NODE_RANK": str(rank)}
        # Kubernetes replaces $(NAME) in args by the container's variables, and leaves unknown ones as they are.
        command = [
            re.sub(r"\$\((\w+)\)", lambda name, told=told: told.get(name[1], name[0]), part)
            for part in container["args"]
        ]
        command += ["-n", "NEEDS=", f"K={tmp_path}/k", f"C={tmp_path}/c", f"D={tmp_path}/d", "PYTHON=py"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **told}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append([line for line in done.stdout.splitlines() if line.startswith("py ")])
    first, second = found
    launch = "py scripts/launch.py --nproc_per_node=8 --nnodes=2 --rdzv_conf=timeout=3600 --node_rank=0 "
    assert first[-1].startswith(
        f"{launch}--rdzv_endpoint=vikhr-cpt-master-0:23456 scripts/cpt.py --config=configs/vikhr-7b/cpt.yaml "
    )
    assert second == [first[-1].replace("--node_rank=0", "--node_rank=1")]
    assert "scripts/pack.py" in first[-2]
