"""The documentation site builds without a warning, and the README keeps its limits."""

import dataclasses
import html
import re
import subprocess
import sys

import pytest
import yaml

from gpt1_ds.settings.command_line import field_docs
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig
from tests.conftest import ROOT

PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / "docs").glob("*.ipynb")]
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What `make docs` builds."""
    (command,) = re.findall(r"(?m)^\t@\$\(BIN\)/(sphinx-build .*) docs \S+$", makefile())
    folder = tmp_path_factory.mktemp("site")
    words = [*command.split()[1:], "docs", folder / "html"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert not done.returncode and not done.stderr, done.stderr
    assert "-W" in words
    return folder / "html"


def makefile():
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_page_is_built_and_in_the_menu(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        assert (site / f"{page.stem}.html").exists()
        assert page.stem == "index" or f'href="{page.stem}.html"' in index


@pytest.mark.parametrize("config", [PretrainConfig, FinetuneConfig])
def test_the_reference_has_every_setting_with_default_and_meaning(site, config):
    text = (site / "configuration.html").read_text(encoding="utf-8")
    rows = [plain(row) for row in re.findall(r"(?s)<tr.*?</tr>", text)]
    for section in dataclasses.fields(config):
        values = getattr(config(), section.name)
        for key, meaning in field_docs(type(values)).items():
            default = yaml.safe_dump(getattr(values, key), default_flow_style=True).split("\n")[0]
            start, end = f"{key} {default} ", meaning.replace("`", "")[-15:]
            assert [row for row in rows if row.startswith(start) and row.endswith(end)], start


def plain(markup: str) -> str:
    """The text of a row, with single spaces."""
    text = html.unescape(re.sub("<[^>]+>", "", markup.replace("</td>", " ")))
    return " ".join(text.split())


@pytest.mark.parametrize("page", OTHERS, ids=lambda path: path.name)
def test_links_within_the_checkout_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]
