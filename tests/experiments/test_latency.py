"""experiments.bench.latency: the server that it starts, and the answers that it gets."""

import asyncio
import sys
import types

import pytest

from experiments.bench import latency
from models.errors import UserError


@pytest.mark.parametrize("starts", [True, False])
def test_the_port_of_a_server_is_found_among_other_lines_or_its_error_is_shown(tmp_path, monkeypatch, starts):
    program = tmp_path / "python"
    end = (
        "echo 'serving on http://127.0.0.1:81; ctrl-C ends it'; exec sleep 60"
        if starts
        else "(echo; echo 'error: no') >&2"
    )
    program.write_text(f"#!/bin/sh\nhead -c 200000 /dev/zero >&2; echo note; echo compiling; echo note; {end}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    if starts:
        with latency.served("x") as port:
            assert port == 81
    else:
        with pytest.raises(UserError, match="train.serve x does not start: error: no"), latency.served("x"):
            pass


def test_an_answer_that_is_not_json_is_shown(monkeypatch):
    monkeypatch.setattr(latency, "SECONDS", types.SimpleNamespace(value=0.1), raising=False)

    async def asked():
        def answer(reader, writer):
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 19\r\n\r\nService Unavailable")

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            await latency.requested(server.sockets[0].getsockname()[1], 1, b"image")

    with pytest.raises(UserError, match="train.serve refuses the image: Service Unavailable"):
        asyncio.run(asked())
