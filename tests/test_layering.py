"""Imports go one way and in no circle, MLflow stays in three modules, no method knows another."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "microclip"
# From the ground up: a module may import from its own layer and from the lines above it.
LAYERS = (
    ("paths", "settings"),
    ("runtime", "processes", "warm", "writing"),
    ("text", "data", "icons.scenes"),  # a dataset of icons is rendered when it is fetched
    ("model", "text.doctor", "text.mending"),  # the doctor may compare classes by their vectors
    ("adaptation",),
    ("methods",),
    ("study",),
    ("tracking", "measure"),
    ("runner",),
    ("icons",),
    ("own_images", "api", "bundle"),
    ("export",),
    ("cli",),
    ("__main__",),
)
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
)


def layer(module: str) -> int:
    """Return the layer of the longest listed prefix."""
    found = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert found, f"microclip.{module} has no layer; add it to LAYERS where it belongs"
    return max(found)[1]


def imports(module: str) -> Iterator[str]:
    """Yield every module that is imported, wherever the statement is, except for type checking."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in microclip.{module}"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = name.removeprefix("microclip.") in MODULES
                yield name if is_module else str(node.module)


def own(module: str) -> set[str]:
    """Return the imported modules of the package itself."""
    names = {name for name in imports(module) if name.split(".")[0] == "microclip"}
    return {name.removeprefix("microclip.") for name in names} - {"microclip"}


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith("__init__")])
def test_a_module_imports_only_its_own_layer_and_those_below(module: str) -> None:
    wrong = {name for name in own(module) if layer(name) > layer(module)}
    assert not wrong, f"microclip.{module} (layer {layer(module)}) imports {sorted(wrong)}"


def test_no_imports_form_a_circle_not_even_inside_functions() -> None:
    graph = {
        module.removesuffix(".__init__"): own(module) for module in MODULES if module != "__init__"
    }
    while graph:
        free = {module for module, used in graph.items() if not used & graph.keys() - {module}}
        assert free, f"these modules import each other in a circle: {sorted(graph)}"
        graph = {module: used for module, used in graph.items() if module not in free}


def test_only_the_mirrors_of_runs_and_of_studies_and_its_model_format_import_mlflow() -> None:
    users = {m for m in MODULES if any(name.split(".")[0] == "mlflow" for name in imports(m))}
    # a model that MLflow serves is a subclass of MLflow's own class
    # and its file's tables are made by MLflow
    allowed = {"tracking.database", "tracking.mirror", "tracking.study", "export.mlflow_model"}
    assert users == allowed


def test_nothing_of_the_package_imports_snakemake() -> None:
    users = {m for m in MODULES if any(n.split(".")[0] == "snakemake" for n in imports(m))}
    assert not users


def test_no_method_imports_another() -> None:
    methods = {m for m in MODULES if m.startswith("methods.")} - {
        "methods.__init__",
        "methods.base",
        "methods.few_shot",  # what those share that learn from labels; it is no method
        "methods.fusion",  # what those share that train TokenFusion; it is no method
        "methods.linear",  # the head that those share that classify embeddings; it is no method
    }
    for module in methods:
        assert not own(module) & methods - {module}, module
    for shared in ("fusion", "few_shot", "linear"):
        assert not own(f"methods.{shared}") & methods, shared


def test_no_module_is_longer_than_600_lines() -> None:
    lines = {
        m: len((PACKAGE / f"{m.replace('.', '/')}.py").read_text().splitlines()) for m in MODULES
    }
    assert not {module: n for module, n in lines.items() if n > 600}


def test_no_pickle_is_loaded() -> None:
    for module in MODULES:
        text = (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        loads = re.findall(r"torch\.load\([^)]*\)", text)
        assert all("weights_only=True" in load for load in loads), module
        assert "pickle" not in {name.split(".")[0] for name in imports(module)}, module
