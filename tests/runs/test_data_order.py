"""A run keeps the order of windows that it began with, wherever its shards lie then."""

import json
from pathlib import Path

import pytest
import yaml

from data_prep import trace
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import open_streams
from gpt1_ds.data.order import GROUPED, GROUPED_1, SHUFFLES, Cursor, WindowOrder
from gpt1_ds.runs.data_order import check_cache
from gpt1_ds.settings.sections import DataConfig
from tests.settings.test_deepspeed_json import FOLDER
from tests.support.loopback import serve
from tests.support.shards_built import build

TRAININGS = "tests.support.cases_start:output_of_trainings"
STEPS = 4
SETTINGS = (
    *("--deepspeed_config", str(FOLDER / "cpu.json"), "model.preset=gpt1-tiny", "model.n_ctx=32"),
    *("train.global_batch=4", "log.every=1", "eval.batches=1", "schedule.total_steps=4"),
    *("schedule.warmup_steps=1", "optim.lr=1e-3", "eval.every=100"),
)


@pytest.fixture
def train(ranks, tmp_path):
    """Start the run `name` on two ranks up to step `steps`; what rank 0 said."""

    def start(name: str, shards: Path | str, steps: int, *more: str) -> str:
        words = [*SETTINGS, f"run.dir={tmp_path}", f"run.name={name}", f"data.shards={shards}"]
        words += [f"data.cache={tmp_path / 'cache'}", f"train.max_steps={steps}", *more]
        return ranks(2).run(TRAININGS, "train", words)[0][0]

    return start


def trained(run: Path) -> tuple[list[float], dict[str, bytes]]:
    """The loss of each step, and the bits of the last weights."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["split"] == "train"]
    assert len(losses) == STEPS
    weights, _ = load_weights(run / "checkpoints" / f"step-{STEPS:08d}")
    return losses, {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


def recorded(run: Path) -> tuple[str | None, str]:
    """The order in the newest checkpoint and in config.yaml."""
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    state = json.loads((newest / "state.json").read_text())
    return state.get("order"), yaml.safe_load((run / "config.yaml").read_text())["data"]["order"]


def test_the_setting_names_every_order():
    (bounds,) = (
        field.metadata["bounds"]
        for name, field in DataConfig.__dataclass_fields__.items()
        if name == "order"
    )
    assert bounds.choices == tuple(SHUFFLES)


def test_a_run_moves_to_a_url_and_back_in_its_order_to_the_same_bits(train, tiny_shards, tmp_path):
    train("global", tiny_shards, STEPS)
    train("grouped", tiny_shards, STEPS, "data.order=grouped")
    with serve(tiny_shards) as server:
        train("moved there", tiny_shards, 2)
        said = train("moved there", server.url, STEPS)
        begun = train("moved back", server.url, 2)
    back = train("moved back", tiny_shards, STEPS)
    shards = read_manifest(tiny_shards).splits["train"]["books"].shards
    told = [line for line in said.splitlines() if "data.order is global: " in line]
    assert len(told) == 1 and f"until all {len(shards)} shards (" in told[0]
    assert server.url in told[0]
    assert "order grouped" in begun and "data.order is" not in begun + back
    for moved, kind in (("moved there", "global"), ("moved back", "grouped")):
        assert trained(tmp_path / moved) == trained(tmp_path / kind)
        assert recorded(tmp_path / moved) == (kind, kind) == recorded(tmp_path / kind)
    assert trained(tmp_path / "global")[0] != trained(tmp_path / "grouped")[0]


def test_another_order_than_the_runs_is_refused(train, tiny_shards, tmp_path):
    train("run", tiny_shards, 2)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    said = train("run", tiny_shards, STEPS, "data.order=grouped")
    assert "began with data.order=global" in said and "now data.order is grouped: leave it" in said
    assert "warning" not in said and (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert "error" not in train("run", tiny_shards, STEPS, "data.order=global")
    said = train("run", tiny_shards, STEPS, "data.order=shuffled")
    assert "data.order is 'shuffled'; choose from: global, grouped, grouped-1" in said


def test_a_run_without_a_record_goes_on_in_the_early_order(train, tiny_shards, tmp_path, capsys):
    """As one of commit 40f89c3, whose checkpoints and config.yaml do not name an order."""
    train("whole", tiny_shards, STEPS, f"data.order={GROUPED_1}")
    train("run", tiny_shards, 2, f"data.order={GROUPED_1}")
    run = tmp_path / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["data"]["order"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    trace.main([str(run), "--step", "2"])
    early = capsys.readouterr().out
    said = train("run", tiny_shards, STEPS)
    assert f"order {GROUPED_1}" in said and "data.order" not in said
    assert trained(run) == trained(tmp_path / "whole")
    assert recorded(run) == (None, GROUPED_1)
    trace.main([str(run), "--step", "2"])
    assert capsys.readouterr().out == early
    train("other", tiny_shards, 2)
    trace.main([str(tmp_path / "other"), "--step", "2"])
    assert capsys.readouterr().out != early


def test_a_cache_that_is_too_small_for_the_global_order_is_refused(train, tiny_shards):
    shards = read_manifest(tiny_shards).splits["train"]["books"].shards
    needed = sum(shard.bytes for shard in shards)
    with serve(tiny_shards) as server:
        few = f"data.cache_bytes={needed - 1}"
        said = train("global", server.url, 2, "data.order=global", few)
        assert f"{few.replace('=', ' ')}: below the {needed} bytes of the shards in" in said
        assert "raise it, give a folder" in said and "step 1" not in said
        assert "error" not in train("run", server.url, 2, f"data.cache_bytes={needed}")


@pytest.mark.parametrize("kind", [GROUPED, GROUPED_1])
def test_a_cache_that_is_too_small_for_a_grouped_order_is_told(kind, tmp_path, capsys):
    built = build(tmp_path / "shards", [[900]] * 8)
    order = WindowOrder({"a": 7200}, 10, 1, {}, kind)
    needed = sum(shard.bytes for shard in built.manifest.shards())
    for limit in (needed, needed - 1):
        data = DataConfig(built.root.as_uri(), cache=str(tmp_path / "cache"), cache_bytes=limit)
        streams = list(open_streams(data, built.manifest, "train").values())
        check_cache(order, streams, data, Cursor())
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"warning: data.cache_bytes {needed - 1}: below the {needed} bytes of the 8 shards" in line
    )
    assert f"data.order={kind} reads at a time" in line and line.endswith("; raise it")
    check_cache(order, streams, DataConfig(str(built.root), cache_bytes=1), Cursor())
    assert capsys.readouterr().err == ""


def test_an_order_of_a_later_version_is_refused(train, tiny_shards, tmp_path):
    train("run", tiny_shards, 2)
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/state.json"):
        path.write_text(path.read_text().replace('"global"', '"spiral"'))
    said = train("run", tiny_shards, STEPS)
    assert "began with the data.order spiral, which this version does not know" in said
