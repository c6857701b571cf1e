"""A real Slurm cluster on this machine for tests: munge, one controller, and named nodes.

Each node is a `slurmd` in its own process, mount and UTS namespace. So it has its own host name,
and a kill ends all its processes. All files are in one temporary folder, and all ports are on the
loopback interface. No service, cgroup or configuration of the machine changes. It needs root,
`unshare`, and the packages slurmctld, slurmd, slurm-client and munge of the distribution.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.ranks import die_with_parent

SYSTEM_PATH = f"/usr/sbin:/sbin:{os.environ['PATH']}"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
FINAL_STATES = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "OUT_OF_MEMORY",
}

# All nodes have one address and different ports. With several addresses, srun would wait for ever
# at the wrong one. config_overrides lets a node claim CPUs that the machine does not have.
# cred_expire is the delay in seconds of a requeued job.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
KillWait=5
SlurmdTimeout=10
MessageTimeout=10
MinJobAge=3600
SlurmctldDebug=debug2
"""
# A job in "urgent" takes the nodes of one in "main", which gets SIGTERM, then these seconds, and is
# queued again.
PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
# Slurm requires a device file for each GPU but never opens it.
GPUS = """\
AutoDetect=off
Name=gpu File=/dev/null
Name=gpu File=/dev/zero
"""


def missing() -> str | None:
    """The reason why no cluster can start here, as a sentence for the user; None if it can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=SYSTEM_PATH)]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurmctld slurmd slurm-client munge"
    if (
        os.geteuid() != 0
        or subprocess.run([*_namespaces(), "true"], capture_output=True).returncode
    ):
        return "a test cluster needs root and permission to make namespaces (unshare)"
    return None


class SlurmCluster:
    """Context manager for a cluster of `nodes` idle nodes named node1, node2, .."""

    def __init__(self, nodes: int = 2, cpus_a_node: int = 16):
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.cpus_a_node = cpus_a_node
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.env = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SYSTEM_PATH}
        self._processes: list[subprocess.Popen] = []
        self._node_processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "SlurmCluster":
        try:
            self._configure()
            # As root, munged requires a private key, and a socket folder that other users cannot
            # write to.
            munge = self.folder / "munge"
            options = {
                "socket": "socket",
                "key-file": "key",
                "log-file": "log",
                "pid-file": "pid",
                "seed-file": "seed",
            }
            self._spawn(
                "munged",
                "--foreground",
                *(f"--{name}={munge / file}" for name, file in options.items()),
            )
            self.until(lambda: (munge / "socket").exists(), "munged to open its socket", 20)
            self._spawn("slurmctld", "-D")
            for node in self.nodes:
                self.start_node(node)
            self.wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.kill()  # this also ends the node's namespace and every job on the node
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_node(self, node: str) -> None:
        # Bash is the first process of the namespace: it reaps the children of a killed step.
        hosts = f"mount --bind {self.folder}/hosts /etc/hosts"
        script = f"hostname {node}; {hosts}; slurmd -D -N {node} & wait $!"
        self._node_processes[node] = self._spawn(*_namespaces(), "bash", "-c", script)

    def kill_node(self, node: str) -> None:
        """Kill all processes of the node at once, like a power failure."""
        self._node_processes[node].kill()
        self._node_processes[node].wait()

    def wait_until_idle(self) -> None:
        idle = ["sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"]
        self.until(
            lambda: len(self.command(*idle).split()) == len(self.nodes), "all nodes to be idle", 60
        )

    def command(self, *words: object) -> str:
        """Output of a Slurm client command; empty if it failed."""
        words = [str(word) for word in words]
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
        return done.stdout

    def sbatch(self, *words: object, cwd: Path, **env: str) -> int:
        """Submit a script from the folder `cwd`; returns the job id."""
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, words)],
            cwd=cwd,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split(";")[0])

    def wait(self, job: int, timeout_seconds: float) -> dict[str, str]:
        """Wait for the end of a job; returns its fields of `scontrol show job`.

        Raises `TimeoutError` if it does not end in time.
        """
        self.until(
            lambda: self.job(job).get("JobState") in FINAL_STATES,
            f"job {job} to end",
            timeout_seconds,
        )
        return self.job(job)

    def job(self, job: int) -> dict[str, str]:
        return dict(re.findall(r"(\S+?)=(\S*)", self.command("scontrol", "show", "job", job)))

    def logs(self) -> str:
        """The end of each daemon's log, for a failing test's message."""
        return "\n".join(
            f"{path.name}:\n{path.read_text()[-2000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def _configure(self) -> None:
        for name in ("munge", "state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(mode=0o755)
        self.folder.chmod(0o755)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        names = "".join(f"127.0.0.1 {node}\n" for node in self.nodes)
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
        (self.folder / "gres.conf").write_text(GPUS)
        ports = _free_ports(len(self.nodes) + 1)
        lines = [
            CONFIGURATION.format(
                folder=self.folder, host=socket.gethostname().split(".")[0], port=ports[0]
            )
        ]
        for node, port in zip(self.nodes, ports[1:], strict=True):
            lines.append(
                f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} "
                f"CPUs={self.cpus_a_node} "
                "RealMemory=4000 Gres=gpu:2 State=UNKNOWN\n"
            )
        lines.append(PARTITIONS)
        (self.folder / "slurm.conf").write_text("".join(lines))

    def _spawn(self, *words: str) -> subprocess.Popen:
        with open(
            self.folder / f"{Path(words[0]).name}-{len(self._processes)}.out.log", "w"
        ) as log:
            process = subprocess.Popen(
                words,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._processes.append(process)
        return process

    def until(self, condition, what: str, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_seconds:.0f} s for {what}\n{self.logs()}")
            time.sleep(0.1)


def _namespaces() -> list[str]:
    return ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
