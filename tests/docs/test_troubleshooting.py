"""The messages of the troubleshooting page are messages of the code."""

import ast
import json
import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"(?m)^\| `([^`]+)` \|", PAGE)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Error lines as users see them, and each string of the source."""
    lines: list[str] = []
    for path in (ROOT / "tests" / "golden").glob("errors_*.json"):
        lines += [line for _, line in json.loads(path.read_text(encoding="utf-8")).values()]
    for folder in ("gpt1_ds", "data_prep"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lines.append(node.value)
    return lines


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_that_users_meet(message, texts):
    pattern = re.compile(".*".join(map(re.escape, message.split(" .. "))))
    assert any(pattern.search(text) for text in texts)


def test_the_page_has_messages():
    assert len(MESSAGES) > 20
