"""Registrations of a made pair with any verdict, without the search."""

from collections.abc import Callable
from typing import Any

from tests.builders.cases import ALL_ONE
from wsi_stain.registration.register import Registration
from wsi_stain.registration.transform import Piece
from wsi_stain.registration.verdict import Verdict, Word


def registers(truth: Piece, word: Word) -> Callable[..., Registration]:
    """A stand-in for `register`: the known map of every pair, with this verdict."""

    def register(*_: Any, **__: Any) -> Registration:
        return Registration((), ALL_ONE, (truth,), ALL_ONE, (), Verdict(word, (f"because {word}",), 1.0))

    return register
