"""Each script in benchmarks/ says what it measures, and uses names that the package has."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def defined(module: str) -> set[str] | None:
    """Names that a module of the project binds at its top level; None if there is no such file."""
    base = ROOT.joinpath(*module.split("."))
    path = next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
    if path is None:
        return None
    found = {child.stem for child in base.glob("*.py")} | {child.name for child in base.glob("*/")}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def used(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Pairs of a module of the project and a name that is imported from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "microclip":
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_says_what_it_measures_and_fits_the_package(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    described = ast.get_docstring(tree) or ""
    assert len(described.splitlines()) > 1
    assert f"{script.name}" in described
    for module, name in used(tree):
        names = defined(module)
        assert names is not None, f"no module {module}"
        assert name in names, f"{module} has no {name}"


def test_the_short_benchmarks_are_one_command() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("bench: setup", 1)[1]
    named = set(recipe.split("check: setup", 1)[0].split())
    assert {f"benchmarks/{name}.py" for name in ("loader", "startup", "step")} <= named
