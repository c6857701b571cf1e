"""Rules on the source code that a number can state; `tests/test_gates.py` holds them.

    python -m tests.gates [PATH ...]     prints each place that breaks a rule
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("gpt1_ds", "data_prep")
FOLDERS = (*PRODUCT, "tests", "benchmarks")
LINE_COLUMNS, FILE_LINES, FUNCTION_LINES, PARAMETERS = 100, 400, 60, 7
MOST_FORMATTER_OFF, MOST_ANY = 10, 60

BEHAVIOUR_ROOM = "gpt1_ds/engine/internals.py"
STATE_ROOMS = tuple(
    f"gpt1_ds/checkpoints/{name}.py" for name in ("deepspeed_files", "flat_tensors", "swap_files")
)
FOREIGN = {"deepspeed", "torch", "dist"}
STATE_KEYS = {"cursor", "tokenizer_sha256", "losses", "best", "config_hash", "zero_stage", "places"}
STATE_READER = "gpt1_ds/checkpoints/state.py"

Found = Iterator[tuple[int, str]]


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def long_lines(text: str) -> Found:
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LINE_COLUMNS:
            yield number, f"{len(line)} columns"


def long_files(text: str) -> Found:
    lines = text.count("\n")
    if lines > FILE_LINES:
        yield lines, f"file of {lines} lines"


def formatter_off(text: str) -> Found:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"# fmt: ?(off|skip)", line):
            yield number, "formatter switched off"


def long_functions(tree: ast.AST) -> Found:
    for function in functions(tree):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > FUNCTION_LINES and not _builds_parser(function):
            yield function.lineno, f"{function.name}: {lines} lines"


def _builds_parser(function: ast.FunctionDef) -> bool:
    return function.name.endswith("parser")


def many_parameters(tree: ast.AST) -> Found:
    for function in functions(tree):
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > PARAMETERS:
            yield function.lineno, f"{function.name}: {count} parameters"


def dense_comprehensions(tree: ast.AST) -> Found:
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    for node in ast.walk(tree):
        if not isinstance(node, kinds):
            continue
        nested = any(isinstance(inner, kinds) for inner in ast.walk(node) if inner is not node)
        conditions = sum(len(part.ifs) for part in node.generators)
        if nested or len(node.generators) > 1 or conditions > 1:
            yield node.lineno, "nested or multi-clause comprehension"


def uses_of_any(tree: ast.AST) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "Any":
            yield node.lineno, "Any"


def foreign_internals(tree: ast.AST) -> Found:
    """Private members of an engine, an optimizer or a foreign module; names set in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = ast.unparse(node.value)
            last = owner.split(".")[-1]
            private = not node.attr.startswith("__") or owner.split(".")[0] in FOREIGN
            if private and (last in ("engine", "optimizer") or owner.split(".")[0] in FOREIGN):
                yield node.lineno, f"reaches into {ast.unparse(node)}"
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if _sets_foreign(target):
                    yield node.lineno, f"sets {ast.unparse(target)}"


def _sets_foreign(target: ast.expr) -> bool:
    if not isinstance(target, ast.Attribute | ast.Subscript):
        return False
    return ast.unparse(target).split(".")[0].split("[")[0] in FOREIGN


def string_keyed_state(tree: ast.AST) -> Found:
    """`state["cursor"]` and the like: state of a checkpoint is read and written in one place."""
    for node in ast.walk(tree):
        key = None
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            key, owner = node.slice.value, node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr == "get" and isinstance(node.args[0], ast.Constant):
                key, owner = node.args[0].value, node.func.value
        if key in STATE_KEYS and re.search(r"\b(state|manifest)\b", ast.unparse(owner)):
            yield node.lineno, f"checkpoint state by key: {ast.unparse(node)}"


TEXT_RULES = (long_lines, long_files, formatter_off)
TREE_RULES = (long_functions, many_parameters, dense_comprehensions)


def violations(path: Path) -> list[str]:
    """Each place of one file that breaks a rule, as `file:line: what`."""
    name = str(path.resolve().relative_to(ROOT))
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    found = [place for rule in TEXT_RULES for place in rule(text)]
    found += [place for rule in TREE_RULES for place in rule(tree)]
    if name.startswith(PRODUCT):
        if name not in (BEHAVIOUR_ROOM, *STATE_ROOMS):
            found += foreign_internals(tree)
        if name != STATE_READER and name not in STATE_ROOMS:
            found += string_keyed_state(tree)
    return [f"{name}:{line}: {what}" for line, what in sorted(found)]


def main(arguments: list[str]) -> int:
    paths = [Path(argument) for argument in arguments] or [ROOT / folder for folder in FOLDERS]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    lines = [line for file in sorted(files) for line in violations(file)]
    print("\n".join(lines))
    print(f"{len(lines)} violations")
    return min(len(lines), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
