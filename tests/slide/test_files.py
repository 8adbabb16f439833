"""Every file of a slide counts: replaced pixels are another slide, wherever they lie."""

import hashlib
import os
from pathlib import Path

import pytest
from builders.dicom import write_series
from builders.slides import tissue, write_svs

from wsi_stain.slide.files import digest, files_of, size_of, stamp


def mirax(folder: Path) -> Path:
    parts = folder / "s"
    parts.mkdir()
    for name in ("Slidedat.ini", "Index.dat", "Data0000.dat"):
        (parts / name).write_bytes(name.encode() * 9)
    (folder / "s.mrxs").write_bytes(b"\xff\xd8 a thumbnail")
    return folder / "s.mrxs"


def hamamatsu(folder: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "map.jpg"):
        (folder / name).write_bytes(name.encode())
    (folder / "other.jpg").write_bytes(b"not of this slide")
    lines = [
        "[Virtual Microscope Specimen]",
        "NoLayers=1",
        "ImageFile=a.jpg",
        "ImageFile(1,0)=b.jpg",
        "MapFile=map.jpg",
    ]
    (folder / "s.vms").write_text("\r\n".join(lines))
    return folder / "s.vms"


def olympus(folder: Path) -> Path:
    (folder / "_s_" / "stack1").mkdir(parents=True)
    (folder / "_s_" / "stack1" / "frame_t.ets").write_bytes(b"pixels")
    (folder / "s.vsi").write_bytes(b"II*\0")
    return folder / "s.vsi"


def zarr(folder: Path) -> Path:
    (folder / "s.ome.zarr" / "0" / "c").mkdir(parents=True)
    (folder / "s.ome.zarr" / "zarr.json").write_text("{}")
    (folder / "s.ome.zarr" / "0" / "c" / "0").write_bytes(b"pixels")
    return folder / "s.ome.zarr"


def dicom(folder: Path) -> Path:
    return write_series(folder / "d", tissue(150, 200))[1].parent


def dicom_file(folder: Path) -> Path:
    write_series(folder / "d", tissue(150, 200), prefix="other")
    return write_series(folder / "d", tissue(150, 200))[0]


def aperio(folder: Path) -> Path:
    return write_svs(folder / "s.svs", tissue(300, 300))


KINDS = {mirax: 4, hamamatsu: 4, olympus: 2, zarr: 2, dicom: 4, dicom_file: 4, aperio: 1}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_changed_byte_in_any_part_changes_the_hash_and_the_stamp(tmp_path, kind):
    slide = kind(tmp_path)
    parts = files_of(slide)
    assert len(parts) == len(set(parts)) == KINDS[kind]
    before = digest(slide), stamp(slide)
    assert (digest(slide), stamp(slide)) == before
    assert before[0][1] == size_of(slide) == sum(path.stat().st_size for path in parts)
    for path in parts:
        content, stat = path.read_bytes(), path.stat()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        if kind is not hamamatsu or path != slide:  # its index is text, and the last byte names a file
            assert digest(slide)[0] != before[0][0], path.name
        assert stamp(slide) != before[1], path.name
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (digest(slide), stamp(slide)) == before


def test_the_parts_of_a_linked_slide_are_beside_the_target_of_the_link(tmp_path):
    (tmp_path / "there").mkdir()
    slide = mirax(tmp_path / "there")
    link = tmp_path / "link.mrxs"
    link.symlink_to(slide)
    assert digest(link) == digest(slide)


def test_the_hash_of_one_file_is_that_of_its_content(tmp_path):
    slide = aperio(tmp_path)
    assert digest(slide) == (hashlib.sha256(slide.read_bytes()).hexdigest(), slide.stat().st_size)


def test_what_is_missing_has_no_stamp(tmp_path):
    assert stamp(tmp_path / "gone.svs") == ""
