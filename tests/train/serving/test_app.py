"""The server in process: answers, batches, limits, and what it makes of hostile requests."""

import base64
import hashlib
import io
import json
import re
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="pip install -e '.[serve]'")
pytest.importorskip("python_multipart", reason="pip install -e '.[serve]'")
pytest.importorskip("httpx2", reason="the test client of Starlette needs it: pip install httpx2")

from starlette.testclient import TestClient

import train
from models.errors import UserError
from models.explain import cam, catalogue
from tests import hostile_pictures as pictures
from tests import tiny
from train import predict
from train.export import loaded
from train.serving.app import PAGE, Service
from train.serving.uploads import Limits

HOST = "http://127.0.0.1"
DIGIT = (tiny.ROOT / "experiments/samples/digit3.png").read_bytes()
SMALL = Limits(bytes=200_000, pixels=100_000, requests=64, seconds=5)
NAMES = ("gray8.png", "rgb8.PNG", "color.jpg", "progressive.jfif", "palette.gif", "lossless.webp", "gray16.png",
         "rgb8.bmp", "gray12.tif", "cmyk.jpg")  # fmt: skip


@pytest.fixture(scope="module")
def network(folders):
    return loaded.load(folders / "safetensors")


@pytest.fixture
def start():
    """Returns a function that serves a network to a client."""
    clients = []

    def started(network, **options):
        service = Service(network, **{"limits": SMALL, **options})
        clients.append(TestClient(service.application(["127.0.0.1"]), HOST, raise_server_exceptions=False))
        return clients[-1].__enter__()

    yield started
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start, network):
    return start(network)


def slow(network, seconds=0.05):
    """Returns the network, which takes this long, and a list to which it adds the size of each batch."""
    batches = []

    def run(pixels):
        batches.append(len(pixels))
        time.sleep(seconds)
        return network.run(pixels)

    return network._replace(run=run), batches


@pytest.mark.parametrize("kind", ["run", "safetensors", "stablehlo"])
def test_concurrent_requests_get_what_predict_prints(start, folders, tmp_path, kind):
    network = loaded.load(folders / kind)
    files = [tmp_path / name for name in NAMES] * 2
    for name in NAMES:
        (tmp_path / name).write_bytes(pictures.ENCODINGS[name][0])
    slowed, batches = slow(network)
    client = start(slowed, batch=8)
    del batches[:]
    with ThreadPoolExecutor(len(files)) as pool:
        answers = list(pool.map(lambda file: client.post("/predict?top=3", content=file.read_bytes()), files))
    expected = predict.predict(network, list(map(str, files)), 3)
    for answer, row in zip(answers, expected, strict=True):
        assert answer.status_code == 200 and answer.json()["milliseconds"] > 0
        ours, theirs = answer.json(), predict.as_json(row["classes"], row["inverted"])
        assert [one["label"] for one in ours["classes"]] == [one["label"] for one in theirs["classes"]]
        shares = [[one["probability"] for one in rows["classes"]] for rows in (ours, theirs)]
        np.testing.assert_allclose(*shares, atol=2e-6)
        assert ours.get("inverted") == theirs.get("inverted")
    assert set(batches) <= {1, 2, 4, 8} and len(batches) < len(files)  # padded, and fewer than requests
    assert max(answer.json()["batch"] for answer in answers) > 1


def test_an_image_is_the_body_or_the_file_of_a_form(client):
    def classes(**request):
        return client.post("/predict", **request).json()["classes"]

    expected = classes(content=DIGIT)
    assert len(expected) == 5 and expected[0]["probability"] >= expected[1]["probability"]
    for name in ("a.png", "<b>.png", "../../x", "é\n"):
        assert classes(files={"image": (name, DIGIT)}, data={"note": "x"}) == expected
    assert classes(content=DIGIT, headers={"Content-Type": "text/html"}) == expected
    assert len(client.post("/predict?top=99", content=DIGIT).json()["classes"]) == 10


def png_that_claims(width, height):
    """Returns a PNG of a few bytes whose head claims a size."""
    data = bytearray(pictures.saved(np.zeros((1, 1), np.uint8), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def icon_with(width, height):
    """Returns an icon whose directory says 16 x 16, with a PNG of another size in it."""
    inner = io.BytesIO()
    Image.new("1", (width, height)).save(inner, "PNG")
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner.getvalue()), 22)
    return head + inner.getvalue()


def bomb(kind, side=20_000):
    """Returns a file of a few kilobytes that decodes to side x side pixels."""
    file = io.BytesIO()
    Image.new("1" if kind == "PNG" else "L", (side, side)).save(file, kind)
    return file.getvalue()


