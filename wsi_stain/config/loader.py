"""One strict loader for every YAML file: builds frozen dataclasses and dumps them in plain form.

A YAML file (and `--set key=value`) holds only differences from the defaults of the dataclass, or from the file that
its key `base` names.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from wsi_stain.config.ranges import check, hints, is_annotated, range_of, without_none
from wsi_stain.errors import ConfigError

T = TypeVar("T")

RENAMED = {"cache_mb": "cache_mib", "glass": "background", "invariance": "tile_tolerance"}
"""Keys of earlier versions, in any section; they are still read, with a warning."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where settings come from, for messages."""

    file: Path | None
    overridden: tuple[str, ...] = ()
    """Keys that were set on the command line, not in the file."""

    def of(self, key: str) -> str:
        """The beginning of a message about a setting: its file, or nothing for an override."""
        is_override = any(f"{key}.".startswith(f"{other}.") for other in self.overridden)
        return "" if self.file is None or is_override else f"{self.file}: "


def load(cls: type[T], source: Path | Mapping[str, Any] | None = None, overrides: Iterable[str] = ()) -> T:
    """Build the frozen dataclass `cls` from a YAML file or a mapping, then apply `key.sub=value` overrides.

    Args:
        cls: a dataclass with annotated fields.
        source: a YAML file, a mapping, or nothing (the defaults).
        overrides: strings such as `grid.overlap=64`; the value is read as YAML.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of the wrong type or outside its range, a
            missing key, a file that does not exist or is not a YAML mapping; it names file, key, value and rule.
    """
    data = dict(read_mapping(source) if isinstance(source, Path) else renamed(source or {}, ""))
    overridden = tuple(_apply_override(data, text) for text in overrides)
    return _build(cls, data, _Source(source if isinstance(source, Path) else None, overridden), "")


def dump(config: Any) -> dict[str, Any]:
    """The plain, YAML-ready form of a dataclass: tuples as lists, nested dataclasses as mappings."""
    return {_key(f): _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _key(field: dataclasses.Field[Any]) -> str:
    """A field's key: `class_` has the key `class`, a reserved word in Python."""
    return field.name.removesuffix("_")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dump(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def read_mapping(path: Path, seen: tuple[Path, ...] = ()) -> Mapping[str, Any]:
    """The mapping in a YAML file, merged into that of the file that its key `base` names."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"cannot read the configuration {path}: {err.strerror}; check the path") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # a wrong date is a ValueError
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(err).split())}") from err
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}: a configuration must be a mapping of keys to values")
    data = renamed(data, f"{path}: ")
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str) or path in seen:
        raise ConfigError(f"{path}: base is {base!r}: it must name another YAML file, relative to this one")
    return _merged(read_mapping(path.parent / base, (*seen, path)), data)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; sections are merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply_override(data: dict[str, Any], text: str) -> str:
    """Set one value; returns its key."""
    key, eq, value = text.partition("=")
    if not eq or not key:
        raise ConfigError(f"cannot read the setting {text!r}: write key=value, for example grid.overlap=64")
    key = ".".join(_current(part, "--set: ") for part in key.strip().split("."))
    *parents, last = key.split(".")
    for parent in parents:
        nested = data.get(parent) or {}
        if not isinstance(nested, dict):
            raise ConfigError(f"cannot set {key}: {parent} is a value, not a section")
        data[parent] = nested = dict(nested)
        data = nested
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as err:
        raise ConfigError(f"cannot read the value of {text!r}: it must be YAML, for example grid.overlap=64") from err
    return key


def renamed(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`data` with the current names of its keys, in all sections; `where` begins the message about an old one."""
    return {
        _current(key, where): renamed(value, where) if isinstance(value, Mapping) else value
        for key, value in data.items()
    }


@lru_cache
def _current(key: str, where: str) -> str:
    """The current name of a key; says once where an old one stands."""
    if key in RENAMED:
        log.warning("%sthe key %s is now called %s; the old name is still read", where, key, RENAMED[key])
    return RENAMED.get(key, key)


def _build(cls: type[T], data: Mapping[str, Any], source: _Source, prefix: str) -> T:
    fields = {_key(f): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {prefix + near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"{source.of(prefix + str(key))}unknown key {prefix + str(key)!r}; {hint}")
    missing = [
        name
        for name, f in fields.items()
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{source.of('')}the key {prefix + missing[0]!r} is missing")
    names = {key: fields[key].name for key in data}
    values = {names[key]: _convert(hints(cls)[names[key]], value, source, prefix + key) for key, value in data.items()}
    try:
        return cls(**values)
    except ConfigError as err:  # a rule about several keys
        raise ConfigError(f"{source.of('')}{err}") from err


def _convert(hint: Any, value: Any, source: _Source, key: str) -> Any:
    """`value` as the type `hint`, or a ConfigError that names file, key, value and rule."""
    where = f"{source.of(key)}{key}"
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(without_none(hint), value, source, key)
    if is_annotated(hint):
        number = _convert(args[0], value, source, key)
        if rule := range_of(hint):
            check(number, rule, where)
        return number
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {_short(value)}: it must be a section with keys")
        return _build(typing.cast(type, hint), value, source, key + ".")
    if origin is Literal:
        # YAML reads 420 as a number, but the choice is text.
        chosen = next((a for a in args if a == value or str(a) == str(value)), None)
        if chosen is None:
            raise ConfigError(f"{where} is {_short(value)}: choose one of {', '.join(map(str, args))}")
        return chosen
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise ConfigError(f"{where} has {len(value)} values: it must have {len(kinds)}")
        return tuple(
            _convert(kind, v, source, f"{key}[{i}]") for i, (kind, v) in enumerate(zip(kinds, value, strict=True))
        )
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {_short(value)}: it must be {_name(hint)}")


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    return names.get(hint, "a list" if get_origin(hint) is tuple else str(hint))


def _short(value: Any) -> str:
    """A value of a file in a message, however long it is."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
