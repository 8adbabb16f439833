"""Bundles on the Hugging Face Hub, fetched only when asked for: `hf:OWNER/NAME@REVISION`.

Only the files that `bundle.yaml` names are fetched, into a cache of our own; its hash of the weights is checked. With
HF_HUB_OFFLINE=1, the variable of `huggingface_hub`, only the cache is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_stain.config.loader import load
from wsi_stain.config.model import BundleConfig
from wsi_stain.errors import BundleError, ConfigError
from wsi_stain.model.bundle import SPEC, TRUST, Bundle

PREFIX = "hf:"
_REFERENCE = re.compile(r"hf:([\w.-]+/[\w.-]+)@([\w./-]+)")
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Pulled:
    """A bundle in the cache."""

    bundle: Bundle
    commit: str
    """The commit that was fetched; a branch or a tag may point to another one later."""


def cache_folder() -> Path:
    """Where pulled bundles are kept."""
    import platformdirs

    return platformdirs.user_cache_path("wsi-stain") / "hub"


def pull(reference: str, cache: Path | None = None) -> Pulled:
    """Fetch a bundle, or find it in the cache.

    Args:
        reference: `hf:OWNER/NAME@REVISION`; a full commit hash pins it.
        cache: folder of the cache.

    Raises:
        ConfigError: the reference has another form.
        BundleError: `huggingface_hub` is missing, the bundle cannot be fetched, or it is not intact.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(
            f"{reference!r} is not a reference; write hf:OWNER/NAME@REVISION, preferably with the full commit hash"
        )
    repository, revision = match.groups()
    hub = _import_hub()
    place = cache or cache_folder()
    spec = _file(hub, repository, SPEC, revision, place)
    commit = spec.parent.name
    if _COMMIT.fullmatch(revision) and commit != revision:
        raise BundleError(f"{reference} was answered with commit {commit}; do not use it")
    config = load(BundleConfig, spec)
    for name in (config.weights.file if config.weights else "", config.card):
        if Path(name).name != name or not name:
            raise BundleError(f"{reference}: {SPEC} names {name!r}, which is not a file in the bundle's own folder")
        _file(hub, repository, name, commit, place)
    _file(hub, repository, TRUST, commit, place, required=False)
    return Pulled(Bundle.open(spec.parent), commit)


def _file(hub: Any, repository: str, name: str, revision: str, cache: Path, *, required: bool = True) -> Path:
    """A file of the repository in the cache, fetched if it is not there."""
    try:
        return Path(hub.hf_hub_download(repository, name, revision=revision, cache_dir=cache))
    except Exception as err:  # of the library, of its HTTP client, of the system
        if not required:
            return cache
        reason = " ".join(str(err).split())[:200]
        raise BundleError(
            f"{name} of {repository} at {revision} cannot be fetched: {reason}; check the name, the revision, and the "
            "connection (HF_HUB_OFFLINE=1 uses the cache only)"
        ) from err


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as err:
        raise BundleError(
            "models pull needs the library huggingface_hub; install it with pip install 'wsi-stain[hub]'"
        ) from err
    return huggingface_hub