HOSTILE = {
    "text": (b"<html>not an image</html>", 415, "it is not a picture of the formats JPEG, PNG"),
    "drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", 415, "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 415, "not a picture"),
    "icon": (icon_with(3000, 3000), 415, "not a picture"),
    "cut jpeg": (pictures.ENCODINGS["color.jpg"][0][:400], 415, "cannot be decoded"),
    "cut png": (DIGIT[:60], 415, "cannot be decoded"),
    "head alone": (b"\x89PNG\r\n\x1a\n", 415, "cannot be decoded"),
    "claims": (png_that_claims(2**31 - 1, 2**31 - 1), 413, "pixels"),
    "png bomb": (bomb("PNG", 10_000), 413, "10000x10000 pixels are more than 100,000"),
    "larger": (bytes(200_001), 413, "larger than 200,000 bytes"),
    "nothing": (b"", 400, "the body is empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_in_one_line(client, name):
    body, status, text = HOSTILE[name]
    for request in ({"content": body}, {"files": {"image": ("x.png", body)}}):
        answer = client.post("/predict", **request)
        assert answer.status_code == status and text in answer.json()["error"], answer.text
        assert "\n" not in answer.json()["error"] and " at 0x" not in answer.json()["error"]
    assert client.post("/predict", content=DIGIT).status_code == 200


def test_a_jpeg_bomb_is_refused(start, network):
    client = start(network, limits=SMALL._replace(bytes=10**7))
    answer = client.post("/predict", content=bomb("JPEG", 12_000))
    assert answer.status_code == 413 and "12000x12000 pixels" in answer.json()["error"]


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (("POST", "/predict?top=0"), 400, "top=0: must be a whole number above 0"),
        (("POST", "/predict?top=x%0Ay"), 400, "must be a whole number"),
        (("POST", "/predict?top=9999999999999"), 400, "must be a whole number"),
        (("POST", "/predict?tops=3"), 400, "unknown parameter 'tops'; did you mean 'top'? allowed: top, explain"),
        (("POST", "/predict?explain=cat"), 400, "unknown explain 'cat'"),
        (("GET", "/predict"), 405, "Method Not Allowed"),
        (("GET", "/../setup.cfg"), 404, "Not Found"),
    ],
)
def test_mistakes_are_named(client, request_, status, text):
    answer = client.request(*request_, content=DIGIT if request_[0] == "POST" else None)
    assert answer.status_code == status and text in answer.json()["error"]


def test_forms_that_cannot_be_read_are_refused(client):
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for body, headers in (
        (b"--x\r\nnonsense", form),
        (b"", form),
        (DIGIT, form),
        (DIGIT, {"Content-Type": "multipart/form-data"}),
        (b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--x--\r\n', form),
        (b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nt\r\n' * 3 + b"--x--\r\n", form),
    ):
        answer = client.post("/predict", content=body, headers=headers)
        assert answer.status_code == 400 and answer.json()["error"], answer.text


def test_a_full_queue_asks_to_come_again(start, network):
    client = start(slow(network, 0.3)[0], limits=SMALL._replace(requests=3), batch=1)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/predict", content=DIGIT), range(8)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert 1 <= len(refused) <= 5 and all(answer.headers["Retry-After"] == "1" for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 503}
    assert client.post("/predict", content=DIGIT).status_code == 200


def test_bodies_on_their_way_are_limited_in_all(start, network, monkeypatch):
    client = start(slow(network, 0.3)[0])
    monkeypatch.setattr("train.serving.uploads.HELD", 1)  # then one body of the largest size, 200,000 bytes
    body = DIGIT + bytes(120_000 - len(DIGIT))  # PIL ignores what follows the end of a PNG
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post("/predict", content=body), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503, 503]
    assert client.post("/predict", content=body).status_code == 200


def test_a_network_that_fails_does_not_end_the_server(start, network):
    failing = []

    def run(pixels):
        if failing:
            raise failing.pop()
        return network.run(pixels)

    client = start(network._replace(run=run))
    failing.append(RuntimeError("out of memory"))
    answer = client.post("/predict", content=DIGIT)
    assert answer.status_code == 500 and answer.json() == {"error": "the server failed; its output says why"}
    assert client.post("/predict", content=DIGIT).status_code == 200


def test_a_diverged_network_is_named(start, network, tmp_path):
    def run(pixels):
        probabilities, logits = network.run(pixels)
        return probabilities * np.nan, logits

    diverged = network._replace(run=run)
    answer = start(diverged).post("/predict", content=DIGIT)
    assert answer.status_code == 500 and "(NaN): its training has diverged" in answer.json()["error"]
    (tmp_path / "a.png").write_bytes(DIGIT)
    with pytest.raises(UserError, match="probabilities are not numbers"):
        predict.predict(diverged, [str(tmp_path / "a.png")], 3)
    few = network._replace(card={**network.card, "labels": ["0"]})
    with pytest.raises(UserError, match="the card names 1 classes, but the network has 10"):
        predict.predict(few, [str(tmp_path / "a.png")], 3)


def test_few_pictures_are_decoded_at_a_time(start, network, monkeypatch):
    monkeypatch.setattr("models.kernels.runtime.cores", lambda: 64)
    now, most, lock = [0], [0], threading.Lock()

    class Slow(type(network)):
        def prepared(self, *arguments):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.1)
            with lock:
                now[0] -= 1
            return super().prepared(*arguments)

    client = start(Slow(*network))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.post("/predict", content=DIGIT).status_code, range(16)))
    assert set(answers) == {200} and 1 < most[0] <= 4


