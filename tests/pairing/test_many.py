"""Many cases from a sheet: exit codes, cases that fail, one table, and the workers of a scheduler."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders.registrations import registers
from builders.sections import UM, MadePair, made_pair, rgb, section
from builders.slides import write_svs
from click.testing import CliRunner
from distributed import LocalCluster

from wsi_stain.cli import group
from wsi_stain.errors import ConfigError, OutputError, TrainingError
from wsi_stain.pairing import make as module
from wsi_stain.pairs.pair import find_pairs
from wsi_stain.registration.transform import Piece
from wsi_stain.registration.verdict import Word

OPTIONS = ("--mpp", str(UM), "--tile", "64", "--workers", "0")


@pytest.fixture(scope="module")
def pair() -> MadePair:
    return made_pair(bend_um=0.0)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, pair: MadePair) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("slides")
    he = write_svs(folder / "he.svs", rgb(pair.he), mpp=UM)
    return he, write_svs(folder / "ihc.svs", rgb(pair.ihc), mpp=UM)


def pairs_make(*arguments: object) -> tuple[int, str]:
    """The exit code, and all that was printed."""
    arguments = ("pairs", "make", *map(str, arguments), *OPTIONS)
    result = CliRunner().invoke(group, arguments, standalone_mode=False, catch_exceptions=False)  # type: ignore[arg-type]
    return result.return_value, result.output


def write_sheet(folder: Path, *rows: tuple[object, ...]) -> Path:
    lines = [",".join(map(str, row)) for row in (("case", "he", "ihc"), *rows)]
    (folder / "sheet.csv").write_text("\n".join(lines))
    return folder / "sheet.csv"


def by_case(monkeypatch: pytest.MonkeyPatch, truth: Piece, *words: Word) -> None:
    """The verdicts of the cases, in their order."""
    order = [registers(truth, word) for word in words]

    def register(*a: object, **k: object) -> object:
        return order.pop(0)(*a, **k)

    monkeypatch.setattr(module, "register", register)


@pytest.mark.parametrize(("word", "code"), [("register", 0), ("poor", 3), ("refuse", 4)])
def test_the_exit_code_is_that_of_the_verdict(
    slides: tuple[Path, Path],
    pair: MadePair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: Word,
    code: int,
) -> None:
    by_case(monkeypatch, pair.truth, word)
    for _ in range(2):  # the second run finds the case done, and says the same
        returned, output = pairs_make(*slides, "-o", tmp_path / "case")
        assert returned == code
        assert f"{word}: because {word}" in output
    tiles = list((tmp_path / "case" / "he").glob("*.png"))
    assert (len(tiles) > 8) == (word != "refuse")
    assert (tmp_path / "case" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_case_that_leaves_no_tile_fails_alone_and_in_a_sheet(
    slides: tuple[Path, Path], pair: MadePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_case(monkeypatch, pair.truth, "register", "register")
    strict = ("--most-misaligned-um", "0.001")
    with pytest.raises(TrainingError, match=r"no tile is left: misaligned \("):
        pairs_make(*slides, "-o", tmp_path / "case", *strict)
    code, output = pairs_make(write_sheet(tmp_path, ("a", *slides)), "-o", tmp_path / "out", *strict)
    assert code == 1
    assert "a: failed, 0 tiles: no tile is left: misaligned (" in output


@pytest.mark.slow
def test_every_case_of_a_sheet_that_can_be_made_is_made_and_the_others_are_named(
    slides: tuple[Path, Path], pair: MadePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = write_svs(tmp_path / "blank.svs", np.full((640, 640, 3), 243, np.uint8), mpp=UM)
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"II*\0 no slide")
    rows = [
        ("gone", tmp_path / "gone.svs", slides[1]),
        ("bad", slides[0], broken),
        ("blank", blank, slides[1]),
        ("a", *slides),
        ("b", *slides),
        ("c", *slides),
        ("d", *slides),
    ]

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("unforeseen")

    known = [registers(pair.truth, word) for word in ("register", "poor", "refuse")] + [fault]
    monkeypatch.setattr(module, "register", lambda *a, **k: known.pop(0)(*a, **k))
    code, output = pairs_make(write_sheet(tmp_path, *rows), "-o", tmp_path / "out")
    assert code == 1
    for sentence in (
        "gone: failed, 0 tiles: ",
        "bad: failed, 0 tiles: ",
        "blank: failed, 0 tiles: blank.svs shows no tissue",
        "c: refuse, 0 tiles: because refuse",
        "d: failed, 0 tiles: an unexpected error, ZeroDivisionError: unforeseen; please report it",
        "1 register (a); 1 poor (b); 1 refuse (c); 4 failed (gone, bad, blank, d)",
    ):
        assert sentence in output
    pairs = find_pairs(tmp_path / "out")
    assert {p.slide_id for p in pairs} == {"a", "b"}
    assert len(pairs) == 2 * len(list((tmp_path / "out" / "a" / "he").glob("*.png")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"),
    [(("poor", "register"), 3), (("refuse", "poor"), 4), (("refuse", "refuse"), 4)],
)
def test_the_exit_code_of_a_sheet_is_that_of_its_worst_case(
    slides: tuple[Path, Path],
    pair: MadePair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[Word, ...],
    code: int,
) -> None:
    by_case(monkeypatch, pair.truth, *words)
    sheet = write_sheet(tmp_path, *((f"c{n}", *slides) for n in range(len(words))))
    for _ in range(2):
        assert pairs_make(sheet, "-o", tmp_path / "out")[0] == code
    with (tmp_path / "out" / "pairs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(list((tmp_path / "out").glob("*/he/*.png")))


def test_negatives_that_were_added_stay_in_the_table(
    slides: tuple[Path, Path], pair: MadePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet, out = write_sheet(tmp_path, ("a", *slides)), tmp_path / "out"
    by_case(monkeypatch, pair.truth, "register")
    assert pairs_make(sheet, "-o", out)[0] == 0
    made = find_pairs(out)
    assert {row.mpp for row in made} == {UM}
    for name in ("he", "ihc"):
        (out / name).mkdir()
        shutil.copy(getattr(made[0], name), out / name / "negative.png")
    with (out / "pairs.csv").open("a") as file:
        file.write(f"he/negative.png,ihc/negative.png,node,train,0,0,64,{UM},,,,,,\n")
    assert pairs_make(sheet, "-o", out)[0] == 0
    assert [row.slide_id for row in find_pairs(out)].count("node") == 1
    assert len(find_pairs(out)) == len(made) + 1


def test_a_table_of_others_is_kept(slides: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("mine\n")
    with pytest.raises(OutputError, match=r"pairs\.csv is not a table of pairs make"):
        pairs_make(write_sheet(tmp_path, ("a", *slides)), "-o", tmp_path)
    assert (tmp_path / "pairs.csv").read_text() == "mine\n"


@pytest.mark.slow
def test_workers_of_a_scheduler_make_the_same_cases(
    slides: tuple[Path, Path], pair: MadePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "register", registers(pair.truth, "register"))
    sheet = write_sheet(tmp_path, ("a", *slides), ("gone", tmp_path / "gone.svs", slides[1]), ("b", *slides))
    assert pairs_make(sheet, "-o", tmp_path / "here")[0] == 1
    monkeypatch.chdir(tmp_path)  # paths of a sheet are not those of the workers
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster:
        code, output = pairs_make("sheet.csv", "-o", "there", "--scheduler", cluster.scheduler_address)
    assert code == 1
    assert "gone: failed, 0 tiles: " in output
    assert "2 register (a, b); 1 failed (gone)" in output
    here, there = (
        {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.[pc][ns][gv]")}
        for name in ("here", "there")
    )
    assert here == there
    assert len(here) > 20


def test_a_scheduler_needs_a_sheet_and_a_file_is_not_an_address(slides: tuple[Path, Path], tmp_path: Path) -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: pairs_make(*slides, "-o", tmp_path, "--scheduler", "tcp://x:1"), "need a sheet of cases"),
        (
            lambda: pairs_make(
                write_sheet(tmp_path, ("a", *slides)), "-o", tmp_path, "--scheduler", "x", "--cluster", "y"
            ),
            "exclude each other",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ConfigError, match=message):
            call()


@pytest.mark.slow
def test_a_sheet_of_true_and_false_pairs(slides: tuple[Path, Path], tmp_path: Path) -> None:
    pixels = rgb(section(7))
    stranger = write_svs(tmp_path / "stranger.svs", pixels, mpp=UM)
    sheet = write_sheet(tmp_path, ("false", stranger, slides[1]), ("true", *slides))
    code, output = pairs_make(sheet, "-o", tmp_path / "out")
    assert code == 4
    assert "1 register (true); 1 refuse (false)" in output
    verdict = json.loads((tmp_path / "out" / "false" / "pairs.json").read_text())["registration"]["verdict"]
    assert verdict == "refuse"
    assert {p.slide_id for p in find_pairs(tmp_path / "out")} == {"true"}
