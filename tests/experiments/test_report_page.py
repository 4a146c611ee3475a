"""The report's page in a browser: nothing overflows, breaks, hides or fades at any width, and its parts do their work.

Needs playwright (the extra `browser`) and a Chromium (apt-get install chromium); skipped without them.
"""

import re
from pathlib import Path

import pytest

from experiments.report import content, render
from tests import tiny
from tests.browser import needed
from tests.experiments import toys

pytestmark = needed
ODD = """<img src=x onerror="throw 1"> & 'quotes' "too" $1 {{ 7 * 7 }} </details> """ + "日本" + "long" * 40
WIDTHS, SCHEMES = (400, 900, 1400), ("light", "dark")
FAULTS = (Path(__file__).parent / "page_faults.js").read_text()  # functions that return what is wrong with a page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Returns the address of the page of this repository's results."""
    out = tmp_path_factory.mktemp("report")
    render.write(content.gather(tiny.ROOT / "experiments" / "results", out / render.PICTURES), out)
    return (out / "index.html").as_uri()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Returns the address of the page of the toys' results."""
    out = tmp_path_factory.mktemp("toy")
    results = toys.write(out / "results")
    toys.write_result(
        results / "studies" / "toy" / "digits",
        title=ODD,
        claims=[{**claim, "statement": f"{ODD} {claim['verdict']}"} for claim in toys.CLAIMS],
    )
    render.write(content.gather(results, out / render.PICTURES), out)
    return (out / "index.html").as_uri()


