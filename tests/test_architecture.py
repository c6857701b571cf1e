"""The structure of the code: imports go downward by layer, names shadow nothing, files stay
readable."""

import ast
import configparser
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent

# Which package may import which, from the commands down; a module may import its own package. No
# exceptions.
BASE = {"base"}
DISTRIBUTED = BASE | {"distributed"}
SETTINGS = DISTRIBUTED | {"settings"}
DATA = SETTINGS | {"data"}
MODEL = DISTRIBUTED | {"data", "model"}
ENGINE = SETTINGS | {"model", "engine"}
TASKS = DATA | {"model", "tasks"}
CHECKPOINTS = DATA | {"model", "engine", "checkpoints"}
INTERCHANGE = BASE | {"settings", "data", "model", "tasks", "interchange"}
REPORTS = BASE | {"settings", "model", "reports"}
ALL = CHECKPOINTS | TASKS | INTERCHANGE | REPORTS | {"runs"}
MAY_IMPORT = {
    "base": BASE,
    "distributed": DISTRIBUTED,
    "settings": SETTINGS,
    "data": DATA,
    "model": MODEL,
    "engine": ENGINE,
    "tasks": TASKS,
    "checkpoints": CHECKPOINTS,
    "interchange": INTERCHANGE,
    "reports": REPORTS,
    "runs": ALL,
}
ROOT_MAY_IMPORT = {"base", "runs"}
"""`gpt1_ds/__init__.py` offers names of `runs`, which are imported at their first use."""
COMMANDS = (
    "__main__",
    "train",
    "finetune",
    "eval",
    "generate",
    "export",
    "plan",
    "report",
    "suite",
    "watch",
)
DATA_PREP_MAY_IMPORT = DATA
SUBPACKAGES = ("data_prep/reading", "data_prep/building", "data_prep/stories")

