"""The sheet of many cases, and their splits.

sheet.csv    case,he,ihc and, if known, patient_id,split,he_mpp,ihc_mpp,strata; paths relative to it
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from wsi_stain.errors import ConfigError
from wsi_stain.files.table import BadTable, Line, read_table
from wsi_stain.pairing.request import PairsRequest, Split

COLUMNS = ("case", "he", "ihc", "patient_id", "split", "he_mpp", "ihc_mpp", "strata")
GROUP_SHARE = 0.15
"""Share of the groups (patients, slides) in val, and in test; the rest is train."""
By = Literal["columns", "slide", "patient"]


def requests(sheet: Path, like: PairsRequest, by: By) -> list[PairsRequest]:
    """One request per row, with the settings of `like`, whose output is the folder of all cases.

    Raises:
        ConfigError: the sheet cannot be read, or a row is invalid.
    """
    try:
        table = read_table(sheet, COLUMNS)
    except BadTable as err:
        raise ConfigError(f"{sheet} {err}") from err
    missing = [name for name in ("case", "he", "ihc") if name not in table.columns]
    if missing:
        raise ConfigError(f"{sheet} lacks the column {missing[0]!r}: it needs case, he and ihc")
    rows = [_request(sheet, line, like) for line in table.lines]
    names = [row.case for row in rows]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError(f"{sheet} has the case {double!r} twice: it names a folder")
    if by == "columns":
        return rows
    column = "patient_id" if by == "patient" else "he"
    groups = [posixpath.normpath(text) if (text := line.values.get(column)) else "" for line in table.lines]
    if not all(groups):
        raise ConfigError(f"{sheet}: splits by patient need patient_id in every row; fill it in, or split by slide")
    stated: dict[str, Split] = {}
    for row, line, group in zip(rows, table.lines, groups, strict=True):
        if line.values.get("split") and stated.setdefault(group, row.split) != row.split:
            raise ConfigError(
                f"{sheet}, line {line.number}: {column} {group!r} is in {row.split} here and in {stated[group]} above; "
                "all its cases belong to one split"
            )
    splits = split_groups(sorted(set(groups))) | stated
    return [replace(row, split=splits[group]) for row, group in zip(rows, groups, strict=True)]


def split_groups(groups: Sequence[str]) -> dict[str, Split]:
    """The split of each patient or slide: the order of their hashes decides, so that names do not.

    Raises:
        ConfigError: there are fewer than three.
    """
    if len(groups) < 3:
        raise ConfigError(f"{len(groups)} groups cannot be divided into train, val and test; use --split columns")
    order = sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest())
    n = max(1, round(GROUP_SHARE * len(order)))
    return {group: "val" if i < n else "test" if i < 2 * n else "train" for i, group in enumerate(order)}


def _request(sheet: Path, line: Line, like: PairsRequest) -> PairsRequest:
    values, where = line.values, f"{sheet}, line {line.number}"
    for name in ("case", "he", "ihc"):
        if not values.get(name):
            raise ConfigError(f"{where}: the column {name!r} is empty")
    case = values["case"]
    if Path(case).name != case or case.startswith("."):
        raise ConfigError(f"{where}: case is {case!r}: it names a folder and must not be a path")
    split = values.get("split") or like.split
    if split not in get_args(Split):
        raise ConfigError(f"{where}: split is {split!r}: it must be columns, train, val or test, or empty")
    return replace(
        like,
        he=sheet.parent / values["he"],
        ihc=sheet.parent / values["ihc"],
        output=like.output / case,
        strata=sheet.parent / values["strata"] if values.get("strata") else None,
        case=case,
        patient=values.get("patient_id", ""),
        split=split,
        he_mpp=_number(values.get("he_mpp"), f"{where}: he_mpp") or like.he_mpp,
        ihc_mpp=_number(values.get("ihc_mpp"), f"{where}: ihc_mpp") or like.ihc_mpp,
    )


def _number(text: str | None, where: str) -> float | None:
    try:
        return float(text.replace(",", ".")) if text else None
    except ValueError as err:
        raise ConfigError(f"{where} is {text!r}: it must be a number of µm per px, for example 0.25") from err
