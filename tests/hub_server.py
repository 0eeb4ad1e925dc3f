"""
A small Hub on 127.0.0.1 for the tests: it speaks to unmodified clients (huggingface_hub, transformers) and is as strict as
the real one where that matters: tokens and their roles, hashes and sizes of what is uploaded, the parent of a commit.

    with LoopbackHub() as hub:
        HfApi(endpoint=hub.endpoint, token="hf_alice_write").create_repo("alice/model")
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


# token: (name of its user, role)
TOKENS = {
    "hf_alice_write": ("alice", "write"),
    "hf_alice_read": ("alice", "read"),
    "hf_bob_write": ("bob", "write"),
}
NULL_COMMIT = "0" * 40
Failure = int | str | tuple[int, bytes, dict[str, str]] | Callable[[], None]


class HubError(Exception):
    """A refusal: the status and, where there is one, the code that the client turns into its own exception."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class File:
    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:
        """The name by which the client compares: SHA-256 of large files, git's SHA-1 of the others."""
        if self.is_lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # every commit holds all its files
    refs: dict[str, str] = field(default_factory=dict)  # refs/heads/main, refs/tags/v1, refs/pr/1
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256

    def commit(self, ref: str, parent: str, files: dict[str, File], summary: str) -> str:
        names = [(path, file.oid) for path, file in sorted(files.items())]
        oid = hashlib.sha1(json.dumps([parent, summary, len(self.commits), names]).encode()).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        return oid

    def resolve(self, revision: str) -> str:
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.refs[ref]
        if revision in self.commits:
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class LoopbackHub:
    """
    The server. `requests` holds every request as `"METHOD /path"`, `uploads` counts the blobs that arrived by SHA-256,
    and `fail` makes coming requests go wrong.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.uploads: Counter[str] = Counter()
        self.failures: list[list] = []
        self.collections: dict[str, list[str]] = {}
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        # Large files come from elsewhere, as from the real Hub: another host name, without tokens
        self.storage = f"http://localhost:{self.server.server_port}/storage"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, pattern: str, how: Failure = 503, times: int = 1) -> None:
        """
        Let the next `times` requests whose `"METHOD /path"` matches `pattern` fail: with an HTTP status, with another
        answer (status, content, headers), by `"drop"` (the connection closes halfway through the body) or a call before
        that, or by `"lost"` (the work is done, the answer never sent).
        """
        self.failures.append([pattern, how, times])

    def next_failure(self, request: str) -> Failure | None:
        with self.lock:
            self.requests.append(request)
            for failure in self.failures:
                if failure[2] and re.search(failure[0], request):
                    failure[2] -= 1
                    return failure[1]
        return None

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return {path: file.content for path, file in repo.commits[repo.resolve(revision)].items()}

    # What follows answers requests. `user` is the name and role behind the token, None without a token.

    def find(self, repo_id: str, user, write: bool = False, propose: bool = False) -> Repo:
        repo = self.repos.get(repo_id)
        owns = user is not None and repo_id.split("/")[0] == user[0]
        if repo is None or (repo.private and not owns):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if (write or propose) and user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if (write and not owns) or ((write or propose) and user[1] != "write"):
            raise HubError(403, f"Forbidden: you must have write access to {repo_id}")
        return repo

    def whoami(self, user):
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return {"type": "user", "name": user[0], "orgs": [], "auth": {"accessToken": {"role": user[1]}}}

    def create(self, user, body: dict):
        if user is None:
            raise HubError(401, "Invalid username or password.")
        namespace = body.get("organization") or user[0]
        repo_id = f"{namespace}/{body['name']}"
        if user != (namespace, "write"):
            raise HubError(403, f"You don't have the rights to create a model under the namespace {namespace!r}")
        url = f"{self.endpoint}/{repo_id}"
        if repo_id in self.repos:
            return 409, {"error": "You already created this model repo", "url": url}
        repo = self.repos[repo_id] = Repo(private=body.get("visibility") == "private")
        attributes = File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_lfs=False)
        repo.commit("refs/heads/main", NULL_COMMIT, {".gitattributes": attributes}, "initial commit")
        return {"url": url}

    def validate_yaml(self, body: dict):
        metadata = re.match(r"---\n(.*?)\n---", body["content"], re.DOTALL)
        try:
            loaded = yaml.safe_load(metadata[1]) if metadata else {}
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}
        if not isinstance(loaded, dict) or not isinstance(loaded.get("license", ""), str):
            return 400, {"errors": [{"message": '"license" must be a string'}], "warnings": []}
        return {"errors": [], "warnings": [] if loaded else [{"message": "empty or missing yaml metadata"}]}

    def preupload(self, repo: Repo, revision: str, body: dict):
        existing = repo.commits[repo.resolve(revision)]
        answer = []
        for entry in body["files"]:
            is_binary = b"\0" in base64.b64decode(entry["sample"], validate=True)
            mode = "lfs" if is_binary or entry["path"].endswith(".safetensors") else "regular"
            answer.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False})
            if entry["path"] in existing:
                answer[-1]["oid"] = existing[entry["path"]].oid
        return {"files": answer}

    def lfs_batch(self, repo_id: str, repo: Repo, body: dict):
        objects = []
        for entry in body["objects"]:
            objects.append({"oid": entry["oid"], "size": entry["size"]})
            if entry["oid"] not in repo.objects:
                href = f"{self.storage}/{repo_id}/{entry['oid']}?size={entry['size']}"
                objects[-1]["actions"] = {"upload": {"href": href}}
        return {"transfer": "basic", "objects": objects}

    def store(self, repo: Repo, oid: str, size: int, content: bytes):
        if len(content) != size or hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, f"{len(content)} bytes do not hash to {oid}")
        with self.lock:
            self.uploads[oid] += 1
            repo.objects[oid] = content
        return {}

    def commit(self, repo_id: str, repo: Repo, revision: str, create_pr: bool, lines: list[dict]):
        header = next(line["value"] for line in lines if line["key"] == "header")
        with self.lock:
            head = repo.resolve(revision)
            ref = revision if revision.startswith("refs/pr/") else f"refs/heads/{revision}"
            parent = header.get("parentCommit", head)
            if create_pr:
                ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repo.refs)}"
            elif ref not in repo.refs:
                raise HubError(404, f"{revision} is not a branch", "RevisionNotFound")
            elif parent != head:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[parent])
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = File(base64.b64decode(value["content"], validate=True), is_lfs=False)
                elif line["key"] == "lfsFile":
                    if len(repo.objects.get(value["oid"], b"")) != value["size"]:
                        raise HubError(400, f"{value['path']} was not uploaded")
                    files[value["path"]] = File(repo.objects[value["oid"]], is_lfs=True)
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            if files == repo.commits[parent]:
                raise HubError(400, "an empty commit")
            oid = repo.commit(ref, parent, files, header["summary"])
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint}/{repo_id}/commit/{oid}"}
        if create_pr:
            answer["pullRequestUrl"] = f"{self.endpoint}/{repo_id}/discussions/{ref.rsplit('/', 1)[1]}"
        return answer

    def add_ref(self, repo: Repo, ref: str, revision: str):
        if ref in repo.refs:
            raise HubError(409, f"{ref} already exists")
        if not re.fullmatch(r"refs/(heads|tags)/[\w.-]+(/[\w.-]+)*", ref) or ref.startswith("refs/heads/refs/"):
            raise HubError(400, f"{ref} is not a valid name")
        repo.refs[ref] = repo.resolve(revision)
        return {}

    def list_refs(self, repo: Repo):
        answer: dict[str, list] = {"branches": [], "tags": [], "pullRequests": [], "converts": []}
        for ref, oid in repo.refs.items():
            kind, name = ref.removeprefix("refs/").split("/", 1)
            key = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[kind]
            answer[key].append({"name": name, "ref": ref, "targetCommit": oid})
        return answer

    def info(self, repo_id: str, repo: Repo, revision: str):
        oid = repo.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[oid])]
        card = repo.commits[oid].get("README.md", File(b"", is_lfs=False)).content.decode(errors="replace")
        metadata = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
        data = yaml.safe_load(metadata[1]) if metadata else {}
        return {"id": repo_id, "sha": oid, "private": repo.private, "siblings": siblings, "tags": [], "cardData": data}

    def tree(self, repo: Repo, revision: str):
        entries = []
        for path, file in sorted(repo.commits[repo.resolve(revision)].items()):
            entries.append({"type": "file", "path": path, "oid": file.oid, "size": len(file.content)})
            if file.is_lfs:
                entries[-1]["oid"] = hashlib.sha1(file.oid.encode()).hexdigest()
                entries[-1]["lfs"] = {"oid": file.oid, "size": len(file.content), "pointerSize": 134}
        return entries

    def create_collection(self, user, body: dict):
        if user is None or body["namespace"] != user[0]:
            raise HubError(403, "You cannot create a collection there")
        slug = f"{user[0]}/{re.sub('[^a-z0-9]+', '-', body['title'].lower())}-1"
        if slug in self.collections:
            return 409, {"error": "It exists already", "slug": slug}
        self.collections[slug] = []
        return self.describe_collection(slug)

    def add_to_collection(self, slug: str, item: str):
        if slug not in self.collections:
            raise HubError(404, "There is no such collection")
        if item in self.collections[slug]:
            raise HubError(409, "It is in the collection already")
        self.collections[slug].append(item)
        return self.describe_collection(slug)

    def describe_collection(self, slug: str):
        if slug not in self.collections:
            raise HubError(404, "There is no such collection")
        owner, title = slug.split("/")
        return {
            **{
                "slug": slug,
                "title": title,
                "owner": {"name": owner},
                "position": 0,
                "items": [],
                "private": False,
                "theme": "blue",
            },
            **{"lastUpdated": "2026-01-01T00:00:00.000Z", "upvotes": 0},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    hub: LoopbackHub

    def log_message(self, *arguments):
        pass

    def handle_any(self):
        failure = self.hub.next_failure(f"{self.command} {unquote(self.path)}")
        size = int(self.headers.get("Content-Length", 0))
        if callable(failure):
            failure = failure() or "drop"
        if failure == "drop":
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        body = self.rfile.read(size)
        headers = {"Content-Type": "application/json"}
        try:
            if isinstance(failure, int):
                raise HubError(failure, "Service unavailable")
            answer = failure if isinstance(failure, tuple) else self.answer(body)
            status, content, *more = answer if isinstance(answer, tuple) else (200, answer)
            headers.update(*more)
        except HubError as error:
            status, content = error.status, {"error": str(error)}
            headers["X-Error-Message"] = str(error)
            if error.code is not None:
                headers["X-Error-Code"] = error.code
        if failure == "lost":
            self.close_connection = True
            return
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def user(self) -> tuple[str, str] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise HubError(401, "Invalid credentials in Authorization header", "RepoNotFound")
        return TOKENS.get(token)

    def answer(self, body: bytes):
        """Return what to answer: content, or status, content and, if need be, headers."""
        hub, address = self.hub, urlsplit(self.path)
        query = parse_qs(address.query)
        parts = [unquote(part) for part in address.path.split("/")[1:]]
        if parts[0] == "datasets":
            parts = parts[1:]
        if parts[0] == "storage":
            repo, oid = hub.repos["/".join(parts[1:3])], parts[3]
            if self.command == "PUT":
                return hub.store(repo, oid, int(query["size"][0]), body)
            return 200, repo.objects[oid], {"ETag": f'"{oid}"'}
        user = self.user()
        match self.command, parts:
            case "GET", ["api", "whoami-v2"]:
                return hub.whoami(user)
            case "POST", ["api", "repos", "create"]:
                return hub.create(user, json.loads(body))
            case "POST", ["api", "validate-yaml"]:
                return hub.validate_yaml(json.loads(body))
            case "POST", ["api", "collections"]:
                return hub.create_collection(user, json.loads(body))
            case "GET", ["api", "collections", owner, name]:
                return hub.describe_collection(f"{owner}/{name}")
            case "POST", ["api", "collections", owner, name, "items"]:
                return hub.add_to_collection(f"{owner}/{name}", json.loads(body)["item"]["id"])
            case "GET" | "HEAD", [owner, name, "resolve", revision, *path]:
                return self.resolve(f"{owner}/{name}", hub.find(f"{owner}/{name}", user), revision, "/".join(path))
            case "POST", [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                repo_id = f"{owner}/{name.removesuffix('.git')}"
                return hub.lfs_batch(repo_id, hub.find(repo_id, user, propose=True), json.loads(body))
            case method, ["api", "models" | "datasets", owner, name, *rest]:
                repo_id = f"{owner}/{name}"
                create_pr = "create_pr" in query
                repo = hub.find(repo_id, user, write=method != "GET" and not create_pr, propose=create_pr)
                match method, rest:
                    case "GET", []:
                        return hub.info(repo_id, repo, "main")
                    case "GET", ["revision", revision]:
                        return hub.info(repo_id, repo, revision)
                    case "GET", ["refs"]:
                        return hub.list_refs(repo)
                    case "GET", ["tree", revision]:
                        return hub.tree(repo, revision)
                    case "POST", ["preupload", revision]:
                        return hub.preupload(repo, revision, json.loads(body))
                    case "POST", ["commit", revision]:
                        lines = [json.loads(line) for line in body.splitlines()]
                        return hub.commit(repo_id, repo, revision, create_pr, lines)
                    case "POST", ["branch", branch]:
                        start = json.loads(body or b"{}").get("startingPoint", "main")
                        return hub.add_ref(repo, f"refs/heads/{branch}", start)
                    case "POST", ["tag", revision]:
                        return hub.add_ref(repo, f"refs/tags/{json.loads(body)['tag']}", revision)
        raise HubError(404, f"no route for {self.command} {address.path}")

    def resolve(self, repo_id: str, repo: Repo, revision: str, path: str):
        oid = repo.resolve(revision)
        if path not in repo.commits[oid]:
            raise HubError(404, f"{path} does not exist in {oid}", "EntryNotFound")
        file = repo.commits[oid][path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.oid}"'}
        if file.is_lfs:
            headers |= {"X-Linked-Size": len(file.content), "X-Linked-Etag": f'"{file.oid}"'}
            return 302, b"", headers | {"Location": f"{self.hub.storage}/{repo_id}/{file.oid}"}
        return 200, file.content, headers
