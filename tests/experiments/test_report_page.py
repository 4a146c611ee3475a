"""The report's page in a browser: nothing overflows, breaks, hides or fades at any width, and its parts do their work.

Needs playwright (the extra `browser`) and a Chromium (apt-get install chromium); skipped without them.
"""

import json
import re
import shutil

import pytest

from experiments.report import content, render
from tests import tiny
from tests.experiments import toys

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
WIDTHS, SCHEMES = (400, 900, 1400), ("light", "dark")

# Words of table heads that are broken over lines. A line may end after a hyphen or a slash.
BROKEN = """() => [...document.querySelectorAll("th")].filter((cell) => cell.getClientRects().length).flatMap((cell) => {
  const words = [], texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/[^\\s\\/-]+/g)) {
    const range = document.createRange();
    range.setStart(texts.currentNode, word.index);
    range.setEnd(texts.currentNode, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) words.push(word[0]);
  }
  return words;
})"""
# Tables that are wider than their box or reach out of the window
CUT = """() => [...document.querySelectorAll("table")].filter((table) => table.getClientRects().length && (
  table.parentElement.scrollWidth > table.parentElement.clientWidth + 1
  || table.getBoundingClientRect().right > document.documentElement.clientWidth)).map((table) => table.innerText.slice(0, 80))"""
# Texts whose contrast with what is behind them is below 4.5, by the formula of WCAG 2
FAINT = """() => {
  const rgba = (color) => { const n = color.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = (rgb) => { const [r, g, b] = rgb.slice(0, 3).map((v) => v / 255).map(
    (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (part) => { for (; part; part = part.parentElement) {
    const color = rgba(getComputedStyle(part).backgroundColor); if (color[3] === 1) return color; } return [255, 255, 255]; };
  const faint = new Map();
  for (const part of document.querySelectorAll("body *:not(script, style, svg *)")) {
    const own = [...part.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !part.getClientRects().length) continue;
    const [a, b] = [light(rgba(getComputedStyle(part).color)), light(behind(part))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.set(part.tagName + "." + part.className, contrast);
  }
  return [...faint];
}"""
CARDS = """() => [...document.querySelectorAll(".card")].filter((card) => card.getClientRects().length).map((card) => {
  const style = getComputedStyle(card), image = card.querySelector("img").getBoundingClientRect();
  const box = card.getBoundingClientRect();
  return {light: style.backgroundColor.match(/\\d+/g).slice(0, 3).map(Number), padding: parseFloat(style.paddingTop),
          radius: parseFloat(style.borderRadius), inside: image.left >= box.left && image.top >= box.top};
})"""
# Links whose target is not in sight after a click, or lies under what sticks to the top
LOST = """async (selector) => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const lost = [];
  for (const link of document.querySelectorAll(selector)) {
    scrollTo(0, 0);
    link.dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true}));
    await frame();
    const target = document.getElementById(link.getAttribute("href").slice(1));
    const box = (target.querySelector(":scope > :is(summary, h2, h3)") ?? target).getBoundingClientRect();
    const seen = document.elementFromPoint(box.left + box.width / 2, box.top + Math.min(box.height / 2, 10));
    if (!target.contains(seen) || box.height === 0 || (target.open === false)) lost.push(link.getAttribute("href"));
  }
  return lost;
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


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
    statement = """<img src=x onerror="throw 1"> & 'quotes' "too" $1 {{ 7 * 7 }} </details>"""
    toys.write_result(
        results / "studies" / "toy" / "digits",
        title=statement,
        claims=[{**claim, "statement": f"{statement} {claim['verdict']}"} for claim in toys.CLAIMS],
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
    assert page.evaluate(BROKEN) == []
    assert page.evaluate(FAINT) == []
    if width == max(WIDTHS):
        assert page.evaluate(CUT) == []
    cards = page.evaluate(CARDS)
    assert len(cards) > 30 and all(card["inside"] for card in cards)
    assert all(card["padding"] >= 6 and card["radius"] >= 6 for card in cards)
    assert all(min(card["light"]) == 255 if scheme == "light" else 200 < max(card["light"]) < 230 for card in cards)


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
    assert page.evaluate(LOST, contents) == []
    assert page.evaluate(LOST, ".overview a") == []


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
    assert visit(f"{toy}#nowhere").locator("h1").is_visible()


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
    for claim, shown in zip(toys.CLAIMS, page.locator(".claim").all(), strict=True):
        text = shown.inner_text()
        assert """<img src=x onerror="throw 1"> & 'quotes' "too" $1 {{ 7 * 7 }} </details>""" in text
        assert all(
            " ".join(claim[key].split()) in text.replace("\N{NO-BREAK SPACE}", " ") for key in ("published", "ours")
        )
    page.locator(".filter input").fill("<img $1 {{")
    assert page.locator(".claim:visible").count() == len(toys.CLAIMS)


def test_commands_can_be_copied(visit, toy, browser):
    page = visit(toy, permissions=["clipboard-read", "clipboard-write"])
    command = page.locator(".command", has_text=json.loads(json.dumps(toys.COMMAND))).first
    command.get_by_role("button", name="copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == toys.COMMAND
