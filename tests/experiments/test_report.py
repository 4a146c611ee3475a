"""Tests of experiments/report: the page is self-contained, agrees with the results, and names missing ones."""

import html.parser
import json
import re
import subprocess
import sys
import urllib.parse

import pytest

from configs.base import base
from experiments import study
from experiments.report import content, marks, readme, render, studies, winners
from models.analysis import tables
from models.errors import UserError
from tests import tiny
from tests.experiments import toys
from train.data.sources import digits

VOID = {"meta", "link", "img", "input", "br", "hr"}


def change(folder, **changes):
    """Changes the second claim."""
    toys.write_result(folder, claims=[toys.CLAIMS[0], {**toys.CLAIMS[1], **changes}, toys.CLAIMS[2]])


@pytest.fixture
def results(tmp_path):
    """Returns a folder of results."""
    return toys.write(tmp_path / "results")


@pytest.fixture
def built(results, tmp_path):
    """(HTML, Markdown, folder) of the report of `results`."""
    out = tmp_path / "report"
    render.write(content.gather(results, out / render.PICTURES), out)
    return (out / "index.html").read_text(), (out / "report.md").read_text(), out


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and keeps the elements and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def test_html_says_what_the_results_say(built):
    page = Page(built[0])
    text = " ".join(page.text.split())
    for claim in toys.CLAIMS:
        statements = 3 if claim["verdict"] == study.DISAGREES else 2  # in the figure, and in the study's verdict
        for field, times in (("statement", statements), ("published", 1), ("source", 1), ("expected", 1), ("ours", 1)):
            assert text.count(claim[field]) == times, claim[field]
    for phrase in (
        toys.COMMAND,
        "Does <i>it</i> & that work?",
        "Loss < 1 & falling.",
        "Sizes of *toys*",
        "a|b",
        "2026-03-04",
        "97.2 ± 0.3 %",
        "2, of which 1 diverged",
        "5 min 12 s",
        "1 x toy (2 < 3 cores)",
        "commit 0123456789ab",
        "jax 0.0",
        "1 agrees 1 disagrees 1 too small to tell show all",
        f"{studies.SCALES['digits']}",
        "One machine.",
        "Of 3 claims 1 agrees, 1 disagrees, 1 is too small to tell. Not found here: a < b",
        "What would change it. Larger <toys> & more seeds.",
        "+1.2 points [+0.2, +2.2]; p 0.031; 17 seeds would tell",
        "Below",
        winners.CAPTION,
    ):
        assert phrase in text, phrase
    badges = [attrs["class"] for attrs in page.all("span") if attrs.get("class", "").startswith("badge")]
    assert sorted(badges) == sorted([f"badge {name}" for name in render.BADGES.values()])


def test_html_is_complete_in_itself(built):
    page = Page(built[0])
    pictures = page.all("img")
    assert len(pictures) == 3 and all(attrs["src"].startswith("data:image/png;base64,") for attrs in pictures)
    assert {(attrs["width"], attrs["height"]) for attrs in pictures} >= {("30", "20"), ("40", "10")}
    assert all(attrs["alt"] for attrs in pictures)
    loaded = [
        value
        for tag, attrs in page.elements
        for name, value in attrs.items()
        if name in ("src", "srcset", "href", "data", "poster") and tag != "a"
    ]
    assert all(value.startswith(("data:", "#")) for value in loaded)
    assert "@import" not in built[0] and "url(" not in built[0]
    assert "<script>alert" not in built[0]  # of a page of Markdown


def test_links_lead_to_anchors_of_the_page(built):
    page = Page(built[0])
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for attrs in page.all("a")}
    assert {f"#toy-digits-claim-{i}" for i in (1, 2, 3)} | {"#toy", "#toy-digits", "#costs"} <= targets
    assert targets <= {f"#{name}" for name in ids}