SOURCES = sorted(
    path for folder in ("gpt1_ds", "data_prep") for path in (ROOT / folder).rglob("*.py")
)
ALL_SOURCES = sorted(
    path
    for folder in ("gpt1_ds", "data_prep", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
) + sorted(ROOT.glob("*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(path: Path) -> set[str]:
    """Dotted names of the project's own modules that `path` imports, anywhere in the file, relative
    ones resolved."""
    package = list(path.relative_to(ROOT).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            # `from gpt1_ds import errors` imports a module, `from gpt1_ds.errors import guard` a
            # name of one.
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return {
        name
        for name in names
        if name.split(".")[0] in ("gpt1_ds", "data_prep", "tests", "benchmarks")
    }


def own_parts(path: Path) -> set[str]:
    """First level below `gpt1_ds` of what `path` imports from there: {"errors", "tasks", ..}."""
    return {name.split(".")[1] for name in imported_modules(path) if name.startswith("gpt1_ds.")}


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_imports_go_downward(path):
    folder, first, *_ = path.relative_to(ROOT).parts
    package = first.removesuffix(".py")
    imported = own_parts(path)
    outside = {name for name in imported_modules(path) if not name.startswith("gpt1_ds.")}
    if package == "__init__":
        allowed = ROOT_MAY_IMPORT if folder == "gpt1_ds" else BASE
        assert imported <= allowed and not outside, f"{short(path)} imports {imported | outside}"
        return
    if folder == "data_prep":
        allowed = DATA_PREP_MAY_IMPORT
        outside = {name for name in outside if not name.startswith("data_prep")}
    else:
        allowed = ALL if package in COMMANDS else MAY_IMPORT[package]
    assert not outside, f"{short(path)} imports {outside}"
    assert imported <= allowed, f"{short(path)} imports {sorted(imported - allowed)}"


def modules_of(package: str) -> dict[str, set[str]]:
    """Each module of `package` with the modules of the package that it imports at any place."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    return {
        module: {
            other
            for name in imported_modules(path)
            if (other := next((m for m in (name, name.rpartition(".")[0]) if m in paths), None))
        }
        for module, path in paths.items()
        if module.split(".")[0] == package
    }


@pytest.mark.parametrize("package", ["gpt1_ds", "data_prep"])
def test_no_module_imports_itself_through_others(package):
    graph = modules_of(package)
    while leaves := [module for module, needs in graph.items() if not needs & set(graph)]:
        for module in leaves:
            del graph[module]
    assert not graph, f"these modules import each other in a circle: {sorted(graph)}"


def test_the_drawn_map_shows_the_imports():
    """`python docs/draw_architecture.py` draws it anew."""
    drawn = subprocess.run(
        [sys.executable, "-c", "import draw_architecture as d; print(d.picture(), end='')"],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == drawn


def test_the_table_names_the_packages_that_are_there():
    folder = ROOT / "gpt1_ds"
    assert {path.parent.name for path in folder.glob("*/__init__.py")} == set(MAY_IMPORT)
    assert {path.stem for path in folder.glob("*.py")} == {*COMMANDS, "__init__"}


@pytest.mark.parametrize("name", [*(f"gpt1_ds/{name}" for name in MAY_IMPORT), *SUBPACKAGES])
def test_each_package_says_what_it_holds(name):
    """Its docstring names every file in reading order."""
    folder = ROOT / name
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert text, f"{name}/__init__.py does not say what the package is for"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    missing = [stem for stem in sorted(files) if f"`{stem}`" not in text]
    assert not missing, f"the docstring of {name}/__init__.py does not name {missing}"


@pytest.mark.parametrize("path", ALL_SOURCES, ids=short)
def test_files_are_short_and_open_with_a_docstring(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{short(path)} has more than 400 lines"
    assert ast.get_docstring(ast.parse(text)), f"{short(path)} does not say what it is"


def test_no_module_shadows_another():
    """The launcher puts a script's own folder on `sys.path`, where a module of such a name would be
    found first."""
    taken = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    # Our own names: the packages themselves, and top-level packages of careless distributions.
    taken -= {"gpt1_ds", "data_prep", "tests", "benchmarks"}
    taken -= {"trace"}  # `python -m data_prep.trace`: that folder is never put on `sys.path`
    offenders = [short(path) for path in SOURCES if path.stem in taken and path.stem != "__init__"]
    assert not offenders, f"{offenders} shadow a standard-library or dependency name"


def test_no_grab_bag_modules():
    assert not [
        short(path)
        for path in ALL_SOURCES
        if path.stem in {"utils", "util", "helpers", "misc", "common"}
    ]


def test_settings_live_in_setup_cfg():
    """But for the linter's, which editors look for in a file of its own."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert list(tomllib.load(file)) == ["build-system"]
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert {"metadata", "options", "options.extras_require", "tool:pytest"} <= set(
        settings.sections()
    )
    strays = ["setup.py", "pytest.ini", "tox.ini", "requirements.txt"]
    assert not [name for name in strays if (ROOT / name).exists()]


def test_every_pinned_version_installs_on_the_oldest_python():
    """Debian 12 has Python 3.11.2. A pin that asks for 3.11.5 ends `make quickstart` there."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    oldest = settings["options"]["python_requires"].removeprefix(">=") + ".0"
    refusing = []
    for package in importlib.metadata.distributions():
        wanted = package.metadata["Requires-Python"]
        if wanted and oldest not in SpecifierSet(wanted):
            refusing.append(f"{package.name} {package.version}: Python {wanted}")
    assert not refusing


def test_constraints_pin_all_but_torch():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins)
    assert not [pin for pin in pins if pin.startswith(("torch=", "nvidia", "triton", "cuda"))]
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    wanted = [
        settings["options"]["install_requires"],
        *dict(settings["options.extras_require"]).values(),
    ]
    lines = [line for block in wanted for line in block.splitlines() if line and line[0] != "#"]
    names = {line.split()[0].rstrip(",").split("[")[0] for line in lines}
    assert names - {"torch"} <= pinned
