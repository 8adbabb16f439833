"""Workers as pods of the Dask operator (https://kubernetes.dask.org), defined by the user's `DaskCluster` resource."""

from __future__ import annotations

from typing import Any

import yaml

from wsi_stain.cluster.settings import Started
from wsi_stain.config.cluster import ClusterConfig
from wsi_stain.errors import ConfigError

FEWEST, MOST = 0, 8
"""Default number of workers."""


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
    """The DaskCluster resource of the user's file under the name of this run.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    path = config.kubernetes.spec
    assert path, "checked with the configuration"
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec["metadata"]["name"] = name
        spec["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] = name
    except OSError as err:
        raise ConfigError(f"cannot read kubernetes.spec {path}: {err.strerror}; check the path") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(err).split())}") from err
    except (KeyError, TypeError) as err:
        raise ConfigError(
            f"{path} is not a complete DaskCluster ({err}); compare it with pipelines/kubernetes/dask-cluster.yaml"
        ) from err
    return spec
