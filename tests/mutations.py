"""Mutations of a module's source: one comparison, one operator or one constant at a time."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

# Their arguments change a check of our own code or the size of a cache, never a result.
NEUTRAL_KEYWORDS = {"strict", "flush", "maxsize", "non_blocking", "daemon"}

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.FloorDiv, ast.Add),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult, ast.Mod),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitAnd, ast.BitOr),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}


@dataclass(frozen=True)
class Mutation:
    """`number` counts the module's mutations in the order of its tree."""

    number: int
    line: int
    before: str
    after: str
    source: str
    """The whole module after it."""


class Site:
    """One place of the tree: how to change it, and the expression that shows the change."""

    def __init__(
        self, shown: ast.AST, line: int, owner: ast.AST, name: str, index: int | None, new: object
    ):
        self.shown, self.line = shown, line
        self._owner, self._name, self._index, self._new = owner, name, index, new

    def swap(self) -> None:
        """Put the new value in its place, and keep the old one: a second call undoes the first."""
        values = getattr(self._owner, self._name)
        if self._index is None:
            setattr(self._owner, self._name, self._new)
            self._new = values
        else:
            values[self._index], self._new = self._new, values[self._index]


def constants_near(value: object) -> tuple[object, ...]:
    """Other values for a constant; none for texts."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1)
    if isinstance(value, float):
        return (value * 2, value / 2) if value else (1.0,)
    return ()


def parts_of(node: ast.AST) -> Iterator[ast.AST]:
    """The children that are mutated: no decorators, base classes and type annotations."""
    for name, value in ast.iter_fields(node):
        if name in ("decorator_list", "annotation", "returns", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.keyword) and child.arg in NEUTRAL_KEYWORDS:
                continue
            yield child


def is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.JoinedStr)
        or isinstance(node, ast.Constant)
        and isinstance(node.value, str)
    )


def sites_of(node: ast.AST, shown: ast.AST, line: int) -> Iterator[Site]:
    """All sites below `node`; `shown` is what a reader sees of a constant that stands there."""
    line = getattr(node, "lineno", line)
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for comparison in COMPARISONS[type(operator)]:
                yield Site(node, line, node, "ops", index, comparison())
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        texts = isinstance(node, ast.BinOp) and (is_text(node.left) or is_text(node.right))
        for other in () if texts else OPERATORS.get(type(node.op), ()):
            yield Site(node, line, node, "op", None, other())
    elif isinstance(node, ast.Constant):
        for value in constants_near(node.value):
            yield Site(shown, line, node, "value", None, value)
    # A constant alone says too little. It is shown with the expression around it, but never with a
    # whole block.
    is_block = isinstance(
        node, ast.FunctionDef | ast.ClassDef | ast.If | ast.For | ast.While | ast.With | ast.Try
    )
    passed_on = isinstance(node, ast.Tuple | ast.List | ast.Slice | ast.UnaryOp | ast.keyword)
    for child in parts_of(node):
        yield from sites_of(child, shown if passed_on else child if is_block else node, line)


def mutations(source: str, only: tuple[str, ...]) -> list[Mutation]:
    """All mutations of a module, or of its top-level names `only`."""
    tree = ast.parse(source)
    found: list[Site] = []
    for statement in tree.body:
        targets = [statement, *getattr(statement, "targets", [])]
        names = {getattr(target, "name", getattr(target, "id", None)) for target in targets}
        if not only or names & set(only):
            found += sites_of(statement, statement, statement.lineno)
    made = []
    for number, site in enumerate(found):
        before = ast.unparse(site.shown)
        site.swap()
        made.append(Mutation(number, site.line, before, ast.unparse(site.shown), ast.unparse(tree)))
        site.swap()
    return made
