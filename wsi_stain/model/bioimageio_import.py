"""Reads a model folder of BioImage.IO (specification 0.5): where its ONNX weights are, and what `rdf.yaml` states.

Nothing is downloaded, unpickled, or run here: only `rdf.yaml` and the test tensors are parsed, and hashes are checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from wsi_stain.config.channels import parse
from wsi_stain.config.loader import dump
from wsi_stain.errors import BundleError
from wsi_stain.model.bioimageio_tensors import TestTensors, read_tensors
from wsi_stain.model.bioimageio_values import data_range, input_values, number, output_values
from wsi_stain.model.bundle import sha256_of

RDF = "rdf.yaml"
NAMES = (RDF, "bioimageio.yaml")
TOOL = "wsi_stain"
"""Our section in `config`: what the specification has no key for."""
MOST_BYTES, MOST_VALUES = 1 << 20, 100_000
"""Size of rdf.yaml; aliases of YAML may stand for far more values than it has bytes."""
LEAST_TILE, MOST_TILE = 512, 8192
"""Side of tiles in px: the smallest chosen where the file allows several, and the largest."""
MICROMETRES = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}
COLOURS = {"red": "r", "green": "g", "blue": "b", "r": "r", "g": "g", "b": "b"}
LAYOUTS = (["batch", "channel", "y", "x"], ["batch", "y", "x", "channel"])
ONNX = "only onnx weights are imported, because other formats can execute code; bioimageio add-weights converts them"


@dataclass(frozen=True, slots=True)
class Resource:
    """A model folder of BioImage.IO."""

    weights: Path
    """Its ONNX file, whose hash is that of rdf.yaml."""
    facts: dict[str, Any]
    """Keys of `ImportConfig` that rdf.yaml states."""
    tensors: TestTensors | None = None
    """What the network must make of an image, if rdf.yaml states it."""


def read_folder(folder: Path) -> Resource:
    """What a folder with an rdf.yaml states; facts that it does not state are left out.

    Raises:
        BundleError: there is no rdf.yaml, it describes a model of another kind or version, or its weights are missing,
            altered, outside the folder, on the network, or in another format.
    """
    path = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if path is None:
        raise BundleError(f"{folder} has no {RDF}; pass a weight file, or a model folder of BioImage.IO")
    try:
        description = _read(path, folder)
        _check_kind(description)
        weights = _weights(description, folder)
        facts = _facts(description)
        tensors = _tensors(description, folder)
    except ValueError as err:
        line = " ".join(str(err).split())  # it quotes the file
        raise BundleError(f"{path}: {''.join(x if x.isprintable() else '?' for x in line)}") from None
    return Resource(weights, {"kind": "onnx", **facts}, tensors)


def _read(path: Path, folder: Path) -> Mapping[str, Any]:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("it is a link to a file outside the folder; do not use it")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 10} KiB, as no description does; do not use it")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as err:
        raise ValueError(f"it is not valid YAML ({str(err)[:200]})") from err
    if not isinstance(content, dict):
        raise ValueError("it must be a mapping of keys to values")
    _check_size(content)
    return content


def _check_size(content: Any) -> None:
    left, values = MOST_VALUES, [content]
    while values:
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left -= 1
        if left < len(values):
            raise ValueError(f"it has more than {MOST_VALUES:,} values, as no description does; do not use it")


def _section(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be a mapping of keys to values")
    return value


def _check_kind(description: Mapping[str, Any]) -> None:
    kind, version = description.get("type"), str(description.get("format_version"))
    if kind != "model":
        raise ValueError(f"type is {str(kind)[:40]!r}; it must be model")
    if not re.fullmatch(r"0\.5\.\d+", version):
        raise ValueError(
            f"format_version is {version[:40]!r}, but 0.5 is read; bioimageio update-format updates earlier ones"
        )
    if description.get("run_mode"):
        raise ValueError("it has a run_mode, which is a program of its own; only plain models are imported")


def _weights(description: Mapping[str, Any], folder: Path) -> Path:
    formats = _section(description, "weights")
    if "onnx" not in formats:
        names = ", ".join(str(name)[:40] for name in list(formats)[:8]) or "no weights"
        raise ValueError(f"it has {names}; {ONNX}")
    entry = _section(formats, "onnx")
    if entry.get("external_data"):
        raise ValueError("weights.onnx has external_data, which is never opened; save the graph as one file")
    path = _inside(folder, entry.get("source"), "weights.onnx.source", ".onnx")
    expected = entry.get("sha256")
    if not isinstance(expected, str) or not re.fullmatch("[0-9a-f]{64}", expected):
        raise ValueError("weights.onnx.sha256 is missing or not a SHA-256; bioimageio update-hashes writes it")
    actual = sha256_of(path)
    if actual != expected:
        raise ValueError(
            f"{path.name} does not match weights.onnx.sha256 ({actual[:12]}…, expected {expected[:12]}…); it was "
            "altered or truncated; download it again"
        )
    return path


def _tensors(description: Mapping[str, Any], folder: Path) -> TestTensors | None:
    source, target = _only(description, "inputs"), _only(description, "outputs")
    layouts = list(_axes(source, "inputs")), list(_axes(target, "outputs"))
    return read_tensors(source, target, layouts, partial(_inside, folder))


def _inside(folder: Path, source: Any, key: str, ending: str) -> Path:
    """The file in the folder that rdf.yaml names."""
    if not isinstance(source, str) or not source.strip() or not source.isprintable():
        raise ValueError(f"{key} is missing; it must name an {ending} file of the folder")
    if re.match(r"[\w+.-]+:", source):
        raise ValueError(
            f"{key} is {source[:100]!r}; nothing is downloaded here; put the file into the folder and "
            "its name into rdf.yaml (bioimageio package does both)"
        )
    path = folder / source
    if "\\" in source or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{key} is {source[:100]!r}, which lies outside the folder; do not use it")
    if path.suffix != ending or not path.is_file():
        raise ValueError(f"{key} is {source[:100]!r}, which is not an {ending} file of the folder")
    return path


def _facts(description: Mapping[str, Any]) -> dict[str, Any]:
    """What `models import` would have to be told; what is missing is not a key."""
    source, target = _only(description, "inputs"), _only(description, "outputs")
    axes, out_axes = _axes(source, "inputs"), _axes(target, "outputs")
    own = _section(_section(description, "config"), TOOL)
    licence, version = description.get("license"), description.get("version")
    facts = {
        "mpp": _mpp(axes, out_axes),
        "licence": licence if isinstance(licence, str) else None,
        "version": version if isinstance(version, str) else None,
        "values_in": input_values(source, data_range(source)),
        "values_out": output_values(target, data_range(target)),
        **_channels(axes, out_axes),
        **_tiles(axes, out_axes, own.get("multiple")),
        **{key: own.get(key) for key in ("stain", "input_stain", "background")},
    }
    return {key: value for key, value in facts.items() if value is not None}


def _only(description: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    tensors = description.get(key)
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        count = len(tensors) if isinstance(tensors, list) else 0
        raise ValueError(f"{key} has {count} tensors; only models of one image to one image are imported")
    return tensors[0]


def _axes(tensor: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    """The axes by the names batch, channel, y, x."""
    axes = tensor.get("axes")
    if not isinstance(axes, list) or not all(isinstance(axis, dict) for axis in axes):
        raise ValueError(f"{key}.axes is missing or not a list of axes, as in format 0.5")
    names = [str(axis.get("id") if axis.get("type") == "space" else axis.get("type"))[:40] for axis in axes[:8]]
    if names not in LAYOUTS:
        raise ValueError(
            f"{key}.axes are {', '.join(names)}; they must be {' or '.join(', '.join(x) for x in LAYOUTS)}"
        )
    return dict(zip(names, axes, strict=True))


def _mpp(axes: Mapping[str, Any], out_axes: Mapping[str, Any]) -> float | None:
    """µm per px; None if the axes state none."""
    scales: set[float] = set()
    for axis in (axes["y"], axes["x"], out_axes["y"], out_axes["x"]):
        factor = MICROMETRES.get(str(axis.get("unit")))
        if factor is None:
            return None
        scales.add(round(number(axis.get("scale", 1.0), "scale of an axis") * factor, 9))
    if len(scales) > 1:
        words = ", ".join(f"{scale:g}" for scale in sorted(scales))
        raise ValueError(f"its axes have {words} µm/px; y, x, input and output must have the same")
    return scales.pop()


def _names(axis: Mapping[str, Any], key: str) -> list[str]:
    names = axis.get("channel_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key}: channel_names must be a list of names")
    if odd := next((name for name in names if not name.strip() or set(name) & set(",=")), None):
        raise ValueError(f"{key}: channel_names holds {odd[:40]!r}; a name must have letters, and neither comma nor =")
    return names


def _order(names: list[str]) -> str | None:
    """`rgb` or `bgr`; None for other names."""
    order = "".join(COLOURS.get(name.lower(), "?") for name in names)
    return order if order in ("rgb", "bgr") else None


def _channels(axes: Mapping[str, Any], out_axes: Mapping[str, Any]) -> dict[str, Any]:
    """The order of colours; and the channels of the output, unless they are colours or grey."""
    names, out_names = _names(axes["channel"], "inputs"), _names(out_axes["channel"], "outputs")
    if len(names) != 3:
        raise ValueError(f"its input has {len(names)} channels; it must have three colours")
    order, out_order = _order(names), _order(out_names)
    if order and out_order and order != out_order:
        raise ValueError(f"its input is {order}, but its output {out_order}; one order is supported")
    if out_order or len(out_names) == 1:
        return {"colours": order}
    return {"colours": order, "channels": [dump(channel) for channel in parse(",".join(out_names))]}


def _tiles(axes: Mapping[str, Any], out_axes: Mapping[str, Any], multiple: Any) -> dict[str, Any]:
    """Tile, overlap and multiple in px; overlapping tiles share two halos."""
    if axes["y"].get("size") != axes["x"].get("size"):
        raise ValueError("y and x have different sizes; tiles must be square")
    if out_axes["y"].get("halo", 0) != out_axes["x"].get("halo", 0):
        raise ValueError("y and x of its output have different halos; they must have the same")
    size, step = axes["y"].get("size"), 0
    if isinstance(size, dict):
        least, step = _pixels(size.get("min"), "size.min"), _pixels(size.get("step"), "size.step")
        size = least + step * max(0, math.ceil((LEAST_TILE - least) / step))
    tile = _pixels(size, "size")
    halo = _pixels(out_axes["y"].get("halo", 0), "halo", least=0)
    if 4 * halo > tile:
        raise ValueError(f"its halo is {halo} px; it must be at most a quarter of the tile of {tile} px")
    if multiple is None and (step or halo):
        multiple = math.gcd(tile, step) if step else math.gcd(tile, 2 * halo)
    if multiple is not None:
        multiple = _pixels(multiple, f"config.{TOOL}.multiple")
    overlap = -(-2 * halo // multiple) * multiple if halo and multiple else None
    return {"tile": tile, "multiple": multiple, "overlap": overlap}


def _pixels(value: Any, key: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_TILE:
        raise ValueError(f"{key} of an axis is {str(value)[:40]!r}; it must be from {least} to {MOST_TILE} px")
    return value
