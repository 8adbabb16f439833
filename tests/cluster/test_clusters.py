"""Clusters without any: what files say, which jobs they ask for, why workers died; and processes of this machine."""

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from distributed import KilledWorker, LocalCluster

from wsi_stain.cluster import ClusterConfig, KubernetesConfig, explain, is_retiring, kubernetes, local, open_cluster
from wsi_stain.cluster.deaths import cause_of
from wsi_stain.cluster.settings import worker_environment
from wsi_stain.config.loader import dump, load
from wsi_stain.errors import ConfigError

ROOT = Path(__file__).parents[2]
FILES = ROOT / "configs" / "cluster"


def shipped(name: str, folder: Path, **changes: object) -> ClusterConfig:
    return replace(load(ClusterConfig, FILES / f"{name}.yaml"), logs=folder / "logs", **changes)


def job_script(config: ClusterConfig) -> str:
    """What dask-jobqueue would submit; no batch system is asked."""
    dask_jobqueue = pytest.importorskip("dask_jobqueue")
    from wsi_stain.cluster import jobs

    job = getattr(dask_jobqueue, jobs.CLASSES[config.class_]).job_cls
    options = jobs.options(config, "wsi-stain-1")
    taken = {key: value for key, value in options.items() if key not in ("scheduler_options", "silence_logs")}
    return job("tcp://there:8786", name="wsi-stain-1-0", **taken).job_script()


DIRECTIVES = {
    "slurm": """
        #SBATCH -J wsi-stain-1
        #SBATCH -p gpu
        #SBATCH -n 1
        #SBATCH --cpus-per-task=4
        #SBATCH --mem=15G
        #SBATCH -t 08:00:00
        #SBATCH --gres=gpu:1""",
    "pbs": """
        #PBS -N wsi-stain-1
        #PBS -q gpu
        #PBS -l select=1:ncpus=4:ngpus=1:mem=16gb
        #PBS -l walltime=08:00:00""",
    "lsf": """
        #BSUB -J wsi-stain-1
        #BSUB -q gpu
        #BSUB -n 4
        #BSUB -R "span[hosts=1]"
        #BSUB -M 16000000
        #BSUB -W 08:00
        #BSUB -gpu "num=1:mode=exclusive_process\"""",
    "sge": """
        #$ -N wsi-stain-1
        #$ -q gpu.q
        #$ -l gpu=1,h_vmem=4G
        #$ -l h_rt=08:00:00
        #$ -cwd
        #$ -j y
        #$ -pe smp 4""",
}


@pytest.mark.parametrize("name", DIRECTIVES)
def test_the_shipped_files_ask_for_the_right_job(name: str, tmp_path: Path) -> None:
    script = job_script(shipped(name, tmp_path))
    logs = str(tmp_path / "logs")
    requested = [line for line in script.splitlines() if line.startswith("#") and logs not in line]
    assert requested[1:] == [line.strip() for line in DIRECTIVES[name].strip().splitlines()]
    if name != "slurm":
        assert script.count(logs) == 2


@pytest.mark.parametrize("name", DIRECTIVES)
def test_a_worker_takes_a_slide_at_a_time_and_leaves_before_its_walltime(name: str, tmp_path: Path) -> None:
    config = shipped(name, tmp_path, prologue=("module load cuda",), interface="ib0", python="/shared/bin/python")
    lines = job_script(config).splitlines()
    command = next(line for line in lines if "dask_worker" in line)
    words = shlex.split(command)
    assert words[:4] == ["/shared/bin/python", "-m", "distributed.cli.dask_worker", "tcp://there:8786"]
    options = dict(zip(words[4:], [*words[5:], ""], strict=True))
    assert options["--nthreads"] == "4"
    assert options["--interface"] == "ib0"
    assert options["--preload"] == "wsi_stain.cluster.retirement"
    assert "--no-nanny" in words
    latest = float(options["--lifetime"][:-1]) + float(options["--lifetime-stagger"][:-1])
    assert latest == 8 * 3600 - config.retire_s
    before = lines[: lines.index(command)]
    assert before[-1] == "module load cuda"
    assert {"export OMP_NUM_THREADS=4", "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False"} < set(before)


def test_settings_for_workers_mean_the_same_in_their_environment() -> None:
    from wsi_stain.cluster.settings import WORKER_SETTINGS, worker_environment

    names = sorted(WORKER_SETTINGS)
    code = f"import dask, distributed; print([dask.config.get(name) for name in {names}])"
    command = [sys.executable, "-c", code]
    errors = subprocess.check_output(command, env=os.environ | worker_environment(2), text=True)
    assert errors.strip() == str([WORKER_SETTINGS[name] for name in names])


def test_the_walltime_may_have_days(tmp_path: Path) -> None:
    config = shipped("slurm", tmp_path, walltime="2-00:30:00")
    assert "#SBATCH -t 48:30:00" in job_script(config)
    assert "#BSUB -W 48:30" in job_script(shipped("lsf", tmp_path, walltime="2-00:30:00"))


