"""What `wsi-stain view --no-browser` prints for a user on another machine."""

import getpass
import socket

import pytest

from wsi_stain.cli import view


@pytest.mark.parametrize("error", [KeyError, OSError, ImportError])
def test_a_user_without_a_name_gets_the_command_all_the_same(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    # As in a container that runs with `--user 12345`, and on Windows.
    def refuse() -> str:
        raise error("no name")

    monkeypatch.setattr(getpass, "getuser", refuse)
    assert view._login() == f"USER@{socket.gethostname()}"
