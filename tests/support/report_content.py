"""Reads a report of runs, of this version or an earlier one, as its reader does."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any


def report_content(page: Path) -> tuple[str, list[str], Any]:
    """What both versions of a report show: its tables, the words of its settings, its curves.

    Later versions begin with the settings that differ, and add expected figures and FLOPs spent.
    """
    html = page.read_text()
    [data] = re.findall(r'(?s)<script type="application/json" id="data">(.*?)</script>', html)
    body = re.sub(r"(?s)<style.*?</style>|<script.*?</script>", "", html)
    words = " ".join(unescape(re.sub("<[^>]*>", " ", body)).split())
    tables, _, settings = words.partition(" Numbers ")[2].partition(" Configuration ")
    tables = re.sub(r" FLOPs spent( [\d.]+e[+-]\d+)+", "", tables)
    curves = {
        (chart["title"], series["label"]): [(point[0], point[-1]) for point in series["points"]]
        for chart in json.loads(data)["charts"]
        for series in chart["series"]
    }
    return (
        re.sub("Expected figures .*? Data of", "Data of", tables),
        sorted(settings.split()),
        curves,
    )
