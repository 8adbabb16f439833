"""The report: whole, self-contained, honest about what it shows."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from builders.fields import BACKGROUND, RULER, fields, judge, perfect, stained
from PIL import Image

from wsi_stain.errors import OutputError
from wsi_stain.evaluate import plots
from wsi_stain.evaluate.columns import METRICS
from wsi_stain.evaluate.contenders import Contender, baselines
from wsi_stain.evaluate.evaluate import EvaluationResult, Field, error, evaluate
from wsi_stain.evaluate.examples import BEST, MEDIAN, WORST, choose, examples
from wsi_stain.evaluate.figures import FieldPixels
from wsi_stain.evaluate.report import WARNING, ReportSettings, content, html, write

FACTS = ReportSettings("my/pairs", "val", "CAM5.2", "field", RULER, "9.9")
MODEL = Contender("it <&> she", lambda view: np.roll(view.real, 20, 1), about={"version": "3.2.1", "sha256": "abc123"})


class Page(HTMLParser):
    """Tags that were opened and closed, attributes and text."""

    void = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture(scope="module")
def result() -> EvaluationResult:
    """A model and all baselines on eleven fields."""
    return judge(MODEL, *baselines(np.array([200.0, 190, 180])), of=fields(11, (2, 2)))


@pytest.fixture(scope="module")
def page(result: EvaluationResult) -> Page:
    return Page(html(result, FACTS, examples(result)))


def pictures(page: Page, kind: str) -> list[Image.Image]:
    """The images of a page, decoded."""
    start = f"data:image/{kind};base64,"
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    return [Image.open(io.BytesIO(base64.b64decode(s.removeprefix(start)))) for s in sources if s.startswith(start)]


def test_the_page_is_well_formed_and_needs_no_other_file(page: Page, result: EvaluationResult) -> None:
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert not attributes.get("href")
    assert not re.search(r"url\(|@import|https?://", html(result, FACTS, []))


def test_the_page_says_what_it_is_and_what_was_evaluated(page: Page) -> None:
    for word in (WARNING, "it <&> she", "3.2.1", "abc123", "my/pairs", "split val", "11 fields", "wsi-stain 9.9"):
        assert word in page.text, word
    for metric in METRICS:
        assert metric.name in page.text
        assert metric.meaning in page.text


def test_every_row_and_figure_stands_in_its_tables(page: Page, result: EvaluationResult) -> None:
    for name, row in result.rows.items():
        assert name in page.text
        value = row["DAB+ error, 64 µm"].value
        assert f"{value:.3f}" in page.text
    assert "nan" not in page.text


def test_pictures_are_he_generated_and_real_of_the_same_field(page: Page, result: EvaluationResult) -> None:
    shown = pictures(page, "jpeg")
    names = re.findall(r"(?:best|median|worst): (f\d+),", page.text)
    assert len(shown) == 3 * len(names) == 3 * (BEST + MEDIAN + WORST)
    by_name = {field.name: field for field in result.fields}
    for name, he, generated, real in zip(names, shown[::3], shown[1::3], shown[2::3], strict=True):
        view = by_name[name].view()
        for actual, expected in ((he, view.he), (generated, np.roll(view.real, 20, 1)), (real, view.real)):
            assert np.abs(np.asarray(actual).astype(int) - expected).mean() < 4  # JPEG


def test_plots_are_there_and_hold_ink(page: Page) -> None:
    plotted = pictures(page, "png")
    assert len(plotted) == 2
    for image in plotted:
        pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] > 1000
        assert 0.005 < (pixels.min(-1) < 200).mean() < 0.5


def test_the_scatter_shows_every_field_where_it_is() -> None:
    # Two fields, far apart in positive share: dots at the two ends of the diagonal, in the row's colour.
    def field(name: str, share: int) -> Field:
        image = np.tile(stained(0.1, 0, 0), (100, 100, 1))
        image[:share] = stained(0.1, 0, 0.5)
        return Field(name, name, lambda: (image, image))

    result = judge(Contender("perfect", perfect), of=[field("a", 10), field("b", 90)])
    picture = Image.open(io.BytesIO(plots.agreement(result, "perfect", "#ff0000"))).convert("RGB")
    pixels = np.asarray(picture).astype(int)[:, : picture.width // 4]  # the first panel
    red = (pixels[..., 0] - pixels[..., 1] > 120) & (pixels[..., 0] - pixels[..., 2] > 120)
    y, x = np.nonzero(red)
    assert len(x) > 20
    left, right = x < x.mean(), x >= x.mean()
    assert y[left].mean() > y[right].mean() + 0.5 * (x[right].mean() - x[left].mean())  # the diagonal rises
    assert np.ptp(x[left]) < 20 > np.ptp(x[right])


def test_the_same_evaluation_gives_the_same_bytes(result: EvaluationResult, tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, result, FACTS)
    for file in ("metrics.json", "table.md", "report.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_report_is_never_written_over(result: EvaluationResult, tmp_path: Path) -> None:
    write(tmp_path / "out", result, FACTS)
    with pytest.raises(OutputError, match="already holds a report"):
        write(tmp_path / "out", result, FACTS)


def test_metrics_json_is_strict_json_and_holds_what_was_measured(result: EvaluationResult, tmp_path: Path) -> None:
    write(tmp_path, result, FACTS)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    actual = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert actual["rows"]["mean stain colour"]["DAB+ r, 64 µm"] == {"value": None, "low": None, "high": None}
    model = actual["rows"]["it <&> she"]["DAB+ error, 64 µm"]
    assert model["low"] <= model["value"] == result.rows["it <&> she"]["DAB+ error, 64 µm"].value <= model["high"]
    assert actual["subjects"]["it <&> she"] == {"kind": "model", "version": "3.2.1", "sha256": "abc123"}
    assert actual["per_field"][3]["name"] == "f3"
    real = actual["per_field"][3]["real"]["dab_positive"]
    assert real == pytest.approx(float(result.figures["the H&E itself"][3].real.shares["field"][0]))
    shares = result.shares("it <&> she", "field")
    assert actual["agreement"]["it <&> she"]["field"]["bias"] == pytest.approx(np.mean(shares[0] - shares[1]))


def test_undefined_and_infinite_figures_are_null(tmp_path: Path) -> None:
    result = judge(Contender("perfect", perfect), of=fields(2, (1, 1)))
    assert content(result, FACTS)["rows"]["perfect"]["PSNR, dB"]["value"] is None


def test_best_median_and_worst_are_ordered_by_error(result: EvaluationResult) -> None:
    chosen = choose(result, "it <&> she")
    errors = {why: [error(result.figures["it <&> she"][i]) for w, i in chosen if w == why] for why, _ in chosen}
    assert [len(errors[why]) for why in ("best", "median", "worst")] == [BEST, MEDIAN, WORST]
    assert max(errors["best"]) <= min(errors["median"])
    assert max(errors["median"]) <= min(errors["worst"])
    assert len({i for _, i in chosen}) == len(chosen)


def test_blank_fields_are_not_shown_where_there_are_others() -> None:
    blank = np.tile(stained(0.1, 0, 0), (64, 64, 1))
    some = [Field(f"blank{i}", str(i), lambda: (blank, blank)) for i in range(20)] + fields(10, (2, 2))
    result = judge(MODEL, of=some)
    assert all(some[i].name.startswith("f") for _, i in choose(result, MODEL.name))


@pytest.mark.parametrize("n", [1, 2, 4, 5, 9])
def test_few_fields_are_all_shown_once(n: int) -> None:
    result = judge(MODEL, of=fields(n, (1, 1)))
    chosen = [i for _, i in choose(result, MODEL.name)]
    assert sorted(chosen) == list(range(n))


def test_large_fields_become_thumbnails() -> None:
    result = judge(MODEL, of=fields(1, (10, 8)))
    sizes = {Image.open(io.BytesIO(picture)).size for picture in examples(result)[0].pictures.values()}
    assert sizes == {(307, 384)}


def test_a_row_that_is_only_a_map_has_plots_but_no_pictures() -> None:
    share = Contender("share", lambda view: np.full(view.real.shape[:2], 0.5, np.float32), "regressor")
    result = evaluate([share, *baselines(None)], fields(3, (2, 2)), ruler=RULER)
    page = Page(html(result, FACTS, examples(result)))
    assert pictures(page, "jpeg") == []
    assert len(pictures(page, "png")) == 2
    assert content(result, FACTS)["model"] == "share"


def test_baselines_alone_make_a_report_too() -> None:
    result = judge(*baselines(None), of=fields(2, (2, 2)))
    page = Page(html(result, FACTS, examples(result)))
    assert page.open == []
    assert pictures(page, "png") == []


def test_a_single_unit_is_owned_up_to(result: EvaluationResult) -> None:
    one = [Field(field.name, "A", field.read) for field in result.fields[:3]]
    page = Page(html(judge(MODEL, of=one), FACTS, []))
    assert "No intervals" in page.text
    assert "the results do not cover other slides" in page.text
    assert "[" not in "".join(re.findall(r"<small>.*?</small>", html(judge(MODEL, of=one), FACTS, [])))


def test_a_view_of_background_alone_does_not_stop_a_report(tmp_path: Path) -> None:
    background = np.full((64, 64, 3), BACKGROUND, np.uint8)

    def read() -> tuple[np.ndarray, np.ndarray]:
        return background, background

    def same(view: FieldPixels) -> np.ndarray:
        return view.he

    result = judge(Contender("same", same), of=[Field(str(i), str(i), read) for i in range(3)])
    write(tmp_path, result, FACTS)
    assert result.rows["same"]["DAB+ error, field"].value == 0
    assert np.isnan(result.rows["same"]["DAB histogram divergence"].value)
