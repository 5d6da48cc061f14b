"""report.html: every section for every kind of run, exact figures, both languages, and nothing that a row planted."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from seedx_batch import parts, report
from seedx_batch.report import charts, page, results, rows, timeline
from seedx_batch.rundir import RunDirectory
from seedx_batch.stats import Histogram
from seedx_batch.status import Reading
from tests import browser
from tests.jobs import REPOSITORY, ask, write_job
from tests.runs import BEGAN, MACHINE, failed, hold, make_run, ok, plan_and_commit, write_ledger

SECTIONS = ["what_ran", "rows", "tokens", "over_time", "errors", "launches", "shards", "samples"]
CHARTS = {"source", "output", "throughput", "in-flight", "starts"}
TEXTS = [f"第{number}句话" for number in range(45)]
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> {{ 7 * 7 }} \x1b[31m\u202e &amp; \x00"
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "input", "header", "main", "section", "footer", "details"),
    *("div", "h1", "h2", "h3", "span", "label", "p", "i", "b", "br", "dl", "dt", "dd", "code", "pre", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
    *("svg", "defs", "g", "rect", "line", "path", "text", "desc", "circle"),
}
"""What a report is made of."""


class Reader(HTMLParser):
    """What a browser would make of a page: elements, attributes, words by language, text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[str]:
        """The values of an attribute."""
        return [str(attributes[name]) for _, attributes in self.elements if name in attributes]


def read(run: RunDirectory, **options: Any) -> Reader:
    """The report of a run."""
    report.write(Reading(run.path), **options)
    return Reader(run.report.read_text(encoding="utf-8"))


def words(reader: Reader) -> str:
    """The page's text, spaces and newlines as one space."""
    return " ".join(reader.text.split())


def drawn(reader: Reader) -> set[str]:
    """The charts that are not empty."""
    return {label.removeprefix("about-") for label in reader.all("aria-labelledby")}


@pytest.fixture
def finished(tmp_path: Path) -> RunDirectory:
    """A run of 45 rows in five shards by one worker with four NPUs, in two starts with a pause of an hour between."""
    completions = [ok(f"sentence {number}") for number in range(45)]
    completions[7] = ok("cut", finish_reason="length", num_output_tokens=16)
    completions[9] = ok("sentence 8", deduplicated=True)
    run = make_run(tmp_path, TEXTS, completions, 5)
    told = {"hardware": MACHINE, "args": {"tensor_parallel_size": 4}, "pid": 1}
    counted = {"num_rows": 20, "num_prompt_tokens": 400, "num_output_tokens": 200, "num_in_flight": 16, "busy_s": 20.0}
    rest = {"num_rows": 25, "num_prompt_tokens": 500, "num_output_tokens": 256, "num_in_flight": 0, "busy_s": 10.0}
    write_ledger(
        run,
        [
            ("a", "started", 0, told),
            ("a", "loaded", 10, {"load_s": 10, "versions": {"vllm": "0.18.0"}}),
            ("a", "checkpoint", 30, counted),
            ("a", "stopped", 30, {}),
            ("b", "started", 3630, told),
            ("b", "loaded", 3640, {"load_s": 10, "versions": {"vllm": "0.18.0"}}),
            ("b", "checkpoint", 3660, rest),
            ("b", "finished", 3660, {}),
        ],
    )
    return run


def test_a_finished_run(finished: RunDirectory) -> None:
    """Every section and chart is there, and figures are those of footers and ledgers."""
    shown = read(finished, price=60.0)
    text = words(shown)
    assert shown.all("data-section") == SECTIONS
    assert set(shown.all("data-chart")) == drawn(shown) == CHARTS
    for wanted in (
        "finished",
        "45rows done, of 45 (100.0 %)",
        "900prompt tokens",
        "456output tokens",
        "Kunpeng 920, 192 CPUs, 1 TiB memory",
        "8 × Ascend NPU",
        "1 rows (2.2 %) were copied from an identical request, which saved 10 output tokens.",
        "No committed row is an error.",
        "2 starts, 0 of them after deaths of an engine",
        "job:small|model:simulated",
    ):
        assert wanted in text
    # Two starts of 30 s, on four devices each, at 60 an hour.
    hours = 2 * 30 * 4 / 3600
    assert f"{hours:.4g}device-hours" in text
    assert f"{60 * hours:.4g}cost, at 60 for a device-hour" in text
    assert f"{60 * hours / 456 * 1e6:,.0f}cost per million output tokens" in text


