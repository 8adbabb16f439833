"""Training of one network in several processes, started by `torchrun`: rank of a process, exchange between processes.

Gradients are averaged explicitly after the backward pass, as in NVIDIA's StyleGAN3, because alternating steps of a
generator and a discriminator do not fit the hooks of DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wsi_stain.errors import ConfigError
from wsi_stain.nn.inference import pick_device


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """Rank of this process and exchange with the others.

    Args:
        rank: number of this process, from 0; only rank 0 writes files.
        world: number of processes.
        device: device of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoint and log."""
        return self.rank == 0

    def share_gradients(self, parameters: Iterable[nn.Parameter], *, mean: bool = True) -> None:
        """Replace every gradient by its mean (or sum) over the processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        if mean:
            flat /= self.world
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def average(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The mean of each figure over the processes, so that all get the same values and stop together."""
        if self.world == 1:
            return dict(figures)
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self._exchange_device)
        dist.all_reduce(values)
        return dict(zip(figures, (values / self.world).tolist(), strict=True))

    def gather(self, rows: Tensor) -> Tensor:
        """(n, D) of every process → (world · n, D) in the order of ranks; gradients flow only to the own rows."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.world > 1:
            dist.barrier()

    @property
    def _exchange_device(self) -> torch.device:
        # NCCL exchanges only tensors on its device. Not every device supports float64, but every CUDA device does.
        return self.device if self.device.type == "cuda" else torch.device("cpu")


@contextmanager
def join_processes(device: str, batch: int) -> Generator[DistributedContext]:
    """Join the other processes if `torchrun` started this one; otherwise run alone.

    Args:
        device: as in `pick_device`; with CUDA, each process on a machine uses its own GPU.
        batch: crops per step over all processes; each process gets an equal share.

    Raises:
        ConfigError: the batch is not a multiple of the number of processes.
    """
    name = pick_device(device)
    if not dist.is_torchelastic_launched():
        yield DistributedContext(0, 1, torch.device(name))
        return
    if name.startswith("cuda"):
        name = f"cuda:{dist.get_node_local_rank(0)}"  # pyright: ignore[reportPrivateImportUsage]
        torch.cuda.set_device(name)
    dist.init_process_group("nccl" if name.startswith("cuda") else "gloo")
    try:
        world = dist.get_world_size()
        if batch % world:
            raise ConfigError(f"schedule.batch is {batch}: it must be a multiple of the {world} processes")
        yield DistributedContext(dist.get_rank(), world, torch.device(name))
    finally:
        dist.destroy_process_group()
