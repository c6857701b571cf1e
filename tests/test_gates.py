"""The rules of `tests/gates.py`: the source follows them, and each rule finds violations."""

import ast

import pytest

from tests import gates

STATE_ROOM = gates.STATE_ROOMS[0]


@pytest.mark.parametrize("folder", gates.FOLDERS)
def test_the_source_keeps_the_rules(folder):
    found = [place for path in gates.sources(folder) for place in gates.violations(path)]
    assert not found, "\n".join(["", *found])


def test_the_formatter_decides():
    assert gates.count_formatter_off() <= gates.MOST_FORMATTER_OFF


def test_any_stays_at_the_borders():
    assert gates.count_any() <= gates.MOST_ANY


def test_the_rooms_of_private_names_exist():
    rooms = (gates.BEHAVIOUR_ROOM, *gates.UPDATE_ROOMS, gates.COUNTING_ROOM, *gates.STATE_ROOMS)
    for name in (*rooms, gates.STATE_READER):
        assert (gates.ROOT / name).is_file(), name


def test_the_operators_allowed_are_those_called():
    tree = ast.parse((gates.ROOT / gates.OPERATORS_FILE).read_text(encoding="utf-8"))
    called = {what.removeprefix("reaches into ") for _, what in gates.foreign_internals(tree)}
    assert called == set(gates.OPERATORS_CALLED)


# The functions `quicken_` explain the whole; the last two change nothing.
PARTS = (
    *("_is_known_partition", "Update", "PartitionUpdate", "WholeUpdate"),
    *("_quicken_without_zero", "_has_plain_buckets", "BucketReduction"),
    *("Part", "Parameter", "Gather", "reduce_scatter", "_rows", "wait"),
    *("was_skipped", "skipped_steps"),
)


