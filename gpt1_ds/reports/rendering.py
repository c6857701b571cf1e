"""Renders the Jinja templates in the folder templates/; all values are escaped."""

import json
import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

UNSAFE_IN_SCRIPT = re.compile("[<>&\u2028\u2029]")


def render(template: str, **values: object) -> str:
    """Render `template` with these values."""
    environment = Environment(
        loader=PackageLoader("gpt1_ds.reports"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)


def script_json(value: object) -> Markup:
    """JSON for a script element, escaped so that no text in it can end the element."""
    text = json.dumps(value, allow_nan=False)
    return Markup(UNSAFE_IN_SCRIPT.sub(lambda match: f"\\u{ord(match[0]):04x}", text))