def test_samples_are_spread_evenly(finished: RunDirectory) -> None:
    """Twenty rows, from every part, each beside what was made of it."""
    reading = Reading(finished.path)
    reading.status()
    found = rows.samples(reading.footers.shards.values(), rows.Columns(("source",), ("translation",)))
    assert [sample.number for sample in found] == [int((place + 0.5) * 45 / 20) + 1 for place in range(20)]
    for sample in found:
        number = int(sample.id.removeprefix("r"))
        assert sample.number == number + 1
        assert sample.given == {"source": TEXTS[number]}
        assert number in (7, 9) or sample.made == {"translation": f"sentence {number}"}
    text = words(read(finished))
    assert sum(f"source{source} " in text or f"source{source}translation" in text for source in TEXTS) == 20


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    """A running run tells its rates of the last minute, and the page loads itself again only where it is made again."""
    run = make_run(tmp_path, TEXTS, [ok()] * 45, 2)
    hold(run)
    write_ledger(
        run, [("a", "started", 0, {}), ("a", "loaded", 1, {}), ("a", "checkpoint", 9, {"num_rows": 20, "busy_s": 8.0})]
    )
    shown = read(run, live=True)
    assert shown.all("data-section") == SECTIONS
    assert drawn(shown) == CHARTS
    assert ("meta", {"http-equiv": "refresh", "content": "5"}) in shown.elements
    text = words(shown)
    for wanted in ("running", "20rows done, of 45 (44.4 %)", "2shards committed, of 5", "still running", "time left"):
        assert wanted in text
    assert "refresh" not in read(run).all("http-equiv")


def test_errors_and_restarts(tmp_path: Path) -> None:
    """Every kind of error has up to three examples, every death and restart a line with its reason."""
    completions = [failed(f"empty_text: row {number}") for number in range(5)] + [failed("bad_row: why"), failed("odd")]
    completions += [ok()] * 38
    run = make_run(tmp_path, TEXTS, completions, 5)
    write_ledger(
        run,
        [
            ("a", "started", 0, {}),
            ("a", "loaded", 1, {}),
            ("a", "checkpoint", 5, {"num_rows": 20, "num_errors": 7}),
            ("l", "restarting", 6, {"message": "ended by SIGKILL", "num_restarts": 1}),
            ("b", "started", 7, {}),
            ("b", "died", 8, {"message": "out of memory"}),
            ("l", "failed", 9, {"message": "no more starts", "exit_code": 69}),
        ],
    )
    text = words(read(run))
    for wanted in (
        "7error rows",
        *(f"empty_text: row {number}" for number in range(3)),
        "bad_row: why",
        "odd",
        "2 starts, 1 of them after deaths of an engine",
        "started again: ended by SIGKILL",
        "its engine died",
        "ended with: out of memory",
    ):
        assert wanted in text
    assert "empty_text: row 3" not in text[text.index("By status") : text.index("Sample rows")]
    failed_run = make_run(tmp_path / "failed", TEXTS, completions, 4)
    write_ledger(failed_run, [("l", "failed", 9, {"message": "no more starts", "exit_code": 69})])
    assert "what ended the last launch" in words(read(failed_run))
    assert "no more starts" in words(read(failed_run))


def test_a_run_that_has_only_been_planned(tmp_path: Path) -> None:
    """With neither parts nor ledgers every section is there and says that there is nothing yet."""
    shown = read(make_run(tmp_path, TEXTS, [], 0), price=1.0)
    text = words(shown)
    assert shown.all("data-section") == SECTIONS
    assert set(shown.all("data-chart")) == CHARTS
    assert drawn(shown) == set()
    for wanted in ("planned", "0rows done, of 45", "Nothing to draw yet.", "No shard is committed yet.", "0 starts"):
        assert wanted in text


