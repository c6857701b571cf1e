"""What is written is what is meant: names that look like numbers, duplicate keys, `~`."""

import datetime
from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig
from gpt1_ds.settings.written import parse, plain

NAMES = (
    "1.10 0123 0o17 0x1F 1_000 12:30:45 2024-01-01 2024-13-45 2024-01-01T10:00:00 yes No on TRUE "
    "1e3 1. +7 -0 0b11 1,000"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_keeps_its_spelling(tmp_path: Path, name: str):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"run: {{name: '{name}'}}\nlog:\n  prompt: {name}\n"
        f"task:\n  labels:\n  - {name}\n  - b\n  files: {{{name}: {name}}}\n"
        f"data: {{weights: {{{name}: 2}}}}\n".replace(
            "{1,000: 1,000}", "{'1,000': '1,000'}"
        ).replace("{1,000: 2}", "{'1,000': 2}")
    )
    config = load(FinetuneConfig, file, [])
    words = [f"run.name={name}", f"log.prompt={name}", f"data.weights.{name}=2"]
    words += [f"task.labels=['{name}', b]", f"task.files.{name}={name}"]
    for found in (config, load(FinetuneConfig, None, words)):
        assert found.run.name == found.log.prompt == name
        assert found.task.labels == [name, "b"] and found.task.files == {name: name}
        assert found.data.weights == {name: 2.0}


def test_null_is_no_name_and_truth_values_stay_truth_values():
    for text in ("null", "~", ""):
        with pytest.raises(ConfigError, match="run.name is None; expected str"):
            load(PretrainConfig, None, [f"run.name={text}"])
    assert load(PretrainConfig, None, ["data.verify=no"]).data.verify is False
    labels = load(FinetuneConfig, None, ["task.labels=[yes, no, =]"]).task.labels
    assert labels == ["yes", "no", "="]


def test_yaml_is_read_as_ever_beside_the_spelling():
    text = "a: [1, 0x10, 1.5, null, 2024-01-01, yes]\nb: &x {c: 1, d: {e: f}}\ng: {<<: *x, c: 2}\n"
    date = datetime.date(2024, 1, 1)
    b = {"c": 1, "d": {"e": "f"}}
    assert plain(parse(text)) == {"a": [1, 16, 1.5, None, date, True], "b": b, "g": b | {"c": 2}}
    assert plain(parse("")) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lr: 1e-4, eps: 1e-8, lr: 2e-4}", "'optim.lr' is given twice, in lines 1 and 1"),
        ("run: {seed: 1}\nlog:\nrun: {seed: 1}", "'run' is given twice, in lines 1 and 3; keep"),
        ("data: {weights: {a: 1, b: 1, 'a': 1}}", "'data.weights.a' is given twice"),
        ("run: &a {seed: 1, seed: 1}\noptim: {<<: *a, lr: 1}", "'run.seed' is given twice"),
        ("{[1]: 2}", "a key must be a plain word"),
        ("[" * 3000, "not valid YAML"),
        ("run: &a {x: *a}", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
    ],
)
def test_yaml_files_that_are_refused(tmp_path: Path, text: str, words: str):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(PretrainConfig, tmp_path / "run.yaml", [])
    assert "run.yaml" in str(error.value) and words in str(error.value)


def test_a_mapping_of_an_option_with_a_key_given_twice():
    with pytest.raises(ConfigError, match=r"data\.weights=.*'a' is given twice"):
        load(PretrainConfig, None, ["data.weights={a: 1, a: 2}"])
    assert load(PretrainConfig, None, ["optim.lr=1", "optim.lr=2"]).optim.lr == 2


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.yaml").write_text(
        "run: {dir: ~/runs}\ndata: {shards: ~/s, cache: ~/c}\ninit: {checkpoint: ~/runs/a}\n"
        "task: {data: ~/t, files: {dev: ~/dev.tsv}}\n"
    )
    options = ["run.dir=~/runs", "data.shards=~/s", "data.cache=~/c", "init.checkpoint=~/runs/a"]
    options += ["task.data=~/t", "task.files={dev: ~/dev.tsv}"]
    for config in (
        load(FinetuneConfig, tmp_path / "run.yaml", []),
        load(FinetuneConfig, None, options),
    ):
        assert (config.run.dir, config.data.shards) == ("/home/me/runs", "/home/me/s")
        assert (config.data.cache, config.init.checkpoint) == ("/home/me/c", "/home/me/runs/a")
        assert (config.task.data, config.task.files) == ("/home/me/t", {"dev": "/home/me/dev.tsv"})
    alone = load(FinetuneConfig, None, ["run.dir=~", "data.shards=~", "task.data=~"])
    assert alone.run.dir == alone.data.shards == alone.task.data == "/home/me"
    config = load(FinetuneConfig, None, ["init.checkpoint=~", "data.shards=https://a/~b"])
    assert config.init.checkpoint is None and config.data.shards == "https://a/~b"
