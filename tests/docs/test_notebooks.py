"""The notebooks run from top to bottom, and are kept without outputs."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from builders.documents import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LONGEST_S = 600


def cells_of(path: Path) -> list[dict[str, Any]]:
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_outputs(path: Path) -> None:
    assert [c["outputs"] for c in cells_of(path)] == [[]] * len(cells_of(path))
    assert {c["execution_count"] for c in cells_of(path)} == {None}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_command_that_fails_stops_a_notebook(path: Path) -> None:
    lines = [line for cell in cells_of(path) for line in "".join(cell["source"]).splitlines()]
    assert [line for line in lines if line.lstrip().startswith(("!", "%"))] == [], "IPython continues behind these"


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("nbclient", "ipykernel")),
    reason="needs pip install -c constraints.txt -e '.[notebooks]'",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter packages
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_writes_what_it_promises(path: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(shutil.copy(path, tmp_path), as_version=4)
    NotebookClient(notebook, timeout=LONGEST_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    if path.name == "look.ipynb":
        output = tmp_path / "phantom.cam52.ome.tiff"
        assert output.is_file()
        assert (tmp_path / f"{output.name}.measure" / "report.html").is_file()
        assert "0% painted" in printed
    else:
        rows = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))["rows"]
        assert any("mean" in name for name in rows)
        assert "error" not in printed.lower().replace("dab+ error", "")
