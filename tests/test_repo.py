"""The house rules, so that nobody has to hold them."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import wsi_stain
from wsi_stain import cluster
from wsi_stain.cli import COMMANDS, group
from wsi_stain.config import convert, loader, train
from wsi_stain.model import bundle, export

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "wsi_stain"
SOURCES = sorted(PACKAGE.rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES = 80
MOST_ARGUMENTS = 8
CONFIG_KINDS = {"convert": convert.ConvertConfig, "train": train.TrainConfig, "cluster": cluster.ClusterConfig}


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A click command's arguments are flags of the command line."""
    return any("command" in ast.unparse(d) for d in function.decorator_list)


def is_docstring(node: ast.AST) -> bool:
    """Whether the first statement of the node is a text: help texts of commands are docstrings."""
    body = getattr(node, "body", None)
    return bool(isinstance(body, list) and body and isinstance(body[0], ast.Expr))


def test_imports_go_downwards_only() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_room_hides_a_public_name() -> None:
    # Importing a sub-package sets an attribute of that name on the package.
    rooms = {m.name for m in pkgutil.iter_modules([str(PACKAGE)])}
    assert rooms.isdisjoint(wsi_stain.__all__)


def test_every_module_stands_in_the_layers() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    top = {m.name for m in pkgutil.iter_modules([str(PACKAGE)])} - {"__main__"}
    assert [name for name in sorted(top) if f"wsi_stain.{name}" not in text] == []


def test_public_names_exist_are_documented() -> None:
    assert sorted(wsi_stain.__all__) == sorted(set(wsi_stain.__all__))
    assert set(wsi_stain.__all__) <= set(dir(wsi_stain))
    for name in wsi_stain.__all__:
        thing = getattr(wsi_stain, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_are_short_typed_and_take_few_arguments(path: Path) -> None:
    for function in functions(path):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= MOST_LINES, f"{function.name} has {lines} lines"
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        named = [a for a in arguments if a.arg not in ("self", "cls")]
        if not is_command(function):
            assert len(named) <= MOST_ARGUMENTS, f"{function.name} takes {len(named)} arguments"
        untyped = [a.arg for a in named if a.annotation is None]
        assert not untyped, f"{function.name}: {untyped} have no type"
        assert function.returns is not None, f"{function.name} has no return type"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_definitions_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_median_function_is_short() -> None:
    lengths = sorted((f.end_lineno or 0) - f.lineno + 1 for path in SOURCES for f in functions(path))
    assert lengths[len(lengths) // 2] <= 12
    assert lengths[len(lengths) * 9 // 10] <= 35


def test_the_library_neither_prints_nor_reads_the_environment() -> None:
    for path in SOURCES:
        if "cli" not in path.parts:
            names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
            assert "print" not in names, path
        assert "os.environ" not in path.read_text(), path
        loads = [line for line in path.read_text().splitlines() if "torch.load" in line]
        assert all("weights_only=True" in line for line in loads), path
        assert "import pickle" not in path.read_text(), path


def test_the_research_use_notice_stands_in_one_place() -> None:
    actual = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        docs = {id(n.body[0].value) for n in ast.walk(tree) if hasattr(n, "body") and is_docstring(n)}
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docs]
        actual += [path.name for text in texts if isinstance(text, str) and "research use" in text.lower()]
    assert actual == ["notice.py"]


PUBLIC = {"_replace", "_asdict", "_fields", "_make"}
"""Methods of named tuples, whose underscore only keeps them apart from the fields."""


def uses(node: ast.AST) -> Iterator[str]:
    """The names that an expression or import takes from an object or another module."""
    match node:
        case ast.Attribute():
            yield node.attr
        case ast.ImportFrom():
            yield from ".".join([node.module or "", *(alias.name for alias in node.names)]).split(".")
        case ast.Import():
            yield from ".".join(alias.name for alias in node.names).split(".")
        case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]):
            yield name


def defines(node: ast.AST) -> Iterator[str]:
    """The names that a class or an assignment to an attribute of `self` defines."""
    match node:
        case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
            yield node.attr
        case ast.ClassDef():
            for item in node.body:
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield item.name
                elif isinstance(item, ast.Assign | ast.AnnAssign):
                    targets = item.targets if isinstance(item, ast.Assign) else [item.target]
                    yield from map(ast.unparse, targets)


def foreign_private_names(text: str) -> set[str]:
    """Private names that a module uses of objects or modules and does not define itself."""
    nodes = list(ast.walk(ast.parse(text)))
    names = {name for node in nodes for name in uses(node)} - {name for node in nodes for name in defines(node)}
    return {name for name in names - PUBLIC if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_reaches_into_the_private_parts_of_another(path: Path) -> None:
    # What a library keeps private changes without notice. Classes of one module are friends.
    assert foreign_private_names(path.read_text()) == set()


@pytest.mark.parametrize(
    "text",
    [
        "cluster._correct_state()",
        "import torch\ntorch._C.x",
        "from dask import _compat",
        "import dask._task_spec",
        "from dask._task_spec import Task",
        "getattr(tensor, '_base')",
        "class A:\n    def f(self): self.cluster._lock = 1",
        "class Keeper(Adaptive):\n    def f(self): return self._adapting",
    ],
)
def test_the_rule_of_private_parts_sees(text: str) -> None:
    assert foreign_private_names(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_stands_in_readme(command: str) -> None:
    result = CliRunner().invoke(group, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 3
    assert f"wsi-stain {command}" in README


def test_the_command_line_is_imported_without_torch_and_dask() -> None:
    code = (
        "import sys, wsi_stain, wsi_stain.cli; from click.testing import CliRunner\n"
        "assert CliRunner().invoke(wsi_stain.cli.group, ['--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'dask', 'distributed', 'numpy', 'cv2', 'zarr') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_no_torch(command: str) -> None:
    code = (
        f"import sys; from click.testing import CliRunner; from wsi_stain.cli import group\n"
        f"assert CliRunner().invoke(group, ['{command}', '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'distributed') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_config_loads(path: Path) -> None:
    assert loader.dump(loader.load(CONFIG_KINDS[path.parent.name], path))


@pytest.mark.slow
@pytest.mark.parametrize("name", bundle.shipped())
def test_every_bundle_passes_its_check(name: str) -> None:
    assert export.check(name) == []


def test_the_default_bundle_is_shipped_and_small_enough_for_git() -> None:
    assert bundle.DEFAULT in bundle.shipped()
    assert bundle.Bundle.open(bundle.DEFAULT).weights_path.stat().st_size <= 16 << 20


def test_models_and_pipelines_hold_no_python() -> None:
    assert [p for folder in ("models", "pipelines") for p in (ROOT / folder).rglob("*.py")] == []


def test_every_direct_dependency_is_pinned() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.split(r"[=<>]", line)[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if line
    }
    expected = {re.split(r"[=<>]", d)[0].lower() for d in project["dependencies"]}
    assert sorted(expected - pinned) == []


def test_every_module_imports() -> None:
    for module in pkgutil.walk_packages(wsi_stain.__path__, "wsi_stain."):
        if module.name != "wsi_stain.__main__":
            importlib.import_module(module.name)


def test_readme_names_every_shipped_model() -> None:
    for name in bundle.shipped():
        assert name in README
        spec = bundle.Bundle.open(name)
        assert spec.config.licence
        assert yaml.safe_dump(loader.dump(spec.config))