def test_nothing_that_a_run_holds_gets_into_the_markup(tmp_path: Path) -> None:
    """Markup and control characters of rows, ids, columns, files, errors, messages and results are text on the page."""
    folder = tmp_path / "<b>run"
    folder.mkdir()
    column = "<i onclick=1>&"
    job = write_job(
        folder,
        folder / "<u>rows.jsonl",
        prompt={"text": column},
        output={"column": "<s>out"},
    )
    values = [{"id": f"r{number}{EVIL}", column: f"{EVIL}{number}", "n": number} for number in range(10)]
    (folder / "<u>rows.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    completions = [ok(EVIL), failed(f"<em>: {EVIL}"), *[ok()] * 8]
    run = plan_and_commit(job, [value[column] for value in values], completions, 1)
    told = {"hardware": {"cpu": EVIL, "num_cpus": EVIL, "memory_bytes": 1, "devices": {EVIL: 2}}}
    lines = [("a", "started", 0, told), ("a", "died", 9, {"message": EVIL}), ("l", "restarting", 9, {"message": EVIL})]
    write_ledger(run, [*lines, ("b", "started", 10, told), ("b", "failed", 11, {"message": EVIL, "exit_code": 1})])
    (run.path / "parity.json").write_text(json.dumps({EVIL: EVIL, "list": [{EVIL: EVIL}]}))
    shown = read(run, live=True)
    text = run.report.read_text(encoding="utf-8")
    assert {tag for tag, _ in shown.elements} <= TAGS
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    assert words(shown).count("<script>alert('x')</script>") >= 8
    assert "{{ 7 * 7 }}" in words(shown)


def test_a_job_is_shown_without_secrets() -> None:
    """What stands at a key for secrets is not shown, however deep; what only sounds like one is."""
    job = {"engine": {"hf_token": "x", "more": [{"api_key": 1}]}, "decoding": {"eos_token": "e", "max_tokens": 5}}
    shown = {"engine": {"hf_token": "***", "more": [{"api_key": "***"}]}, "decoding": job["decoding"]}
    assert report.without_secrets(job) == shown


def test_examples_of_errors_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is read only for kinds that still lack examples, and of many kinds and parts only so many are."""
    kinds = [*["common"] * 10, *["common"] * 9, "rare", *[f"kind{number}" for number in range(10)], *["late"] * 10]
    run = make_run(tmp_path, TEXTS[:40], [failed(f"{kind}: x") for kind in kinds], 4)
    reading, read = Reading(run.path), list[Path]()
    reading.status()
    original = parts.error_rows

    def count(path: Path, columns: list[str]) -> Any:
        read.append(path)
        return original(path, columns)

    monkeypatch.setattr(parts, "error_rows", count)
    monkeypatch.setattr(rows, "_MOST_KINDS", 5)
    found = rows.error_examples(reading.footers.shards.values(), rows.Columns(("source",), ()))
    assert {kind: len(shown) for kind, shown in found.items()} == {
        "common": 3,
        "rare": 1,
        "kind0": 1,
        "kind1": 1,
        "kind2": 1,
    }
    assert read == [run.part(index, 4) for index in range(3)]


def test_a_preset_that_is_gone_costs_no_report(tmp_path: Path) -> None:
    """Where the prompts cannot be built any more, all carried columns stand beside the text."""
    preset = tmp_path / "mine.yaml"
    preset.write_text((REPOSITORY / "seedx_batch/presets/seed-x.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    run = make_run(tmp_path, TEXTS[:10], [ok("made of it")] * 10, 1, prompt={"preset": str(preset)})
    preset.unlink()
    text = words(read(run))
    assert f"source{TEXTS[3]}number3translationmade of it" in text


def test_results_of_other_commands_are_shown(finished: RunDirectory) -> None:
    """parity.json and bench.json become sections of tables; there are none without them."""
    (finished.path / "parity.json").write_text(json.dumps({"verdict": "ok", "prompts": [{"name": "fact", "kl": 1e-9}]}))
    (finished.path / "bench.json").write_text("{")
    shown = read(finished)
    assert shown.all("data-section") == [*SECTIONS, "parity", "bench"]
    for wanted in ("verdictok", "namekl", "fact1e-09", "bench.json"):
        assert wanted in shown.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": {"b": 1.5, "c": null}}', [results.Table("", [], [["a.b", "1.5"], ["a.c", ""]])]),
        ('[{"a": 1}, {"b": true}]', [results.Table("", ["a", "b"], [["1", ""], ["", "true"]])]),
        ("[1, 2]", [results.Table("", [], [["", "[1, 2]"]])]),
        ("[" * 100_000, None),
        ("", None),
    ],
)
def test_any_json_is_a_table(text: str, expected: list[results.Table] | None, tmp_path: Path) -> None:
    """Whatever the fields are there is a table of them, and one that says so where it is no JSON."""
    (tmp_path / "r.json").write_text(text)
    found = results.tables(tmp_path / "r.json")
    assert found == expected if expected is not None else found[0].rows[0][0] == "r.json"


def test_both_languages_say_everything() -> None:
    """Every word has two languages with the same places for values, the page asks for no other, and uses all."""
    vocabulary = page.vocabulary()
    for key, (english, chinese) in vocabulary.items():
        assert english, key
        assert chinese, key
        assert sorted(re.findall(r"{\w+}", english)) == sorted(re.findall(r"{\w+}", chinese)), key
    source = (Path(report.__file__).parent / "page.html").read_text(encoding="utf-8")
    asked = set(re.findall(r'(?:\bw|counts|results|[(,] ?)\("([\w ]+)"[,)]', source))
    made_up = set(re.findall(r'w\("([a-z]+ )" ~', source))
    assert asked <= vocabulary.keys()
    assert {key for key in vocabulary if not key.startswith(tuple(made_up))} == asked


def test_language_decides_what_is_shown_first(finished: RunDirectory) -> None:
    """The language that was asked for is the one that is checked; the words of the other are there too."""
    for language in ("en", "zh"):
        shown = read(finished, language=language)
        checked = [attributes["id"] for tag, attributes in shown.elements if tag == "input" and "checked" in attributes]
        assert checked == [language]
        assert "运行报告" in shown.text
        assert "Run report" in shown.text


def test_a_curve_holds_all_tokens_and_no_pause(finished: RunDirectory) -> None:
    """The area under the curve is what was generated, over the minute that workers ran rather than the hour between."""
    told = timeline.read(finished.ledgers, is_running=False)
    curve = timeline.curve(told)
    width = curve.seconds[1] - curve.seconds[0]
    assert len(curve.seconds) * width == pytest.approx(60)
    assert sum(curve.tokens_per_s) * width == pytest.approx(456)
    assert sum(curve.rows_per_s) * width == pytest.approx(45)
    assert max(curve.in_flight) == pytest.approx(16)
    assert told.pauses() == [(BEGAN + 30, BEGAN + 3630)]


def test_long_tails_are_left_out_of_the_drawing() -> None:
    """One row that is a hundred times longer than all others does not squeeze them into a single bar."""
    counts = dict.fromkeys(range(10, 40), 100)
    assert charts.longest_shown(Histogram(counts)) == 39
    assert charts.longest_shown(Histogram({**counts, 4000: 1})) == 39
    svg = charts.lengths("x", Histogram({**counts, 4000: 1}))
    assert svg.count('class="rect reactive') >= 15
    assert "<script" not in svg


def test_single_rows_are_read_from_big_parts(finished: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are found wherever batches and row groups end, and only so far as they are wanted."""
    monkeypatch.setattr(parts, "_ROWS_PER_BATCH", 3)
    part = finished.part(1, 5)
    for positions in ([0], [2, 3], [9], [0, 5, 8, 9], []):
        found = parts.rows_at(part, positions, ["id", "number"])
        assert [row["number"] for row in found] == [10 + position for position in positions]


def test_the_command_writes_the_page(finished: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    """`report` says where the page is, with --watch ends with the run, and refuses a folder without one."""
    code, _, told = ask(capsys, "report", finished.path, "--watch", "--language", "zh", "--price-per-hour", "2")
    assert (code, told.strip()) == (0, str(finished.report))
    assert ask(capsys, "report", finished.path.parent)[0] == 78


BROWSER = browser.find()


@pytest.mark.process
@pytest.mark.skipif(BROWSER is None, reason=f"there is none of {', '.join(browser.NAMES)} here")
def test_a_browser_without_network_shows_it(finished: RunDirectory, tmp_path: Path) -> None:
    """Chromium has no complaint, asks for nothing else, draws every chart, and nothing sticks out of a narrow page."""
    (finished.path / "parity.json").write_text(json.dumps({"a" * 150: "b" * 150}))
    report.write(Reading(finished.path))
    with browser.page(str(BROWSER), tmp_path / "profile") as opened:
        for width, dark in ((1280, False), (390, True)):
            opened.open(finished.report, width=width, dark=dark)
            assert opened.ask("document.documentElement.scrollWidth") <= width
            boxes = opened.ask(
                "[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().height)"
            )
            assert len(boxes) == len(CHARTS)
            assert min(boxes) > 50
            paper, ink = (
                opened.ask(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
            )
            luminance = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
            assert (luminance[0] < luminance[1]) == dark
            assert opened.ask("document.querySelector('h2').innerText") == "What ran"
            opened.ask("document.querySelector('label[for=zh]').click()")
            assert opened.ask("document.querySelector('h2').innerText") == "运行内容"
        assert opened.complaints == []
        assert opened.requests
        assert all(url == finished.report.resolve().as_uri() for url in opened.requests)
