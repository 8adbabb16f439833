"""Bundles as one file, to share: .zip or .tar of their folder, written reproducibly and opened with limits."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from wsi_stain.errors import BundleError
from wsi_stain.files.atomic import rename, replacing
from wsi_stain.model.bundle import SPEC, Bundle

ARCHIVES = (".zip", ".tar")
KINDS = (".yaml", ".safetensors", ".onnx", ".md", ".txt", ".json", ".png", ".jpg", "")
"""Endings of files that a bundle may hold; nothing that is ever unpickled or executed. Licences have none."""
MOST_FILES, MOST_BYTES = 32, 8 << 30
MOST_RATIO = 100
PIECE = 1 << 20
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What the readers of damaged archives raise; RuntimeError asks for a password."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in an archive, as its directory states it."""

    name: str
    size: int
    is_plain: bool
    """Whether it is a regular file, neither link nor device."""
    is_bomb: bool
    """Whether it would grow far more than weights and texts do."""
    key: zipfile.ZipInfo | tarfile.TarInfo


def pack_archive(name: str | Path, archive: Path) -> Path:
    """Write a bundle as one file; equal bundles give equal bytes.

    Args:
        name: folder of the bundle, or the name of a shipped one.
        archive: ends in .zip or .tar.

    Raises:
        BundleError: the bundle is not intact, holds other files, or the archive exists.
    """
    bundle = Bundle.open(name)
    if bundle.folder is None:
        raise BundleError(f"{bundle.name} is built in and has no files; every installation has it")
    if archive.exists():
        raise BundleError(f"{archive} already exists; choose another name, or remove it first")
    files = sorted(path for path in bundle.folder.iterdir() if not path.name.startswith("."))
    odd = [path.name for path in files if path.suffix not in KINDS or not path.is_file()]
    if odd:
        raise BundleError(f"{bundle.folder} holds {odd[0]}, which is not a file of a bundle; remove it first")
    with replacing(archive, sole=True) as part:
        (_write_zip if archive.suffix == ".zip" else _write_tar)(part, bundle.name, files)
    return archive


def unpack_archive(archive: Path, folder: Path) -> Bundle:
    """Make the folder of a bundle from its archive.

    Everything is checked before a byte is written: names without folders (but one around all), regular files, known
    endings, number and size. What is unpacked must be an intact bundle.

    Raises:
        BundleError: the archive is refused, or the folder exists.
    """
    if folder.exists():
        raise BundleError(f"{folder} already exists; choose another folder, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part") as scratch:
        inner = Path(scratch, "bundle")
        inner.mkdir()
        with _opened(archive) as file:
            for member, name in _checked(file, archive):
                _extract(file, member, inner / name, archive)
        _check_bundle(inner, archive)
        rename(inner, folder)
    return Bundle.open(folder)


def _write_zip(path: Path, top: str, files: list[Path]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            info = zipfile.ZipInfo(f"{top}/{file.name}")  # without a date
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, PIECE)


def _write_tar(path: Path, top: str, files: list[Path]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            info = tarfile.TarInfo(f"{top}/{file.name}")  # without owner and date
            info.size = file.stat().st_size
            with file.open("rb") as source:
                archive.addfile(info, source)


@contextmanager
def _opened(path: Path) -> Generator[zipfile.ZipFile | tarfile.TarFile]:
    try:
        is_zip = zipfile.is_zipfile(path)
        with zipfile.ZipFile(path) if is_zip else tarfile.open(path, "r:") as file:
            yield file
    except _DAMAGE as err:
        raise BundleError(f"{path} is not an intact .zip or .tar: {_first(err)}; download or pack it again") from err


def _members(file: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(file, zipfile.ZipFile):
        for info in file.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)
            grows = info.file_size > MOST_RATIO * info.compress_size + PIECE
            yield _Member(info.filename, info.file_size, mode in (0, stat.S_IFREG, stat.S_IFDIR), grows, info)
    else:
        for entry in file:
            name, is_plain = entry.name + "/" * entry.isdir(), entry.isreg() or entry.isdir()
            yield _Member(name, entry.size, is_plain, entry.issparse(), entry)


def _checked(file: zipfile.ZipFile | tarfile.TarFile, path: Path) -> list[tuple[_Member, str]]:
    """The files of an archive and their names in the bundle."""
    files: list[tuple[_Member, str]] = []
    tops: set[str] = set()
    total = 0
    for member in _members(file):
        name = member.name
        parts = PurePosixPath(name).parts
        if not member.is_plain:
            raise BundleError(f"{path} holds {name!r}, a link or a device; a bundle has only files; do not use it")
        if any(bad in name for bad in "\\:\0") or name.startswith("/") or ".." in parts or len(parts) > 2:
            raise BundleError(f"{path} holds {name!r}, which would lie outside the bundle's folder; do not use it")
        if name.endswith("/"):
            continue
        tops.add(parts[0] if len(parts) == 2 else "")
        if not parts or PurePosixPath(parts[-1]).suffix not in KINDS:
            raise BundleError(f"{path} holds {name!r}, which is not a file of a bundle; do not use it")
        total += member.size
        files.append((member, parts[-1]))
        if member.is_bomb:
            raise BundleError(f"{path}: {name!r} grows to {member.size:,} bytes, as no bundle does; do not use it")
        if len(files) > MOST_FILES or total > MOST_BYTES:
            raise BundleError(f"{path} holds more than {MOST_FILES} files or {MOST_BYTES >> 30} GiB; do not use it")
    names = [name.casefold() for _, name in files]
    if len(set(names)) < len(names) or len(tops) > 1:
        raise BundleError(f"{path} holds two files of one name, or several folders; pack the bundle again")
    if SPEC not in names:
        raise BundleError(f"{path} has no {SPEC}, so it is not a bundle; pack one with wsi-stain models pack")
    return files


def _extract(file: zipfile.ZipFile | tarfile.TarFile, member: _Member, target: Path, path: Path) -> None:
    """Write a file; at most as many bytes as its directory states."""
    with _reading(file, member) as source, target.open("xb") as out:
        left = member.size
        while piece := source.read(min(PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                raise BundleError(f"{path}: {member.name!r} is longer than its directory states; do not use it")
            out.write(piece)
    if left:
        raise BundleError(f"{path}: {member.name!r} is cut off; download or pack it again")


def _reading(file: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> IO[bytes]:
    if isinstance(file, zipfile.ZipFile):
        assert isinstance(member.key, zipfile.ZipInfo), "its own member"
        return file.open(member.key)
    assert isinstance(member.key, tarfile.TarInfo), "its own member"
    source = file.extractfile(member.key)
    if source is None:
        raise BundleError(f"{member.name!r} cannot be read; download or pack it again")
    return source


def _check_bundle(folder: Path, path: Path) -> None:
    bundle = Bundle.open(folder)
    weights = bundle.weights_path
    with weights.open("rb") as file:
        start = file.read(9)
    if weights.suffix == ".safetensors" and start[8:] != b"{":
        raise BundleError(f"{path}: {weights.name} is not safetensors, whatever its name; do not use it")


def _first(err: BaseException) -> str:
    return " ".join(str(err).split())[:160] or type(err).__name__
