"""Counts in messages."""

import pytest

from wsi_stain.errors import counted


@pytest.mark.parametrize(("n", "text"), [(0, "0 errors"), (1, "1 error"), (2, "2 errors"), (1234, "1,234 errors")])
def test_a_count_has_the_number_of_its_noun(n: int, text: str) -> None:
    assert counted(n, "error") == text