# -- evidence ------------------------------------------------------------------------------------------------------


def test_evidence_is_grad_cam_of_the_class_over_what_the_network_sees(start, network, folders):
    client, trained = start(network), train.load(folders / "safetensors")
    file = io.BytesIO()
    Image.fromarray(pictures.COLOR).save(file, "PNG")  # 64 x 48
    about = client.get("/about").json()
    assert about["evidence"] and about["shape"] == [8, 8, 1] and about["architecture"] == "resnet8"
    probabilities, compared = trained.predict(pictures.COLOR)[0], 0
    for explain in ("top1", "7"):
        answer = client.post("/predict", params={"explain": explain}, content=file.getvalue()).json()
        label = trained.classes[probabilities.argmax()] if explain == "top1" else explain
        assert answer["explained"]["label"] == label
        kind, _, data = answer["explained"]["picture"].partition(",")
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), np.float32)
        assert kind == "data:image/jpeg;base64" and drawn.shape == (240, 320, 3)  # enlarged by a whole number
        values = cam.grad_cam(
            trained.model, trained.variables, trained.preprocess(pictures.COLOR), trained.classes.index(label)
        ).values
        heat = np.asarray(catalogue.heat(values, (8, 8)))[0]
        # Grayer where plasma is: blue where there is no evidence, yellow where there is most
        yellow = drawn[..., :2].mean(-1) - drawn[..., 2]
        warm = yellow.reshape(8, 30, 8, 40).mean((1, 3))
        if heat.max() > 0:
            assert np.corrcoef(warm.ravel(), heat.ravel())[0, 1] > 0.8
            compared += 1
    assert compared


def test_a_very_long_picture_has_evidence(start, network):
    client = start(network)
    for size in ((1, 90_000), (90_000, 1)):
        body = pictures.saved(np.zeros(size, np.uint8), "PNG")
        assert client.post("/predict?explain=top1", content=body).status_code == 200


def test_a_program_has_no_evidence_and_says_so(start, folders):
    client = start(loaded.load(folders / "stablehlo"))
    about = client.get("/about").json()
    assert not about["evidence"] and "holds a program (stablehlo)" in about["no_evidence"]
    answer = client.post("/predict?explain=top1", content=DIGIT)
    assert answer.status_code == 400 and "holds a program" in answer.json()["error"]


def test_images_that_leave_at_several_exits_have_no_evidence(start, network):
    client = start(network._replace(card={**network.card, "exits": {"thresholds": [0.5]}}))
    assert client.get("/about").json()["no_evidence"] == "images leave this network at several exits"
    assert client.post("/predict?explain=top1", content=DIGIT).status_code == 400


def test_a_network_of_oblong_images_is_refused_at_the_start(network):
    card = {**network.card, "preprocessing": {**network.card["preprocessing"], "shape": [8, 6, 1]}}
    with pytest.raises(UserError, match="this network takes images of 8 x 6"):
        Service(network._replace(card=card))


# -- page ----------------------------------------------------------------------------------------------------------


def test_the_page_allows_its_own_script_and_style_alone(client):
    answer = client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"https?:|//[a-z]|innerHTML|insertAdjacent|eval\(|\son[a-z]+=|\sstyle=", PAGE.read_text())
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in answer.headers


def test_another_name_of_the_host_is_refused(client):
    for path in ("/", "/about", "/predict"):
        for name in ("rebound.example", "127.0.0.1.rebound.example:80", "", "127.0.0.1@x"):
            answer = client.get(path, headers={"Host": name})
            assert answer.status_code == 400 and "does not answer to that name" in answer.json()["error"]
    for name in ("127.0.0.1", "127.0.0.1:8000"):
        assert client.get("/about", headers={"Host": name}).status_code == 200


def test_answers_are_json_for_scripts(client):
    answer = client.post("/predict?top=1", content=DIGIT)
    assert answer.headers["Content-Type"] == "application/json"
    assert set(json.loads(answer.text)) == {"classes", "batch", "milliseconds"}
