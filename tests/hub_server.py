"""A small hub on the loopback, which speaks what huggingface_hub asks of it, and serves other files by URL.

It has repositories of models with one commit each, private and gated ones, and faults that a test switches on.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
_RESOLVE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_INFO = re.compile(r"/api/(datasets/[^/]+/[^/]+)/(?:revision|tree)/([^/]+)/?")


class Hub:
    """The content of the server, and what happened.

    Attributes:
      url: Its address.
      repositories: {name: {file: bytes}}; the name of a data set begins with datasets/.
      private, gated: Names of repositories that need TOKEN, or that nobody may read.
      files: {path: bytes} of files that are no repository's.
      commits: Revisions of each repository; the last one is "main".
      cut: {file: n} ends the connection after n bytes, once.
      wrong: Files whose content differs from their checksum.
      status: Answer to every request, if it is not 0.
      requests: (method, path, value of the header Range), in order.
    """

    def __init__(self):
        self.url = ""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.wrong: set[str] = set()
        self.status = 0
        self.requests: list[tuple[str, str, str | None]] = []
        self.uploads: dict[str, bytes] = {}

    def commit(self, repository: str) -> str:
        """Returns the commit of a repository, a digest of its files."""
        digest = hashlib.sha1()
        for name, content in sorted(self.repositories[repository].items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format, *args):
        pass

    def do_HEAD(self):
        self._get(with_body=False)

    def do_GET(self):
        self._get(with_body=True)

    def do_PUT(self):
        body = self._body()
        self.hub.uploads[hashlib.sha256(body).hexdigest()] = body
        self._send(200, b"", {"ETag": '"1"'})

    def do_POST(self):
        path, hub = self._path(), self.hub
        if hub.status:
            self._error(hub.status)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._body()
            self._error(401)
        elif path == "/api/repos/create":
            body = json.loads(self._body())
            name = f"{body.get('organization') or 'me'}/{body['name']}"
            hub.repositories.setdefault(name, {})
            self._json({"url": f"{hub.url}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":  # the front matter of README.md
            self._body()
            self._json({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(self._body())["files"]
            modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
            answers = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for file, mode in zip(files, modes, strict=True)
            ]
            self._json({"files": answers})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(self._body())["objects"]
            actions = {"upload": {"href": f"{hub.url}/upload", "header": {}}}
            self._json({"transfer": "basic", "objects": [{**each, "actions": actions} for each in objects]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1])
        else:
            self._body()
            self._error(404)

    def _commit(self, repository: str) -> None:
        import base64

        files = self.hub.repositories[repository]
        for line in self._body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        commit = self.hub.commit(repository)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repository}/commit/{commit}"})

    def _get(self, with_body: bool) -> None:
        path, hub = self._path(), self.hub
        if hub.status:
            self._error(hub.status)
        elif path in hub.files:
            self._file(path.rpartition("/")[2], hub.files[path], {}, with_body)
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(*match.groups(), with_body)
        elif (match := _INFO.fullmatch(path)) and match[1] in hub.repositories:
            files = hub.repositories[match[1]]
            if match[2] not in ("main", "v1", hub.commit(match[1])):
                self._error(404, "RevisionNotFound")
            elif "/tree/" in path:
                self._json(
                    [{"type": "file", "path": name, "size": len(body), "oid": ""} for name, body in files.items()]
                )
            else:
                self._json({"id": match[1], "sha": hub.commit(match[1]), "siblings": [{"rfilename": n} for n in files]})
        else:
            self._error(404, "RepoNotFound")

    def _resolve(self, repository: str, revision: str, name: str, with_body: bool) -> None:
        hub, is_known = self.hub, self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository not in hub.repositories or (repository in hub.private and not is_known):
            self._error(401, "RepoNotFound")
        elif repository in hub.gated:
            self._error(403, "GatedRepo")
        elif revision not in ("main", "v1", hub.commit(repository)):
            self._error(404, "RevisionNotFound")
        elif name not in hub.repositories[repository]:
            self._error(404, "EntryNotFound", {"X-Repo-Commit": hub.commit(repository)})
        else:
            content = hub.repositories[repository][name]
            large = name.endswith((".safetensors", ".bin"))
            digest = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
            headers = {"X-Repo-Commit": hub.commit(repository), "ETag": f'"{digest}"'}
            if large:
                headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            self._file(name, content, headers, with_body)

    def _file(self, name: str, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        if name in self.hub.wrong:
            content = bytes(byte ^ 1 for byte in content)
        start, status, rest = 0, 200, self.headers.get("Range")
        if rest:
            start, status = int(rest.removeprefix("bytes=").partition("-")[0]), 206
            if start >= len(content):
                self._error(416)
                return
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        self.send_response(status)
        for key, value in {**headers, "Accept-Ranges": "bytes", "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body and name in self.hub.cut:
            self.wfile.write(body[: self.hub.cut.pop(name)])
            self.close_connection = True
        elif with_body:
            self.wfile.write(body)

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        return path

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str = "", headers: dict[str, str] | None = None) -> None:
        self._send(status, b"", {**(headers or {}), **({"X-Error-Code": code} if code else {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Yields a hub that is served until the context ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, home: str) -> dict[str, str]:
    """Returns environment variables of a process that uses the hub, with caches in the folder `home`."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": f"{home}/hf",
        "XDG_CACHE_HOME": f"{home}/cache",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
