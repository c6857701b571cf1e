"""The report and the suite's table in a real browser, at two widths and in both colour schemes."""

import csv
import io
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from gpt1_ds import report
from gpt1_ds.base.records import read_metrics
from gpt1_ds.reports.run_files import MOST_POINTS
from gpt1_ds.reports.suite_sections import write
from gpt1_ds.reports.suite_table import sections
from tests.reports.test_suite_table import made
from tests.support.chromium import Browser
from tests.support.report_runs import PARTS, lines, make_fine_tuning, make_run

DOWNLOAD_SECONDS = 60
LOOK = (Path(__file__).parent / "look_at_page.js").read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    pre_training, fine_tuning = make_run(folder / "<run>"), make_fine_tuning(folder / "sst2")
    return {
        "pre-training": pre_training,
        "fine-tuning": fine_tuning,
        "shorter": make_fine_tuning(folder / "short & <b>", steps=14),
    }


def address(out: Path, *folders: Path) -> str:
    report.main([*map(str, folders), "--out", str(out)])
    return out.resolve().as_uri()


def charts(browser: Browser) -> dict[str, dict]:
    assert browser.problems == []
    return {chart["title"]: chart for chart in browser.evaluate(f"{LOOK}\nchartsOfPage()")}


def click(browser: Browser, text: str) -> None:
    browser.evaluate(
        f'[...document.querySelectorAll("button")].find(b => b.textContent === {json.dumps(text)})'
        ".click()"
    )


def test_axes_marks_and_curves_of_a_pre_training_run(browser, runs, tmp_path):
    browser.open(address(tmp_path / "page.html", runs["pre-training"]), 1400)
    shown = charts(browser)
    loss = shown["Loss, nats"]
    assert {name: curve["points"] for name, curve in loss["curves"].items()} == {
        "train": 9,
        "validation bo<ks": 3,
    }
    assert loss["curves"]["train"]["path"].count("L") == 8
    assert [kind for kind, _ in loss["marks"]] == ["start", "spike", "lost"]
    assert "loss is not a number at step 4" in loss["marks"][2][1]
    assert shown["Learning rate"]["marks"] == []
    for name, label in {"tokens": "tokens", "time": "hours", "steps": "steps"}.items():
        click(browser, name)
        assert f"against {label};" in charts(browser)["Loss, nats"]["label"]
    assert browser.evaluate('document.querySelector("[data-axis=\\"3\\"]").disabled')
    browser.open(f"{(tmp_path / 'page.html').as_uri()}#tokens", 1400)
    assert "against tokens;" in charts(browser)["Loss, nats"]["label"]


def average(values: list[float], weight: float) -> list[float]:
    """TensorBoard's smoothing, as it is written there."""
    last, means = 0.0, []
    for count, value in enumerate(values, 1):
        last = last * weight + (1 - weight) * value
        means.append(last / (1 - weight**count))
    return means


def read_last(browser: Browser, title: str) -> str:
    """What the chart says after Tab and End, without a pointer."""
    figure = (
        f'[...document.querySelectorAll("figure")].find(f => f.textContent.includes("{title}"))'
    )
    browser.evaluate(f'{figure}.querySelector(".plot").focus()')
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="End")
    return str(charts(browser)[title]["read"])


def test_the_controls_of_a_fine_tuning_run(browser, runs, tmp_path):
    browser.open(address(tmp_path / "page.html", runs["fine-tuning"]), 1400)
    buttons = '[...document.querySelectorAll("[data-axis]")].map(b => [b.textContent, b.disabled])'
    assert browser.evaluate(buttons) == [
        ["steps", False],
        ["tokens", True],
        ["time", False],
        ["epochs", False],
    ]
    click(browser, "tokens")
    click(browser, "epochs")
    shown = charts(browser)
    assert "against epochs;" in shown["Loss, nats"]["label"]
    assert list(shown["Loss, nats"]["curves"]) == ["train", "task", "language model"]
    names = dict(shown["Task scores"]["names"])
    assert {"majority 0.500", "paper 0.913"} <= set(names)
    changed = "sst2: start at step 10: optim.lr 0.001 -> 0.05, log.prompt  -> <b>"
    assert all(["changed", changed] in chart["marks"] for chart in shown.values())
    assert read_last(browser, "Learning rate").startswith("epochs 2 ")

    click(browser, "task")
    assert list(charts(browser)["Loss, nats"]["curves"]) == ["train", "language model"]
    click(browser, "task")
    assert len(charts(browser)["Loss, nats"]["curves"]) == 3

    losses = [2 / step for step in range(1, 21)]
    assert "train 0.1 " in read_last(browser, "Loss, nats")
    browser.evaluate(
        'const slider = document.getElementById("smoothing"); slider.value = 0.9;'
        'slider.dispatchEvent(new Event("input"))'
    )
    smooth = average(losses, 0.9)[-1]
    assert f"train {smooth:.4g} (0.1)" in read_last(browser, "Loss, nats")
    assert browser.evaluate('document.querySelector("output").textContent') == "0.90"

    linear = charts(browser)["Loss, nats"]["curves"]["train"]["path"]
    browser.evaluate('document.getElementById("log").click()')
    logged = charts(browser)["Loss, nats"]
    assert logged["curves"]["train"]["path"] != linear and {"0.1", "1"} <= set(logged["ticks"])
    browser.evaluate('document.getElementById("log-axis").click()')
    assert "0" not in charts(browser)["Learning rate"]["ticks"]


def test_the_data_as_csv(browser, runs, tmp_path):
    folders = [runs["pre-training"], runs["fine-tuning"]]
    browser.open(address(tmp_path / "page.html", *folders), 1400)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    click(browser, "Download CSV")
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    while not (tmp_path / "runs.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    records = [
        {"run": folder.name, **record} for folder in folders for record in read_metrics(folder)
    ]
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in record.items()}
        assert {key: text for key, text in row.items() if text} == texts


