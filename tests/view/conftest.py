"""Fixtures of the tests of virtual slides and the viewer."""

import pytest
from builders.conversions import FakeBundle

from wsi_stain.conversion import painter, survey


@pytest.fixture
def use(monkeypatch):
    """Make `Bundle.open` give a bundle of this generator."""

    def put(make, **fields):
        bundle = FakeBundle(make, **fields)
        for module in (survey, painter):
            monkeypatch.setattr(module, "Bundle", type("Stub", (), {"open": staticmethod(lambda _: bundle)}))
        return bundle

    return put


@pytest.fixture
def painted(monkeypatch):
    """The indices of the blocks in the order in which they are painted."""
    indices = []
    paint = painter.Painter.paint

    def noted(self, block):
        indices.append(block.index)
        return paint(self, block)

    monkeypatch.setattr(painter.Painter, "paint", noted)
    return indices
