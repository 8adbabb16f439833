"""CoA of the fast form: only query, key and value, no mask, copies of windows only; channels-last."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from wsi_stain.nn.coa import CoA
from wsi_stain.nn.fast_layers import affine, fixed, rescale

SCORES = 1 << 19
"""Attention scores computed at a time on a CPU, for at least 32 queries: they fit its second-level cache (1 MiB)."""


class FastCoA(nn.Module):
    """`CoA` reduced to query, key and value.

    Args:
        source: the trained layer.
    """

    def __init__(self, source: CoA) -> None:
        super().__init__()
        d = source.query.out_channels
        self.window = source.window
        self.query, self.key = source.query, source.key
        rescale(self.query, torch.full_like(source.query.bias, d**-0.5), torch.zeros_like(source.query.bias))  # type: ignore
        self.key.bias = None  # it adds the same value to all scores of a query
        factor, shift = affine(source.norm)
        rescale(source.out, source.alpha * factor, source.alpha * shift)
        # Weights of the softmax sum to one, so `out` may come before it, biases included.
        out, value = source.out.weight.flatten(1), source.value.weight.flatten(1)
        bias = out @ source.value.bias + source.out.bias  # type: ignore[operator]
        self.value = source.value
        self.value.weight, self.value.bias = fixed((out @ value).view_as(source.value.weight)), fixed(bias)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Two (N, d, H, W) → (N, d, H, W)."""
        q, k, v = (
            conv(x).permute(0, 2, 3, 1)
            for conv, x in ((self.query, features), (self.key, context), (self.value, context))
        )
        attended = in_windows(q, k, v, self.window or max(q.shape[1:3]))
        return features + attended.permute(0, 3, 1, 2)


def in_windows(q: Tensor, k: Tensor, v: Tensor, side: int) -> Tensor:
    """Windows of side² queries, each with the keys up to half a side around it; all (N, H, W, d).

    Keys beyond the image are left out, so there is no mask.
    """
    attended, margin = torch.empty_like(q), side // 2
    for y in range(0, q.shape[1], side):
        for x in range(0, q.shape[2], side):
            rows, columns = (slice(max(0, at - margin), at + side + margin) for at in (y, x))
            window, around = (slice(None), slice(y, y + side), slice(x, x + side)), (slice(None), rows, columns)
            tokens = attend(*(t.flatten(1, 2) for t in (q[window], k[around], v[around])))
            attended[window] = tokens.view_as(attended[window])
    return attended


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(QKᵀ) V, with the scale in Q; (N, queries, d), (N, keys, d), (N, keys, d) → (N, queries, d)."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=1.0).squeeze(1)
    # torch's own attention on CPUs multiplies bfloat16 at the speed of float32; oneDNN's matrix product is twice that.
    keys, parts = k.transpose(1, 2).contiguous(), q.split(32 * max(1, SCORES // (32 * k.shape[1])), dim=1)
    return torch.cat([torch.softmax(part @ keys, dim=-1) @ v for part in parts], dim=1)
