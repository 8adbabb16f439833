"""How far tiles are from each other and from one pass, for several overlaps; how far a pixel sees; a picture of a seam.

    python benchmarks/tiling.py --model he2cam52-small                          # a field of the phantom
    python benchmarks/tiling.py --slide slide.tif --mpp 1.0 --at 6000,5000      # a field of a real slide
    python benchmarks/tiling.py --picture docs/seams.png                        # the picture, of the phantom only

Prints Markdown. Tiles are cut and blended as `convert` does it. A row marked * cannot be had with `convert`: its stride
is not a multiple of the attention windows, so these, which are cut from the tile, would move against the slide.
Such a row is measured twice: with windows that move (*), and with windows that stay in place although tiles begin
anywhere, whose position the attention here is given (†).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from PIL import Image
from torch import Tensor, nn

from wsi_stain import phantom
from wsi_stain.config.model import TOKEN_PX
from wsi_stain.geometry import Box, Size
from wsi_stain.measure.deconvolution import POSITIVE_OD, dab
from wsi_stain.model.bundle import DEFAULT, Bundle
from wsi_stain.nn.coa import windowed_attention
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import load_generator
from wsi_stain.nn.pixels import to_pixels, to_tensor
from wsi_stain.nn.wavelet import use_strided_haar
from wsi_stain.phantom.section import PATCH
from wsi_stain.slide.slide import Slide
from wsi_stain.tiling.blend import Blender, window

RADII = (8, 16, 32, 64, 96, 128, 192, 256)
SEED = 2
"""Of the phantom: the section that `wsi_stain.model.tile_tolerance` uses."""

Pixels = np.ndarray
Stain = Callable[[Box], Pixels]
"""Stains the tile of a box."""


def field(bundle: Bundle, options: argparse.Namespace, side: int) -> Pixels:
    """uint8 (side, side, 3) at the model's scale: of the slide, or of the phantom."""
    if options.slide is None:
        low, high = phantom.MPP_RANGE
        mpp = min(max(bundle.mpp or 0.5, low), high)
        whole = Size(2 * PATCH + side, 2 * PATCH + side)
        return phantom.render(Box.at(PATCH, PATCH, Size(side, side)), size=whole, mpp=mpp, seed=SEED)
    with Slide.open(options.slide, mpp=options.mpp) as slide:
        view = slide.at(bundle.mpp)
        x, y = options.at
        return view.read(Box.at(round(y / view.scale), round(x / view.scale), Size(side, side)))


class Network:
    """A bundle's plain network, whose attention can be given the position of a tile."""

    def __init__(self, bundle: Bundle) -> None:
        self.module: Generator = load_generator(bundle.config.generator, bundle.weights_path).requires_grad_(False)
        use_strided_haar(self.module)
        self.window = self.module.coa.window if self.module.coa is not None else None

    @torch.inference_mode()
    def __call__(self, pixels: Pixels, origin: tuple[int, int] = (0, 0)) -> Pixels:
        """uint8 (h, w, 3) → the same; the windows lie on multiples of their side from `origin` back."""
        if self.module.coa is not None and self.window is not None:
            offset = origin[0] // TOKEN_PX % self.window, origin[1] // TOKEN_PX % self.window
            self.module.coa.attend = (
                partial(anchored, offset=offset, width=self.window)
                if any(offset)
                else partial(windowed_attention, window=self.window)
            )
        return to_pixels(self.module(to_tensor(pixels[None])))[0]


