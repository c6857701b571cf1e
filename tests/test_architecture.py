"""The structure of the code: imports go downward by layer, names shadow nothing, files stay readable."""

import ast
import configparser
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# `gpt1_ds` by layer; a module imports from lower layers only. `tasks` is a subpackage whose members may see each other.
LAYERS = {
    0: "errors files heartbeat kernels config distributed openai_bpe tokenizer shards remote swapped",
    1: "background command_line deepspeed_config model optim dataloader metrics preemption profiling resize "
    "run_directory tasks",
    2: "heads memory engine checkpoint saving ledger huggingface evaluation sampling zero_shot suite_report task_run",
    3: "train finetune eval generate export plan report suite",
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules.split()}
# Imported everywhere, their own layer included: a user's error may arise, and a file be written, anywhere. And the
# second halves of `tokenizer` and `distributed`.
SHARED_WITHIN_LAYER_0 = {"errors", "files", "openai_bpe", "heartbeat"}
DATA_PREP_MAY_IMPORT = {module for module, layer in LAYER_OF.items() if layer == 0}
DATA_PREP_EXTRA = {"trace": {"dataloader"}}
SECOND_HALVES = {
    "zero_shot": {"evaluation"},
    "checkpoint": {"saving"},
}  # in one layer, but only this way round

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
    """Dotted names of the project's own modules that `path` imports, anywhere in the file, relative ones resolved."""
    package = list(path.relative_to(ROOT).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            # `from gpt1_ds import errors` imports a module, `from gpt1_ds.errors import guard` a name of one.
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
    folder, *rest = path.relative_to(ROOT).parts
    module = rest[0].removesuffix(".py")
    imported = own_parts(path)
    if module == "__init__" and len(rest) == 1:
        assert not imported, f"{short(path)}: importing the package must import nothing"
        return
    if folder == "data_prep":
        allowed = DATA_PREP_MAY_IMPORT | DATA_PREP_EXTRA.get(module, set())
    else:
        assert module in LAYER_OF, f"{short(path)} has no layer; add it to the design and to LAYERS"
        allowed = {other for other, layer in LAYER_OF.items() if layer < LAYER_OF[module]}
        allowed |= SECOND_HALVES.get(module, set())
        allowed |= (
            {"tasks"}
            if module == "tasks"
            else SHARED_WITHIN_LAYER_0
            if LAYER_OF[module] == 0
            else set()
        )
        above = {name for name in imported_modules(path) if not name.startswith("gpt1_ds.")}
        assert not above, f"{short(path)} imports {above}; gpt1_ds stands alone"
    assert imported <= allowed, (
        f"{short(path)} imports {sorted(imported - allowed)} of its own layer or above"
    )


def test_every_layered_module_of_this_test_is_spelled_as_its_file():
    written = {path.stem for path in (ROOT / "gpt1_ds").glob("*.py")} - {"__init__"} | {"tasks"}
    assert written <= set(LAYER_OF)


@pytest.mark.parametrize("path", ALL_SOURCES, ids=short)
def test_files_are_short_and_open_with_a_docstring(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{short(path)} has more than 400 lines"
    assert ast.get_docstring(ast.parse(text)), f"{short(path)} does not say what it is"


def test_no_module_shadows_another():
    """The launcher puts a script's own folder on `sys.path`, where a module of such a name would be found first."""
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
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert list(tomllib.load(file)) == ["build-system"]
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert {"metadata", "options", "options.extras_require", "tool:pytest", "ruff"} <= set(
        settings.sections()
    )
    strays = ["setup.py", "pytest.ini", "tox.ini", "ruff.toml", ".ruff.toml", "requirements.txt"]
    assert not [name for name in strays if (ROOT / name).exists()]


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
