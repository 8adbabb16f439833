"""The card of an imported network: what is known of it, and what its owner must complete."""

from __future__ import annotations

from wsi_stain.config.model import BundleConfig
from wsi_stain.files.notice import RESEARCH_USE
from wsi_stain.model.tile_tolerance import in_words

TO_COMPLETE = "TO COMPLETE"

NORM_WORDS = {
    "instance": "of each tile, which draws seams; `wsi-stain convert` measures them once per slide and freezes them",
    "batch": "frozen in training",
    "none": "none",
}


def imported_card(spec: BundleConfig, source: str) -> str:
    """The card of a bundle.

    Args:
        spec: of the bundle.
        source: name of the weight file that was imported.
    """
    network, measured = spec.network, spec.measured
    assert network, "an imported network has a description"
    assert measured, "an imported network was measured"
    scale = f"{spec.input.mpp} µm/px" if spec.input.mpp else "the slide's own µm/px"
    tiles = (
        f"differ by at most {in_words(spec.tile_tolerance)}" if spec.tile_tolerance else "not compared (one size only)"
    )
    low, high = network.values_in
    out_low, out_high = network.values_out
    return f"""# {spec.name} {spec.version}

**{RESEARCH_USE.upper()}.** A virtual stain is a prediction from H&E, not a physical {spec.output.stain}.
Not for diagnosis.

| | |
|---|---|
| stain | {spec.output.stain} from {spec.input.stain} at {scale} |
| network | {network.kind}, imported from `{source}` |
| values | in {low:g} to {high:g}, out {out_low:g} to {out_high:g}, {network.colours} |
| statistics of normalisation | {NORM_WORDS[network.norm]} |
| reach | {measured.reach} px |
| tiles against one pass | {tiles} |
| agreement with the source network | {measured.agreement_db:g} dB or more |
| time | {measured.seconds_per_tile:g} s for a tile of {spec.input.tile} px ({measured.device}) |
| licence of the weights | {spec.licence} |

## Source

{TO_COMPLETE}: who trained it, the paper, where the weights were published, their version.

## Data and splits

{TO_COMPLETE}: source, licence, organs, slides, patients, how the pairs were registered, splits.

## Held-out figures

{TO_COMPLETE}: the table of `wsi-stain evaluate` on slides that were not used in training, or of the paper.

## Known failures

{TO_COMPLETE}: observed failures; organs, scanners and artefacts that are not in the training data.

## Intended use

{TO_COMPLETE}
"""
