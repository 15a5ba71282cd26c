import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sciml_monarch"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = {"cli", "training", "demo", "demo_mri", "demo_pde", "__main__"}
# room -> rooms of this package that it must not import: monarch -> pde | mri -> programs
FORBIDDEN = {
    "monarch": {"pde", "mri", "hub", "plots", "report", *PROGRAMS},
    "pde": {"mri", *PROGRAMS},
    "mri": {"pde", *PROGRAMS},
}
OPTIONAL = {"triton", "neuralop", "sigpy", "jsonargparse", "rich", "matplotlib", "tensorboard"}


def imports(module, top_level_only=False):
    tree = ast.parse(module.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_point_one_way(module):
    room = module.relative_to(PACKAGE).parts[0]
    for name in imports(module):
        parts = name.split(".")
        if parts[0] == "sciml_monarch" and len(parts) > 1:
            assert parts[1] not in FORBIDDEN.get(room, ()), f"{module} imports {name}"
        if room == "monarch":
            allowed = {"torch", "sciml_monarch"} | set(sys.stdlib_module_names)
            if module.name.endswith("_triton.py"):  # imported where a kernel is launched, never before
                allowed.add("triton")
            assert parts[0] in allowed, f"{module} imports {name}; monarch needs torch only"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_packages_that_a_training_machine_may_lack_are_imported_where_used(module):
    top = {name.split(".")[0] for name in imports(module, top_level_only=True)}
    if module.name == "plots.py":
        top -= {"matplotlib"}
    if module.name.endswith("_triton.py"):
        top -= {"triton"}
    assert not top & OPTIONAL


def test_import_warns_of_nothing_and_touches_no_optional_package():
    code = f"import sys, sciml_monarch; print(sorted(set(sys.modules) & {OPTIONAL | {'lightning', 'h5py'}!r}))"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
