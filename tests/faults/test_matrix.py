"""Every fault, once with each kind of output; `python -m tests.faults` tries them more often."""

import os

import pytest

from tests.faults.matrix import FAULTS, run


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_no_fault_costs_anything(tmp_path, ending):
    names = [name for name in FAULTS if name != "disk full" or not os.geteuid()]
    rows = run(tmp_path, 1, 1, names, ending)
    assert [(row.fault, row.lost, row.seen) for row in rows if row.lost] == []
    assert sum(row.hit for row in rows) > len(rows) / 2
