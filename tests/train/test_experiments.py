"""The experiments: which jobs there are, what their tables say, and that killing them loses no training."""

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from wsi_stain.config.loader import dump, load
from wsi_stain.config.train import TrainConfig
from wsi_stain.train import checkpoint

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pipelines" / "experiments"
SHIPPED = {"config.yaml": "paper-bci.yaml", "small.yaml": "small.yaml"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake") is None, reason="snakemake is not installed: pip install '.[experiments]'"
    ),
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "-s", str(FOLDER / "Snakefile"), "--cores", "2", *arguments]


def environment(folder: Path) -> dict[str, str]:
    """The interpreter's own wsi-stain comes first, and Snakemake's cache stays out of the home folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    text = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command(*arguments), cwd=folder, env=environment(folder), check=False, **text)


def write_config(folder: Path, **settings: object) -> str:
    """A file of differences from the shipped configuration."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def planned(output: str) -> dict[str, str]:
    """Job → its shell command, from what a dry run prints."""
    jobs = {}
    for block in re.split(r"\n(?:local)?rule ", output)[1:]:
        rule = block.split(":", 1)[0]
        wildcards = re.search(r"wildcards: (.*)", block)
        values = re.findall(r"(?:seed|run)=(.+?)(?=, (?:seed|run)=|$)", wildcards[1]) if wildcards else []
        jobs[" ".join([rule, *values])] = block.partition("Shell command: ")[2].partition("\n")[0]
    return jobs


def settings_of(shell: str) -> dict[str, str]:
    """What a command's --set options come to."""
    return dict(line.split("=", 1) for line in re.findall(r"--set '?([^ ']+)", shell))


def configuration(name: str = "config.yaml") -> dict:
    config = yaml.safe_load((FOLDER / "config.yaml").read_text(encoding="utf-8"))
    for key, value in yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")).items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    return config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a data set that nobody has to read."""
    (tmp_path / "pairs").mkdir()
    (tmp_path / "train.yaml").write_text("{}\n", encoding="utf-8")
    return tmp_path


def test_the_shipped_configuration_runs_every_row_and_point_once_per_seed(folder: Path) -> None:
    result = snakemake(folder, "-n", "--printshellcmds", "--config", "pairs=pairs", "train=train.yaml")
    assert result.returncode == 0, result.stdout
    jobs = planned(result.stdout)
    runs = ["full", "fixed-l1", "random-encoders", "no-coa", "no-wavelets"]
    runs += ["generator.alpha=0.1", "generator.alpha=0.5"]  # 0.2 is the full model
    runs += ["loss.alpha=25,loss.beta=25", "loss.alpha=100,loss.beta=100"]  # 50 too
    expected = {"all", "encoders", "ablation", "sensitivity", *(f"pretrain {seed}" for seed in range(3))}
    expected |= {f"{rule} {seed} {run}" for rule in ("train", "evaluate") for seed in range(3) for run in runs}
    assert set(jobs) == expected
    full = settings_of(jobs["train 1 full"])
    assert full["seed"] == "1"
    assert full["encoders.file"] == "results/runs/seed1/encoders/encoders.safetensors"
    for run, changed in {
        "fixed-l1": {"loss.adaptive": "false", "loss.l1": "75"},
        "random-encoders": {"encoders.source": "random"},
        "loss.alpha=100,loss.beta=100": {"loss.alpha": "100", "loss.beta": "100"},
    }.items():
        where = {"run": f"results/runs/seed1/{run}"}
        assert settings_of(jobs[f"train 1 {run}"]) == full | changed | where


