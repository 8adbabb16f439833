"""Statistics of tiles in ONNX graphs are found in each of their forms, measured as numpy does, and frozen."""

import numpy as np
import pytest
from builders.published import config_of, graph_of, network_of, node, save, serialized

from wsi_stain.graphs import freeze
from wsi_stain.graphs.admit import admit
from wsi_stain.graphs.session import measure, open_generator, open_session

FOUR = {"scale": np.array([1.0, 2, 0.5, 1.5], np.float32), "bias": np.array([0, 0.1, -0.2, 0.3], np.float32)}
KERNEL = np.random.default_rng(5).normal(0, 0.4, (4, 3, 1, 1)).astype(np.float32)
ONE = np.array([1.0], np.float32)


def ends(*nodes, y="n", **constants):
    """A pointwise network: 3 → 4 channels, the given norm of `a` to `y`, → 3 channels."""
    return graph_of(
        node("Conv", ["x", "kernel"], ["a"]),
        *nodes,
        node("Conv", [y, "last"], ["y"]),
        kernel=KERNEL,
        last=np.ascontiguousarray(KERNEL.transpose(1, 0, 2, 3)),
        **constants,
    )


def decomposed(op, square, axes):
    """Instance norm as exporters without the operator write it."""
    return ends(
        node(op, ["a", "axes"], ["m"], keepdims=1) if axes else node(op, ["a"], ["m"]),
        node("Sub", ["a", "m"], ["d"]),
        *square,
        node("ReduceMean", ["s", "axes"], ["v"], keepdims=1),
        node("Add", ["v", "epsilon"], ["e"]),
        node("Sqrt", ["e"], ["r"]),
        node("Div", ["d", "r"], ["n"]),
        axes=np.array([2, 3]),
        epsilon=np.array([1e-5], np.float32),
        two=np.array([2.0], np.float32),
    )


def layer_norm():
    # Over channels, rows and columns, with factors of one number: any size of image.
    return ends(node("LayerNormalization", ["a", "one"], ["n"], axis=1), one=ONE)


def group_norm_in_parts():
    # As torch exports GroupNorm: groups as channels of an instance norm without factors.
    return ends(
        node("Shape", ["a"], ["shape"]),
        node("Reshape", ["a", "rows"], ["g"]),
        node("InstanceNormalization", ["g", "ones", "zeros"], ["i"]),
        node("Reshape", ["i", "shape"], ["n"]),
        rows=np.array([0, 2, -1]),
        ones=np.ones(2, np.float32),
        zeros=np.zeros(2, np.float32),
    )


NORMS = {
    "instance": lambda: ends(node("InstanceNormalization", ["a", "scale", "bias"], ["n"]), **FOUR),
    "group": lambda: ends(node("GroupNormalization", ["a", "scale", "bias"], ["n"], num_groups=2), **FOUR),
    "group in parts": group_norm_in_parts,
    "layer": layer_norm,
    "means": lambda: decomposed("ReduceMean", [node("Mul", ["d", "d"], ["s"])], True),
    "pooled": lambda: decomposed("GlobalAveragePool", [node("Pow", ["d", "two"], ["s"])], False),
}
ONNX = config_of("onnx", norm="instance", multiple=1)


def tiles(n, side=16):
    """Tiles of different colours and contrast."""
    rng = np.random.default_rng(0)
    centres = rng.integers(60, 200, (n, 1, 1, 3))
    return [
        np.clip(c + rng.normal(0, 10 + 5 * i, (side, side, 3)), 0, 255).astype(np.uint8) for i, c in enumerate(centres)
    ]


@pytest.mark.parametrize("name", NORMS)
def test_a_frozen_graph_does_not_depend_on_its_tile(tmp_path, name):
    # The network is pointwise but for its norm: with constants, each pixel depends on itself alone.
    graph, own = admit(serialized(NORMS[name]()), "x.onnx"), tiles(4)
    file = tmp_path / "norm"
    file.write_bytes(measure(graph, ONNX, own, "cpu", tile=16))
    frozen, loose = (open_generator(graph, ONNX, "cpu", given, tile=16) for given in (file, None))
    whole = np.concatenate([np.concatenate(own[:2], 1), np.concatenate(own[2:], 1)])
    parts, one = frozen(np.stack(own)), frozen(whole[None])[0]
    assert np.abs(parts[0].astype(int) - one[:16, :16]).max() <= 1
    assert np.abs(parts[3].astype(int) - one[16:, 16:]).max() <= 1
    assert np.abs(loose(np.stack(own))[0].astype(int) - one[:16, :16]).max() > 10, "the test would see nothing"


