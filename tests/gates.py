"""Rules on the source code that a number can state; `tests/test_gates.py` holds them.

python -m tests.gates [PATH ...]     prints each place that breaks a rule
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("gpt1_ds", "data_prep")
FOLDERS = (*PRODUCT, "tests", "benchmarks")
LINE_COLUMNS, FILE_LINES, FUNCTION_LINES, PARAMETERS = 100, 400, 60, 7
MOST_FORMATTER_OFF, MOST_ANY = 10, 60

BEHAVIOUR_ROOM = "gpt1_ds/engine/internals.py"
UPDATE_ROOMS = tuple(f"gpt1_ds/engine/{name}.py" for name in ("partitions", "reduction", "update"))
COUNTING_ROOM = "gpt1_ds/engine/counting.py"
"""It changes nothing; torch has no public name for what counts its operators."""
STATE_ROOMS = tuple(
    f"gpt1_ds/checkpoints/{name}.py" for name in ("deepspeed_files", "flat_tensors", "swap_files")
)
ENGINE_NAMES = {"engine", "optimizer", "basic_optimizer", "trainer"}
FOREIGN_PACKAGES = {"deepspeed", "torch"}
# The standard library and torch document that programs set these names.
HOOKS = {
    "sys.stdin",
    "sys.stdout",
    "sys.stderr",
    "sys.unraisablehook",
    "threading.excepthook",
    "warnings.showwarning",
    "torch.utils.deterministic.fill_uninitialized_memory",
}
OWN_PACKAGES = {"gpt1_ds", "data_prep", "tests", "benchmarks"}
OPERATORS_FILE = "gpt1_ds/model/kernels.py"
# Private operators that are called, not changed: torch has no public name for them (2.13), and the
# model may not import the engine, where all else of this kind lies.
OPERATORS_CALLED = {
    "torch._softmax_backward_data": "the softmax's gradient, without a graph of autograd around it",
    "torch.ops.mkldnn._linear_pointwise": "oneDNN's linear layer, which F.linear does not choose",
}
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
    """Private names of DeepSpeed and torch; names set in a foreign module or on an engine."""
    foreign = _imported(tree)
    private = {name for name, package in foreign.items() if package in FOREIGN_PACKAGES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _private_imports(node)
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            if _belongs_to(node.value, private):
                yield node.lineno, f"reaches into {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            yield from _by_string(node, set(foreign), private)
        for target in _targets(node):
            if isinstance(target, ast.Attribute) and ast.unparse(target) not in HOOKS:
                if _belongs_to(target.value, set(foreign)):
                    yield target.lineno, f"sets {ast.unparse(target)}"


def _imported(tree: ast.AST) -> dict[str, str]:
    """Each name that an import of a foreign module binds, with the top package it comes from."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package = alias.name.split(".")[0]
                names[alias.asname or package] = package
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = node.module.split(".")[0]
    foreign = {name: package for name, package in names.items() if package not in OWN_PACKAGES}
    for node in ast.walk(tree):  # `backend = comm.cdb` names the same object once more
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            root = ast.unparse(node.value).split(".")[0]
            for target in node.targets:
                if root in foreign and isinstance(target, ast.Name):
                    foreign[target.id] = foreign[root]
    return foreign


def _private_imports(node: ast.Import | ast.ImportFrom) -> Found:
    for alias in node.names:
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        parts = f"{module}{alias.name}".split(".")
        if parts[0] in FOREIGN_PACKAGES and any(map(_is_private, parts)):
            yield node.lineno, f"imports {'.'.join(parts)}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _belongs_to(owner: ast.expr, modules: set[str]) -> bool:
    """Whether `owner` is, or is reached through, an engine, an optimizer or one of `modules`."""
    parts = re.findall(r"\w+", ast.unparse(owner))
    return bool(parts) and (parts[0] in modules or bool(ENGINE_NAMES & set(parts)))


def _by_string(node: ast.Call, foreign: set[str], private: set[str]) -> Found:
    """`setattr(engine, name, value)` and `getattr(engine, "_name")`."""
    if not isinstance(node.func, ast.Name) or len(node.args) < 2:
        return
    function, owner, name = node.func.id, node.args[0], node.args[1]
    if function in ("setattr", "delattr") and _belongs_to(owner, foreign):
        yield node.lineno, f"sets {ast.unparse(node)}"
    elif function in ("getattr", "hasattr") and isinstance(name, ast.Constant):
        if _is_private(str(name.value)) and _belongs_to(owner, private):
            yield node.lineno, f"reaches into {ast.unparse(node)}"


def _targets(node: ast.AST) -> list[ast.expr]:
    """What `node` assigns to, the parts of a tuple one by one."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    parts: list[ast.expr] = []
    for target in targets:
        parts += target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    return parts


def string_keyed_state(tree: ast.AST) -> Found:
    """`state["cursor"]` and the like: state of a checkpoint is read and written in one place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            owner, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            owner, key = node.func.value, node.args[0]
            if node.func.attr != "get":
                continue
        else:
            continue
        known = isinstance(key, ast.Constant) and key.value in STATE_KEYS
        if known and re.search(r"\b(state|manifest)\b", ast.unparse(owner)):
            yield node.lineno, f"checkpoint state by key: {ast.unparse(node)}"


TextRule = Callable[[str], Found]
TreeRule = Callable[[ast.AST], Found]
TEXT_RULES: tuple[TextRule, ...] = (long_lines, long_files)
PRODUCT_RULES: tuple[TreeRule, ...] = (dense_comprehensions, long_functions, many_parameters)


def violations(path: Path) -> list[str]:
    """Each place of one file that breaks a rule, as `file:line: what`."""
    name = str(path.resolve().relative_to(ROOT))
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    found: list[tuple[int, str]] = []
    for text_rule in TEXT_RULES:
        found += text_rule(text)
    if name.startswith(PRODUCT):
        found += _violations_of_product(name, tree)
    return [f"{name}:{line}: {what}" for line, what in sorted(found)]


def _violations_of_product(name: str, tree: ast.AST) -> Found:
    for rule in PRODUCT_RULES:
        yield from rule(tree)
    if name not in (BEHAVIOUR_ROOM, *UPDATE_ROOMS, COUNTING_ROOM, *STATE_ROOMS):
        for line, what in foreign_internals(tree):
            if not _is_operator(name, what):
                yield line, what
    if name not in (STATE_READER, *STATE_ROOMS):
        yield from string_keyed_state(tree)


def _is_operator(name: str, what: str) -> bool:
    return name == OPERATORS_FILE and what.removeprefix("reaches into ") in OPERATORS_CALLED


def count_formatter_off() -> int:
    texts = (path.read_text(encoding="utf-8") for path in sources(*FOLDERS))
    return sum(len(list(formatter_off(text))) for text in texts)


def count_any() -> int:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sources(*PRODUCT))
    return sum(len(list(uses_of_any(tree))) for tree in trees)


def main(arguments: list[str]) -> int:
    paths = [Path(argument) for argument in arguments] or [ROOT / folder for folder in FOLDERS]
    lines: list[str] = []
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            lines += violations(file)
    print("\n".join(lines))
    print(f"{len(lines)} violations; {count_any()} uses of Any in the product")
    return min(len(lines), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
