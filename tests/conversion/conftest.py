"""Fixtures of the tests of conversions."""

import pytest
from builders.conversions import FakeBundle

from wsi_stain.conversion import painter, survey


@pytest.fixture
def use(monkeypatch):
    """Make `Bundle.open` give a bundle of this generator."""

    def put(make, **fields):
        bundle = FakeBundle(make, **fields)
        for module in (survey, painter):
            monkeypatch.setattr(module, "Bundle", type("Found", (), {"open": staticmethod(lambda _: bundle)}))
        return bundle

    return put
