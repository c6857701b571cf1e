"""Every command that the documentation shows is one that works."""

import pytest

from tests.support.documented_commands import Line, Wrong, check, commands, pages

COMMANDS = commands()


def test_commands_are_found_in_every_kind_of_place():
    places = {line.place.split(":")[0] for line in COMMANDS}
    assert {"README.md", "CONTRIBUTING.md", "docs/data.md", "slurm/pretrain.sh"} <= places
    assert {"gpt1_ds/configs/finetune_sst2.yaml", "gpt1_ds/eval.py"} <= places
    assert len(pages()) > 15 and len(COMMANDS) > 100


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.place)
def test_a_documented_command_is_accepted_by_its_program(line):
    try:
        check(line)
    except Wrong as problem:
        pytest.fail(f"{line.place}: {line.text}\n{problem}", pytrace=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("python -m gpt1_ds.eval runs/gpt1 --dta shards", "--dta"),
        ("python -m gpt1_ds.evaluate runs/gpt1", "no such module"),
        ("python -m gpt1_ds.suite --init runs/a --tasks rte --grid optim.lr=1e-4,a", "float"),
        ("python gpt1_ds/train.py --deepspeed_config ds_configs/none.json", "none.json"),
        ("deepspeed gpt1_ds/train.py --deepspeed_config ds_configs/cpu.json optim.lrr=1", "lrr"),
        ("deepspeed --ranks 2 gpt1_ds/train.py --deepspeed_config ds_configs/cpu.json", "--ranks"),
        ("mpirun -n 2 python -m data_prep.build_shards --out shards", "--tokenizer"),
        ("mpirun --ranks 2 python -m data_prep.verify_shards shards", "--ranks"),
        ("sbatch slurm/pretrain.sh train.steps=3", "steps"),
        ("sbatch slurm/train.sh", "slurm/train.sh"),
        ("make quickstarts", "quickstarts"),
        ("pip install '.[mpis]'", "mpis"),
        ("gpt1-evaluate runs/gpt1", "gpt1-evaluate"),
        ("A=1 export-all; python -m gpt1_ds.plan --sweep", "export-all"),
        ("python -m gpt1_ds.plan 'model.preset=1.3b", "unexpected EOF"),
    ],
)
def test_a_command_that_would_fail_is_noticed(text, says):
    with pytest.raises(Wrong, match=says):
        check(Line("a page", text))
