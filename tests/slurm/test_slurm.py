"""The batch scripts, run through `sbatch` by a real two-node Slurm on this machine.

They run in a folder that looks like the project's, so that their own default paths are tested.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from gpt1_ds.checkpoints.folder import find_checkpoint
from tests.conftest import ROOT
from tests.support.cases_shards import A_LINE_AT_ONCE, assert_plain_lines_of_both_stages
from tests.support.slurm_jobs import (
    END_SECONDS,
    SAVED,
    SMALL,
    STEPS,
    Job,
    assert_same_run,
    port_of,
    rank_processes,
    status,
    usr1_pending,
)


@pytest.fixture(scope="module")
def submit(cluster, project):
    def submit(script: str, *words: str, name: str, options=("--ntasks-per-node=1",), **env) -> Job:
        return Job(cluster, project, script, *words, name=name, options=options, **env)

    return submit


@pytest.fixture(scope="module")
def refusals(submit) -> dict[str, Job]:
    """Jobs that must not train, submitted together."""
    wrong = {
        "tasks": (("--ntasks-per-node=2", "--ntasks=3"), ()),
        "gpus": (("--gpus-per-node=2", "--ntasks-per-node=1"), ()),
        "driver": (("--gpus-per-node=1", "--ntasks-per-node=1"), ()),
        "batch": (("--nodes=1", "--ntasks-per-node=3"), ()),
        "option": (("--nodes=1", "--ntasks-per-node=1"), ("optim.ir=1",)),
    }
    return {
        name: submit("pretrain", *SMALL, *words, name=name, options=options)
        for name, (options, words) in wrong.items()
    }


@pytest.fixture(scope="module")
def side_by_side(cluster, submit, refusals) -> tuple[Job, Job]:
    """Two jobs on the same nodes: one left alone, and one that its time limit stops in the middle.

    Slurm looks at the limits twice a minute: until its warning is there, the second's ranks sleep
    (SIGSTOP).
    """
    two_ranks = ("--nodes=2", "--ntasks-per-node=2")
    limited = submit(
        "pretrain", *SMALL, name="limited", options=(*two_ranks, "--time=30", "--signal=USR1@30")
    )
    limited.until_step(3)
    cluster.command("scancel", "--signal=STOP", limited.id)
    cluster.command("scontrol", "update", f"JobId={limited.id}", "EndTime=now+55")
    alone = submit("pretrain", *SMALL, name="alone", options=two_ranks)
    running = ["squeue", "-h", "-t", "RUNNING,STOPPED", "-w", "node2", "-S", "i", "-o", "%i"]
    alone.until(
        lambda: cluster.command(*running).split() == [str(limited.id), str(alone.id)],
        "both to run on node2",
    )
    limited.until(
        lambda: usr1_pending(limited.name) == 4 or limited.field("Restarts") != "0",
        "the warning",
        60,
    )
    cluster.command("scancel", "--signal=CONT", limited.id)
    limited.until_requeued()
    cluster.command("scontrol", "update", f"JobId={limited.id}", "TimeLimit=30")
    return alone, limited


def test_nodes_have_names_of_their_own(cluster):
    assert (
        sorted(cluster.command("srun", "-N2", "--ntasks-per-node=1", "hostname").split())
        == cluster.nodes
    )


def test_data_preparation_on_two_nodes_is_byte_for_byte_that_of_one_process(
    cluster, project, sample, tiny_shards, tmp_path
):
    for name in ("slurm", "gpt1_ds", "data_prep"):
        (tmp_path / name).symlink_to(ROOT / name)
    train, valid = f"books={sample}/books/train", f"books={sample}/books/valid"
    job = Job(
        cluster,
        tmp_path,
        "prepare_data",
        train,
        "--validation",
        valid,
        name="data",
        options=("--ntasks-per-node=1",),
        GPT1_VOCAB_SIZE="512",
        PYTHONPATH=f"{A_LINE_AT_ONCE}:{ROOT}",
    )
    log = job.ended()
    assert "all as the manifest says" in log and job.field("NumNodes") == "2"
    assert_plain_lines_of_both_stages(log)
    names = sorted(path.relative_to(tiny_shards) for path in tiny_shards.rglob("*.tar"))
    assert names and all(
        (tmp_path / "shards" / n).read_bytes() == (tiny_shards / n).read_bytes() for n in names
    )
    assert (tmp_path / "shards" / "manifest.json").read_bytes() == (
        tiny_shards / "manifest.json"
    ).read_bytes()


def test_data_preparation_without_a_corpus_says_what_to_give(cluster, project):
    log = Job(
        cluster, project, "prepare_data", name="nodata", options=("--ntasks-per-node=1",)
    ).ended("FAILED", "2:0")
    assert "error: no corpus: give NAME=PATH" in log


def test_pretraining_on_two_nodes_of_two_ranks(cluster, side_by_side):
    alone, _ = side_by_side
    log = alone.ended()
    assert "on 4 ranks" in log and alone.field("NumNodes") == "2" and alone.field("Restarts") == "0"
    ended = status(alone.run)
    assert (ended["state"], ended["step"], ended["exit_code"]) == ("done", STEPS, 0)
    newest = find_checkpoint(alone.run)
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    assert newest.name == f"step-{STEPS:08d}" and manifest["world_size"] == 4
    assert not list(alone.project.glob(f"{alone.name}-*.failures"))


def test_the_time_limit_stops_requeues_and_changes_nothing(side_by_side):
    alone, limited = side_by_side
    alone.ended()
    log = limited.ended()
    assert "stopped: step" in log and log.count("run      runs/limited") == 2
    assert_same_run(limited.run, alone.run)


def test_two_jobs_on_the_same_nodes_keep_apart(side_by_side):
    alone, limited = side_by_side
    for job in side_by_side:
        job.ended()
    assert alone.field("NodeList") == limited.field("NodeList") == "node[1-2]"
    assert all(
        "lost a peer" not in job.log and "no process group" not in job.log for job in side_by_side
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tasks", "3 tasks do not divide over 2 nodes; give --nodes and --ntasks-per-node"),
        ("gpus", "1 tasks on a node of 2 GPUs; give --ntasks-per-node=2"),
        ("driver", "1 GPUs, but torch sees none"),
        ("batch", "train.global_batch 4 is not a multiple of 3 ranks"),
        ("option", "option 'optim.ir=1': no such setting; write optim.lr=1"),
    ],
)
def test_a_wrong_request_is_refused_in_a_line_and_not_requeued(refusals, name, words):
    log = refusals[name].ended("FAILED", "2:0")
    lines = [line for line in log.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and words in lines[0], log
    assert refusals[name].field("Restarts") == "0"


def test_preemption_stops_requeues_and_changes_nothing(cluster, submit, side_by_side):
    for job in side_by_side:
        job.ended()
    preempted = submit(
        "pretrain", *SMALL, name="preempted", options=("--nodes=2", "--ntasks-per-node=2")
    )
    preempted.until_step(3)
    words = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    urgent = cluster.sbatch(*words, cwd=preempted.project)
    preempted.until_requeued()
    assert cluster.wait(urgent, END_SECONDS)["JobState"] == "COMPLETED"
    log = preempted.ended()
    assert "stopped: step" in log and "CANCELLED" in log
    assert_same_run(preempted.run, side_by_side[0].run)


def test_a_killed_rank_is_followed_by_a_start_in_the_same_allocation(submit):
    job = submit("pretrain", *SMALL, name="killed")
    job.until_step(SAVED + 2)
    before, port = rank_processes("killed"), port_of("killed")
    os.kill(before[1], signal.SIGKILL)
    job.until(lambda: port_of("killed") not in (port, None), "the next start", 60)
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    log = job.ended()
    assert job.field("Restarts") == "0" and "starting again on the same nodes in 2 s" in log
    resumed = [line for line in log.splitlines() if line.startswith("steps    ")][1]
    assert int(resumed.split()[1]) >= SAVED and "lost a peer" in log
    assert job.steps() == list(range(1, STEPS + 1))


def test_starts_in_one_allocation_end_with_the_budget(submit):
    """Each start is killed before its first checkpoint; the pause before the next one grows."""
    late = [f"checkpoint.every={2 * STEPS}", "train.max_steps=100000"]
    job = submit("pretrain", *SMALL, *late, name="doomed", GPT1_RESTARTS="2")
    for start in (1, 2):
        job.until(
            lambda start=start: job.log.count("steps    ") == start and job.steps()[-1:] > [2],
            "some steps",
        )
        port = port_of("doomed")
        os.kill(rank_processes("doomed")[0], signal.SIGKILL)
        job.until(lambda port=port: port_of("doomed") != port, "the end of the start", 60)
    log = job.ended("FAILED", "137:0")
    assert log.count("starting again on the same nodes in 12 s") == 1
    assert "not queued again: 2 of 2 starts without a checkpoint" in log
    assert job.field("Restarts") == "0"


def test_a_failing_job_is_requeued_as_often_as_its_budget_allows(submit):
    # An environment in which no Python starts.
    job = submit("pretrain", *SMALL, name="failing", GPT1_RESTARTS="2", PYTHONHOME="/nowhere")
    job.until_requeued()
    log = job.ended("FAILED", "1:0")
    assert (
        "not queued again: 2 of 2 starts without a checkpoint" in log
        and job.field("Restarts") == "1"
    )


def test_scancel_ends_a_job_for_good_with_a_checkpoint_and_a_stop_without_requeue_exits_75(
    cluster, submit
):
    endless = (*SMALL, "train.max_steps=100000")
    cancelled, stopped = (
        submit("pretrain", *endless, name=name) for name in ("cancelled", "stopped")
    )
    cancelled.until_step(3)
    cluster.command("scancel", cancelled.id)
    stopped.until_step(3)
    cluster.command("scontrol", "update", f"JobId={stopped.id}", "Requeue=0")
    cluster.command("scancel", "--signal=USR1", stopped.id)
    stopped.ended("FAILED", "75:0")
    cancelled.ended("CANCELLED", "0:15")
    for job in (cancelled, stopped):
        job.until(lambda job=job: status(job.run)["state"] == "stopped", "the checkpoint", 30)
        assert status(job.run)["exit_code"] == 75 and job.field("Restarts") == "0"
        assert find_checkpoint(job.run).name == f"step-{status(job.run)['step']:08d}"


def test_a_node_killed_in_the_middle_is_made_up_for_by_the_one_left(cluster, submit):
    cluster.wait_until_idle()
    job = submit(
        "pretrain", *SMALL, name="survivor", options=("--nodes=1-2",), GPT1_TASKS_PER_NODE="2"
    )
    job.until_step(SAVED + 2)
    assert (job.field("NumNodes"), job.field("BatchHost")) == ("2", "node1")
    cluster.kill_node("node2")
    try:
        job.until(
            lambda: (
                "down" in cluster.command("sinfo", "-h", "-n", "node2", "-p", "main", "-o", "%T")
            ),
            "node2 down",
        )
        job.until_requeued()
        log = job.ended()
    finally:
        cluster.start_node("node2")
        cluster.wait_until_idle()
    assert job.field("NumNodes") == "1" and "on 4 ranks" in log and "on 2 ranks" in log
    assert job.steps() == list(range(1, STEPS + 1)) and status(job.run)["state"] == "done"
