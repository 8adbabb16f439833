"""A convolution on every device of torch, compared with one that is summed by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wsi_stain.doctor.finding import Finding

MOST_DIFFERENCE = 1e-2
"""Of sums of 9 × 8 products of normal numbers; TF32 rounds to 10 bits."""


def check_devices() -> Iterator[Finding]:
    """One finding per device."""
    import torch

    devices = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    for device in devices:
        name = "" if device == "cpu" else f" ({torch.cuda.get_device_name(device)})"
        difference = _difference(device)
        if difference <= MOST_DIFFERENCE:
            yield Finding(f"device {device}", "PASS", f"a convolution is right{name}")
        else:
            fix = "update the driver, or use another device (--device cpu)"
            yield Finding(f"device {device}", "FAIL", f"a convolution is off by {difference:.3g}{name}", fix)
    if len(devices) == 1:
        hint = "with a GPU, install a build of torch for its driver (pytorch.org); conversions run on the CPU"
        yield Finding("GPU", "PASS", f"none that torch {torch.__version__} can use; {hint}")


def _difference(device: str) -> float:
    """The largest error of a convolution, 8 to 8 channels and 3 × 3, on a device."""
    import torch

    random = np.random.default_rng(0)
    image, kernel = random.normal(size=(8, 34, 34)), random.normal(size=(8, 8, 3, 3))
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2))
    expected = np.einsum("chwyx,kcyx->khw", windows, kernel)
    there, weights = (torch.from_numpy(array).float().to(device) for array in (image[None], kernel))
    result = torch.nn.functional.conv2d(there, weights)[0].cpu().numpy()
    return float(np.abs(result - expected).max())
