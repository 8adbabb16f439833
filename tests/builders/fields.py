"""Synthetic fields whose stain is known, and contenders to judge on them."""

import numpy as np

from wsi_stain.evaluate.contenders import Contender
from wsi_stain.evaluate.evaluate import EvaluationResult, Field, evaluate
from wsi_stain.evaluate.figures import FieldPixels, MeasureSettings

BACKGROUND = (243, 243, 243)
RULER = MeasureSettings(mpp=1.0, background=BACKGROUND)
VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Ruifrok's hematoxylin, eosin, DAB."""


def stained(blue: float, pink: float, brown: float) -> np.ndarray:
    """One pixel with known densities of hematoxylin, eosin and DAB, by Beer–Lambert."""
    density = np.array([blue, pink, brown]) @ VECTORS
    return np.rint(np.array(BACKGROUND) * 10**-density).astype(np.uint8).reshape(1, 1, 3)


def painted(seed: int, stain: str, shape: tuple[int, int] = (4, 4)) -> np.ndarray:
    """Squares of 64 px with random amounts of one stain over a little hematoxylin that varies with y."""
    amount = np.random.default_rng(seed).random(shape) * 0.6
    squares = [
        [stained(0.1 + 0.05 * y, *((a, 0) if stain == "pink" else (0, a))) for a in row] for y, row in enumerate(amount)
    ]
    return np.concatenate([np.concatenate([np.tile(s, (64, 64, 1)) for s in row], 1) for row in squares])


def fields(n: int = 4, shape: tuple[int, int] = (4, 4)) -> list[Field]:
    """Fields of pink H&E and brown stain, each its own group."""
    return [
        Field(f"f{i}", str(i), lambda i=i: (painted(i, "pink", shape), painted(100 + i, "brown", shape)))
        for i in range(n)
    ]


def judge(*contenders: Contender, of: list[Field] | None = None, ruler: MeasureSettings = RULER) -> EvaluationResult:
    return evaluate(contenders, of or fields(), ruler=ruler)


def perfect(view: FieldPixels) -> np.ndarray:
    return view.real