def test_numbers_are_aligned_and_texts_are_not(built):
    rows = re.findall(r"<tr>(.*?)</tr>", built[0])
    row = next(row for row in rows if "a|b" in row)
    assert row == '<td>a|b</td><td class="number">10</td><td class="number">97.2 ± 0.3 %</td>'
    assert '<td class="number">71.6</td>' in built[0] and "<td>vgg</td>" in built[0]


def test_markdown_says_the_same(built):
    import markdown_it

    _, text, out = built
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    page = Page(parser.render(text).replace(" />", ">"))
    text_of_page = " ".join(page.text.split())
    assert studies.SCALES["digits"] in text_of_page
    for claim in toys.CLAIMS:
        assert all(
            text in text_of_page for key, text in claim.items() if isinstance(text, str) and key not in ("unit", "test")
        )
    for name in (
        "+1.2 points [+0.2, +2.2], p 0.031",
        toys.COMMAND,
        "What would change it. Larger <toys> & more seeds.",
        "17 seeds would tell",
        "Does <i>it</i> & that work?",
        "a|b",
        "acc_uracy",
        "Sizes of *toys*",
        "5 min 12 s",
    ):
        assert name in text_of_page, name
    pictures = [attrs["src"] for attrs in page.all("img")]
    assert len(pictures) == 3 and all((out / name).is_file() for name in pictures)
    assert any(row.startswith("| --- | ---: | ---: |") for row in text.splitlines())


def test_what_is_missing_is_named_with_its_command(built):
    for text in built[:2]:
        for command in (
            content.SEEDS,
            content.PARITY,
            "python -m experiments.run initialization --scale=digits",
            "python -m experiments.run initialization --scale=cifar10",
        ):
            assert command in text
        assert content.COSTS in text


def test_without_any_study(tmp_path):
    (tmp_path / "results").mkdir()
    report = content.gather(tmp_path / "results", tmp_path / "out" / render.PICTURES)
    render.write(report, tmp_path / "out")
    assert (report.date, report.devices, report.claims) == ("unknown", [], [])
    assert "No study has been run yet" in Page((tmp_path / "out" / "index.html").read_text()).text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "curves.png").unlink(), "curves.png: this picture of the results is missing"),
        (lambda folder: (folder / "results.json").write_text("{"), "results.json is damaged: it is not JSON"),
        (
            lambda folder: (folder / "results.json").write_text('{"study": "toy", "scale": "digits"}'),
            "results.json is damaged: 'title' is a required property",
        ),
        (lambda folder: change(folder, verdict="perhaps"), "claims[1].verdict: 'perhaps' is not one of ('agrees', "),
        (lambda folder: change(folder, low="none"), "claims[1].low: 'none' is not of type 'number', 'null'"),
        (
            lambda folder: toys.write_result(folder, tables=[{"title": "T", "columns": ["a", "b"], "rows": [[1]]}]),
            "rows of the table “T” differ in length",
        ),
        (
            lambda folder: toys.write_result(folder, figures=[{"file": "../../secret.png", "caption": ""}]),
            "figures[0].file: '../../secret.png' does not match",
        ),
        (lambda folder: (folder / "curves.png").write_text("no"), "curves.png: this picture of the results is damaged"),
    ],
)
def test_damaged_results(results, tmp_path, spoil, message):
    spoil(results / "studies" / "toy" / "digits")
    with pytest.raises(UserError, match=re.escape(message)):
        render.write(content.gather(results, tmp_path / render.PICTURES), tmp_path)


def test_studies_and_pictures_may_have_any_name(results, tmp_path):
    import markdown_it

    folder = results / "studies" / "toy" / "digits"
    (folder / "curves.png").rename(folder / "a b#1?(%20).png")
    toys.write_result(folder, study="Größe 日本", figures=[{"file": "a b#1?(%20).png", "caption": "c"}])
    out = tmp_path / "report"
    render.write(content.gather(results, out / render.PICTURES), out)
    html = Page((out / "index.html").read_text())
    assert {"größe-日本-digits", "größe-日本-digits-claim-1"} <= {attrs.get("id") for _, attrs in html.elements}
    page = Page(markdown_it.MarkdownIt("commonmark").render((out / "report.md").read_text()).replace(" />", ">"))
    names = [urllib.parse.unquote(attrs["src"]) for attrs in page.all("img")]
    assert f"{render.PICTURES}/größe-日本-digits-a b#1?(%20).png" in names and all(
        (out / name).is_file() for name in names
    )


