"""A Hub on 127.0.0.1 for the real huggingface_hub client: repositories in memory, LFS, commits, faults on demand."""

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_invented"
OWNER = "me"
CUT = "cut"  # the connection is closed in the middle of the request, without an answer
LOST = "lost"  # the request is carried out, and the connection closed without an answer


@dataclass
class Repository:
    """`versions`: the files, bytes by path, after each commit; `shas`: the commits' names, oldest first."""

    private: bool
    versions: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])
    shas: list[str] = field(default_factory=lambda: [hashlib.sha1(b"0").hexdigest()])

    @property
    def files(self) -> dict[str, bytes]:
        return self.versions[-1]

    def commit(self, files: dict[str, bytes]) -> str:
        self.versions.append(files)
        self.shas.append(hashlib.sha1(str(len(self.shas)).encode()).hexdigest())
        return self.shas[-1]


class Server:
    """`url` for HF_ENDPOINT; `repositories` by (kind, name); `asked`: "METHOD path" of each request.

    `fault` maps the method, the path and the paths asked for before to a status, CUT, LOST, or None for a good answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fault: Callable = lambda method, path, before: None
        self.lock = threading.RLock()

        class Handler(_Handler):
            server_state = self

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *arguments) -> None:
        pass

    def _body(self, half: bool = False) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if half:
                    break
            else:
                self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if half else length)

    def _send(self, status: int, body=b"", **headers) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, message: str = "", code: str = "", sha: str = "") -> None:
        self._send(status, {"error": message}, X_Error_Message=message, X_Error_Code=code, X_Repo_Commit=sha)

    def _serve(self) -> None:
        state, path = self.server_state, unquote(urlsplit(self.path).path)
        with state.lock:
            fault = state.fault(self.command, path, list(state.asked))
            state.asked.append(f"{self.command} {path}")
        if fault == CUT:
            self._body(half=True)
            self.close_connection = True
            return
        body = self._body()
        if fault == LOST:
            with state.lock, io.BytesIO() as self.wfile:
                self._answer(path, body)
            self.wfile = io.BytesIO()
            self.close_connection = True
            return
        if fault:
            return self._error(fault, "scripted")
        with state.lock:
            self._answer(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _answer(self, path: str, body: bytes) -> None:
        state = self.server_state
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path.startswith("/lfs/"):  # as S3's: signed addresses, no token
            if self.command == "PUT":
                state.blobs[path.removeprefix("/lfs/")] = body
            return self._send(200, {})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            if not known:
                return self._error(401, "Invalid username or password.")
            asked = json.loads(body)
            if (asked["organization"] or OWNER) != OWNER:
                return self._error(403, "You don't have the rights to create a model under this namespace")
            name, kind = f"{OWNER}/{asked['name']}", asked.get("type", "model")
            there = (kind, name) in state.repositories
            private = asked.get("visibility") == "private" or asked.get("private", False)
            state.repositories.setdefault((kind, name), Repository(private))
            return self._send(409 if there else 200, {"url": f"{state.url}{'/datasets' * (kind == 'dataset')}/{name}"})
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if parts[0] in ("datasets", "models") else parts
        name = "/".join(parts[:2]).removesuffix(".git")
        repository, rest = state.repositories.get((kind, name)), parts[2:]
        if repository is None or (repository.private and not known):
            return self._error(401 if not known else 404, "Repository not found", "RepoNotFound")
        if rest[:1] == ["info"]:
            return self._send(
                200, {"transfer": "basic", "objects": [self._lfs(one) for one in json.loads(body)["objects"]]}
            )
        if not rest or rest[0] == "revision":
            files = [{"rfilename": path} for path in sorted(repository.files)]
            return self._send(
                200,
                {"id": name, "sha": repository.shas[-1], "private": repository.private, "siblings": files, "tags": []},
            )
        action, revision, inner = rest[0], rest[1], "/".join(rest[2:])
        if action == "preupload":
            wanted = [one["path"] for one in json.loads(body)["files"]]
            return self._send(200, {"files": [self._mode(repository, path) for path in wanted]})
        if action == "commit":
            place = f"{'datasets/' * (kind == 'dataset')}{name}"
            return self._commit(repository, place, [json.loads(line) for line in body.splitlines()], known)
        if revision in repository.shas:
            version = repository.shas.index(revision)
        elif revision == "main":
            version = -1
        else:
            return self._error(404, "Revision not found", "RevisionNotFound")
        files, sha = repository.versions[version], repository.shas[version]
        if action == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._send(200, _tree(files, inner, recursive))
        if action == "paths-info":
            wanted = parse_qs(body.decode())["paths"] if body[:1] != b"{" else json.loads(body)["paths"]
            every = _tree(files, "", True)
            return self._send(200, [entry for entry in every if entry["path"] in wanted])
        if action == "resolve" and inner in files:
            content = files[inner]
            first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X_Repo_Commit": sha,
                "Accept_Ranges": "bytes",
            }
            if "Range" in self.headers:
                headers["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self._send(206 if "Range" in self.headers else 200, part, **headers)
        self._error(404, "Entry not found", "EntryNotFound", sha)

    def _lfs(self, one: dict) -> dict:
        answer = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in self.server_state.blobs:
            url = self.server_state.url
            answer["actions"] = {
                "upload": {"href": f"{url}/lfs/{one['oid']}"},
                "verify": {"href": f"{url}/lfs/verify"},
            }
        return answer

    def _mode(self, repository: Repository, path: str) -> dict:
        lfs, there = path.endswith((".safetensors", ".parquet")), repository.files.get(path)
        oid = None if there is None else hashlib.sha256(there).hexdigest() if lfs else _git_hash(there)
        return {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}

    def _commit(self, repository: Repository, place: str, lines: list[dict], known: bool) -> None:
        if not known:
            return self._error(401, "Invalid username or password.")
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", repository.shas[-1]) != repository.shas[-1]:
                return self._error(412, "A commit has happened since. Please refresh and try again.")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server_state.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        self._send(200, {"commitUrl": f"{self.server_state.url}/{place}/commit/{sha}", "commitOid": sha})


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree(files: dict[str, bytes], below: str, recursive: bool) -> list[dict]:
    prefix = f"{below}/" if below else ""
    entries = {}
    for path, content in files.items():
        if not path.startswith(prefix):
            continue
        inner = path.removeprefix(prefix)
        for depth in range(1, inner.count("/") + 1 if recursive else min(inner.count("/"), 1) + 1):
            folder = prefix + "/".join(inner.split("/")[:depth])
            entries[folder] = {"type": "directory", "path": folder, "oid": _git_hash(folder.encode()), "size": 0}
        if recursive or "/" not in inner:
            entries[path] = {"type": "file", "path": path, "oid": _git_hash(content), "size": len(content)}
    return list(entries.values())


@contextmanager
def serve() -> Iterator[Server]:
    """A server for the length of the block."""
    server = Server()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
