"""Packages that a machine without network lacks, from a folder of wheels.

`make gpu-wheels` fills such a folder, for Python 3.12, from `wheels.txt`.
"""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from gpt1_ds.base.errors import ConfigError

LONGEST_INSTALLATION_SECONDS = 120


def install_missing(folder: Path, target: Path) -> list[str]:
    """Install the wheels of `folder` whose package this Python lacks; their names.

    They go to `target`, which belongs on PYTHONPATH. ConfigError if there are no wheels, or pip
    refuses one.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ConfigError(f"--wheels {folder}: no wheels there; make gpu-wheels writes them")
    lacking = {wheel.name.partition("-")[0]: wheel for wheel in wheels if not _is_here(wheel)}
    if lacking:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        pip += ["--no-compile", "--disable-pip-version-check", "--target", str(target)]
        done = subprocess.run(
            [*pip, *map(str, lacking.values())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST_INSTALLATION_SECONDS,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no word"])[0]
            raise ConfigError(f"--wheels {folder}: pip refuses them: {reason}")
    return sorted(lacking)


def _is_here(wheel: Path) -> bool:
    try:
        importlib.metadata.version(wheel.name.partition("-")[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