def test_missing_folder_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", f"--results={tmp_path / 'no'}"],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "error" in line] == [
        f"error: --results={tmp_path / 'no'}: there is no such folder; make studies writes experiments/results"
    ]


@pytest.mark.parametrize(
    ("estimate", "low", "high", "margin", "test", "clear"),
    [
        (0.03, 0.01, 0.05, 0.0, "Welch", 1.5),
        (0.01, 0.01, 0.03, 0.02, "Welch", -0.5),  # the interval's end above counts, which is toward the margin
        (-0.01, -0.02, 0.0, -0.03, "non-inferiority by Welch", 2.0),
        (0.01, -0.01, 0.03, 0.05, "two one-sided tests by Welch", 2.0),
        (-0.08, -0.1, -0.06, 0.05, "two one-sided tests by Welch", -1.5),
        (1.0, 1.0, 1.0, 0.5, "binomial", marks.FARTHEST),
        (0.5, 0.5, 0.5, 0.5, "binomial", 0.0),
        (None, None, None, 0.0, "exact", None),
    ],
)
def test_marks_are_as_far_right_as_an_effect_is_beyond_its_margin(estimate, low, high, margin, test, clear):
    claim = {"estimate": estimate, "low": low, "high": high, "margin": margin, "test": test}
    assert marks.clearness(claim) == (clear if clear is None else pytest.approx(clear))


def test_marks_stay_in_their_part_of_the_figure_and_apart():
    claims = [
        {**toys.CLAIMS[1], "estimate": x, "low": x - 0.01, "high": x + 0.01} for x in (-9, -0.01, 0, 0, 0, 0.03, 9)
    ]
    bare = [toys.CLAIMS[0]] * 9
    row = marks.row([(i, claim) for i, claim in enumerate([*claims, *bare])])
    places = {one.claim: (one.x, one.y) for one in row}
    assert len(set(places.values())) == len(places) == 16
    assert all(marks.EFFECTS[0] <= places[i][0] <= marks.EFFECTS[1] for i in range(7))
    assert all(marks.OTHERS[0] <= places[i][0] <= marks.OTHERS[1] for i in range(7, 16))
    assert places[0][0] == marks.EFFECTS[0] and places[6][0] == marks.EFFECTS[1]
    assert places[1][0] == pytest.approx(marks.place(-marks.BAND), abs=0.01)


def test_digits_are_those_of_the_data():
    train, test = (len(digits.source(split, base().data)) for split in ("train", "test"))
    text = studies.SCALES["digits"]
    assert all(f"{number:,}" in text for number in (train, test, train + test)) and f"{100 / test:.2f} points" in text


def test_winners_cover_every_year_and_their_errors_fall():
    assert [winner.year for winner in winners.WINNERS] == list(range(2010, 2018))
    errors = [winner.error for winner in winners.WINNERS]
    assert errors == sorted(errors, reverse=True) and errors[4] > winners.HUMAN > errors[5]


@pytest.mark.parametrize(("seconds", "text"), [(41.2, "41 s"), (312.4, "5 min 12 s"), (12000, "3 h 20 min")])
def test_duration(seconds, text):
    assert tables.duration(seconds) == text


def test_results_of_older_code_say_what_would_change_them(results, tmp_path):
    old_result = {**toys.result("cost"), "claims": toys.CLAIMS}
    del old_result["would_change"], old_result["verdict"]
    folder = results / "studies" / "cost" / "digits"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(old_result))
    (results / "studies" / "toy" / "digits" / "curves.png").rename(folder / "curves.png")
    section = next(one for one in content.gather(results, tmp_path / "p").sections if one.anchor == "cost")
    assert dict(section.children[0].blocks)["verdict"][1] == study.module("cost").STUDY.would_change


