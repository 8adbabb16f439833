"""Panels: several stains of one slide, each with an output, a certificate and a record of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders.conversions import digest, noise, pixels_of, request_of, write_slide
from builders.published import graph_of, node, serialized
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.cohort import sheet
from wsi_stain.cohort.request import CohortRequest
from wsi_stain.conversion import panel, survey
from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.panel import convert_panel, requests_of
from wsi_stain.errors import BundleError, ConfigError
from wsi_stain.model.importing import import_model, settings
from wsi_stain.view.catalogue import sources_of

GIVEN = {
    **{"mpp": 1.0, "licence": "CC0-1.0", "values_in": [0, 1], "values_out": [0, 1], "colours": "rgb"},
    **{"tile": 64, "multiple": 1, "overlap": 16, "kind": "onnx"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pointwise models of two stains, and a second one of the first stain."""
    folder, models = tmp_path_factory.mktemp("models"), {}
    for name, stain, factor in (("dim", "HER2", 0.5), ("dark", "Ki-67", 0.25), ("other", "HER2", 0.75)):
        graph = graph_of(node("Mul", ["x", "k"], ["y"]), k=np.float32(factor))
        (folder / "x.onnx").write_bytes(serialized(graph))
        import_model(folder / "x.onnx", folder / name, settings({**GIVEN, "stain": stain}))
        models[name] = str(folder / name)
    return models


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "s.tif", noise(600, 700))


def test_a_panel_gives_what_single_conversions_give(models, slide, tmp_path, monkeypatch):
    both = (models["dim"], models["dark"])
    hashed = []
    hash_slide = survey.digest
    monkeypatch.setattr(survey, "digest", lambda path: hashed.append(path) or hash_slide(path))
    masks = []
    find = survey.find_tissue
    monkeypatch.setattr(survey, "find_tissue", lambda slide: masks.append(slide) or find(slide))
    request = request_of(slide, tmp_path / "p.{stain}.ome.tiff", mpp=1.0, mask="auto")
    results = list(convert_panel(request, both))
    assert [r.output.name for r in results] == ["p.her2.ome.tiff", "p.ki67.ome.tiff"]
    assert [r.record["seams"]["verdict"] for r in results] == ["pass", "pass"]
    assert (len(hashed), len(masks)) == (1, 1)
    alone = tmp_path / "alone"
    alone.mkdir()
    for model, result in zip(both, results, strict=True):
        convert(request_of(slide, alone / result.output.name, model=model, mpp=1.0, mask="auto"))
        assert digest(alone / result.output.name) == digest(result.output)
    dim, dark = (pixels_of(result.output).mean() for result in results)
    assert dark < 0.7 * dim
    assert all(result.already_done for result in convert_panel(request, both))


def test_an_interrupted_panel_resumes_behind_what_is_done(models, slide, tmp_path, monkeypatch):
    both = (models["dim"], models["dark"])
    request = request_of(slide, tmp_path / "p.{stain}.ome.tiff", mpp=1.0)
    whole, count = panel.convert, 0

    def fails(*arguments, **options):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(panel, "convert", fails)
    with pytest.raises(KeyboardInterrupt):
        list(convert_panel(request, both))
    monkeypatch.setattr(panel, "convert", whole)
    assert [result.already_done for result in convert_panel(request, both)] == [True, False]


def test_all_is_checked_before_the_first_tile(models, slide, tmp_path):
    request = request_of(slide, tmp_path / "p.{stain}.ome.tiff", mpp=1.0)
    with pytest.raises(BundleError, match="unknown model"):
        list(convert_panel(request, (models["dim"], "nothing")))
    with pytest.raises(ConfigError, match=r"would both write .*p\.her2\.ome\.tiff"):
        list(convert_panel(request, (models["dim"], models["other"])))
    with pytest.raises(ConfigError, match=r"several models need a name with \{stain\}"):
        requests_of(request_of(slide, tmp_path / "p.ome.tiff"), (models["dim"], models["dark"]))
    assert [path.name for path in tmp_path.iterdir()] == ["s.tif"]


def test_the_command_prints_every_output(models, slide, tmp_path):
    out = str(tmp_path / "x.{stain}.ome.zarr")
    options = ["--mpp", "1.0", "--mask", "none", "--workers", "0", "--set", "grid.block=512", "-o", out]
    call = ["convert", str(slide), "--model", models["dim"], "--model", models["dark"], *options]
    done = CliRunner().invoke(group, call)
    assert done.exit_code == 0, done.output
    names = [str(tmp_path / f"x.{stain}.ome.zarr") for stain in ("her2", "ki67")]
    assert done.stdout.split() == names
    records = json.loads(CliRunner().invoke(group, [*call, "--json"]).stdout)
    assert [record["output"] for record in records] == ["x.her2.ome.zarr", "x.ki67.ome.zarr"]
    plan = CliRunner().invoke(group, [*call, "--dry-run"]).stdout
    assert plan.count("already done") == 2


def test_the_viewer_lists_the_slide_once_for_each_stain(models, slide, tmp_path):
    request = request_of(slide, None, model=models["dim"], mpp=1.0)
    sources = sources_of(request, None, (models["dim"], models["dark"]))
    assert [source.name for source in sources] == ["s.tif – HER2", "s.tif – Ki-67"]
    assert [Path(source.request.model).name for source in sources] == ["dim", "dark"]
    assert [source.name for source in sources_of(request, None, (models["dim"],))] == ["s.tif"]


def test_a_row_of_a_cohort_may_list_models(models, slide, tmp_path):
    table = tmp_path / "sheet.csv"
    table.write_text(f"slide,slide_id,model\ns.tif,a,{models['dim']} | {models['dark']}\ns.tif,b,identity\n")
    rows, problems = sheet.read(CohortRequest(str(table), tmp_path / "out"))
    assert not problems
    assert [(row.slide_id, Path(row.model).name) for row in rows] == [
        ("a~dim", "dim"),
        ("a~dark", "dark"),
        ("b", "identity"),
    ]
    rows, _ = sheet.read(CohortRequest(str(slide), tmp_path / "out", model="identity|he2cam52-small"))
    assert [row.slide_id for row in rows] == ["s~identity", "s~he2cam52-small"]
