"""Configuration of the documentation site (`make docs`).

The tables of settings are written from the code when the site is built, so that they are never
out of date. In a page, the directive `settings` stands for all sections of one class of
`gpt1_ds/settings/sections.py`.
"""

import dataclasses
import sys
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

# The checkout that holds this file, whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt1_ds.base.bounds import LARGEST_COUNT, Bounds  # noqa: E402
from gpt1_ds.settings import sections  # noqa: E402
from gpt1_ds.settings.command_line import field_docs  # noqa: E402

project = "gpt1_ds"
author = "the gpt1_ds authors"
html_theme = "furo"
html_title = "gpt1_ds"
html_show_copyright = False
extensions = ["myst_nb"]
exclude_patterns = ["_build"]
# A test runs the notebook; the site shows it as it is.
nb_execution_mode = "off"
myst_heading_anchors = 3
nitpicky = True
smartquotes = False


def allowed(field: dataclasses.Field[object]) -> str:
    """The values that a setting takes, in words."""
    kind = str(getattr(field.type, "__name__", field.type))
    null = " or null" if kind.endswith(" | None") else ""
    kind = kind.removesuffix(" | None")
    bounds: Bounds | None = field.metadata.get("bounds")
    if kind == "bool":
        return "true, false"
    if bounds is None:
        return {"str": "text"}.get(kind, kind) + null
    if bounds.choices:
        return ", ".join(bounds.choices) + null
    number = "whole number" if kind == "int" else "number"
    if kind.startswith("dict"):
        number = "a number for each name,"
    low = "above" if bounds.open_low else "from"
    high = ""
    if bounds.high < LARGEST_COUNT:
        high = f" {'below' if bounds.open_high else 'to'} {bounds.high:.10g}"
    return f"{number} {low} {bounds.low}{high}{null}"


def rows(values: object, others: object | None) -> list[str]:
    """A row for each setting of a section whose default is not that of `others`."""
    docs = field_docs(type(values))
    lines = []
    for field in dataclasses.fields(type(values)):
        value = getattr(values, field.name)
        if others is None or value != getattr(others, field.name):
            default = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
            meaning = docs[field.name].replace("|", r"\|").replace("<", r"\<")
            lines.append(f"| `{field.name}` | `{default}` | {allowed(field)} | {meaning} |")
    return lines


def tables(config: type) -> str:
    """Headings and tables in Markdown of what `config` has beyond the class that it extends."""
    parent = config.__mro__[1]
    lines = []
    for section in dataclasses.fields(config):
        values = getattr(config(), section.name)
        found = rows(values, getattr(parent(), section.name, None))
        if found:
            head = [f"### {section.name}", "", "| key | default | values | meaning |"]
            lines += [*head, "|---|---|---|---|", *found, ""]
    return "\n".join(lines)


class Settings(SphinxDirective):
    """`{settings} PretrainConfig`: every section with its keys, as tables."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = tables(getattr(sections, self.arguments[0]))
        self.content = StringList(text.splitlines(), source="gpt1_ds/settings/sections.py")
        return self.parse_content_to_nodes(allow_section_headings=True)


def setup(app: Sphinx) -> None:
    app.add_directive("settings", Settings)
