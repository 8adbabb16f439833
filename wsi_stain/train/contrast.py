"""Stage 1: the encoders learn which stained crop belongs to which H&E crop (CEFF; InfoNCE)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from wsi_stain.config.train import TrainConfig
from wsi_stain.pairs.neighbours import Neighbours
from wsi_stain.train.checkpoint import flatten_modules, flatten_optimizer, restore_modules, restore_optimizer
from wsi_stain.train.crops import Crops
from wsi_stain.train.encoders import FILE, Encoders
from wsi_stain.train.losses import info_nce
from wsi_stain.train.optimize import calibrate, set_rate
from wsi_stain.train.parallel import DistributedContext

Both = tuple[Tensor, Tensor]
"""H&E and stain: crops (N, 3, H, W), or their embeddings (N, D)."""


class ContrastiveRecipe:
    """Both encoders, their optimizer, and one step; see `Recipe`.

    Args:
        config: the whole training.
        total: images of the whole stage.
        crops: the stream that the batches come from; its pairs determine which tiles are neighbours.
        context: rank of this process and exchange with the others.
    """

    def __init__(self, config: TrainConfig, total: int, crops: Crops, context: DistributedContext) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.total = total
        self.crops = crops
        self.context = context
        self.encoders = Encoders(config.generator.channels).to(context.device)
        stage = config.pretrain
        self.optimizer = torch.optim.Adam(
            self.encoders.parameters(), stage.schedule.lr, (0.5, 0.999), weight_decay=stage.weight_decay
        )
        self._neighbours = Neighbours(crops.pairs, stage.exclude)

    def step(self, he: Tensor, ihc: Tensor, images: int) -> dict[str, float]:
        """Train on one batch; `top1` is the share of H&E crops whose own stain is the most similar of the batch.

        With chunks, each chunk passes through the network twice: without a graph to get the loss of the whole batch,
        then with one. Memory is that of a chunk, gradients are those of the batch (gradient caching: Gao et al., 2021).
        """
        stage = self.config.pretrain
        set_rate(self.optimizer, stage.schedule.lr, images / self.total, stage.schedule.decay_from)
        self.encoders.train()
        self.optimizer.zero_grad(set_to_none=True)
        size = stage.chunk or len(he)
        chunks: list[Both] = list(zip(he.split(size), ihc.split(size), strict=True))
        with torch.set_grad_enabled(len(chunks) == 1):
            embedded = [self._embed(*chunk) for chunk in chunks]
        leaves = [torch.cat(side).detach().requires_grad_() for side in zip(*embedded, strict=True)]
        figures = self._contrast(leaves, images)
        gradients = zip(*(leaf.grad.split(size) for leaf in leaves), strict=True)  # type: ignore[union-attr]
        for chunk, embedding, gradient in zip(chunks, embedded, gradients, strict=True):
            torch.autograd.backward(embedding if len(chunks) == 1 else self._embed(*chunk), gradient)
        # Each process holds the gradient of the whole loss through its own rows only, so the parts add up.
        self.context.share_gradients(self.encoders.parameters(), mean=False)
        self.optimizer.step()
        return figures

    def freeze(self, batches: Iterable[Both]) -> None:
        """Do nothing: `results` measures the statistics of the finished encoders."""

    def results(self, images: int, batches: Iterable[Both]) -> dict[str, nn.Module]:
        """A copy of the encoders for inference, with statistics measured on `batches`."""
        result = copy.deepcopy(self.encoders)
        crops = list(batches)
        calibrate(result.he, (he for he, _ in crops))
        calibrate(result.ihc, (ihc for _, ihc in crops))
        return {FILE: result.eval()}

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as flat named tensors."""
        return flatten_modules({"encoders": self.encoders}) | flatten_optimizer("optimizer", self.optimizer)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        restore_modules({"encoders": self.encoders}, tensors)
        restore_optimizer("optimizer", self.optimizer, tensors)

    def _embed(self, he: Tensor, ihc: Tensor) -> Both:
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.context.device.type, torch.bfloat16, enabled=bf16):
            embedded = self.encoders.he(he), self.encoders.ihc(ihc)
        return embedded[0].float(), embedded[1].float()

    def _contrast(self, leaves: Sequence[Tensor], images: int) -> dict[str, float]:
        """Compute the loss of the whole batch; its gradient is stored in the leaves."""
        stage = self.config.pretrain
        he, ihc = (self.context.gather(leaf) for leaf in leaves)
        mask = self._neighbours.mask([self.crops.pair(images + i) for i in range(len(he))])
        excluded = torch.from_numpy(mask).to(he.device)
        loss = info_nce(he, ihc, stage.temperature, symmetric=stage.symmetric, excluded=excluded)
        loss.backward()
        similarity = (F.normalize(he, dim=1) @ F.normalize(ihc, dim=1).T).masked_fill(excluded, -1)
        hits = similarity.argmax(dim=1) == torch.arange(len(he), device=he.device)
        return {"loss": loss.item(), "top1": hits.float().mean().item()}
