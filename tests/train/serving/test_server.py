"""`python -m train.serve` as a process: slow and large senders, many connections, signals, and mistakes of users."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests import tiny
from train.serve import LIBRARIES

DIGIT = (tiny.ROOT / "experiments/samples/digit3.png").read_bytes()
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in LIBRARIES), reason="pip install -e '.[serve]'"
)
TIMEOUT = 2  # seconds, of the server under test
MIB = 2**20


def served(folder, *flags):
    """Starts the command, and returns its process and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "train.serve", str(folder), "--port=0", *flags],
        cwd=tiny.ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    lines = process.stdout.readline(), process.stdout.readline()
    assert re.fullmatch(r"compiling resnet8 \(\w+, 10 classes\) for batches of 1[, 248]* …\n", lines[0]), lines
    return process, int(re.fullmatch(r"serving on http://[0-9.]+:(\d+); ctrl-C ends it\n", lines[1])[1])


@pytest.fixture(scope="module")
def server(folders):
    process, port = served(folders / "safetensors", f"--timeout={TIMEOUT}", "--max_megabytes=1")
    yield process, port
    process.send_signal(signal.SIGTERM)
    assert (*process.communicate(timeout=30), process.returncode) == ("", "", 0)


def post(port, body=DIGIT, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/predict", body, headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read()), answer.headers


def answer_to(connection):
    """Returns all that a server sends until it closes."""
    connection.settimeout(30)
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def resident(process):
    return psutil.Process(process.pid).memory_info().rss


def test_a_body_of_100_megabytes_costs_no_memory(server):
    process, port = server
    assert post(port)[0] == 200
    before = resident(process)
    block, stop, peak = bytes(MIB), threading.Event(), [before]

    def watch():
        while not stop.wait(0.005):
            peak[0] = max(peak[0], resident(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        declared = post(port, (block for _ in range(100)), **{"Content-Length": str(100 * MIB)})
        chunked = post(port, (block for _ in range(100)))  # http.client sends chunks where it knows no length
        form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n'
        as_form = post(
            port, (part for part in (form, *[block] * 100)), **{"Content-Type": "multipart/form-data; boundary=x"}
        )
    finally:
        stop.set()
        watcher.join()
    for status, answer, headers in (declared, chunked, as_form):
        assert status == 413 and answer["error"] == "the body is larger than 1,048,576 bytes"
        assert headers["Connection"] == "close"
    assert peak[0] - before < 30 * MIB
    assert post(port)[0] == 200


def test_a_body_that_comes_slowly_is_given_up(server):
    _, port = server
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(DIGIT)}\r\n\r\n".encode()
        )
        connection.sendall(DIGIT[:50])
        began = time.monotonic()
        assert post(port)[0] == 200  # others are answered meanwhile
        assert time.monotonic() - began < TIMEOUT
        answer = answer_to(connection)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 2 s" in answer


@pytest.mark.parametrize(
    "sent", [b"", b"POST /predict HTTP/1.1\r\nHost: local", b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\nGET "]
)
def test_a_request_that_does_not_come_to_its_body_is_given_up(server, sent):
    _, port = server
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        answer = answer_to(connection)
        assert answer.startswith(b"HTTP/1.1 200 ") if sent.startswith(b"GET") else answer == b""
        assert time.monotonic() - began < TIMEOUT + 10  # uvicorn itself waits 5 s for a second request


def test_idle_connections_keep_nobody_out(server):
    _, port = server
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    try:
        assert post(port)[0] == 200
        with ThreadPoolExecutor(32) as pool:
            assert {status for status, *_ in pool.map(lambda _: post(port), range(64))} == {200}
    finally:
        for connection in idle:
            connection.close()


def test_what_is_no_http_is_refused(server):
    _, port = server
    for sent in (
        b"\x16\x03\x01\x02\x00 a TLS hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
            assert answer_to(connection).startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 300_000)
        assert answer_to(connection).startswith(b"HTTP/1.1 400 ")
    assert post(port)[0] == 200


def test_a_client_that_goes_away_is_forgotten(server):
    _, port = server
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(DIGIT)}\r\n\r\n".encode()
    for body in (b"", DIGIT[:50], DIGIT):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head + body)
    assert post(port)[0] == 200


def failed(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "train.serve", *arguments], cwd=tiny.ROOT, text=True, capture_output=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_mistakes_are_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert failed("x", f"--port={port}") == f"error: --host=127.0.0.1 --port={port}: Address already in use"
    assert failed(str(tmp_path / "none"), "--port=0").startswith(f"error: {tmp_path / 'none'}: there is no such folder")
    for flags, message in (
        ([], "name one MODEL"),
        (["a", "--port=70000"], "flag --port=70000: 70000 is not an integer in the range [0, 65535]"),
        (["a", "--port=0", "--host=192.0.2.1"], "--host=192.0.2.1 --port=0: Cannot assign requested address"),
    ):
        assert message in failed(*flags)


def test_the_printed_address_is_answered(folders):
    process = subprocess.Popen(
        [sys.executable, "-m", "train.serve", str(folders / "stablehlo"), "--port=0", "--host=127.0.0.2", "--batch=1"],
        cwd=tiny.ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        address = re.search(
            r"serving on (http://127\.0\.0\.2:\d+);", process.stdout.readline() + process.stdout.readline()
        )
        with urllib.request.urlopen(f"{address[1]}/about", timeout=30) as answer:
            assert answer.status == 200 and json.load(answer)["classes"] == 10
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_another_host_is_served_with_a_warning_until_ctrl_c(folders):
    process, port = served(folders / "stablehlo", "--host=0.0.0.0", "--batch=1")
    assert post(port, Host="any.example")[0] == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "warning: --host=0.0.0.0: other machines can reach this server, which asks for no password\n"
