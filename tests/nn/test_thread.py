"""One thread per device does all of torch's work."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wsi_stain.model.bundle import Bundle
from wsi_stain.nn.inference import TorchGenerator, load_generator
from wsi_stain.nn.thread import in_torch_thread


def test_every_caller_runs_in_the_same_thread_of_a_device_and_in_no_other():
    with ThreadPoolExecutor(4) as pool:
        cpu = set(pool.map(lambda _: in_torch_thread("cpu", threading.get_ident), range(20)))
    assert len(cpu) == 1
    assert cpu.isdisjoint({threading.get_ident(), in_torch_thread("cuda:1", threading.get_ident)})
    assert in_torch_thread("cuda", threading.get_ident) == in_torch_thread("cuda:0", threading.get_ident)


def test_what_a_call_raises_reaches_its_caller_and_the_thread_goes_on():
    with pytest.raises(ZeroDivisionError):
        in_torch_thread("cpu", lambda: 1 // 0)
    assert in_torch_thread("cpu", lambda: 1) == 1


def test_it_stains_as_the_generator_itself_does():
    bundle = Bundle.open()
    tile = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    own = TorchGenerator(load_generator(bundle.config.generator, bundle.weights_path), "cpu")
    generator = bundle.generator("cpu")
    np.testing.assert_array_equal(generator(tile), own(tile))
    assert (generator.multiple, generator.batch) == (own.multiple, own.batch)
