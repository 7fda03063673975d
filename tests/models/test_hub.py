"""Models of the hub, fetched from a server of the test's own: honest, slow, endless, lying, and away."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from multispin.errors import InputError
from multispin.models import hub, hub_process
from multispin.models.references import locate
from multispin.models.tokenizer import load_tokenizer

NAME = "owner/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs, with one fault."""

    fault = ""  # beside files, asked and stop, which `serving` gives

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append((self.command, path))
        if self.fault == "wait" and "/resolve/" in path:
            self.send_response(429)
            self.send_header("Retry-After", "1000000")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.startswith("/api/models/") and f"/{NAME}" not in path:
            self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            self.answer(200, json.dumps([self.entry(name) for name in self.files]).encode())
        elif path.startswith(f"/api/models/{NAME}"):
            if self.fault == "endless listing":
                self.endless()
                return
            siblings = [{"rfilename": name, "size": self.size(name)} for name in self.files]
            siblings += [{"rfilename": f"{k}.json", "size": 1} for k in range(9000 * (self.fault == "many files"))]
            self.answer(200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        else:
            name = path.rsplit("/", 1)[-1]
            if name not in self.files:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data = self.files[name]
            headers = {"ETag": f'"{hash(data) & (2**63 - 1):x}"', "X-Repo-Commit": COMMIT}
            if self.command == "GET" and name.endswith(".safetensors") and self.fault in ("drip", "endless"):
                self.endless(headers, drip=self.fault == "drip")
            else:
                self.answer(200, data, headers)

    def size(self, name):
        if self.fault == "large" and name.endswith(".safetensors"):
            return 2**60
        return None if self.fault == "no size" and name == "tokenizer.json" else len(self.files[name])

    def entry(self, name):
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": f"{len(name):040x}"}

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def endless(self, headers=(), drip=False):
        self.send_response(200)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.end_headers()
        try:
            while not self.stop.wait(0.2 if drip else 0.0):
                self.wfile.write(b" " if drip else b" " * 2**20)
        except OSError:
            pass


@contextmanager
def serving(files, fault=""):
    stop = threading.Event()
    handler = type("Handler", (Hub,), {"files": files, "fault": fault, "asked": [], "stop": stop})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def files(make_folder):
    from pathlib import Path

    folder = Path(make_folder("model"))
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    return found | {"pytorch_model.bin": b"never", "consolidated.safetensors": b"the same again", "README.md": b"words"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub.folder_of.cache_clear()
    yield
    hub.folder_of.cache_clear()


def test_a_model_is_fetched_once_and_only_what_is_read_of_it(files, monkeypatch):
    from multispin.models.loading import load_model

    with serving(files) as (server, url):
        monkeypatch.setenv("HF_ENDPOINT", url)
        tokenizer = load_tokenizer(NAME)
        assert tokenizer.decode(tokenizer.encode("a house")) == "a house"
        assert not any("safetensors" in path for _, path in server.asked if "resolve" in path)
        assert load_model(NAME).config.num_hidden_layers == 2
        taken = {path.rsplit("/", 1)[-1] for method, path in server.asked if method == "GET" and "resolve" in path}
    assert taken == files.keys() - {"pytorch_model.bin", "consolidated.safetensors", "README.md"}


def test_what_was_fetched_serves_while_the_hub_is_away(files, monkeypatch):
    with serving(files) as (_, url):
        monkeypatch.setenv("HF_ENDPOINT", url)
        folder = hub.folder_of(NAME)
    hub.folder_of.cache_clear()
    assert hub.folder_of(NAME, quiet_s=3.0) == folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.folder_of.cache_clear()
    assert hub.folder_of(NAME) == folder


def test_settings_alone_do_not_count_as_a_model(files, monkeypatch):
    with serving(files) as (_, url):
        monkeypatch.setenv("HF_ENDPOINT", url)
        hub.folder_of(NAME, weights=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="cannot fetch owner/model from the hub"):
        hub.folder_of(NAME)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wait", "bytes came in 2 s"),
        ("drip", "bytes came in 2 s"),
        ("endless", "a file is larger than the hub's listing says"),
        ("endless listing", "its listing takes more than|only 0 bytes came in 2 s"),
        ("large", "'model.safetensors' has 1152921504606846976 bytes, over the limit"),
        ("no size", "'tokenizer.json' has None bytes, over the limit of 134217728"),
        ("many files", "it holds 900. files, over the limit of 2000"),
    ],
)
def test_a_server_can_take_neither_time_nor_disk_nor_memory(files, monkeypatch, fault, reason, tmp_path):
    quiet_s = 2.0 if "2 s" in reason else 60.0  # a busy machine takes seconds to begin
    with serving(files, fault) as (_, url):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(InputError, match=reason):  # or the test never ends
            hub.folder_of(NAME, quiet_s=quiet_s, memory_bytes=2**30)
    assert sum(file.stat().st_size for file in tmp_path.rglob("hub/hub/**/blobs/*")) < 2**22


def test_what_is_not_there_is_refused_in_one_sentence(files, monkeypatch):
    with serving(files) as (_, url):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(InputError, match=r"cannot fetch other/one from the hub \(404.*name a folder"):
            load_tokenizer("other/one")


def test_a_hub_id_is_found_without_asking_the_hub():
    assert locate(NAME) == NAME


@pytest.mark.parametrize(
    ("missing", "reason"), [("config.json", "no config.json"), ("model.safetensors", "no .safetens")]
)
def test_a_repository_of_another_kind_is_refused(files, monkeypatch, missing, reason):
    del files[missing]
    files.pop("consolidated.safetensors")
    with serving(files) as (_, url):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(InputError, match=reason):
            hub.folder_of(NAME)


def test_a_proxy_by_which_the_hub_was_not_reached_is_named_without_its_credential(monkeypatch):
    class ConnectError(Exception):  # the library's own name, whichever HTTP client it uses
        pass

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    error = ConnectError("[Errno 111] Connection refused")
    assert hub_process.why_not_fetched(error) == "Connection refused"
    monkeypatch.setenv("all_proxy", "http://me:secret@127.0.0.1:9")
    assert "the proxy 127.0.0.1:9 that HTTPS_PROXY" in hub_process.why_not_fetched(error)
    assert "secret" not in hub_process.why_not_fetched(error)
    assert "proxy" not in hub_process.why_not_fetched(ValueError("no such repository"))
