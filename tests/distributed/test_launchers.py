"""Launchers are known by their programs."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpt1_ds.distributed.launchers import is_launcher, launchers
from tests.conftest import ROOT

LAUNCHERS = [
    "/usr/bin/mpirun -n 2 python x.py",
    "prterun --np 2",
    "mpiexec.hydra -n 2",
    "srun --ntasks=2 bash run.sh",
    "slurmstepd: [77.0]",
    "/env/bin/python /env/bin/deepspeed --num_accelerators 2 train.py",
    "/env/bin/python3.12 -u -m deepspeed.launcher.launch --world_info=x train.py",
    "python -W ignore -X dev /env/bin/torchrun --nproc_per_node 2",
    "pypy3.10 -m torch.distributed.run --nproc_per_node 2",
    "python -mtorch.distributed.launch",
    "/env/bin/python -I /env/bin/accelerate launch train.py",
]
OTHERS = [
    "",
    "bash /home/me/deepspeed/run.sh",
    "/bin/bash /opt/site/mpirun -n 2",
    "sh -c deepspeed train.py",
    "/home/me/deepspeed/.venv/bin/python train.py",
    "python /home/me/torchrun/start.py",
    "python /home/me/deepspeed.py",
    "python my_deepspeed -m deepspeed.launcher.launch",
    "python -c import_deepspeed /env/bin/deepspeed",
    "python -m suite deepspeed",
    "python -X torchrun",
    "tmux new mpirun",
    "timeout 90 deepspeed train.py",
    "vim srun",
    "/opt/mpirun/bin/nohup x",
]


@pytest.mark.parametrize(
    ("line", "expected"), [(line, True) for line in LAUNCHERS] + [(line, False) for line in OTHERS]
)
def test_a_command_line(line, expected):
    words = [line] if line.startswith("slurmstepd") else line.split()
    assert is_launcher(words) is expected


ASK = "from gpt1_ds.distributed.launchers import launchers; print(len(launchers()))"


@pytest.mark.parametrize(
    ("name", "first_line", "expected"),
    [
        ("deepspeed", f"#!{sys.executable}", 1),
        ("deepspeed/run.sh", "#!/bin/sh", 0),
        ("deepspeed/torchrun", "#!/bin/bash", 0),
        ("torch.distributed/start.py", f"#!{sys.executable}", 0),
    ],
)
def test_real_processes_with_such_a_path(tmp_path: Path, name, first_line, expected):
    script = tmp_path / name
    script.parent.mkdir(exist_ok=True)
    lines = [first_line, f"{sys.executable} -c '{ASK}'", "true"]
    if "python" in first_line:
        lines[1:] = [f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {ASK!r}])"]
    script.write_text("\n".join(lines))
    script.chmod(0o700)
    done = subprocess.run([script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) == expected + len(launchers()), done.stderr
