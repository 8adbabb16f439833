"""A full disk is one sentence, whoever reports it."""

import errno
from pathlib import Path

import pytest

from wsi_stain.errors import InsufficientResources, OutputError
from wsi_stain.files.full_disk import reporting_full_disk


def wrapped(error: Exception) -> Exception:
    """The same error, as a library re-raises it."""
    outer = OutputError("cannot write the file")
    outer.__cause__ = error
    return outer


FULL = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")]


@pytest.mark.parametrize("error", [*FULL, *map(wrapped, FULL)])
def test_a_full_disk_is_told_with_the_file_and_the_next_step(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "x.ome.tiff"
    message = r"x.ome.tiff is (full|used up).*free some space and re-run the same command"
    with pytest.raises(InsufficientResources, match=message) as caught, reporting_full_disk(path):
        raise error
    assert caught.value.__cause__ is error


def test_the_figures_are_told_and_a_quota_is_not_judged_by_the_free_space(tmp_path: Path) -> None:
    message = r"is full: about 2.0 GiB were needed .*, but only .* are free now"
    with pytest.raises(InsufficientResources, match=message), reporting_full_disk(tmp_path / "missing" / "x", 2 << 30):
        raise FULL[0]
    message = "quota on the disk .* used up: about 2.0 GiB were needed"
    with pytest.raises(InsufficientResources, match=message) as caught, reporting_full_disk(tmp_path / "x", 2 << 30):
        raise FULL[1]
    assert "are free" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), ValueError("x"), InsufficientResources("no memory")]
)
def test_other_errors_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, reporting_full_disk(tmp_path):
        raise error
    assert caught.value is error
