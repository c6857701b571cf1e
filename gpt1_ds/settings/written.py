"""YAML as it is written: each scalar keeps its text, and no key of a mapping stands twice.

A name such as `1.10`, `0123` or `yes` is a number or a truth value for YAML. The settings know
which of the two they want, so they get both.
"""

from typing import NamedTuple

import yaml

TAG = "tag:yaml.org,2002:"
SCALARS = ("null", "bool", "int", "float", "binary", "timestamp", "str", "value", "merge")


class Written(NamedTuple):
    """One scalar."""

    text: str
    """As it stands in the file, without quotes."""
    value: object
    """As YAML reads it."""


def parse(text: str) -> object:
    """Mappings with strings as keys, lists and `Written`; YAMLError if `text` is no such YAML."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def plain(tree: object) -> object:
    """What YAML alone would have read, for messages."""
    if isinstance(tree, Written):
        return tree.value
    if isinstance(tree, list):
        return [plain(item) for item in tree]
    if isinstance(tree, dict):
        return {key: plain(item) for key, item in tree.items()}
    return tree


class DuplicateKeyError(yaml.YAMLError):
    """Its text names the key and, in YAML, the lines."""


class _Loader(yaml.SafeLoader):
    def construct_document(self, node: yaml.Node) -> object:
        _refuse_duplicates(node, "", set())
        return super().construct_document(node)

    def scalar(self, node: yaml.ScalarNode) -> Written:
        build = yaml.SafeLoader.yaml_constructors.get(node.tag)
        try:
            return Written(node.value, build(self, node) if build else node.value)
        except (ValueError, KeyError):  # such as the date 2024-13-45, or `!!bool maybe`
            return Written(node.value, node.value)

    def sequence(self, node: yaml.SequenceNode) -> list[object]:
        return [self.construct_object(item, deep=True) for item in node.value]

    def mapping(self, node: yaml.MappingNode) -> dict[str, object]:
        self.flatten_mapping(node)
        return {_text(key): self.construct_object(item, deep=True) for key, item in node.value}


for _name in SCALARS:
    _Loader.add_constructor(TAG + _name, _Loader.scalar)
_Loader.add_constructor(TAG + "seq", _Loader.sequence)
_Loader.add_constructor(TAG + "map", _Loader.mapping)


def _text(key: yaml.Node) -> str:
    if not isinstance(key, yaml.ScalarNode):
        raise yaml.YAMLError(f"line {key.start_mark.line + 1}: a key must be a plain word")
    return str(key.value)


def _refuse_duplicates(node: yaml.Node, name: str, seen: set[int]) -> None:
    """Before merge keys are filled in: a key beside `<<` may override the merged one."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, name, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, item in node.value:
        word, line = _text(key), key.start_mark.line + 1
        full = f"{name}.{word}" if name else word
        if word in lines:
            raise DuplicateKeyError(
                f"'{full}' is given twice, in lines {lines[word]} and {line}; keep one"
            )
        lines[word] = line
        _refuse_duplicates(item, full, seen)