# -- README --------------------------------------------------------------------------------------------------------


def blocks(text):
    return re.findall(r"<!-- generated: (.*?) -->\n(.*?)<!-- end -->", text, re.S)


def test_blocks_of_missing_results_say_so(results, tmp_path):
    text = "".join(f"Before.\n<!-- generated: {name} -->\nstale\n<!-- end -->\nAfter.\n" for name in readme.BLOCKS)
    (results / "bench" / "small" / "bench.json").write_text(
        json.dumps(
            {
                "device": "toy",
                "measured": "2025",
                "rows": [{"case": "net", "what": "step", "who": "ours", "failed": "no"}],
            }
        )
    )
    for folder in (results, tmp_path / "nothing"):
        updated = readme.update(text, folder)
        assert "stale" not in updated and updated.count("After.\n") == len(readme.BLOCKS) == len(blocks(updated))
        assert readme.update(updated, folder) == updated
        assert all("Not measured yet: `" in block or name == "against" for name, block in blocks(updated))


def test_speed_compares_the_newest_rows_with_the_fastest_peer(results):
    def write(folder, measured, ms):
        (results / "bench" / folder).mkdir(exist_ok=True)
        rows = [
            {"case": "net, batch 1", "what": "step", "who": who, "side": side, "ms": value}
            for who, side, value in (
                ("PyTorch, eager", "peer", 8),
                ("PyTorch, torch.compile", "peer", 4),
                ("ours", "ours", ms),
                ("stock XLA", "ours", 1),
            )
        ]
        (results / "bench" / folder / "bench.json").write_text(
            json.dumps({"device": "toy", "commit": "c0", "measured": measured, "rows": rows})
        )

    write("small", "2026-02", 2)
    write("b", "2026-01", 3)
    assert "| net, batch 1 | 2 / 4 = 0.50 |  |" in readme.speed(results) and "3 /" not in readme.speed(results)


def test_commands_and_tests_are_those_of_the_benchmark(results):
    rows = [
        {"case": "c", "what": what, "who": who, "side": "ours", "ms": ms, "peak_mib": 30}
        for what, who, ms in (
            ("import", "ours, models", 1500),
            ("--help", "b", 900),
            ("--help", "a", 400),
            ("--help", "c", 700),
        )
    ]
    times = (("wall time", 600_000), *((f"tests/test_{i}.py", 60_000 * i) for i in range(9, 0, -1)))
    rows += [
        {
            "case": "tests",
            "what": "all tests" if who == "wall time" else "tests of a file",
            "who": who,
            "ms": ms,
            "samples": 7,
        }
        for who, ms in times
    ]
    rows.append({"case": "tests", "what": "one test", "who": "one", "ms": 1, "samples": 1})
    (results / "bench" / "small" / "bench.json").write_text(
        json.dumps({"device": "toy", "commit": "c0", "measured": "2026", "rows": rows})
    )
    assert readme.commands(results).splitlines()[4:] == [
        "| import | ours, models | 1.50 | 30 |",
        "| --help, the fastest of 3 | a | 0.40 | 30 |",
        "| --help, the slowest of 3 | b | 0.90 | 30 |",
    ]
    assert readme.tests(results).splitlines()[4:] == [
        "| wall time | 7 | 10.0 |",
        *(f"| tests/test_{i}.py | 7 | {i}.0 |" for i in range(9, 4, -1)),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: nonsense --><!-- end -->", "there is no such block; allowed: summary, digits, "),
        ("<!-- generated: digits -->", "its <!-- end --> is missing"),
        ("<!-- end -->", "a block begins with"),
        ("<!-- generated: digits --><!-- generated: speed --><!-- end -->", "a block begins with"),
    ],
)
def test_wrong_marks_in_the_readme_are_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        readme.update(text, tmp_path)