def test_one_check_plans_only_what_it_needs(folder: Path) -> None:
    basics = ("-n", "-p", "--config", "pairs=pairs", "train=train.yaml", "results=there", "checks=[ablation]")
    chosen = ("ablation=[random-encoders, no-coa]", "seeds=[7]", "set=[schedule.images=16]")
    jobs = planned(snakemake(folder, *basics, *chosen).stdout)
    own = {f"{rule} 7 {run}" for rule in ("train", "evaluate") for run in ("random-encoders", "no-coa")}
    assert set(jobs) == {"all", "ablation", "pretrain 7"} | own
    assert all(settings_of(jobs[job])["schedule.images"] == "16" for job in jobs if job.startswith(("pre", "train")))
    alone = planned(snakemake(folder, *basics, "ablation=[random-encoders]", "seeds=[7]").stdout)
    assert set(alone) == {"all", "ablation", "train 7 random-encoders", "evaluate 7 random-encoders"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_row_and_point_is_another_training(name: str) -> None:
    config = configuration(name)
    assert config["train"] == f"configs/train/{SHIPPED[name]}"
    base, full = ROOT / config["train"], [*config["full"], "pairs=p", "run=r"]
    own = [*config["rows"].values()]
    for sweep in config["sweeps"].values():
        own += [[f"{key}={value}" for key in sweep["keys"]] for value in sweep["values"]]
    resolved = [json.dumps(dump(load(TrainConfig, base, full + settings))) for settings in own]
    rows = len(config["rows"])
    assert len(set(resolved[:rows])) == rows
    assert resolved[:rows][list(config["rows"]).index("full")] in resolved[rows:], "a sweep's centre is the full model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": [1]}, "'sead' was unexpected"),
        ({"seeds": []}, "should be non-empty|too short"),
        ({"checks": ["figures"]}, "'figures' is not one of"),
        ({"set": ["schedule.images"]}, "'schedule.images' does not match"),
        ({"rows": {"encoders": []}}, "'encoders' does not match"),
        ({"sweeps": {"fusion": {"keys": ["generator.alpha"]}}}, "'values' is a required property"),
        ({"device": "gpu"}, "'gpu' does not match"),
    ],
)
def test_the_schema_refuses(change: dict, message: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = yaml.safe_load((FOLDER / "config.schema.yaml").read_text(encoding="utf-8"))
    for name in SHIPPED:
        jsonschema.validate(configuration(name), schema)
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(configuration() | change, schema)


def test_a_wrong_configuration_stops_with_a_message(folder: Path) -> None:
    wrong = snakemake(folder, "-n", "--config", "pairs=pairs", "seeds=[one]")
    assert wrong.returncode == 1
    assert "'one' does not match" in wrong.stdout
    unknown = snakemake(folder, "-n", "--config", "pairs=pairs", "train=train.yaml", "ablation=[full, no-gan]")
    assert "ablation contains 'no-gan', which is not defined in rows; choose from full, fixed-l1" in unknown.stdout
    missing = snakemake(folder, "-n", "--config", "train=train.yaml", "pairs=nowhere")
    assert re.search(r"Missing input files.*nowhere", missing.stdout, re.DOTALL)


def write_evaluation(folder: Path, run: str, seed: int, value: float | None) -> None:
    """A metrics.json whose SSIM is `value` and whose PSNR is ten times that."""

    def row(value: float | None) -> dict:
        figures = {"SSIM": value, "PSNR, dB": None if value is None else 10 * value}
        bounds = {m: {"low": None if v is None else v - 0.1, "high": v} for m, v in figures.items()}
        return {m: {"value": v} | bounds[m] for m, v in figures.items()}

    path = folder / "results" / "evaluations" / f"seed{seed}" / run / "metrics.json"
    path.parent.mkdir(parents=True)
    rows = {run: row(value), "mean stain colour": row(0.25)}
    path.write_text(json.dumps({"model": run, "rows": rows, "split": "val"}), encoding="utf-8")


def read_csv(path: Path) -> dict[tuple[str, str], list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {(row, metric): values for row, metric, *values in csv.reader(file)}


def is_drawn(path: Path) -> bool:
    """Whether the brown of the means is in the picture."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == (0x7A, 0x3B, 0x10)).all(axis=2).sum() > 50)


def test_tables_hold_mean_range_and_difference_over_the_seeds(folder: Path) -> None:
    values = {"full": (0.1, 0.2, 0.6), "no-coa": (0.2, 0.1, 0.3), "no-wavelets": (0.5, None, 0.5)}
    values |= {"generator.alpha=0.1": (0.3, 0.3, 0.3), "generator.alpha=0.5": (0.0, 0.1, 0.2)}
    for run, seeds in values.items():
        for seed, value in zip((3, 4, 5), seeds, strict=True):
            write_evaluation(folder, run, seed, value)
    mine = write_config(
        folder,
        checks=["ablation", "sensitivity"],
        seeds=[3, 4, 5],
        metrics=["SSIM", "PSNR, dB"],
        ablation=["full", "no-coa", "no-wavelets"],
        sensitivity=["fusion"],
    )
    result = snakemake(folder, "--configfile", mine, "--allowed-rules", "all", "ablation", "sensitivity")
    assert result.returncode == 0, result.stdout
    results = folder / "results"
    table = read_csv(results / "ablation" / "table.csv")
    assert table["row", "metric"] == ["mean", "least", "greatest", "seed 3", "seed 4", "seed 5"]
    assert [float(x) for x in table["full", "SSIM"]] == pytest.approx([0.3, 0.1, 0.6, 0.1, 0.2, 0.6])
    assert [float(x) for x in table["no-coa", "PSNR, dB"]] == pytest.approx([2, 1, 3, 2, 1, 3])
    assert [float(x) for x in table["no-wavelets", "SSIM"]] == pytest.approx(
        [np.nan, np.nan, np.nan, 0.5, np.nan, 0.5], nan_ok=True
    )
    text = (results / "ablation" / "table.md").read_text(encoding="utf-8")
    absolute, relative = text.split("Differences to `full`, per seed:")
    assert "| full | 0.300 [0.100, 0.600] | 3.000 [1.000, 6.000] |" in absolute
    assert "| no-wavelets | – | – |" in absolute
    assert "| mean stain colour | 0.250 | 2.500 |" in absolute
    assert "| no-coa | -0.100 [-0.300, 0.100] | -1.000 [-3.000, 1.000] |" in relative
    assert "full" not in relative
    sweep = read_csv(results / "sensitivity" / "table.csv")
    assert [float(sweep[f"generator.alpha={a}", "SSIM"][0]) for a in (0.1, 0.2, 0.5)] == pytest.approx([0.3, 0.3, 0.1])
    assert is_drawn(results / "ablation" / "plot.png")
    assert is_drawn(results / "sensitivity" / "fusion.png")


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ((0.93, 0.89, 0.95), "discrimination 92.3 % (> 90 %: holds; in 2 of 3 seeds)"),
        ((0.90, 0.90, 0.90), "discrimination 90.0 % (> 90 %: does not hold; in 0 of 3 seeds)"),
    ],
)
def test_the_verdict_on_the_encoders_is_that_of_their_mean(
    folder: Path, accuracies: tuple[float, ...], verdict: str
) -> None:
    (folder / "results" / "encoders").mkdir(parents=True)
    for seed, accuracy in enumerate(accuracies):
        figures = {"value": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02}
        facts = {"accuracy": figures, "auc": figures, "threshold": 0.4 + seed / 100, "pairs": 40, "split": "val"}
        (folder / f"results/encoders/discrimination-seed{seed}.json").write_text(json.dumps(facts))
    mine = write_config(folder, checks=["encoders"])
    result = snakemake(folder, "--configfile", mine, "--allowed-rules", "all", "encoders")
    assert result.returncode == 0, result.stdout
    text = (folder / "results/encoders/table.md").read_text(encoding="utf-8")
    assert text.startswith(verdict + "\n")
    first = accuracies[0]
    interval = f"{first:.3f} [{first - 0.02:.3f}, {first + 0.02:.3f}]"
    assert f"| 0 | 40 | {interval} | 0.40 | {interval} |" in text


def make_data(folder: Path, side: int = 160) -> None:
    """Pink tissue with violet cells; half of the tissue of every tile is brown in the other stain."""
    rng = np.random.default_rng(0)
    rows = ["he,ihc,slide_id,split"]
    for i, split in enumerate(["train", "train", "train", "val", "val", "test", "test"]):
        cells = np.kron(rng.random((side // 8, side // 8)) < 0.3, np.ones((8, 8), bool))[..., None]
        brown = (np.indices((side, side))[i % 2] > side * rng.uniform(0.3, 0.7))[..., None]
        he = np.where(cells, (90, 60, 150), np.where(brown, (230, 150, 190), (240, 215, 230)))
        ihc = np.where(cells, (110, 120, 180), np.where(brown, (120, 70, 40), (235, 235, 240)))
        for name, image in (("he", he), ("ihc", ihc)):
            noisy = np.clip(image + rng.normal(0, 4, image.shape), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / "pairs" / f"{name}{i}.png")
        rows.append(f"he{i}.png,ihc{i}.png,slide{i},{split}")
    (folder / "pairs" / "pairs.csv").write_text("\n".join(rows), encoding="utf-8")
    training = {
        "pairs": "pairs",
        "run": "unused",
        "input": {"stain": "H&E", "mpp": 1.0},
        "output": {"stain": "brown"},
        "generator": {"channels": 4, "blocks": 4},
        "loss": {"discriminator_filters": 4},
        "pretrain": {"crop": 128, "schedule": {"images": 8, "batch": 4, "save_images": 8}},
        "schedule": {"images": 8, "batch": 4, "save_images": 4},
        "crop": 128,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(training), encoding="utf-8")


def kill_in_training(folder: Path, arguments: tuple[str, ...], mark: Path) -> None:
    """Start the workflow, and kill it and all of its jobs at once when a training has its first checkpoint."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not mark.exists():
        assert process.poll() is None, "the workflow ended before its first checkpoint"
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_workflow_goes_on_from_the_checkpoint_and_ends_in_tables(folder: Path) -> None:
    make_data(folder)
    mine = write_config(
        folder,
        pairs="pairs",
        train="train.yaml",
        checks=["encoders", "ablation"],
        ablation=["full"],
        seeds=[0],
        device="cpu",
        splits={"encoders": "val", "evaluate": "test"},
    )
    arguments = ("--configfile", mine, "--set-threads", "pretrain=1", "train=1", "evaluate=1")
    run = folder / "results" / "runs" / "seed0" / "full"
    kill_in_training(folder, arguments, run / "checkpoint.safetensors")
    seen = checkpoint.load(run / "checkpoint.safetensors")[1]["images"]
    assert 0 < seen < 8, "the workflow must be killed in the middle of the training"
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    before = [line for line in lines if json.loads(line)["images"] <= seen]
    assert snakemake(folder, *arguments, "--unlock").returncode == 0
    result = snakemake(folder, *arguments)
    assert result.returncode == 0, result.stdout
    after = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert after[: len(before)] == before, "lines carry their speed: a training that began anew would have others"
    assert json.loads(after[-1])["images"] == 8
    reported = json.loads((folder / "results/evaluations/seed0/full/metrics.json").read_text(encoding="utf-8"))
    table = read_csv(folder / "results" / "ablation" / "table.csv")
    for metric in ("DAB+ error, 64 µm", "PSNR, dB", "SSIM"):
        assert float(table["full", metric][0]) == reported["rows"]["full"][metric]["value"]
    assert (folder / "results/encoders/table.md").read_text(encoding="utf-8").startswith("discrimination ")
    assert (folder / "results/encoders/similarity-seed0.png").stat().st_size > 1000
    again = snakemake(folder, *arguments)
    assert "Nothing to be done" in again.stdout
