"""3DHISTECH MIRAX: a JPEG preview, and a folder with Slidedat.ini, Index.dat and Data0000.dat.

Photos of the camera overlap and lie beside their grid; each is stored in 2 × 2 images, and images of coarser levels
join those of finer ones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from builders.formats.picture import WHITE, Built, jpeg, picture, reduced

IMAGE, PARTS = 256, 2
PHOTO = IMAGE * PARTS
IDENTITY = "FEDCBA9876543210FEDCBA9876543210"


def mirax(path: Path, *, overlap: int = 32, jitter: int = 6) -> Built:
    """Four photos across and three down, of which the first column and one corner were not scanned."""
    columns, rows, mpp = 4, 3, 0.25
    random = np.random.default_rng(3)
    step = PHOTO - overlap
    places = {
        (c, r): tuple(n and n * step + int(random.integers(-jitter, jitter + 1)) for n in (c, r))
        for r in range(rows)
        for c in range(columns)
    }
    scanned = [place for place in places if place[0] and place != (columns - 1, 0)]
    canvas = picture(rows * PHOTO, columns * PHOTO)
    truth = np.full_like(canvas, WHITE)
    photos: dict[tuple[int, int], np.ndarray] = {}
    for place in scanned:
        x, y = places[place]
        photos[place] = canvas[y : y + PHOTO, x : x + PHOTO]
        truth[y : y + PHOTO, x : x + PHOTO] = photos[place]
    data = bytearray(bytes(64))
    pages = [_stored(photos, columns, rows, 2**n, data) for n in range(4)]
    table = b"".join(struct.pack("<Bii", place in photos, *places[place]) for place in places)
    record = (len(data), len(table), 0)
    data += table
    folder = path.with_suffix("")
    folder.mkdir()
    path.write_bytes(jpeg(np.full((90, 60, 3), 210, np.uint8)))
    (folder / "Data0000.dat").write_bytes(data)
    (folder / "Index.dat").write_bytes(_index(pages, record))
    (folder / "Slidedat.ini").write_text(_slidedat(columns, rows, overlap, mpp), encoding="utf-8-sig")
    xs, ys = zip(*(places[place] for place in photos), strict=True)
    nominal = rows * step + overlap, columns * step + overlap  # the size of level 0, whatever the photos' places
    x, y = min(xs), min(ys)
    h, w = min(max(ys) + PHOTO, nominal[0]) - y, min(max(xs) + PHOTO, nominal[1]) - x
    return Built(path, truth[y : y + h, x : x + w], mpp, 20, (x, y, w, h), format="3DHISTECH MIRAX")


def _stored(
    photos: dict[tuple[int, int], np.ndarray], columns: int, rows: int, join: int, data: bytearray
) -> list[tuple[int, int, int, int]]:
    """Append the images of a level to `data`; (number, offset, bytes, file) of each."""
    entries: list[tuple[int, int, int, int]] = []
    for number, pixels in _images(photos, columns, rows, join):
        content = jpeg(pixels)
        entries.append((number, len(data), len(content), 0))
        data += content
    return entries


def _images(
    photos: dict[tuple[int, int], np.ndarray], columns: int, rows: int, join: int
) -> Iterator[tuple[int, np.ndarray]]:
    side = IMAGE // join
    for y in range(0, rows * PARTS, join):
        for x in range(0, columns * PARTS, join):
            out, parts = np.full((IMAGE, IMAGE, 3), WHITE, np.uint8), 0
            for j in range(y, min(y + join, rows * PARTS)):
                for i in range(x, min(x + join, columns * PARTS)):
                    photo = photos.get((i // PARTS, j // PARTS))
                    if photo is not None:
                        top, left = j % PARTS * IMAGE, i % PARTS * IMAGE
                        part = photo[top : top + IMAGE, left : left + IMAGE]
                        place = np.s_[(j - y) * side : (j - y + 1) * side, (i - x) * side : (i - x + 1) * side]
                        out[place] = part if join == 1 else reduced(part, join)
                        parts += 1
            if parts:
                yield y * columns * PARTS + x, out


def _index(pages: list[list[tuple[int, int, int, int]]], record: tuple[int, int, int]) -> bytes:
    """Two roots, of levels and of records; each leads to lists of pages (n, next page, entries)."""
    head = b"01.02" + IDENTITY.encode()
    body = bytearray()

    def put(content: bytes) -> int:
        body.extend(content)
        return len(head) + 8 + len(body) - len(content)

    def chain(page: bytes) -> int:
        return put(struct.pack("<ii", 0, put(page)))

    levels = [chain(struct.pack("<ii", len(p), 0) + b"".join(struct.pack("<4i", *entry) for entry in p)) for p in pages]
    records = [chain(struct.pack("<4i", 1, 0, 0, 0) + struct.pack("<3i", *record))]
    roots = [put(struct.pack(f"<{len(r)}i", *r)) for r in (levels, records)]
    return head + struct.pack("<ii", *roots) + bytes(body)


def _slidedat(columns: int, rows: int, overlap: int, mpp: float) -> str:
    sections: dict[str, dict[str, object]] = {
        "GENERAL": {
            "SLIDE_VERSION": "01.02",
            "SLIDE_ID": IDENTITY,
            "IMAGENUMBER_X": columns * PARTS,
            "IMAGENUMBER_Y": rows * PARTS,
            "OBJECTIVE_MAGNIFICATION": 20,
            "CameraImageDivisionsPerSide": PARTS,
        },
        "HIERARCHICAL": {
            "INDEXFILE": "Index.dat",
            "HIER_COUNT": 1,
            "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": 4,
            "NONHIER_COUNT": 1,
            "NONHIER_0_NAME": "VIMSLIDE_POSITION_BUFFER",
            "NONHIER_0_COUNT": 1,
            "NONHIER_0_VAL_0": "default",
            "NONHIER_0_VAL_0_SECTION": "PLACES",
        },
        "PLACES": {"VIMSLIDE_POSITION_DATA_FORMAT_VERSION": 257},
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
    }
    for n in range(4):
        sections["HIERARCHICAL"][f"HIER_0_VAL_{n}_SECTION"] = f"LEVEL_{n}"
        sections[f"LEVEL_{n}"] = {
            **{f"OVERLAP_{axis}": overlap / 2**n for axis in "XY"},
            **{f"MICROMETER_PER_PIXEL_{axis}": mpp * 2**n for axis in "XY"},
            "IMAGE_FORMAT": "JPEG",
            "IMAGE_FILL_COLOR_BGR": 0xFFFFFF,
            "DIGITIZER_WIDTH": IMAGE,
            "DIGITIZER_HEIGHT": IMAGE,
            "IMAGE_CONCAT_FACTOR": int(n > 0),
        }
    return "".join(f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items()) for name, keys in sections.items())
