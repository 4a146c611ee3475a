"""The page in a browser: choose or drop an image, see its classes and the evidence for them.

Needs playwright (the extra `browser`) and a Chromium (apt-get install chromium); skipped without them.
"""

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="pip install -e '.[serve]'")
pytest.importorskip("uvicorn", reason="pip install -e '.[serve]'")

import uvicorn

from tests import hostile_pictures as pictures
from tests import tiny
from tests.browser import needed
from train import predict
from train.export import loaded
from train.serving import server
from train.serving.app import Service
from train.serving.uploads import Limits

pytestmark = needed
DIGIT = tiny.ROOT / "experiments/samples/digit3.png"
ODD = """<img src=x onerror="document.title = 'harmed'"> & 'quotes' """ + "long" * 30


@pytest.fixture(scope="module")
def addresses(folders):
    """Returns the addresses of a network of this project, whose class 3 has an odd name, and of a program."""
    running, addresses = [], {}
    for kind in ("safetensors", "stablehlo"):
        network = loaded.load(folders / kind)
        labels = [ODD if label == "3" else label for label in network.card["labels"]]
        service = Service(network._replace(card={**network.card, "labels": labels}), Limits(bytes=300_000))
        listening = server.bound("127.0.0.1", 0)
        addresses[kind] = server.address(listening)
        one = uvicorn.Server(uvicorn.Config(service.application(["127.0.0.1"]), log_level="error"))
        thread = threading.Thread(target=one.run, args=([listening],))
        thread.start()
        running.append((one, thread))
    yield addresses
    for one, thread in running:
        one.should_exit = True
        thread.join()


@pytest.fixture
def visit(browser, addresses):
    """Returns a function that opens the page of a network; the test fails if the page reported an error."""
    faults, contexts = [], []

    def opened(kind="safetensors", width=1000, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(addresses[kind])
        page.locator("#about", has_text="classes").wait_for()
        return page

    opened.faults = faults
    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def dropped(page, data, name="digit.png", kind="image/png"):
    """Drops a file on the page, as a user does."""
    transfer = page.evaluate_handle(
        """([data, name, type]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)), files = new DataTransfer();
            files.items.add(new File([bytes], name, { type }));
            return files;
        }""",
        [base64.b64encode(data).decode(), name, kind],
    )
    for event in ("dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": transfer})


def picture(page):
    """Returns the pixels of the picture that the page shows, uint8 [H, W, 4]."""
    data = page.locator("#picture").evaluate(
        """async (image) => {
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL("image/png");
        }"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))))


def test_a_dropped_image_gets_classes_and_evidence(visit, folders):
    page = visit()
    dropped(page, DIGIT.read_bytes(), name=ODD)
    page.locator("#caption", has_text="Grad-CAM").wait_for()
    (row,) = predict.predict(loaded.load(folders / "safetensors"), [str(DIGIT)], 5)
    rows = page.locator("#classes tr")
    assert rows.count() == 5
    for shown, (label, share) in zip(rows.all(), row["classes"], strict=True):
        assert shown.locator("th").inner_text().strip() == (ODD.strip() if label == "3" else label)
        assert shown.locator(".number").inner_text() == f"{share:.1%}"
    assert "ms on the server" in page.locator("#time").inner_text()
    assert page.get_by_role("status").inner_text().startswith("Most probable: ")
    drawn = picture(page)
    assert min(drawn.shape[:2]) >= 200 and np.ptp(drawn[..., :3].astype(int), axis=-1).max() > 60  # heat has colors
    second = rows.nth(1).get_by_role("button")
    second.focus()
    page.keyboard.press("Enter")
    page.locator("#classes tr:nth-child(2) [aria-pressed=true]").wait_for()
    assert page.locator("[aria-pressed=true]").count() == 1
    page.keyboard.press("Space")  # shows the image itself
    assert page.locator("[aria-pressed=true]").count() == 0
    np.testing.assert_array_equal(picture(page)[..., :3], np.asarray(Image.open(DIGIT).convert("RGB")))
    assert page.title() == "Classify an image" and page.locator("main img").count() == 1


def test_the_keyboard_and_a_screen_reader_reach_everything(visit):
    page = visit()
    page.keyboard.press("Tab")
    chooser = page.get_by_label("Choose an image")
    assert chooser.evaluate("(input) => input === document.activeElement")
    chooser.set_input_files(DIGIT)
    page.locator("[aria-pressed=true]").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("evidence for ")
    assert page.locator("#picture").get_attribute("alt").startswith("The image with the evidence for ")


def test_a_program_shows_classes_without_evidence(visit):
    page = visit("stablehlo")
    assert "It cannot show evidence" in page.locator("#about").inner_text()
    page.get_by_label("Choose an image").set_input_files(DIGIT)
    page.get_by_role("status").get_by_text("Most probable").wait_for()
    assert page.locator("#classes tr").count() == 5 and page.locator("#classes button").count() == 0
    np.testing.assert_array_equal(picture(page)[..., :3], np.asarray(Image.open(DIGIT).convert("RGB")))


def test_what_is_refused_is_said(visit):
    page = visit()
    for data, text in ((b"text", "it is not a picture"), (bytes(300_001), "larger than 300,000 bytes")):
        dropped(page, data)
        page.get_by_role("alert").get_by_text(text).wait_for()
        assert not page.locator("#result").is_visible()
    dropped(page, pictures.ENCODINGS["color.jpg"][0], "a.jpg", "image/jpeg")
    page.locator("#caption", has_text="Grad-CAM").wait_for()
    assert page.get_by_role("alert").inner_text() == ""
    assert [fault for fault in visit.faults if "415" not in fault] == []  # Chromium logs each answer of this kind
    visit.faults.clear()


@pytest.mark.parametrize("width", [360, 1000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_width(visit, width, scheme):
    page = visit(width=width, color_scheme=scheme)
    dropped(page, DIGIT.read_bytes())
    page.locator("#caption", has_text="Grad-CAM").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_foreign_scripts_do_not_run(visit):
    page = visit()
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'harm = 1'}))")
    assert page.evaluate("typeof harm") == "undefined"
    assert any("Content Security Policy" in fault for fault in visit.faults)
    visit.faults.clear()
