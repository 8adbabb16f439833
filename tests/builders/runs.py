"""Runs as `wsi-stain train` leaves them, with networks that have learned nothing."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from wsi_stain.config.model import GeneratorConfig
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.unet import UNet

STAINER = {"channels": 4, "blocks": 4}
REGRESSOR = {"kind": "unet", "channels": 4}


def restless(module: nn.Module) -> nn.Module:
    """Statistics far from their initial values, so that nothing cancels out."""
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0)
    return module.eval()


def settings(run: Path, generator: dict) -> dict:
    """A training's settings; tile and overlap are the smallest that windowed attention allows."""
    return {
        "pairs": "/somewhere/pairs",
        "run": str(run),
        "input": {"stain": "H&E", "mpp": 1.0, "tile": 256, "overlap": 128},
        "output": {"stain": "CAM5.2", "background": [1, 2, 3]},
        "generator": generator,
        "loss": {"alpha": 12.5},
    }


def make_run(run: Path, generator: dict = STAINER, images: int | None = 1234) -> Path:
    """The folder of a finished training."""
    torch.manual_seed(0)
    config = GeneratorConfig(**generator)
    module = restless(UNet(config) if config.kind == "unet" else Generator(config))
    run.mkdir(parents=True)
    facts = None if images is None else {"facts": f'{{"images": {images}}}'}
    save_file(module.state_dict(), run / "generator.safetensors", facts)
    (run / "config.yaml").write_text(yaml.safe_dump(settings(run, generator)))
    return run
