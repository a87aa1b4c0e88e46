"""A stand-in for the server of W&B: takes runs and reports on 127.0.0.1 and remembers what it was sent."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "team"


class Server(ThreadingHTTPServer):
    """Remembers GraphQL operations with their variables, lines of files, and uploads.

    Attributes:
        asked: (name of the operation, variables).
        lines: by file, such as `wandb-history.jsonl`.
        uploaded: paths.
        views: reports by id.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.lines: dict[str, list[Any]] = {}
        self.uploaded: list[str] = []
        self.views: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def variables(self, operation: str) -> list[dict[str, Any]]:
        return [variables for name, variables in self.asked if name == operation]

    def answer(self, operation: str, query: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "P", "internalId": "UDE6", "name": given.get("project", "p"), "entity": {"name": ENTITY},
                   "entityName": ENTITY, "artifact": None}  # fmt: skip
        if "upsertBucket" in query:
            bucket = {"id": "B", "name": given["name"], "displayName": given.get("displayName"), "sweepName": None,
                      "project": project, "historyLineCount": 0}  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        if "createArtifact(" in query:
            sequence = {"id": "S", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "A", "state": "PENDING", "artifactSequence": sequence}}}
        if "createArtifactManifest" in query:
            file = {"id": "F", "name": "m", "displayName": "m", "uploadUrl": f"{self.url}/upload/manifest",
                    "uploadHeaders": []}  # fmt: skip
            return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}
        if "createArtifactFiles" in query:
            edges = [
                {"node": {"id": "F", "name": spec["name"], "displayName": spec["name"], "uploadHeaders": [],
                          "uploadUrl": f"{self.url}/upload/{spec['name']}", "uploadMultipartUrls": None,
                          "storagePath": "x", "artifact": {"id": "A"}}}
                for spec in given.get("artifactFiles") or given.get("input", {}).get("artifactFiles") or []
            ]  # fmt: skip
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if "commitArtifact" in query:
            return {"commitArtifact": {"artifact": {"id": "A", "digest": "d"}}}
        if "upsertView" in query:
            id_ = given.get("id") or f"V{len(self.views)}"
            view = {"id": id_, "type": given["type"], "name": given["name"], "displayName": given["displayName"],
                    "description": given["description"], "project": project, "spec": given["spec"]}  # fmt: skip
            self.views[id_] = view
            return {"upsertView": {"view": view, "inserted": True}}
        if "models(" in query or "models:" in query or "GetProjects" in operation:
            node = {
                **project,
                "name": "siegebench",
                "createdAt": "2026-01-01T00:00:00Z",
                "isBenchmark": False,
                "user": None,
            }
            end = {"endCursor": "c", "hasNextPage": False}
            return {"models": {"edges": [{"node": node, "cursor": "c"}], "pageInfo": end}}
        viewer = {
            "id": "U",
            "entity": ENTITY,
            "username": ENTITY,
            "flags": "{}",
            "teams": {"edges": []},
            "email": "a@b.c",
        }
        if "model(" in query:
            return {"model": {"bucket": None}, "viewer": viewer}
        return {"viewer": viewer, "project": project, "serverInfo": {"cliVersionInfo": {}, "features": []}}


class Handler(BaseHTTPRequestHandler):
    """Answers as much of the protocol as a run and a report need."""

    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self.server.uploaded.append(self.path)
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            query, given = asked["query"], asked.get("variables") or {}
            named = re.search(r"(?:query|mutation)\s+(\w+)", query)
            operation = named[1] if named else ""
            self.server.asked.append((operation, given))
            self._reply({"data": self.server.answer(operation, query, given)})
            return
        if self.path.endswith("/file_stream"):
            for name, chunk in (json.loads(body).get("files") or {}).items():
                self.server.lines.setdefault(name, []).extend(json.loads(line) for line in chunk["content"])
        self._reply({})


@contextmanager
def serving() -> Iterator[Server]:
    """The server, on a free port, until the block ends."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
