"""What keeps four literal top-level packages safe: layers, names, weight."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest

from flows.run.process import FLOWS, SERVE

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "models": set[str](),
    "monitoring": set[str](),
    "onnx_export": {"models", "monitoring"},
    "flows": {"models", "monitoring", "onnx_export"},
}
"""Package: those of ours that it may import."""
FORBIDDEN_NAMES = {"utils", "helpers", "common"}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

IMPORT_SERVER = """
import sys
import onnx_export.server
assert "bytewax" not in sys.modules
import flows.cli, flows.run.process, flows.runner
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported_packages(path: Path) -> Iterator[str]:
    """Top-level names that a module imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} must import by the full name"
            yield (node.module or "").partition(".")[0]


def imported_flows(path: Path) -> Iterator[str]:
    """Packages, and modules outside of them, of `flows` that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (name[1] for name in names if name[0] == "flows" and len(name) > 1)
        elif isinstance(node, ast.ImportFrom) and node.module == "flows":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flows."):
            yield (node.module or "").split(".")[1]


@pytest.mark.parametrize("package", LAYERS)
def test_package_imports_only_the_layers_below(package: str) -> None:
    for path in modules(package):
        ours = set(imported_packages(path)) & LAYERS.keys() - {package}
        assert ours <= LAYERS[package], f"{path.relative_to(ROOT)} imports {ours - LAYERS[package]}"


@pytest.mark.parametrize("package", LAYERS)
def test_package_is_typed_and_its_init_holds_a_docstring_only(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    for path in (ROOT / package).rglob("__init__.py"):
        (only,) = ast.parse(path.read_text()).body
        assert isinstance(only, ast.Expr), path


def test_packages_of_the_flows_import_each_other_one_way() -> None:
    packages = {path.parent for path in (ROOT / "flows").rglob("__init__.py")}
    names = sorted(path.name for path in packages - {ROOT / "flows"})
    needs: dict[str, set[str]] = {}
    for path in modules("flows"):
        name = path.parent.name if path.parent.name in names else path.stem
        needs.setdefault(name, set()).update(set(imported_flows(path)) - {name})
    assert len(list(TopologicalSorter(needs).static_order())) == len(needs)  # raises CycleError


def test_tests_are_flat() -> None:
    assert not (ROOT / "tests" / "__init__.py").exists()
    assert {path.parent for path in modules("tests")} == {ROOT / "tests"}


@pytest.mark.parametrize("package", LAYERS)
def test_modules_are_nouns_of_a_readable_size(package: str) -> None:
    for path in modules(package):
        lines = path.read_text().splitlines()
        assert path.stem not in FORBIDDEN_NAMES, path
        assert len(lines) <= MAX_MODULE_LINES, f"{path} has {len(lines)} lines"
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= MAX_FUNCTION_LINES, f"{path}:{node.name} has {length} lines"


def test_no_other_distribution_ships_our_package_names() -> None:
    owners = packages_distributions()
    for package in LAYERS:
        assert set(owners.get(package, [])) <= {"exfm"}, f"{package} is also in {owners[package]}"


def test_server_starts_from_its_own_requirements_without_torch() -> None:
    """Also as `exfm run serve`, which goes through flows.run.process."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_SERVER], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "confluent_kafka", "onnx", "onnxscript"}
    owners = packages_distributions()
    known = {distribution.name for distribution in distributions()}
    needed = {owner for name in loaded for owner in owners.get(name, []) if owner in known}
    allowed = {pin.partition("==")[0] for pin in locked("serve.txt")} | {"exfm", "setuptools"}
    assert {canonical(name) for name in needed} <= allowed


def test_wheel_holds_every_package_and_what_they_read(tmp_path: Path) -> None:
    built, unpacked = tmp_path / "built", tmp_path / "unpacked"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(unpacked)
    code = "import flows, models, monitoring, onnx_export as last; print(last.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(unpacked / "onnx_export" / "__init__.py")
    for package in LAYERS:
        ours = {path.relative_to(ROOT / package) for path in modules(package)}
        shipped = {p.relative_to(unpacked / package) for p in (unpacked / package).rglob("*.py")}
        assert shipped == ours
    for name in ("kafka/jgo.lock.toml", "report/report.html"):
        assert (unpacked / "flows" / name).exists()


def test_server_requirements_are_locked_to_the_same_versions() -> None:
    assert locked("serve.txt") <= locked("exfm.txt")


def locked(name: str) -> set[str]:
    """`package==version` of each package in a file of locked packages."""
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    return {line.split()[0] for line in lines if line[:1].isalpha()}


def canonical(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


def test_compose_builds_targets_that_exist_and_mounts_files_that_exist() -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    stages = set(re.findall(r"^FROM .* AS (\w+)", (ROOT / "docker/Dockerfile").read_text(), re.M))
    assert set(re.findall(r"target: (\w+)", text)) <= stages
    for source in re.findall(r"- (\.{1,2}/[^:]+):", text):
        assert (ROOT / "docker" / source).exists(), source
    for process in re.findall(r"\[run, ([\w-]+),", text):
        assert process in (*FLOWS, SERVE)
