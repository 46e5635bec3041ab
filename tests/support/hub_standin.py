"""A stand-in for the Hugging Face hub on this machine: the requests that its client makes.

Large files are answered as the hub does: by a redirect to a store with another address (here the
same server under its other name), which serves ranges. It notes every request, and breaks
connections when told to.
"""

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from atp_cpp import ConvertError
from atp_cpp.convert.source import fetch
from support.checkpoint_files import INDEX, PARTS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
BIG = {f"w{i}": np.arange(40_000, dtype=np.float32) + i for i in range(4)}
NEEDED = {"README.md", "config.json", "tokenizer.json", INDEX, *PARTS}


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    range: str
    token: str


@dataclass
class Hub:
    """What it holds, how it misbehaves, and what it was asked.

    Attributes:
        files: of the one repository "org/tiny": name -> content.
        large: names of those under Git LFS.
        gated: the files need TOKEN. private: without TOKEN there is no such repository.
        cuts: name -> sizes after which the answers to the next GETs break off.
        status: answer every request with this one, if not 0.
        spoil: names of files of which one byte arrives wrong.
        pauses: name -> size after which an answer waits for `go_on`; `paused` tells that it does.
    """

    files: dict
    large: set
    gated: bool = False
    private: bool = False
    cuts: dict = field(default_factory=dict)
    status: int = 0
    spoil: set = field(default_factory=set)
    pauses: dict = field(default_factory=dict)
    paused: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    commit: str = COMMIT
    asked: list = field(default_factory=list)
    url: str = ""

    def gets(self, name):
        """Requests for a file's content, in the order in which they came."""
        path = f"/store/{name}" if name in self.large else f"/org/tiny/resolve/{self.commit}/{name}"
        return [a for a in self.asked if (a.method, a.path) == ("GET", path)]

    def start(self):
        """Serves in the background; returns the server, to be shut down."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def listed(self, name):
        """A file as the API lists it."""
        content = self.files[name]
        row = {"size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
        if name in self.large:
            sha256 = hashlib.sha256(content).hexdigest()
            row["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        return row


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle()

    def answer(self):
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        hub.asked.append(Asked(self.command, path, self.headers.get("Range", ""), token))
        if hub.status:
            self.refuse(hub.status, "")
        elif path.startswith("/store/"):
            self.content(path.removeprefix("/store/"))
        elif not path.startswith(("/api/models/org/tiny", "/org/tiny/")) or (
            hub.private and token != TOKEN
        ):
            self.refuse(401 if token != TOKEN else 404, "RepoNotFound")
        elif path.startswith("/api/models/org/tiny"):
            self.api(path.removeprefix("/api/models/org/tiny"))
        elif hub.gated and token != TOKEN:
            self.refuse(403 if token else 401, "GatedRepo")
        else:
            revision, name = path.removeprefix("/org/tiny/resolve/").split("/", 1)
            self.resolve(revision, name)

    def api(self, rest):
        hub = self.hub
        revision = rest.split("/")[2] if rest else "main"
        if revision not in ("main", "v1", hub.commit):
            self.refuse(404, "RevisionNotFound")
        elif rest.startswith("/tree/"):
            rows = []
            for name in hub.files:
                row = hub.listed(name)
                lfs = row.get("lfs")
                oid = {"oid": row["blobId"], "type": "file", "path": name, "size": row["size"]}
                rows.append(oid | ({"lfs": lfs | {"oid": lfs["sha256"]}} if lfs else {}))
            self.json(rows)
        else:
            siblings = [{"rfilename": name, **hub.listed(name)} for name in hub.files]
            about = {"private": hub.private, "gated": hub.gated, "disabled": False}
            names = {"_id": "1", "id": "org/tiny", "modelId": "org/tiny", "tags": []}
            self.json(names | about | {"sha": hub.commit, "siblings": siblings, "downloads": 1})

    def resolve(self, revision, name):
        hub = self.hub
        if revision not in ("main", "v1", hub.commit):
            self.refuse(404, "RevisionNotFound")
        elif name not in hub.files:
            self.refuse(404, "EntryNotFound")
        elif name in hub.large:
            content = hub.files[name]
            self.send_response(302)
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header(
                "Location", f"{hub.url.replace('127.0.0.1', 'localhost')}/store/{name}"
            )
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.content(name)

    def content(self, name):
        """All of a file, or the range asked for; breaks off where `cuts` says."""
        hub = self.hub
        whole = hub.files[name]
        etag = hashlib.sha1(whole).hexdigest()
        if name in hub.spoil:
            whole = whole[:-1] + bytes([whole[-1] ^ 1])
        first, last = 0, len(whole) - 1
        if wanted := self.headers.get("Range"):
            begin, end = wanted.removeprefix("bytes=").split("-")
            first, last = int(begin), min(int(end or last), last)
        part = whole[first : last + 1]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = hub.cuts.get(name)
        if cuts:
            self.wfile.write(part[: cuts.pop(0)])
            self.close_connection = True
        elif name in hub.pauses:
            n_first = hub.pauses[name]
            self.wfile.write(part[:n_first])
            hub.paused.set()
            hub.go_on.wait(60)
            self.wfile.write(part[n_first:])
        else:
            self.wfile.write(part)

    def json(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse(self, status, code):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()


def refused(*arguments, **options):
    with pytest.raises(ConvertError) as caught:
        fetch(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
