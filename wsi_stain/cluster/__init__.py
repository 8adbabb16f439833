"""Workers for slides and their blocks: local processes, batch jobs, pods, or the workers of a running scheduler.

    with open_cluster(load(ClusterConfig, Path("configs/cluster/slurm.yaml"))) as client:
        futures = [client.submit(stain, slide, pure=False) for slide in slides]

A worker has `cores` processors and at most one GPU of its own. Only coordinates and names
are sent over the network: workers must see the same files under the same paths.
"""

from wsi_stain.cluster.deaths import explain
from wsi_stain.cluster.opening import open_cluster
from wsi_stain.cluster.retirement import is_retiring
from wsi_stain.config.cluster import ClusterConfig, KubernetesConfig

__all__ = ["ClusterConfig", "KubernetesConfig", "explain", "is_retiring", "open_cluster"]
