"""More than 500 hostile model files: each is refused in one sentence, or is harmless; nothing else happens.

Most are tried in this process, where the audit hook sees every file that is opened and all code that is executed; the
limits of time and memory are tried in the process that has them.
"""

import io
import json
import pickle
import random
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from builders.published import VALUES, config_of, graph_of, network_of, node, save, serialized
from onnx import TensorProto, helper

from wsi_stain.config.network import NetworkConfig
from wsi_stain.errors import BundleError, WsiStainError
from wsi_stain.graphs.admit import admit
from wsi_stain.graphs.session import outputs_of
from wsi_stain.model import sandbox
from wsi_stain.model.bundle import Bundle
from wsi_stain.nn.state_dict import read

SEED = 7
MUTANTS = 150
"""Of each kind of file."""
RESNET = NetworkConfig(kind="resnet-6", multiple=4, norm="none", **VALUES)
GRAPH = NetworkConfig(kind="onnx", multiple=1, norm="none", **VALUES)
WATCHED = ("open", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "exec", "compile")
LIBRARIES = (sys.prefix, sys.base_prefix, str(Path(onnx.__file__).parents[1]), str(Path(__file__).parents[2]))
events: list[tuple[str, object]] = []
is_watching = False


def _hook(event: str, arguments: tuple) -> None:
    if is_watching and event in WATCHED:
        subject = arguments[0] if arguments else None
        if event == "open" and (isinstance(subject, int) or str(subject).startswith((*LIBRARIES, "/proc", "/dev"))):
            return
        events.append((event, subject))


@pytest.fixture(scope="module", autouse=True)
def _audit() -> None:
    sys.addaudithook(_hook)
    # What libraries import and compile at their first use is not the file's work.
    identity = serialized(graph_of(node("Identity", ["x"], ["y"])))
    outputs_of(admit(identity, "x.onnx"), GRAPH, 16)
    b"x".decode("cp437")  # of names in zip files


def refused(attempt: Callable[[], object], own: Path | None = None) -> str | None:
    """The sentence of a refusal, or None; fails if anything but `own` was opened, or code was executed."""
    global is_watching
    events.clear()
    is_watching = True
    try:
        attempt()
        sentence = None
    except WsiStainError as err:
        sentence = str(err)
    except MemoryError:
        sentence = "needs more memory than there is"
    finally:
        is_watching = False
    touched = [event for event in events if event[0] != "open" or str(event[1]) != str(own)]
    assert touched == []
    if sentence is not None:
        assert "\n" not in sentence
        assert 10 < len(sentence) < 1200
    return sentence


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few flipped, cut, repeated, or replaced by large numbers."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out))
        match rng.randrange(5):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + 4] = rng.choice([b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff\xff\xff\xff"])
            case 2:
                del out[at : at + rng.randint(1, 64)]
            case 3:
                out[at:at] = out[max(0, at - 32) : at]
            case 4 if rng.random() < 0.3:
                del out[at:]
        if not out:
            return b"\0"
    return bytes(out)


def small_graph() -> bytes:
    kernel = np.random.default_rng(0).normal(0, 0.3, (3, 3, 3, 3)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "kernel"], ["a"], pads=[1] * 4),
        node("InstanceNormalization", ["a", "ones", "zeros"], ["b"]),
        node("Tanh", ["b"], ["y"]),
    ]
    return serialized(graph_of(*nodes, kernel=kernel, ones=np.ones(3, np.float32), zeros=np.zeros(3, np.float32)))


def try_graph(data: bytes) -> None:
    outputs_of(admit(data, "x.onnx"), GRAPH, 16)


def test_mutated_graphs_are_refused_or_harmless() -> None:
    rng, data = random.Random(SEED), small_graph()
    sentences = [refused(lambda: admit(mutated(data, rng), "x.onnx")) for _ in range(MUTANTS)]
    assert sum(sentence is not None for sentence in sentences) > MUTANTS // 2