def anchored(q: Tensor, k: Tensor, v: Tensor, *, offset: tuple[int, int], width: int) -> Tensor:
    """`windowed_attention` of a tile whose first token is token `offset` of a window of `width`."""
    (n, d, h, w), (top, left) = q.shape, offset
    pad = (left, -(left + w) % width, top, -(top + h) % width)
    around = tuple(side + width // 2 for side in pad)
    rows, columns = (top + h + pad[3]) // width, (left + w + pad[1]) // width

    def windows(x: Tensor, side: int) -> Tensor:
        cut = x.unfold(2, side, width).unfold(3, side, width)
        return cut.permute(0, 2, 3, 4, 5, 1).reshape(-1, side * side, x.shape[1])

    queries, wide = windows(F.pad(q, pad), width), 2 * width
    keys, values = (windows(F.pad(x, around), wide) for x in (k, v))
    mask = windows(F.pad(q.new_ones(1, 1, h, w), around), wide).bool().squeeze(-1)[:, None].repeat(n, 1, 1)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    grid = attended.view(n, rows, columns, width, width, d).permute(0, 5, 1, 3, 2, 4)
    return grid.reshape(n, d, rows * width, columns * width)[..., top : top + h, left : left + w]


def tiled(stain: Stain, over: Box, tile: int, overlap: int, shift: int) -> Pixels:
    """`over` painted in blended tiles whose origins are `shift` + k · (tile - overlap)."""
    blender, stride = Blender(over, window(tile, overlap)), tile - overlap

    def origins(start: int, end: int) -> Iterator[int]:
        first = (start - shift - tile) // stride + 1
        return itertools.takewhile(lambda y: y < end, (shift + k * stride for k in itertools.count(first)))

    for y, x in itertools.product(origins(over.y0, over.y1), origins(over.x0, over.x1)):
        box = Box.at(y, x, Size(tile, tile))
        blender.add(box, stain(box))
    return blender.result()


def apart(a: Pixels, b: Pixels, background: tuple[int, int, int]) -> str:
    """Mean, 99th percentile and largest difference in grey levels, and the change of the DAB-positive share."""
    difference = np.abs(a.astype(np.int16) - b)
    share_a, share_b = (float((dab(x, background) >= POSITIVE_OD).mean()) for x in (a, b))
    p99 = np.percentile(difference, 99, method="higher")
    points = 100 * abs(share_a - share_b)
    return f"{difference.mean():.3f} | {p99:.0f} | {difference.max()} | {points:.3f}"


def table(bundle: Bundle, network: Network, options: argparse.Namespace) -> Iterator[str]:
    """Lines of the table of overlaps."""
    side, multiple = options.side, network.module.multiple
    reserve = 2 * max(options.tiles)  # tiles of both tilings reach over the field that is looked at
    pixels = field(bundle, options, side + 2 * reserve)
    middle = Box.at(reserve, reserve, Size(side, side))
    whole = network(pixels[middle.slices()])
    inner = Box.at(reserve + side // 4, reserve + side // 4, Size(side // 2, side // 2))
    single = whole[inner.shift(-reserve, -reserve).slices()]
    yield f"Differences in grey levels over {side // 2}² px; DAB+ in percentage points of the area.\n"
    yield (
        "| tile | overlap | px computed per px | two tilings: mean | 99 % | largest | DAB+ "
        "| against one pass: mean | 99 % | largest | DAB+ |"
    )
    yield "|" + "---|" * 11
    for tile, overlap in itertools.product(options.tiles, options.overlaps):
        if 2 * overlap > tile:
            continue
        fits = (tile - overlap) % multiple == 0
        for mark, anchored in (("", False),) if fits else (("*", False), ("†", True)):

            def stain(box: Box, anchored: bool = anchored) -> Pixels:
                return network(pixels[box.slices()], (box.y0, box.x0) if anchored else (0, 0))

            half = tile // 2 if tile // 2 % (tile - overlap) else (tile - overlap) // 2
            one, other = (tiled(stain, inner, tile, overlap, shift) for shift in (0, half))
            cost = (tile / (tile - overlap)) ** 2
            two, pass_ = apart(one, other, bundle.background), apart(one, single, bundle.background)
            yield f"| {tile} | {overlap}{mark} | {cost:.2f} | {two} | {pass_} |"


def receptive_field(bundle: Bundle, network: Network, options: argparse.Namespace) -> Iterator[str]:
    """Lines of the table of gradient mass: the share of |∂ output / ∂ input| within r px of the output pixel."""
    side, rng = 768, np.random.default_rng(0)
    pixels = field(bundle, options, side)
    y, x = np.mgrid[:side, :side]
    shares = []
    for _ in range(options.points):
        at = rng.integers(256, 512, 2)  # beyond 256 px around, nothing is left
        given = to_tensor(pixels[None]).requires_grad_()
        network.module(given)[0, :, at[0], at[1]].sum().backward()
        assert given.grad is not None
        mass = given.grad[0].abs().sum(0).double().numpy()
        distance = np.maximum(abs(y - at[0]), abs(x - at[1]))
        shares.append([mass[distance <= r].sum() / mass.sum() for r in RADII])
    mean, least = np.mean(shares, 0), np.min(shares, 0)
    yield f"Share of the gradient's mass within r px ({options.points} output pixels).\n"
    yield "| r, px | " + " | ".join(map(str, RADII)) + " |"
    yield "|" + "---|" * (len(RADII) + 1)
    for name, values in (("mean", mean), ("least", least)):
        yield f"| {name} | " + " | ".join(f"{100 * v:.2f} %" for v in values) + " |"


def per_tile(module: nn.Module) -> None:
    """Take a network's normalisation statistics from the tile: the seams of most stain transfer."""
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            norm = nn.InstanceNorm2d(part.num_features, affine=True)
            norm.weight, norm.bias = part.weight, part.bias
            setattr(module, name, norm)
        else:
            per_tile(part)


def picture(bundle: Bundle, path: Path, side: int = 384) -> None:
    """A field of the phantom at 1:1 across tile borders: H&E; statistics per tile, no overlap; as shipped."""
    none = argparse.Namespace(slide=None)
    tile = bundle.tile
    pixels = field(bundle, none, 5 * tile)
    over = Box.at(2 * tile - side // 2, 2 * tile - side // 2, Size(side, side))
    before, after = Network(bundle), Network(bundle)
    per_tile(before.module)
    panels = [
        pixels[over.slices()],
        tiled(lambda box: before(pixels[box.slices()]), over, tile, 0, 0),
        tiled(lambda box: after(pixels[box.slices()]), over, tile, bundle.overlap, 0),
    ]
    gap = np.full((side, 8, 3), 255, np.uint8)
    Image.fromarray(np.hstack([panels[0], gap, panels[1], gap, panels[2]])).save(path)


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--mpp", type=float, help="of the slide, if the file has no pixel size")
    parser.add_argument("--at", type=lambda s: tuple(map(int, s.split(","))), default=(0, 0), metavar="X,Y")
    parser.add_argument("--side", type=int, default=2048, help="of the single pass, px")
    parser.add_argument("--tiles", type=int, nargs="+", default=[512])
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 32, 64, 128, 192, 256])
    parser.add_argument("--points", type=int, default=8, help="output pixels of the receptive field")
    parser.add_argument("--picture", type=Path, help="only make this picture, of the phantom")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = options_of()
    bundle = Bundle.open(options.model)
    if options.picture is not None:
        picture(bundle, options.picture)
        return
    network = Network(bundle)
    where = "the phantom" if options.slide is None else f"{options.slide.name} at {options.at}"
    print(f"{bundle.name} {bundle.version} on {where}\n")
    for line in itertools.chain(receptive_field(bundle, network, options), [""], table(bundle, network, options)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