def test_pbs_gets_its_resources_from_cores_and_memory(tmp_path: Path) -> None:
    script = job_script(shipped("pbs", tmp_path, resources=None, memory="8GiB", cores=6))
    assert "#PBS -l select=1:ncpus=6:mem=8192MB" in script


def test_pods_are_those_of_the_file_under_the_name_of_the_run(tmp_path: Path) -> None:
    config = load(ClusterConfig, FILES / "kubernetes.yaml")
    assert config.kubernetes.spec is not None
    file = ROOT / config.kubernetes.spec
    config = replace(config, kubernetes=replace(config.kubernetes, spec=file))
    spec = kubernetes.resource(config, "wsi-stain-1")
    given = yaml.safe_load(file.read_text())
    assert spec["metadata"] == given["metadata"] | {"name": "wsi-stain-1"}
    assert spec["spec"]["worker"] == given["spec"]["worker"]
    assert spec["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == "wsi-stain-1"
    (worker,), (scheduler,) = (spec["spec"][part]["spec"]["containers"] for part in ("worker", "scheduler"))
    assert worker["image"] == scheduler["image"]
    assert {item["name"]: item["value"] for item in worker["env"]} == worker_environment(config.cores)
    options = dict(pairwise(worker["args"]))
    assert options["--nthreads"] == str(config.cores) == worker["resources"]["limits"]["cpu"]
    assert options["--preload"] == "wsi_stain.cluster.retirement"
    for text, words in (("a: [", "is not valid YAML"), ("kind: Pod", "is not a complete DaskCluster"), ("", "DaskC")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            kubernetes.resource(replace(config, kubernetes=KubernetesConfig(tmp_path / "bad.yaml")), "x")
    with pytest.raises(ConfigError, match=r"cannot read kubernetes\.spec .*none\.yaml"):
        kubernetes.resource(replace(config, kubernetes=KubernetesConfig(tmp_path / "none.yaml")), "x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class": "slrum"}, "class is 'slrum': choose one of local, slurm, pbs, lsf, sge, kubernetes"),
        ({"class_": "slurm"}, "unknown key 'class_'; did you mean 'class'"),
        ({"class": "my.Cluster"}, "choose one of"),
        ({"workers": [4, 2]}, r"workers is \[4, 2\]: write the minimum and the maximum"),
        ({"workers": [0, 0]}, r"workers\[1\] is 0: it must be at least 1"),
        ({"memory": "16 gigs"}, "memory is '16 gigs': write a size with its unit"),
        ({"memory": "0GB"}, "memory is '0GB'"),
        ({"walltime": "8h"}, "walltime is '8h': write HH:MM:SS"),
        ({"walltime": "00:10:00"}, "retire_s \\+ 2 × stagger_s = 720 s: workers would retire before they start"),
        ({"class": "slurm", "gres": "gpu:a100:4"}, "a worker uses one GPU; write gpu:1 and raise `workers`"),
        ({"class": "slurm", "gres": "gpu:2"}, "a worker uses one GPU"),
        ({"class": "pbs", "gres": "gpu:1"}, "only slurm supports, but class is pbs; request GPUs with `resources`"),
        ({"class": "lsf", "resources": "gpu=1"}, "only pbs and sge support"),
        ({"class": "kubernetes"}, "kubernetes.spec is missing; set it to the YAML file of a DaskCluster"),
        ({"kubernetes": {"spec": "a.yaml"}}, "the section kubernetes has no effect where class is local; remove it"),
        ({"kubernetes": {"image": "a"}}, "unknown key 'kubernetes.image'; known keys: spec, namespace"),
        ({"class": "kubernetes", "kubernetes": {"spec": "a.yaml"}, "memory": "1GB"}, "set it in a.yaml"),
        ({"partition": "gpu"}, "partition has no effect where class is local; only slurm, pbs, lsf, sge support it"),
        ({"prologue": ["module load cuda"]}, "prologue has no effect where class is local"),
        ({"wokers": [0, 1]}, "unknown key 'wokers'; did you mean 'workers'"),
        ({"cores": "four"}, "cores is 'four': it must be a whole number"),
        ({"retire_s": -1}, "retire_s is -1: it must be at least 0"),
        ({"scheduler": "host:8786"}, "scheduler is 'host:8786': it must be an address, for example tcp://host:8786"),
        ({"cores": 0}, "cores is 0"),
    ],
)
def test_a_wrong_file_is_a_sentence(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(ClusterConfig, given)


@pytest.mark.parametrize("gres", ["gpu", "gpu:1", "gpu:a100", "gpu:a100:1", "shard:8"])
def test_one_gpu_may_be_asked_for_by_any_name(gres: str) -> None:
    assert load(ClusterConfig, {"class": "slurm", "gres": gres}).gres == gres


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16 * 10**9), ("16 GiB", 16 << 30), ("16G", 16 << 30), ("1.5TB", 1500 * 10**9)]
)
def test_memory_is_read_in_every_unit(text: str, size: int) -> None:
    assert ClusterConfig(memory=text).memory_bytes == size


