"""Workers as pods of the Dask operator (https://kubernetes.dask.org): defines and starts the cluster resource."""

from __future__ import annotations

from typing import Any

from wsi_stain.cluster.settings import Started, worker_environment
from wsi_stain.config.cluster import ClusterConfig
from wsi_stain.errors import ConfigError

FEWEST, MOST = 0, 8
"""Default number of workers."""

READY = {"httpGet": {"port": "http-dashboard", "path": "/health"}, "initialDelaySeconds": 5, "periodSeconds": 10}
"""Readiness probe of the scheduler pod, from the example of the operator."""


def start(config: ClusterConfig, name: str) -> Started:
    """Start a `KubeCluster` that adapts to the number of tasks."""
    try:
        from dask_kubernetes.operator import KubeCluster  # type: ignore[import-not-found]
    except ImportError as err:
        raise ConfigError(
            "class is kubernetes, but the package dask-kubernetes is missing: pip install dask-kubernetes, and check "
            "that the Dask operator runs in your cluster (https://kubernetes.dask.org)"
        ) from err
    cluster = KubeCluster(custom_cluster_spec=resource(config, name), namespace=config.kubernetes.namespace)
    fewest, most = config.workers or (FEWEST, MOST)
    cluster.adapt(minimum=max(1, fewest), maximum=most)
    return cluster, lambda: None


def resource(config: ClusterConfig, name: str) -> dict[str, Any]:
    """The DaskCluster resource (kubernetes.dask.org/v1): the scheduler and the pod of a worker."""
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": name},
        "spec": {
            "worker": {"replicas": 1, "spec": _worker(config)},
            "scheduler": {"spec": {"containers": [_scheduler(config)]}, "service": _service(name)},
        },
    }


def _worker(config: ClusterConfig) -> dict[str, Any]:
    amount = {"cpu": str(config.cores), "memory": str(config.memory_bytes)}
    gpus = {"nvidia.com/gpu": str(config.kubernetes.gpus)} if config.kubernetes.gpus else {}
    claims = [claim.split(":", 1) for claim in config.kubernetes.claims]
    options = ["--name", "$(DASK_WORKER_NAME)", "--nthreads", str(config.cores), "--memory-limit", "0", "--no-nanny"]
    container = {
        "name": "worker",
        "image": config.kubernetes.image,
        "args": ["dask", "worker", *options, "--preload", "wsi_stain.cluster.retirement"],
        "env": [{"name": key, "value": value} for key, value in worker_environment(config.cores).items()],
        "resources": {"requests": amount | gpus, "limits": amount | gpus},
        "volumeMounts": [{"name": f"claim-{i}", "mountPath": path} for i, (_, path) in enumerate(claims)],
    }
    volumes = [{"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": c}} for i, (c, _) in enumerate(claims)]
    return {"containers": [container], "volumes": volumes}


def _scheduler(config: ClusterConfig) -> dict[str, Any]:
    ports = [("tcp-comm", 8786), ("http-dashboard", 8787)]
    return {
        "name": "scheduler",
        "image": config.kubernetes.image,
        "args": ["dask", "scheduler"],
        "ports": [{"name": port, "containerPort": number, "protocol": "TCP"} for port, number in ports],
        "readinessProbe": READY,
    }


def _service(name: str) -> dict[str, Any]:
    ports = [("tcp-comm", 8786), ("http-dashboard", 8787)]
    return {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
        "ports": [{"name": port, "protocol": "TCP", "port": n, "targetPort": port} for port, n in ports],
    }