@pytest.mark.parametrize("name", NORMS)
def test_statistics_of_four_tiles_are_those_of_one_pass_over_them(tmp_path, name):
    graph, own = admit(serialized(NORMS[name]()), "x.onnx"), tiles(4)
    file = tmp_path / "norm"
    file.write_bytes(measure(graph, ONNX, own, "cpu", tile=16))
    whole = np.concatenate([np.concatenate(own[:2], 1), np.concatenate(own[2:], 1)])[None]
    frozen, loose = (open_generator(graph, ONNX, "cpu", given, tile=16)(whole) for given in (file, None))
    assert np.abs(frozen.astype(int) - loose).max() <= 1


def test_measured_statistics_are_those_of_numpy():
    graph, own = admit(serialized(NORMS["instance"]()), "x.onnx"), tiles(8)
    inputs = [tile.transpose(2, 0, 1)[None].astype(np.float32) / 255 for tile in own]
    spots = freeze.points(graph, 16)

    def run(data, names, x):
        return open_session(data, "cpu").run(names, {"x": x})

    features = np.stack([np.tensordot(KERNEL[:, :, 0, 0], x[0], 1).reshape(4, -1) for x in inputs])
    mean, var = freeze.measure(graph, spots, inputs, run, batched=True).values()
    halves = [features[i : i + 4].transpose(1, 0, 2).reshape(4, -1) for i in (0, 4)]
    assert np.allclose(mean.ravel(), np.mean([half.mean(1) for half in halves], 0), atol=1e-5)
    assert np.allclose(var.ravel(), np.mean([half.var(1) for half in halves], 0), atol=1e-5)
    mean, var = freeze.measure(graph, spots, inputs[:5], run, batched=False).values()
    pooled = features[:5].transpose(1, 0, 2).reshape(4, -1)
    assert np.allclose(mean.ravel(), pooled.mean(1), atol=1e-5)
    assert np.allclose(var.ravel(), pooled.var(1), atol=1e-5)


def test_a_graph_for_one_image_is_measured_layer_by_layer(tmp_path):
    # The first norm has a fixed batch: two images would be one of eight channels.
    fixed = [
        node("Reshape", ["a", "one_image"], ["b"]),
        node("InstanceNormalization", ["b", "scale", "bias"], ["c"]),
        node("Relu", ["c"], ["d"]),
        node("InstanceNormalization", ["d", "scale", "bias"], ["n"]),
    ]
    graph = admit(serialized(ends(*fixed, one_image=np.array([1, 4, 16, 16]), **FOUR)), "x.onnx")
    own, file = tiles(3), tmp_path / "norm"
    file.write_bytes(measure(graph, ONNX, own, "cpu", tile=16))
    free = admit(serialized(ends(*fixed, one_image=np.array([0, 4, 0, 0]), **FOUR)), "x.onnx")
    other = tmp_path / "other"
    other.write_bytes(measure(free, ONNX, own, "cpu", tile=16))
    x = np.stack(own)
    ours, reference = (open_generator(g, ONNX, "cpu", f, tile=16)(x) for g, f in ((graph, file), (free, other)))
    assert np.abs(ours.astype(int) - reference).max() <= 1


def test_norms_over_channels_alone_are_left():
    over_channels = [
        node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]),
        node("LayerNormalization", ["t", "scale"], ["u"], axis=-1),
        node("Transpose", ["u"], ["n"], perm=[0, 3, 1, 2]),
    ]
    assert freeze.points(admit(serialized(ends(*over_channels, scale=FOUR["scale"])), "x"), 16) == []
    mean = [node("ReduceMean", ["a", "axes"], ["m"], keepdims=1), node("Sub", ["a", "m"], ["n"])]
    assert freeze.points(admit(serialized(ends(*mean, axes=np.array([1]))), "x"), 16) == []


def test_an_exported_network_is_that_of_torch(tmp_path):
    # Both are measured in the same batches; torch divides variances by n - 1.
    from wsi_stain.nn.inference import TorchGenerator
    from wsi_stain.nn.norm import freeze as freeze_module
    from wsi_stain.nn.norm import measure as measure_module
    from wsi_stain.nn.published import Published

    config, own = config_of(), tiles(6, 64)
    network = network_of(config)
    graph = admit(save(network, tmp_path / "x.onnx").read_bytes(), "x.onnx")
    files = tmp_path / "graph", tmp_path / "module"
    files[0].write_bytes(measure(graph, ONNX, own, "cpu", tile=64))
    modules = [Published(config), Published(config)]
    for module in modules:
        module.network.load_state_dict(network.state_dict())
    files[1].write_bytes(measure_module(modules[0], own, "cpu"))
    freeze_module(modules[1], files[1])
    x = np.stack(own)
    ours, theirs = open_generator(graph, ONNX, "cpu", files[0], tile=64)(x), TorchGenerator(modules[1], "cpu")(x)
    assert theirs.std() > 10
    assert np.abs(ours.astype(int) - theirs).mean() < 0.5
