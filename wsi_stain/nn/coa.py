"""CoA: cross attention from the generator's features to those of the H&E encoder (CEFF).

`windowed` keeps a pixel's value independent of the tile that it is computed in: windows of 32×32 queries (or another
size), anchored to the slide, each with the 64×64 keys around it. `global` is that of the paper: every query sees the
whole crop.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from wsi_stain.config.model import WINDOW_TOKENS


class CoA(nn.Module):
    """F + α · BN(W_out · softmax(QKᵀ/√d) V), Q from `features`, K and V from `context`; one head, no positional code.

    Args:
        channels: d, of both inputs.
        attention: `global`, or `windowed`: then H and W must be multiples of `window`.
        alpha: strength of the residual.
        window: side of a query window in tokens, even; the keys reach half as far beyond it.
    """

    def __init__(
        self, channels: int, attention: Literal["global", "windowed"], alpha: float, window: int = WINDOW_TOKENS
    ) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.alpha = alpha
        self.window = window if attention == "windowed" else None
        self.attend = partial(windowed_attention, window=window) if self.window else global_attention

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Two (N, d, H, W) → (N, d, H, W)."""
        attended = self.attend(self.query(features), self.key(context), self.value(context))
        return features + self.alpha * self.norm(self.out(attended))


def global_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query attends to every key; all (N, d, H, W)."""
    queries, keys, values = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (q, k, v))
    return F.scaled_dot_product_attention(queries, keys, values).squeeze(1).transpose(1, 2).unflatten(2, q.shape[2:])


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int = WINDOW_TOKENS) -> Tensor:
    """Each window of `window`² queries attends to the keys up to half a window around it; all (N, d, H, W)."""
    n, d, h, w = q.shape
    assert h % window == w % window == 0, f"{h}x{w} tokens are not whole windows of {window}"
    rows, columns, margin = h // window, w // window, window // 2
    if rows == columns == 1:  # nothing lies around the only window: the same sum without its masked keys
        return global_attention(q, k, v)
    queries = _windows(q, window, window)
    inside = _windows(F.pad(q.new_ones(1, 1, h, w), [margin] * 4), 2 * window, window).bool()
    keys, values = (_windows(F.pad(x, [margin] * 4), 2 * window, window) for x in (k, v))
    mask = inside.squeeze(-1)[:, None, None].repeat(n, 1, 1, 1)
    attended = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], attn_mask=mask)
    grid = attended.view(n, rows, columns, window, window, d)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(n, d, h, w)


def _windows(x: Tensor, side: int, step: int) -> Tensor:
    """(N, d, H, W) → (N · windows, side², d), a window every `step` tokens."""
    cut = x.unfold(2, side, step).unfold(3, side, step)  # (N, d, rows, columns, side, side)
    return cut.permute(0, 2, 3, 4, 5, 1).reshape(-1, side * side, x.shape[1]).contiguous()