@pytest.fixture
def visit(browser):
    """Returns a function that opens an address in a new window; the test fails if the page reported an error."""
    faults, contexts = [], []

    def open_page(address, width=1400, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.add_init_script(FAULTS)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def unfold(page):
    page.evaluate("() => document.querySelectorAll('main details').forEach((part) => { part.open = true; })")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_can_be_read(visit, report, width, scheme):
    page = visit(report, width, color_scheme=scheme)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.evaluate("brokenHeads()") == []
    assert page.evaluate("strayMarks()") == []
    assert page.locator(".overview").evaluate("(box) => box.scrollWidth - box.clientWidth") <= 0
    assert page.evaluate("faintTexts()") == []
    if width == max(WIDTHS):
        assert page.evaluate("cutTables()") == []
    cards = page.evaluate("cards()")
    assert len(cards) > 30 and all(card["inside"] for card in cards)
    assert all(card["padding"] >= 6 and card["radius"] >= 6 for card in cards)
    assert all(min(card["color"]) == 255 if scheme == "light" else 200 < max(card["color"]) < 230 for card in cards)


def test_the_first_screen_has_the_figure_and_the_table_of_studies(visit, report):
    page = visit(report)
    for part in ("h1", ".overview tfoot", "#claims figcaption", ".scales"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= 900, part
    rows = page.locator(".overview tbody tr")
    marks = [rows.nth(i).locator("svg a").count() for i in range(rows.count())]
    cells = [list(map(int, re.findall(r"\d+", row.replace("cifar10", "")))) for row in rows.all_inner_texts()]
    assert marks == [sum(row[:3]) for row in cells] and sum(marks) == page.locator(".claim").count()


@pytest.mark.parametrize("width", WIDTHS)
def test_links_lead_to_what_can_be_seen(visit, report, width):
    page = visit(report, width)
    contents = ".side a" if width == max(WIDTHS) else ".bar a"
    assert page.locator(contents).count() > 15
    assert page.evaluate("(links) => lostLinks(links)", contents) == []
    assert page.evaluate("(links) => lostLinks(links)", ".overview a") == []


def test_a_mark_leads_to_its_claim_and_an_address_opens_one(visit, toy):
    page = visit(toy)
    claim = page.locator("#toy-digits-claim-2")
    assert not claim.locator("dl").is_visible()
    page.locator(".overview svg a[href='#toy-digits-claim-2']").click()
    assert claim.locator("dl").is_visible() and page.url.endswith("#toy-digits-claim-2")
    claim.locator("summary").click()
    page.locator(".overview svg a[href='#toy-digits-claim-2']").click()  # the address is the same
    assert claim.locator("dl").is_visible()
    page = visit(f"{toy}#bench-small")
    assert page.get_by_text("One machine.").is_visible()
    for address in ("#nowhere", "#50%", "#?verdict=no&words=", "#?"):
        page = visit(f"{toy}{address}")
        assert page.locator(".claim:visible").count() == len(toys.CLAIMS)


def test_the_filter_narrows_and_restores(visit, report):
    page = visit(report)
    claims, said = page.locator(".claim:visible"), page.locator(".filter output")
    everything = claims.count()
    for verdict in render.BADGES.values():
        button = page.locator(f".filter button.{verdict}")
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        expected = page.locator(f".claim[data-verdict={verdict}]").count()
        assert int(button.locator("b").inner_text()) == expected == claims.count()
        assert said.inner_text() == f"{expected} of {everything} claims"
        assert page.locator("main figure .card:visible, main > section:not(#claims) table:visible").count() == 0
        page.keyboard.press("Space")
    assert claims.count() == everything and said.inner_text() == ""
    words = page.get_by_role("searchbox")
    words.fill("residual he 2016")
    page.locator(".filter button.agrees").click()
    texts = [text.lower() for text in page.locator("main > section:visible:not(#claims)").all_inner_texts()]
    assert texts and all("he 2016" in text and "residual" in text for text in texts)  # unfolded, so that they are read
    address, shown = page.url, claims.count()
    assert 0 < shown < everything
    assert visit(address).locator(".claim:visible").count() == shown
    words.fill("no such word")
    assert said.inner_text() == "no claim matches" and claims.count() == 0
    page.get_by_role("button", name="show all").click()
    assert claims.count() == everything and page.locator(".claim[open]").count() == 0
    assert page.locator("main figure .card:visible").count() > 30


def test_a_link_to_what_the_filter_hides_ends_it(visit, report):
    page = visit(f"{report}#?verdict=disagrees")
    assert not page.locator("#winners").is_visible()
    page.locator(".side a[href='#winners']").click()
    assert page.locator("#winners .card").is_visible() and page.locator("[aria-pressed=true]").count() == 0
    page.go_back()
    assert page.locator(".filter output").inner_text().endswith(f"of {page.locator('.claim').count()} claims")


def test_without_javascript_all_claims_can_be_reached(visit, toy):
    page = visit(toy, java_script_enabled=False)
    assert not page.locator(".filter").is_visible()
    for claim in page.locator(".claim").all():
        assert not claim.locator("dl").is_visible()
        claim.locator("summary").click()
        assert claim.locator("dl").is_visible()


def test_paper_has_what_is_folded(visit, toy):
    page = visit(toy)
    page.emulate_media(media="print")
    assert all(part.is_visible() for part in page.locator(".claim dl").all())
    assert page.get_by_text("One machine.").is_visible() and not page.locator(".filter").is_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_texts_are_shown_as_they_are(visit, toy, width):
    page = visit(toy, width)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.evaluate("strayMarks()") == []
    assert page.locator(".overview").evaluate("(box) => box.scrollWidth - box.clientWidth") <= 0
    for claim, shown in zip(toys.CLAIMS, page.locator(".claim").all(), strict=True):
        text = shown.inner_text()
        assert ODD in text
        assert all(
            " ".join(claim[key].split()) in text.replace("\N{NO-BREAK SPACE}", " ") for key in ("published", "ours")
        )
    page.locator(".filter input").fill("<img $1 {{")
    assert page.locator(".claim:visible").count() == len(toys.CLAIMS)


def test_commands_can_be_copied(visit, toy):
    page = visit(toy, permissions=["clipboard-read", "clipboard-write"])
    command = page.locator(".command", has_text=toys.COMMAND).first
    command.get_by_role("button", name="copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == toys.COMMAND