def test_every_change_of_behaviour_is_explained():
    """Its docstring says why, where it was seen, when it ends, and until when it is needed."""
    changes = []
    for room in (gates.BEHAVIOUR_ROOM, *gates.UPDATE_ROOMS):
        tree = ast.parse((gates.ROOT / room).read_text(encoding="utf-8"))
        changes += [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    changes = [change for change in changes if change.name not in PARTS]
    assert len(changes) > 10
    for change in changes:
        text = ast.get_docstring(change) or ""
        labels = [word for word in text.split() if word in ("Why:", "Seen:", "Ends:", "Until:")]
        assert labels == ["Why:", "Seen:", "Ends:", "Until:"], change.name


def lines(rule: object, code: str) -> list[int]:
    """The lines of `code` in which `rule` finds something."""
    takes_text = rule in (*gates.TEXT_RULES, gates.formatter_off)
    return [line for line, _ in rule(code if takes_text else ast.parse(code))]


LONG_FUNCTION = "def f():\n" + "    pass\n" * gates.FUNCTION_LINES
BAD = [
    (gates.long_lines, "x = 1\n#" + "x" * gates.LINE_COLUMNS, 2),
    (gates.long_files, "x = 1\n" * (gates.FILE_LINES + 1), gates.FILE_LINES + 1),
    (gates.formatter_off, "x = 1\ny = 2  # fmt: skip\n", 2),
    (gates.formatter_off, "# fmt: off\nx  = 1\n", 1),
    (gates.long_functions, LONG_FUNCTION, 1),
    (gates.many_parameters, "def f(a, b, c, d, /, e, f, *, g, h): ...", 1),
    (gates.dense_comprehensions, "[a for b in c for a in b]", 1),
    (gates.dense_comprehensions, "[a for a in b if a if not c]", 1),
    (gates.dense_comprehensions, "{a: [c for c in a] for a in b}", 1),
    (gates.uses_of_any, "from typing import Any\nx: dict[str, Any] = {}", 2),
    (gates.string_keyed_state, 'state["cursor"]', 1),
    (gates.string_keyed_state, 'manifest.get("zero_stage", 0)', 1),
]
GOOD = [
    (gates.long_lines, "x" * gates.LINE_COLUMNS),
    (gates.long_files, "x = 1\n" * gates.FILE_LINES),
    (gates.formatter_off, "# the format: official\n"),
    (gates.long_functions, LONG_FUNCTION.rsplit("    pass\n", 1)[0]),
    (gates.long_functions, LONG_FUNCTION.replace("def f", "def _parser")),
    (gates.many_parameters, "def f(self, a, b, c, d, e, f, g): ..."),
    (gates.dense_comprehensions, "[a for a in b if a]\n[c for c in d]"),
    (gates.string_keyed_state, 'state.get("lr")\nresult["losses"]'),
]
FOREIGN_BAD = [
    "engine._config",
    "run.engine._optimizer.x",
    "self.optimizer._swap_in(part)",
    "import torch.distributed as dist\ndist.distributed_c10d._world",
    "import torch\ntorch._dynamo.reset()",
    "from deepspeed import comm\ncomm._x",
    "from torch._compile import inner",
    "import torch._dynamo",
    'getattr(engine, "_config")',
    "import deepspeed\ndeepspeed.comm.comm = None",
    "import deepspeed\ndeepspeed.a, x = None, 1",
    "from deepspeed.comm import comm\nbackend = comm.cdb\nsetattr(backend, name, wrap)",
    "engine.step = guarded",
    "engine.optimizer.overflow: bool = False",
    "trainer.micro_steps += 1",
    "del engine.step",
    'setattr(engine, "step", guarded)',
    "import json\njson.dumps = other",
    "from torch.optim import Adam\nAdam.step = other",
]
FOREIGN_GOOD = [
    "engine.step()",
    "self.engine = engine",
    "engine = initialize()",
    "self._engine.step()",
    "import torch\nx = torch.zeros(1)\nx.requires_grad = True",
    "import os\nos.environ['A'] = 'b'\nos._exit(1)",
    "import torch\ntorch.__version__",
    "from gpt1_ds.distributed import heartbeat\nheartbeat.place = name",
    'getattr(engine.optimizer, "loss_scaler", None)',
]


@pytest.mark.parametrize(("rule", "code", "line"), BAD)
def test_a_rule_finds_what_it_forbids(rule, code, line):
    assert line in lines(rule, code)


@pytest.mark.parametrize(("rule", "code"), GOOD)
def test_a_rule_leaves_the_rest_alone(rule, code):
    assert lines(rule, code) == []


@pytest.mark.parametrize("code", FOREIGN_BAD)
def test_private_names_and_patches_are_found(code):
    assert lines(gates.foreign_internals, code)


@pytest.mark.parametrize("code", FOREIGN_GOOD)
def test_public_names_and_own_objects_are_not(code):
    assert lines(gates.foreign_internals, code) == []


CODE_OF_A_ROOM = """import torch
engine.step = guarded
x = torch._softmax_backward_data
"""


def test_patches_may_lie_in_their_rooms_only(monkeypatch, tmp_path):
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    rooms = [gates.BEHAVIOUR_ROOM, STATE_ROOM]
    for name in [*rooms, "gpt1_ds/train.py", gates.OPERATORS_FILE]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CODE_OF_A_ROOM)
        found = [place.split(": ", 1)[1] for place in gates.violations(path)]
        if name in rooms:
            assert found == []
        elif name == gates.OPERATORS_FILE:
            assert found == ["sets engine.step"]
        else:
            assert found == ["sets engine.step", "reaches into torch._softmax_backward_data"]


def test_the_command_prints_each_place(capsys, monkeypatch, tmp_path):
    path = tmp_path / "gpt1_ds" / "long.py"
    path.parent.mkdir()
    path.write_text("x" * 101)
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    assert gates.main([str(path)]) == 1
    assert capsys.readouterr().out.startswith("gpt1_ds/long.py:1: 101 columns\n1 violations")
    path.write_text("x")
    assert gates.main([str(path)]) == 0