def test_a_configuration_survives_its_plain_form() -> None:
    config = ClusterConfig(class_="slurm", workers=(1, 5), prologue=("a", "b"), kubernetes=KubernetesConfig())
    assert dump(config)["class"] == "slurm"
    assert load(ClusterConfig, dump(config)) == config


def test_without_the_batch_system_or_the_package_the_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ConfigError, match=r"its command qsub is missing; run this on a machine that may submit"),
        open_cluster(shipped("pbs", tmp_path)),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="interface is 'none0', but no scheduler can start on it here"),
        open_cluster(shipped("slurm", tmp_path, interface="none0")),
    ):
        pass
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    monkeypatch.setitem(sys.modules, "dask_kubernetes", None)
    monkeypatch.setitem(sys.modules, "dask_kubernetes.operator", None)
    for name, package in (("slurm", "dask-jobqueue is missing: pip install"), ("kubernetes", "dask-kubernetes is mis")):
        with pytest.raises(ConfigError, match=package), open_cluster(shipped(name, tmp_path)):
            pass


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step", "memory"),
        ("slurmstepd: error: StepId=3.batch exceeded memory limit (329752576 > 104857600), being killed\n"
         "slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***", "memory"),
        ("slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", "walltime"),
        ("slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE ***", "node"),
        ("slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***", "cancelled"),
        ("=>> PBS: job killed: walltime 3610 exceeded limit 3600", "walltime"),
        ("=>> PBS: job killed: mem 9000000kb exceeded limit 8388608kb", "memory"),
        ("TERM_MEMLIMIT: job killed after reaching LSF memory usage limit.", "memory"),
        ("TERM_RUNLIMIT: job killed after reaching LSF run time limit.", "walltime"),
        ("\nOUT_OF_MEMORY", "memory"),
        ("\nTIMEOUT", "walltime"),
        ("distributed.worker - INFO - Registered to: tcp://10.0.0.1:8786", None),
    ],
)  # fmt: skip
def test_what_batch_systems_say_of_an_end_is_understood(log: str, cause: str | None) -> None:
    assert cause_of(log) == cause


def test_a_death_is_explained_from_the_log_of_that_very_worker(tmp_path: Path) -> None:
    config = shipped("pbs", tmp_path)
    config.logs.mkdir()
    ends = {"1": "mem 9000000kb exceeded limit 8388608kb", "12": "walltime 3610 exceeded limit 3600"}
    for number, end in ends.items():
        text = f"distributed.worker - INFO - Worker name: wsi-stain-ab-{number}\n=>> PBS: job killed: {end}\n"
        (config.logs / f"wsi-stain.o{number}").write_text(text)

    def killed(name: str) -> KilledWorker:
        return KilledWorker("task", SimpleNamespace(name=name, address="tcp://10.0.0.7:4000"), 0)  # type: ignore[arg-type]

    memory = explain(killed("wsi-stain-ab-1"), "slide A", config)
    assert memory == (
        "worker killed on slide A by the memory limit 16GB: raise `memory` in the cluster file, or lower its `cores`"
    )
    assert str(explain(killed("wsi-stain-ab-12"), "slide A", config)).startswith(
        "worker killed on slide A by the walltime 08:00:00: raise"
    )
    assert explain(killed("wsi-stain-ab-2"), "slide A", config) is None
    assert explain(ValueError("no"), "slide A", config) is None


# Functions for Dask are the module's own: workers are processes and import them.
def surroundings() -> tuple[int, str | None, str | None]:
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")


def retiring() -> bool:
    return is_retiring()


def test_workers_of_this_machine_are_processes_with_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["GPU-a", "GPU-b"])
    with open_cluster(ClusterConfig(cores=3)) as client:
        client.wait_for_workers(2, timeout=120)
        seen = client.run(surroundings).values()
        assert len({pid for pid, _, _ in seen} | {os.getpid()}) == 3
        assert sorted(gpu for _, gpu, _ in seen) == ["GPU-a", "GPU-b"]
        assert {threads for _, _, threads in seen} == {"3"}
        assert set(client.nthreads().values()) == {3}
        assert client.submit(retiring).result() is False


def test_gpus_that_this_process_was_given_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(local.ctypes, "CDLL", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert local.visible_gpus() == ["5", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local.visible_gpus() == ["0", "1"]


def test_a_running_scheduler_is_used_and_left_running(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0", protocol="tcp") as there:
        for _ in range(2):
            with open_cluster(ClusterConfig(scheduler=there.scheduler_address)) as client:
                assert client.submit(retiring).result() is False


def test_outside_of_a_worker_nobody_retires() -> None:
    assert is_retiring() is False


def test_importing_the_package_imports_no_dask() -> None:
    code = "import sys, wsi_stain.cluster; print([m for m in ('dask', 'distributed', 'torch') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
