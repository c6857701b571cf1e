"""Numbers as text."""

import json
from decimal import Decimal
from typing import Any


def duration(seconds: float) -> str:
    """A time as text in at most two units, such as `3 days 4 h`, `2 h 10 min`, `5 min`, `40 s`."""
    minutes = round(seconds / 60)
    hours = round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"


def setting_text(value: Any) -> str:
    """A setting as JSON, a small number as a user would type it: 1e-3 for 0.001."""
    if isinstance(value, float) and 0 < abs(value) < 0.1:
        return f"{Decimal(repr(value)).normalize():e}"
    return json.dumps(value)
