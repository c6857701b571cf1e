"""The definition of the apptainer image: what its `%post` does in a clean root.

apptainer itself is not needed: the sections of the definition are run by chroot, without the
variables, the home folder and the mounts of this machine.

`make test` starts from the Debian packages of this machine and from the packages of the test
environment, so that nothing large is downloaded: it shows that the commands of `%post` work, that
`%files` copies all that they need, and that the installed project runs. `make soak` starts from an
empty Debian and downloads everything: it shows that nothing is missing from the lists.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT, need

DEFINITION = ROOT / "slurm" / "gpt1_ds.def"


def section(name: str) -> str:
    found = re.search(rf"(?ms)^%{name}\n(.*?)(?=^%|\Z)", DEFINITION.read_text(encoding="utf-8"))
    assert found, f"no %{name} in {DEFINITION}"
    return found[1]


def copy_files(root: Path) -> None:
    """What `%files` puts into the image."""
    for line in section("files").strip().splitlines():
        source, target = line.split()
        folder = root / target.removeprefix("/")
        folder.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, folder / source, ignore=ignore)
        else:
            shutil.copy(ROOT / source, folder)


def settings_of_pip(root: Path) -> tuple[list[str], list[str]]:
    """What pip must know on this machine: its variables, and folders of wheels to mount."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    if "PIP_CERT" in variables:
        # Not at its own place: a package of certificates that %post installs may write there.
        shutil.copy(variables["PIP_CERT"], root / "certificates.pem")
        variables["PIP_CERT"] = "/certificates.pem"
    folders = [word for word in variables.get("PIP_FIND_LINKS", "").split() if os.path.isdir(word)]
    return [f"{name}={value}" for name, value in variables.items()], folders


def run_post(root: Path, mounts: str, timeout_seconds: int) -> str:
    """Run `%post` and `%test` in `root`, after `mounts` in a namespace of its own."""
    copy_files(root)
    pip, folders = settings_of_pip(root)
    wheels = "\n".join(
        f"mkdir -p {root}{folder}; mount --bind {folder} {root}{folder}" for folder in folders
    )
    for name in ("post", "test", "environment"):
        (root / f"{name}.sh").write_text(section(name), encoding="utf-8")
    script = f"""
        set -eu
        mount --make-rprivate /
        {mounts}
        {wheels}
        mkdir -p {root}/proc {root}/dev {root}/tmp
        mount -t proc proc {root}/proc
        mount --rbind /dev {root}/dev
        cp --dereference /etc/resolv.conf {root}/etc/resolv.conf
        in_image() {{ env -i {shlex.join(pip)} HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
            chroot {root} sh -ec "$1"; }}
        in_image "sh -e /post.sh" >&2
        in_image ". /environment.sh; cd /tmp; . /test.sh"
    """
    command = ["unshare", "--mount", "--pid", "--fork", "bash", "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_seconds, stdin=subprocess.DEVNULL
    )
    (root.parent / "post.log").write_text(done.stderr, encoding="utf-8")
    assert not done.returncode, done.stderr[-4000:]
    return done.stdout


def may_mount(folder: Path) -> bool:
    """Whether root may mount here: a container's often may not."""
    script = f"""
        mount -t tmpfs tmpfs {folder} && mkdir {folder}/upper {folder}/work {folder}/usr &&
        mount -t overlay overlay -o lowerdir=/usr,upperdir={folder}/upper,workdir={folder}/work \\
            {folder}/usr
    """
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True)
    return done.returncode == 0


def test_it_pins_the_torch_of_the_makefile():
    (torch,) = re.findall(r"(?m)^TORCH = (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert f" {torch}\n" in section("post")


def test_post_installs_the_project_in_a_clean_root(tmp_path):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    debian_python = Path(f"/usr/bin/python{version}")
    if os.geteuid() or not shutil.which("apt-get") or not debian_python.exists():
        pytest.skip(f"needs root, Debian or Ubuntu, and its python{version}")
    root, layers = tmp_path / "root", tmp_path / "layers"
    layers.mkdir()
    if not may_mount(layers):
        pytest.skip("root may not mount in this container")
    site = f"{root}/opt/venv/lib/python{version}/site-packages"
    overlays = {"/usr": f"{root}/usr", "/etc": f"{root}/etc", "/var": f"{root}/var"}
    overlays[sysconfig.get_paths()["purelib"]] = site
    mounts = [f"mount -t tmpfs tmpfs {layers}", f"ln -s usr/bin usr/sbin usr/lib usr/lib64 {root}"]
    for number, (lower, target) in enumerate(overlays.items()):
        options = f"lowerdir={lower},upperdir={layers}/{number},workdir={layers}/work-{number}"
        mounts.append(f"mkdir -p {layers}/{number} {layers}/work-{number} {target}")
        mounts.append(f"mount -t overlay overlay -o {options} {target}")
    mounts.append(f"mount -t tmpfs tmpfs {root}/usr/local")
    printed = run_post(root, "\n".join(mounts), timeout_seconds=240)
    assert "preset: gpt1\n" in printed


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_post_installs_everything_on_an_empty_debian(tmp_path):
    if os.geteuid() or not shutil.which("mmdebstrap"):
        need("mmdebstrap", "it is not installed, or this is not root")
    assert "\nFrom: debian:12-slim\n" in DEFINITION.read_text(encoding="utf-8")
    root = tmp_path / "root"
    subprocess.run(["mmdebstrap", "--variant=minbase", "bookworm", root], check=True)
    printed = run_post(root, "", timeout_seconds=3500)
    assert "preset: gpt1\n" in printed
