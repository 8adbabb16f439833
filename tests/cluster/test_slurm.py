"""Real SLURM on one machine: jobs come, are killed, run out of time and memory, and the work goes on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from builders import slurm_site, slurm_tasks
from distributed import Client, KilledWorker

from wsi_stain.cluster import ClusterConfig, explain, open_cluster
from wsi_stain.errors import ConfigError

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    slurm_site.needed()
    yield
    wait_for(lambda: not slurm_site.jobs(), "jobs are left in the queue")


@pytest.fixture
def config(tmp_path: Path) -> ClusterConfig:
    return ClusterConfig(
        class_="slurm",
        workers=(1, 2),
        cores=1,
        memory="600MB",
        walltime="00:02:00",
        retire_s=30,
        stagger_s=0,
        interface="lo",
        prologue=(f"export PYTHONPATH={Path(__file__).parents[1]}:$PYTHONPATH",),
        logs=tmp_path / "logs",
    )


def wait_for(is_so: Callable[[], bool], otherwise: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def jobs_of(client: Client) -> list[str]:
    return list(client.run(slurm_tasks.job).values())


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    folder = tmp_path / "blocks"
    folder.mkdir()
    return folder


def test_jobs_come_with_the_demand_each_with_a_gpu_and_processors_of_its_own(config: ClusterConfig) -> None:
    demand = [0]
    prologue = (*config.prologue, "export SITE_SAYS=hello")
    config = replace(config, workers=(0, 2), cores=2, gres="gpu:1", prologue=prologue)
    with open_cluster(config, lambda: demand[0]) as client:
        time.sleep(3)
        assert len(slurm_site.jobs()) == 1
        demand[0] = 10
        wait_for(lambda: len(client.nthreads()) == 2, "as many as are allowed")
        assert len(slurm_site.jobs()) == 2
        assert set(client.nthreads().values()) == {2}
        seen = client.run(slurm_tasks.surroundings).values()
        assert sorted(actual["CUDA_VISIBLE_DEVICES"] for actual in seen) == ["0", "1"]
        for actual in seen:
            assert actual["SLURM_CPUS_PER_TASK"] == actual["OMP_NUM_THREADS"] == "2"
            assert actual["SITE_SAYS"] == "hello"


def test_a_cancelled_job_hands_its_task_on_and_another_takes_its_place(config: ClusterConfig, blocks: Path) -> None:
    with open_cluster(config) as client:
        client.cluster.scheduler.allowed_failures = 0  # leaving in order is no failure
        future = client.submit(slurm_tasks.paint, str(blocks), 20, pure=False)
        wait_for(lambda: any(blocks.iterdir()), "painting begins")
        (first,) = jobs_of(client)
        slurm_site.ask("scancel", first)
        second, painted = future.result(timeout=90)
        assert second != first
        assert 0 < painted < 20
        assert (blocks / f"left by {first}").exists(), "the cancelled worker stopped at a block's end"
        wait_for(lambda: slurm_site.state(first) == "CANCELLED", "the job is gone")


def test_a_worker_retires_before_its_walltime(config: ClusterConfig, blocks: Path) -> None:
    with open_cluster(replace(config, walltime="00:01:00", retire_s=55, workers=(1, 1))) as client:
        client.cluster.scheduler.allowed_failures = 0
        (first,) = jobs_of(client)
        second, painted = client.submit(slurm_tasks.paint, str(blocks), 25, pure=False).result(timeout=90)
        assert second != first
        assert 0 < painted < 25
        assert (blocks / f"left by {first}").exists()
        logs = [path.read_text() for path in config.logs.glob(f"*-{first}.err")]
        assert "worker-lifetime-reached" in logs[0]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (slurm_tasks.take_memory, "worker killed on slide A by the memory limit 600MB: raise `memory` in the cluster"),
        (slurm_tasks.crash, "None"),
    ],
)
def test_why_a_worker_died(config: ClusterConfig, task: Callable[[], None], words: str) -> None:
    with open_cluster(replace(config, workers=(1, 1))) as client:
        client.cluster.scheduler.allowed_failures = 0
        with pytest.raises(KilledWorker) as death:
            client.submit(task, pure=False).result(timeout=90)
        assert str(explain(death.value, "slide A", config)).startswith(words)


def test_a_job_that_slurm_refuses_is_a_sentence(config: ClusterConfig) -> None:
    with (
        pytest.raises(ConfigError, match=r"SLURM refuses the workers' job: invalid partition specified: none"),
        open_cluster(replace(config, partition="none")),
    ):
        pass


def test_a_job_whose_worker_never_comes_is_a_sentence(config: ClusterConfig) -> None:
    broken = replace(config, prologue=("echo no such module: cuda >&2", "exit 1"))
    with (
        pytest.raises(ConfigError, match=r"job \d+ ended before its worker connected: no such module: cuda \("),
        open_cluster(broken),
    ):
        pass
