"""A small server in the Hub's place, for the real client: HF_ENDPOINT in the environment of a process makes it ask
here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from conftest import REPO

COMMIT = "a" * 40
Files = dict[str, bytes]


class Hub(BaseHTTPRequestHandler):
    """Serves the files of `repos`, `owner/name` to path to content; `gated/...` is restricted, all else not found."""

    def __init__(self, repos: dict[str, Files], *arguments):
        self.repos = repos
        super().__init__(*arguments)

    def do_GET(self):
        path = self.path.split("?")[0]
        if "gated/" in path:
            return self.refuse(
                403, "GatedRepo", "Access to this model is restricted: you are not in the authorized list."
            )
        name = next((name for name in self.repos if f"/{name}/" in f"{path}/"), None)
        if name is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        files = self.repos[name]
        after = f"{path}/".split(f"/{name}/", 1)[1].strip("/").split("/")
        commit = after[1] if len(after) > 1 and len(after[1]) == 40 else COMMIT
        if after[0] == "resolve":
            content = files.get("/".join(after[2:]))
            if content is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            return self.answer(content, {"ETag": f'"{hash(content)}"', "X-Repo-Commit": commit})
        entries = [{"type": "file", "path": p, "size": len(c), "oid": str(hash(c))} for p, c in files.items()]
        if after[0] == "tree":
            folder = "/".join(after[2:])
            return self.answer(json.dumps([e for e in entries if e["path"].startswith(folder)]).encode())
        if after[0] == "paths-info":
            return self.answer(json.dumps([]).encode())
        facts = {"id": name, "sha": commit, "siblings": [{"rfilename": p} for p in files], "tags": [], "private": False}
        return self.answer(json.dumps(facts).encode())

    do_HEAD = do_POST = do_GET

    def refuse(self, status: int, code: str, message: str):
        self.answer(b"{}", {"X-Error-Code": code, "X-Error-Message": message}, status)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serve(repos: dict[str, Files]) -> Iterator[str]:
    """The address of a Hub with these repositories."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, repos)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Of a process that sees no cache but `home`, and the Hub that `variables` name."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {"HF_HOME": str(home), "PYTHONPATH": str(REPO)} | variables


def said(home: Path, *lines: str, **variables: str) -> str:
    """What a program prints: for each of its lines its output, or the ValueError in which it ends."""
    code = "from mixdistill import load_problems, load_student, load_traces\n" + "".join(
        f"try:\n    {line}\nexcept ValueError as error:\n    print('refused:', error)\n" for line in lines
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(home, **variables), timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
