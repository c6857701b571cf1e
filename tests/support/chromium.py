"""A browser for tests of pages."""

import shutil

from tests.conftest import need

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str:
    """The path of a Chromium on PATH; the test is skipped, or fails in CI, if there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    need("chromium", "no chromium on PATH: apt-get install chromium")