def test_two_runs_in_one_chart(browser, runs, tmp_path):
    page = address(tmp_path / "page.html", runs["fine-tuning"], runs["shorter"])
    browser.open(page, 1400)
    shown = charts(browser)
    assert shown["Learning rate"]["ends"] == ["7.14e-5"], "of the run that ends at step 14"
    assert shown["Loss, nats"]["ends"] == ["0.07143", "0.1429", "0.1429"]
    parts = shown["Seconds a step"]
    assert list(parts["curves"]) == [f"{run} {p}" for run in ("sst2", "short & <b>") for p in PARTS]
    assert len({tuple(curve["look"]) for curve in parts["curves"].values()}) == 2 * len(PARTS)
    places = sorted(place for _, place in parts["names"])
    assert len(places) == 2 * len(PARTS)
    assert all(low - high >= 12 for high, low in pairwise(places)), "names do not overlap"
    click(browser, "short & <b>")
    alone = charts(browser)
    assert [list(chart["curves"]) for chart in alone.values()][1] == ["sst2"]
    assert alone["Loss, nats"]["ends"] == []
    click(browser, "sst2")
    text = browser.evaluate('document.getElementById("first").textContent')
    assert "all curves are switched off" in text


def test_runs_with_hardly_anything(browser, tmp_path):
    """One record, only losses that are no number, and no number at all."""
    first = {"step": 5, "split": "train", "loss": 2.0, "lr": 0.0, "elapsed_seconds": 3.0}
    lost = [{"step": step, "split": "train", "loss": float("nan"), "lr": 1e-3} for step in (1, 2)]
    nothing = [{"step": 1, "split": "train", "loss": float("inf")}]
    contents = {"one": [first], "lost": lost, "nothing": nothing}
    seen = {}
    for name, records in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(lines(*records))
        browser.open(address(tmp_path / f"{name}.html", tmp_path / name), 500)
        seen[name] = charts(browser)
        for box in ("log", "log-axis"):
            browser.evaluate(f'document.getElementById("{box}").click()')
        assert "NaN" not in json.dumps(charts(browser))
        assert browser.evaluate(f"{LOOK}\nfaultsOfPage()") == []
    assert seen["one"]["Loss, nats"]["curves"]["train"]["points"] == 1
    marks = seen["lost"]["Learning rate"]["marks"]
    assert marks == [["lost", "lost: loss is not a number from step 1 to 2"]]
    text = browser.evaluate("document.querySelector('main').textContent")
    assert "losses that are no number" in text and "1 of 1, steps 1 to 1" in text


def test_many_records(browser, tmp_path):
    """The curves are thinned out, but no spike is lost, and the file has everything."""
    count = 20_000
    records = []
    for step in range(1, count + 1):
        loss = 50.0 if step == 13_337 else 1 + 1 / step
        records.append({"step": step, "split": "train", "loss": loss, "lr": 1e-3, "tokens": step})
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "metrics.jsonl").write_text(lines(*records))
    page = address(tmp_path / "page.html", tmp_path / "many")
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    browser.open(page, 1400)
    shown = charts(browser)["Loss, nats"]
    assert shown["curves"]["train"]["points"] <= MOST_POINTS
    assert "50" in shown["ticks"]
    text = (
        "new Response(new Blob([Uint8Array.from(atob(csv), c => c.charCodeAt(0))]).stream()"
        '.pipeThrough(new DecompressionStream("gzip"))).text()'
    )
    assert browser.evaluate(text).count("\n") == count + 1


@pytest.fixture(scope="module")
def pages(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The address of a page of each kind."""
    out = tmp_path_factory.mktemp("suite")
    for variant in ("", "-scratch", "-no_lm"):
        for seed, score in enumerate((0.4, 0.6), 1):
            made(out, f"sst2-seed-{seed}{variant}", [score, 0.7])
            made(out, f"cola-seed-{seed}{variant}", [score], metric="matthews", majority=0.0)
    scores = {str(step): {"sst2": {"score": 0.5, "majority": 0.4}} for step in range(1, 30)}
    failures = {"rte-seed-1": {"exit_code": 3, "error": "w" * 300}}
    write(out, sections(out, failures, {"init": "runs/a", "scores": scores}))
    both = runs["pre-training"], runs["fine-tuning"]
    return {
        "pre-training": address(out / "a.html", both[0]),
        "fine-tuning": address(out / "b.html", both[1]),
        "both": address(out / "c.html", *both),
        "suite": (out / "table.html").as_uri(),
    }


@pytest.mark.parametrize("kind", ["pre-training", "fine-tuning", "both", "suite"])
def test_every_page_is_readable_at_each_width_and_in_each_scheme(browser, pages, kind):
    for width in (1400, 500):
        grounds = {}
        for scheme in ("light", "dark"):
            browser.open(pages[kind], width, scheme)
            browser.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
            assert browser.problems == []
            assert browser.evaluate(f"{LOOK}\nfaultsOfPage()") == [], (width, scheme)
            ground = "getComputedStyle(document.body).backgroundColor"
            grounds[scheme] = browser.evaluate(ground)
        assert grounds == {"light": "rgb(251, 251, 250)", "dark": "rgb(20, 22, 26)"}
    if kind == "suite":
        picture = "document.querySelector('img').currentSrc === document.querySelector('img').src"
        assert not browser.evaluate(picture), "a dark picture on a dark page"
    browser.call("Emulation.setEmulatedMedia", media="print")
    printed = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert printed == "rgb(255, 255, 255)"
