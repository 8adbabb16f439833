"""Draws docs/where-*.svg: which process runs on which machine when a cohort is converted.

PYTHONPATH=. python docs/scripts/where.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1]
WIDTH = 760
BLUE, BROWN, GREY = "#dbe7f5", "#f3e3d3", "#eeeeee"
FONT = 'font-family="system-ui, sans-serif" font-size="13" fill="#222"'


@dataclass(frozen=True, slots=True)
class Shape:
    """A machine, a process or a folder: a box with a name and lines of text."""

    x: int
    y: int
    w: int
    h: int
    name: str
    lines: tuple[str, ...] = ()
    colour: str = BLUE

    def svg(self) -> str:
        """The box and its text."""
        texts = [f'<text x="{self.x + 10}" y="{self.y + 20}" font-weight="600" {FONT}>{self.name}</text>']
        for i, line in enumerate(self.lines):
            texts.append(f'<text x="{self.x + 10}" y="{self.y + 40 + 17 * i}" {FONT}>{line}</text>')
        box = f'<rect x="{self.x}" y="{self.y}" width="{self.w}" height="{self.h}" rx="6" fill="{self.colour}"'
        return box + ' stroke="#777"/>' + "".join(texts)


def arrow(x0: int, y0: int, x1: int, y1: int, text: str = "", dashed: bool = False) -> str:
    """An arrow; dashed: coordinates and reports only."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    line = (
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#444" stroke-width="1.5" marker-end="url(#tip)"{dash}/>'
    )
    label = f'<text x="{(x0 + x1) // 2 + 6}" y="{(y0 + y1) // 2 - 4}" {FONT}>{text}</text>' if text else ""
    return line + label


def drawing(height: int, title: str, *parts: str) -> str:
    """An SVG file."""
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    tip += '<path d="M0 0 8 4 0 8z" fill="#444"/></marker>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><title>{title}</title>'
    ground = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    return f"{head}<defs>{tip}</defs>{ground}{''.join(parts)}</svg>\n"


FOLDER = ("samplesheet, slides;", "stained/: outputs, records,", "leases, canvases")


def one_machine() -> str:
    """`cohort run` on one machine."""
    return drawing(
        220,
        "One machine: one command starts the workers",
        Shape(10, 10, 510, 200, "this machine", colour=GREY).svg(),
        Shape(
            30, 60, 190, 110, "wsi-stain cohort run", ("the coordinator: hands", "out slides, writes the", "summary")
        ).svg(),
        Shape(310, 45, 190, 65, "worker 1 (GPU 0)", ("converts one slide",), BROWN).svg(),
        Shape(310, 130, 190, 65, "worker 2 (GPU 1)", ("converts one slide",), BROWN).svg(),
        Shape(560, 60, 190, 110, "disk", FOLDER, "#ffffff").svg(),
        arrow(220, 95, 308, 78, dashed=True),
        arrow(220, 130, 308, 160, dashed=True),
        arrow(500, 78, 558, 100),
        arrow(500, 160, 558, 135),
    )


def sbatch() -> str:
    """An array of jobs without a coordinator."""
    jobs = [
        Shape(290, 30 + 80 * i, 220, 65, f"job {i + 1} of the array", (f"cohort run --shard {i + 1}/3",), BROWN).svg()
        for i in range(3)
    ]
    return drawing(
        280,
        "Only sbatch: independent jobs share the folder",
        Shape(
            10, 90, 200, 95, "login node", ("sbatch cohort.sbatch", "sheet.csv, then nothing", "keeps running"), GREY
        ).svg(),
        *jobs,
        Shape(560, 80, 190, 115, "shared file system", FOLDER, "#ffffff").svg(),
        *(arrow(210, 137, 288, 62 + 80 * i, dashed=True) for i in range(3)),
        *(arrow(510, 62 + 80 * i, 558, 115 + 22 * i) for i in range(3)),
    )


def dask() -> str:
    """A coordinator on a login node, workers as jobs."""
    jobs = [
        Shape(290, 30 + 80 * i, 220, 65, f"job {i + 1}: a worker", ("converts slides one by one",), BROWN).svg()
        for i in range(3)
    ]
    return drawing(
        290,
        "A coordinator submits workers as jobs",
        Shape(10, 60, 210, 165, "login node", colour=GREY).svg(),
        Shape(
            22,
            92,
            186,
            118,
            "wsi-stain cohort run",
            ("--cluster slurm.yaml", "coordinator and Dask", "scheduler; submits and", "ends jobs"),
        ).svg(),
        *jobs,
        Shape(560, 85, 190, 115, "shared file system", FOLDER, "#ffffff").svg(),
        *(arrow(208, 150, 288, 62 + 80 * i, dashed=True) for i in range(3)),
        *(arrow(510, 62 + 80 * i, 558, 120 + 22 * i) for i in range(3)),
    )


def main() -> None:
    """Write the three drawings."""
    for name, make in {"laptop": one_machine, "sbatch": sbatch, "dask": dask}.items():
        (DOCS / f"where-{name}.svg").write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