def test_mutated_state_dicts_are_refused_or_harmless(tmp_path: Path) -> None:
    rng, file = random.Random(SEED), tmp_path / "x.pth"
    save(network_of(config_of(width=2)), file)
    modern = file.read_bytes()
    torch.save(network_of(config_of(width=2)).state_dict(), file, _use_new_zipfile_serialization=False)
    refusals = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in (modern, file.read_bytes()):
            for _ in range(MUTANTS // 2):
                file.write_bytes(mutated(data, rng))
                refusals += refused(lambda: read(file, RESNET), file) is not None
    assert refusals > MUTANTS // 4


def test_mutated_safetensors_are_refused_or_harmless(tmp_path: Path) -> None:
    from safetensors.torch import save as pack

    rng, file = random.Random(SEED), tmp_path / "x.safetensors"
    data = pack(network_of(config_of(width=2)).state_dict())
    header = int.from_bytes(data[:8], "little")
    for _ in range(MUTANTS):
        # Most of the file is numbers, which no reader can refuse: the header is what is hostile.
        file.write_bytes(mutated(data[: header + 8], rng) + data[header + 8 :])
        refused(lambda: read(file, RESNET), file)
    file.write_bytes((1 << 62).to_bytes(8, "little") + b"{" + data[9:])
    assert refused(lambda: read(file, RESNET), file)


def test_mutated_bundles_are_refused_or_harmless(tmp_path: Path) -> None:
    rng, folder = random.Random(SEED), tmp_path / "b"
    folder.mkdir()
    shipped = (Path(__file__).parents[2] / "models" / "he2cam52-small" / "bundle.yaml").read_bytes()
    (folder / "generator.safetensors").write_bytes(b"weights")
    for _ in range(MUTANTS):
        (folder / "bundle.yaml").write_bytes(mutated(shipped, rng))
        with pytest.raises(WsiStainError) as failure:  # the hash of the weights is wrong in all
            Bundle.open(folder)
        assert "\n" not in str(failure.value)
    program = "!!python/object/apply:os.system ['touch /tmp/wsi-stain-was-here']"
    for text in (program, "a: &a [*a, *a]", "[" * 5000, "name: 2026-99-99"):
        (folder / "bundle.yaml").write_text(text)
        with pytest.raises(WsiStainError):
            Bundle.open(folder)
    assert not Path("/tmp/wsi-stain-was-here").exists()


@pytest.mark.parametrize("key", ["weights", "card"])
@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", ".."])
def test_files_of_a_bundle_are_in_its_folder(tmp_path: Path, key: str, name: str) -> None:
    spec = yaml.safe_load((Path(__file__).parents[2] / "models" / "he2cam52-small" / "bundle.yaml").read_text())
    if key == "weights":
        spec["weights"]["file"] = name
    else:
        spec["card"] = name
    (tmp_path / "bundle.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(BundleError, match=r"own folder|has no"):
        Bundle.open(tmp_path)


def external(location: str) -> bytes:
    """A graph with a tensor in another file."""
    model = onnx.ModelProto.FromString(small_graph())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value="324")
    return serialized(model)


def hidden_external() -> bytes:
    """The same in the attribute of a node."""
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return serialized(graph_of(node("Constant", [], ["c"], value=tensor), node("Add", ["x", "c"], ["y"])))


def loop() -> bytes:
    """A graph that runs for ever."""
    body = helper.make_graph(
        [node("Identity", ["c"], ["d"]), node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    nodes = [node("Loop", ["n", "go", "x"], ["y"], body=body)]
    return serialized(graph_of(*nodes, n=np.array(2**62), go=np.array(True)))


def with_function() -> bytes:
    model = graph_of(node("Mine", ["x"], ["y"], domain="mine"), domains=("mine",))
    opset = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("mine", "Mine", ["a"], ["b"], [node("Relu", ["a"], ["b"])], opset))
    return serialized(model)


def many(n: int) -> bytes:
    names = ["x", *(f"a{i}" for i in range(n - 1)), "y"]
    return serialized(graph_of(*(node("Relu", [a], [b]) for a, b in pairwise(names))))


def huge(*dims: int) -> bytes:
    """A tensor of more numbers than memory holds, made at run time."""
    nodes = [
        node("ConstantOfShape", ["size"], ["big"]),
        node("ReduceMax", ["big"], ["m"]),
        node("Add", ["x", "m"], ["y"]),
    ]
    return serialized(graph_of(*nodes, size=np.array(dims)))


GRAPHS: dict[str, tuple[Callable[[], bytes], str]] = {
    **{
        f"external {where}": (lambda where=where: external(where), "in another file")
        for where in ("/etc/passwd", "../../../../etc/shadow", "weights.bin", "", "C:\\secret", "\\\\host\\share")
    },
    "external in a node": (hidden_external, "in another file"),
    "loop": (loop, "graph of its own"),
    "function": (with_function, "functions|operators of mine"),
    "custom": (lambda: serialized(graph_of(node("Run", ["x"], ["y"], domain="evil"), domains=("evil",))), "evil"),
    "python": (lambda: serialized(graph_of(node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib"))), "contrib"),
    "library": (
        lambda: serialized(
            graph_of(
                node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/tmp/evil.so"),
                domains=("com.microsoft",),
            )
        ),
        "EPContext",
    ),
    "chance": (lambda: serialized(graph_of(node("RandomNormalLike", ["x"], ["y"]))), "another result"),
    "too many nodes": (lambda: many(20_001), "nodes"),
    "no operator": (lambda: serialized(graph_of(node("Nonsense", ["x"], ["y"]))), "not a valid|refuses"),
    "cycle": (lambda: serialized(graph_of(node("Add", ["x", "b"], ["y"]), node("Relu", ["y"], ["b"]))), "not a valid"),
    "twice": (lambda: serialized(graph_of(node("Relu", ["x"], ["y"]), node("Tanh", ["x"], ["y"]))), "not a valid"),
    "no colours": (lambda: serialized(graph_of(node("ReduceMean", ["x"], ["y"]))), "is not an image|px for a tile"),
    "other size": (lambda: serialized(graph_of(node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2]))), "px for a tile"),
    "empty": (lambda: b"", "holds no graph"),
    "text": (lambda: b"import os; os.system('true')", "not an ONNX|no graph"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "not an ONNX|no graph"),
    "zip": (lambda: b"PK\x03\x04" + bytes(100), "not an ONNX|no graph"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_hostile_graph_is_refused_in_one_sentence(name: str) -> None:
    make, words = GRAPHS[name]
    data = make()
    sentence = refused(lambda: try_graph(data))
    assert sentence
    import re

    assert re.search(words, sentence), sentence


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, how: object, *arguments: object) -> None:
        self.how, self.arguments = how, arguments

    def __reduce__(self) -> tuple:
        return self.how, self.arguments


def traps(marker: Path) -> Iterator[bytes]:
    import os
    import subprocess

    ways = [
        Trap(os.system, f"touch {marker}"),
        Trap(subprocess.call, ["touch", str(marker)]),
        Trap(eval, f"open({str(marker)!r}, 'w')"),
        Trap(exec, f"open({str(marker)!r}, 'w')"),
        Trap(Path.touch, marker),
        Trap(open, str(marker), "w"),
        Trap(__import__, "antigravity"),
        Trap(torch.load, str(marker)),
        Trap(torch.hub.load_state_dict_from_url, "http://127.0.0.1:9/x"),
    ]
    for way in ways:
        for content in (way, {"model.1.weight": way}, {"model.1.weight": torch.zeros(1), "x": [way]}):
            for modern in (True, False):
                buffer = io.BytesIO()
                torch.save(content, buffer, _use_new_zipfile_serialization=modern)
                yield buffer.getvalue()
            yield pickle.dumps(content)


def test_pickles_under_any_name_are_not_executed(tmp_path: Path) -> None:
    marker, count = tmp_path / "was-here", 0
    for data in traps(marker):
        for name in ("x.pth", "x.safetensors", "x.pkl"):
            file = tmp_path / name
            file.write_bytes(data)
            assert refused(lambda file=file: read(file, RESNET), file), name
            count += 1
    assert count > 200
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../../../tmp/was-here", "/tmp/wsi-stain-was-here", "a/../../data.pkl"])
def test_paths_in_zips_lead_nowhere(tmp_path: Path, name: str) -> None:
    save(network_of(config_of(width=2)), tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "a") as file:
        file.writestr(name, "x")
    before = set(tmp_path.parent.rglob("*"))
    refused(lambda: read(tmp_path / "x.pth", RESNET), tmp_path / "x.pth")
    assert set(tmp_path.parent.rglob("*")) == before
    assert not Path("/tmp/wsi-stain-was-here").exists()


def sandboxed(file: Path, folder: Path, network: NetworkConfig, limit_s: float, tile: int = 16) -> str | None:
    kind = "onnx" if network.kind == "onnx" else "state_dict"
    try:
        sandbox.run(sandbox.Task(kind, str(file), network, tile, str(folder)), limit_s)
    except BundleError as err:
        return str(err)
    return None


@pytest.mark.parametrize("dims", [(2**40,), (2**20, 2**20, 2**20), (2**33,)])
def test_huge_shapes_end_at_the_limit_of_memory(tmp_path: Path, dims: tuple) -> None:
    (tmp_path / "x.onnx").write_bytes(huge(*dims))
    sentence = sandboxed(tmp_path / "x.onnx", tmp_path, GRAPH, 120)
    assert sentence
    assert any(words in sentence for words in ("memory", "onnxruntime", "crashed", "not a valid"))


@pytest.mark.slow
def test_a_slow_graph_ends_at_the_limit_of_time(tmp_path: Path) -> None:
    nodes = [node("ConstantOfShape", ["size"], ["b0"])]
    nodes += [node("MatMul", [f"b{i}", f"b{i}"], [f"b{i + 1}"]) for i in range(200)]
    nodes += [node("ReduceMax", ["b200"], ["m"]), node("Add", ["x", "m"], ["y"])]
    (tmp_path / "x.onnx").write_bytes(serialized(graph_of(*nodes, size=np.array([6000, 6000]))))
    sentence = sandboxed(tmp_path / "x.onnx", tmp_path, GRAPH, 15)
    assert sentence
    assert "took more than 15 s" in sentence


def test_a_crash_of_the_other_process_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.pth").write_bytes(b"x")
    monkeypatch.setattr(sandbox, "CODE", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    sentence = sandboxed(tmp_path / "x.pth", tmp_path, RESNET, 60)
    assert sentence
    assert "crashed the process that read it (SIGSEGV)" in sentence


@pytest.mark.slow
def test_the_other_process_returns_tensors_and_json(tmp_path: Path) -> None:
    save(network_of(config_of(width=2)), tmp_path / "x.pth")
    assert sandboxed(tmp_path / "x.pth", tmp_path, RESNET, 120) is None
    assert json.loads((tmp_path / sandbox.RESULT).read_text())["network"]["width"] == 2
    (tmp_path / sandbox.RESULT).unlink()
    (tmp_path / "y.pth").write_bytes(next(traps(tmp_path / "was-here")))
    sentence = sandboxed(tmp_path / "y.pth", tmp_path, RESNET, 120)
    assert sentence
    assert "more than tensors" in sentence
    assert not (tmp_path / "was-here").exists()
