"""Writes a network of ours as a model folder of BioImage.IO (specification 0.5): `rdf.yaml`, ONNX, and test tensors.

rdf.yaml            axes, values, halo, hashes (https://bioimage-io.github.io/spec-bioimage-io)
generator.onnx      the folded form, float32
test_input.npy      uint8 (1, 3, H, W): procedural histology, so no picture of a patient
test_output.npy     what the network in torch makes of it; the run test compares the graph with it
cover.png           both, side by side
documentation.md    the card, with its held-out figures as the section Validation
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from wsi_stain.config.network import NetworkConfig
from wsi_stain.errors import BundleError
from wsi_stain.files.atomic import new_folder
from wsi_stain.files.notice import RESEARCH_USE
from wsi_stain.model.bioimageio_import import RDF, TOOL
from wsi_stain.model.bundle import Bundle, sha256_of, shipped
from wsi_stain.model.card import TO_COMPLETE
from wsi_stain.model.facts import psnr
from wsi_stain.model.graph_export import graph_of, tile_of_graph
from wsi_stain.model.importing import GRAPH, LEAST_DB
from wsi_stain.model.tile_tolerance import field

FORMAT = "0.5.4"
TEST_INPUT, TEST_OUTPUT = "test_input", "test_output"
"""Tensors as .npy, and for people as .png."""
COVER, DOCUMENTATION = "cover.png", "documentation.md"
COVER_PX = 256
"""Side of each half of the cover, whose file must be smaller than 500 kB."""
HALF = 127.5
SHIPPED_AUTHORS = ("The wsi-stain authors",)
CITATIONS = [
    {
        "text": "CEFF, the method by which the network was trained: the authors of arXiv 2502.20156",
        "doi": "10.48550/arXiv.2502.20156",
    }
]
_VERSION = re.compile(r"\d+(\.\d+){0,2}")
_ONE_LICENCE = re.compile(r"[\w.+-]+")
_FIGURES = re.compile(r"^## (Held-out figures|Validation)[ \t]*$", re.MULTILINE)
_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?://)[^)]*\)\n?")
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?://)[^)]*\)")


def export_folder(name: Path | str, folder: Path, *, tile: int | None = None, authors: Sequence[str] = ()) -> float:
    """Write a bundle as a folder that BioImage.IO's software opens.

    Args:
        name: of a shipped bundle, or its folder.
        folder: to make.
        tile: side of its tiles in px; as for `graph_export.tile_of_graph`.
        authors: names of those who made the model; a shipped bundle has its own.

    Returns:
        PSNR in dB of the graph against the network in torch, on the test tensors; `facts.SAME_DB` if they are equal.

    Raises:
        BundleError: the bundle cannot be exported, lacks what the specification requires, or its graph does not agree
            with it; or the folder exists.
    """
    bundle = Bundle.open(name)
    side = tile_of_graph(bundle, tile)
    people = list(authors) or (list(SHIPPED_AUTHORS) if _is_shipped(bundle) else [])
    _check(bundle, side, people)
    text = _documentation(bundle, side)
    if folder.exists():
        raise BundleError(f"{folder} already exists; choose another name, or remove it first")
    graph = graph_of(bundle, side)
    pixels = field(bundle, side)
    stained = bundle.generator("cpu", precision="fp32")(pixels[None])[0]
    agreement_db = psnr(stained, _run(graph, pixels, bundle.multiple))
    if agreement_db < LEAST_DB:
        raise BundleError(
            f"the ONNX graph of {bundle.name} agrees with its network only to {agreement_db:.1f} dB, and "
            f"{LEAST_DB:g} dB are required; report this as a fault of wsi-stain"
        )
    with new_folder(folder) as part:
        (part / GRAPH).write_bytes(graph)
        for stem, image in ((TEST_INPUT, pixels), (TEST_OUTPUT, stained)):
            np.save(part / f"{stem}.npy", np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
            Image.fromarray(image).save(part / f"{stem}.png")
        _cover(pixels, stained).save(part / COVER)
        (part / DOCUMENTATION).write_text(text, encoding="utf-8")
        content = yaml.safe_dump(_description(bundle, side, people, part), sort_keys=False, allow_unicode=True)
        (part / RDF).write_text(content, encoding="utf-8")
    return agreement_db


def _is_shipped(bundle: Bundle) -> bool:
    return bundle.name in shipped() and Bundle.open(bundle.name).sha256 == bundle.sha256


def _check(bundle: Bundle, side: int, authors: Sequence[str]) -> None:
    """Check that the bundle states what the specification requires."""
    if bundle.mpp is None:
        raise BundleError(f"{bundle.name} has no µm/px (input.mpp), which BioImage.IO needs on its axes")
    if not _ONE_LICENCE.fullmatch(bundle.config.licence):
        raise BundleError(
            f"{bundle.name} has the licence {bundle.config.licence!r}; BioImage.IO takes one SPDX identifier only"
        )
    if not authors:
        raise BundleError(f"{bundle.name} does not state its authors; pass --author NAME for each")
    if odd := next((author for author in authors if not author.strip() or "/" in author or "\\" in author), None):
        raise BundleError(f"--author is {odd!r}: it must be a name without slashes")
    if not _VERSION.fullmatch(bundle.version):
        raise BundleError(f"{bundle.name} has the version {bundle.version!r}; BioImage.IO takes numbers such as 1.0.0")
    if side <= bundle.overlap:
        raise BundleError(f"--tile is {side}: it must be larger than the overlap of {bundle.overlap} px")


def _description(bundle: Bundle, side: int, authors: Sequence[str], folder: Path) -> dict[str, Any]:
    """The content of rdf.yaml, for a folder whose other files are written."""
    stain, source = bundle.stain, bundle.expects
    return {
        "type": "model",
        "format_version": FORMAT,
        "name": re.sub(r"[^\w+\- ()]", "-", f"{bundle.name[:100]} virtual stain", flags=re.ASCII),
        "version": bundle.version,
        "description": f"Virtual {stain} stain from {source} at {bundle.mpp:g} µm/px. {RESEARCH_USE.upper()}.",
        "authors": [{"name": author} for author in authors],
        "cite": CITATIONS,
        "license": bundle.config.licence,
        "tags": ["virtual-staining", "image-to-image", "histology", "2d", "brightfield", "whole-slide-imaging"],
        "documentation": DOCUMENTATION,
        "covers": [COVER],
        "inputs": [_input(bundle, side, folder)],
        "outputs": [_output(bundle, folder)],
        "weights": {
            "onnx": {"source": GRAPH, "sha256": sha256_of(folder / GRAPH), "opset_version": _opset()},
        },
        "config": {
            "bioimageio": {
                # One grey level, where the torch form and another processor round to different sides.
                "reproducibility_tolerance": [{"absolute_tolerance": 1.0, "mismatched_elements_per_million": 100}]
            },
            TOOL: {
                "notice": RESEARCH_USE.upper(),
                "stain": stain,
                "input_stain": source,
                "multiple": bundle.multiple,
                "background": list(bundle.background),
            },
        },
    }


def _input(bundle: Bundle, side: int, folder: Path) -> dict[str, Any]:
    return {
        "id": "he",
        "description": f"{bundle.expects}, RGB",
        "axes": _axes(bundle, lambda _: side, concatenable=True),
        "data": {"type": "uint8", "range": [0, 255]},
        "preprocessing": [
            {"id": "scale_linear", "kwargs": {"gain": 1 / HALF, "offset": -1.0}},
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
        ],
        "test_tensor": _file(folder / f"{TEST_INPUT}.npy"),
        "sample_tensor": _file(folder / f"{TEST_INPUT}.png"),
    }


def _output(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Neighbouring tiles share the overlap: half of it is cropped from each side, and the rest is not blended."""
    halo = {"halo": bundle.overlap // 2} if bundle.overlap > 1 else {}
    return {
        "id": "stain",
        "description": f"virtual {bundle.stain}, RGB",
        "axes": _axes(bundle, lambda name: {"tensor_id": "he", "axis_id": name}, **halo),
        "data": {"type": "uint8", "range": [0, 255]},
        "postprocessing": [
            {"id": "scale_linear", "kwargs": {"gain": HALF, "offset": HALF + 0.5}},  # the cast cuts off: this rounds
            {"id": "clip", "kwargs": {"min": 0.0, "max": 255.0}},
            {"id": "ensure_dtype", "kwargs": {"dtype": "uint8"}},
        ],
        "test_tensor": _file(folder / f"{TEST_OUTPUT}.npy"),
        "sample_tensor": _file(folder / f"{TEST_OUTPUT}.png"),
    }


def _axes(bundle: Bundle, size: Callable[[str], Any], **more: Any) -> list[dict[str, Any]]:
    """The axes of a tensor (1, 3, H, W); `size` gives that of y and x, which also have the keys `more`."""
    scale = {"unit": "micrometer", "scale": bundle.mpp}
    return [
        {"type": "batch", "size": 1},
        {"type": "channel", "id": "channel", "channel_names": ["red", "green", "blue"]},
        *({"type": "space", "id": name, **scale, "size": size(name), **more} for name in "yx"),
    ]


def _file(path: Path) -> dict[str, str]:
    return {"source": path.name, "sha256": sha256_of(path)}


def _opset() -> int:
    from wsi_stain.nn.onnx_twin import OPSET

    return OPSET


def _run(graph: bytes, pixels: np.ndarray, multiple: int) -> np.ndarray:
    """The pixels that the graph gives: uint8 (H, W, 3) → the same shape."""
    from wsi_stain.graphs.admit import admit
    from wsi_stain.graphs.session import open_generator

    config = NetworkConfig("onnx", (-1.0, 1.0), (-1.0, 1.0), "rgb", multiple, "none")
    return open_generator(admit(graph, GRAPH), config, "cpu", tile=pixels.shape[0])(pixels[None])[0]


def _cover(pixels: np.ndarray, stained: np.ndarray) -> Image.Image:
    """The H&E and its stain side by side, from the middle of the tile."""
    side = min(COVER_PX, pixels.shape[0])
    start = (pixels.shape[0] - side) // 2
    part = slice(start, start + side)
    return Image.fromarray(np.hstack([pixels[part, part], stained[part, part]]))


def _documentation(bundle: Bundle, side: int) -> str:
    """The card for readers without its folder: held-out figures are the section Validation, links lead nowhere."""
    card = bundle.card_path
    text = card.read_text(encoding="utf-8") if card and card.is_file() else ""
    if TO_COMPLETE in text or not _FIGURES.search(text):
        raise BundleError(
            f"the card of {bundle.name} is missing, lacks the section 'Held-out figures', or has parts marked "
            f"{TO_COMPLETE}; complete it first"
        )
    body = _FIGURES.sub("## Validation", re.sub(r"\A# .*\n", "", text.lstrip()))
    body = _LINK.sub(r"\1", _PICTURE.sub("", body)).strip()
    halo = bundle.overlap // 2
    return f"""# {bundle.name} {bundle.version}: virtual {bundle.stain} from {bundle.expects}

**{RESEARCH_USE.upper()}.** A virtual stain is a prediction, not a physical {bundle.stain}. Not for diagnosis.

## Use

- Input: {bundle.expects}, RGB, uint8, at {bundle.mpp:g} µm/px. Resample other slides first.
- Output: RGB, uint8, of the same size and scale.
- Tiles of {side} × {side} px; their origins must be multiples of {bundle.multiple} px in the slide.
- Halo: {halo} px from each side, half of the overlap of {bundle.overlap} px that wsi-stain blends.
- Picture and test tensors are procedural histology and its stain; they show no patient.

Whole slides, without visible tile borders: `wsi-stain convert slide.svs --model {bundle.name}`.

{body}
"""
