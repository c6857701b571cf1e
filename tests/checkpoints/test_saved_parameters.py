"""Elements of parameters out of the files of many ranks: the right ones, from few files."""

import importlib.util
import sys

import pytest
import torch

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints import saved_parameters
from gpt1_ds.checkpoints.deepspeed_files import allow_known_classes
from gpt1_ds.checkpoints.folder import read_checkpoint_manifest
from gpt1_ds.checkpoints.saved_parameters import SavedParameters, even_shares, read_weights
from gpt1_ds.model.gpt import GPTConfig
from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale)

SHAPE = GPTConfig(500, 2, 2, 24, 16)


@pytest.fixture(scope="module", params=[(2, 8), (3, 8), (2, 64), (3, 64)])
def folder(request, tmp_path_factory):
    """A checkpoint of this stage and so many ranks."""
    folder = tmp_path_factory.mktemp("many") / "step-00000001"
    scale.write_checkpoint(folder, SHAPE, *request.param)
    allow_known_classes()
    return folder


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that are opened, once for each time."""
    names, load = [], saved_parameters.load_file

    def noting(path):
        names.append(path.name)
        return load(path)

    monkeypatch.setattr(saved_parameters, "load_file", noting)
    return names


def reader(folder) -> SavedParameters:
    return SavedParameters(folder, read_checkpoint_manifest(folder))


def expected(folder) -> dict[str, torch.Tensor]:
    """Every parameter, from all files put together by hand."""
    manifest = read_checkpoint_manifest(folder)
    ranks, stage = manifest.layout.world_size, manifest.layout.zero_stage
    kept = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    flats = []
    for rank in range(ranks):
        path = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        flats.append(torch.load(path)["optimizer_state_dict"][kept])
    found = {}
    groups = scale.parameters_of(SHAPE)
    if stage == 3:
        place = 0
        for name, shape in (groups[0] | groups[1]).items():
            share = -(-shape.numel() // ranks)
            parts = [flat[0][place : place + share] for flat in flats]
            found[name] = torch.cat(parts)[: shape.numel()].view(shape)
            place += share
        return found
    for part, group in enumerate(groups):
        row, place = torch.cat([flat[part] for flat in flats]), 0
        for name, shape in group.items():
            found[name] = row[place : place + shape.numel()].view(shape)
            place += shape.numel()
    return found


def test_every_span_has_the_elements_of_the_whole(folder):
    saved, whole = reader(folder), expected(folder)
    chance = torch.Generator().manual_seed(0)
    read = read_weights(folder, read_checkpoint_manifest(folder))
    for name, tensor in whole.items():
        assert torch.equal(read[name], tensor) and torch.equal(saved.weight(name), tensor)
        number, flat = tensor.numel(), tensor.flatten()
        for _ in range(5):
            start, end = sorted(torch.randint(number + 1, (2,), generator=chance).tolist())
            state = saved.state(name, start, end - start)
            assert torch.equal(saved.elements(name, start, end - start), flat[start:end])
            assert torch.equal(state["exp_avg"], flat[start:end] * 0.1)
            assert state["step"] == 1.0


def test_the_shares_of_all_ranks_are_all_elements_once(folder):
    saved = reader(folder)
    shapes = {name: saved.shape(name) for name in saved.names()}
    for parts in (1, 3, 8):
        for shares in (saved.shares, lambda *which: even_shares(shapes, *which)):
            seen = {name: torch.zeros(shape.numel()) for name, shape in shapes.items()}
            for part in range(parts):
                for name, start, length in shares(part, parts):
                    seen[name][start : start + length] += 1
            assert all((count == 1).all() for count in seen.values())


def test_a_rank_opens_the_files_of_its_own_elements_alone(folder, opened):
    """A share of each parameter, as ZeRO-3 cuts them for half as many ranks; and what it checks."""
    ranks = read_checkpoint_manifest(folder).layout.world_size
    halved = ranks // 2
    listed: list[str] = []
    sys.addaudithook(lambda event, _: event == "os.scandir" and listed.append(event))
    saved = reader(folder)
    for name in saved.names():
        number = saved.shape(name).numel()
        share = -(-number // halved)
        start = min(number, share * (halved // 2))
        saved.elements(name, start, min(share, number - start))
    for name, start, length in saved.shares(halved // 2, halved):
        saved.elements(name, start, length)
    files = {name for name in opened if "optim" in name}
    assert len(opened) == len(set(opened)), "none is opened twice"
    assert len(files) < (16 if saved.stage == 3 else 40) and not listed


def test_what_is_missing_is_named(folder):
    manifest = read_checkpoint_manifest(folder)
    name = "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt"
    del manifest.files[name]
    saved = SavedParameters(folder, manifest)
    with pytest.raises(DataError, match="no optimizer state of rank 3"):
        saved.weight("wte")
