"""The handler of Inference Endpoints, called as their server calls it, and by strangers."""

import base64
import importlib.util
import io
import json
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers import pipeline

from hf_mixer.deployment import handler
from hf_mixer.deployment.handler import EndpointHandler
from tests.helpers import save_classifier
from tests.new_processes import run_without_package


LABELS = ["cat", "dog", "bird", "fish"]
# As huggingface-inference-toolkit loads a handler, and calls it for a request with the type of an image
SERVER = """
import importlib.util, json, sys
from PIL import Image

folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", f"{folder}/handler.py")
sys.path.insert(0, folder)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
image = Image.open(sys.argv[2]).convert("RGB")
print(json.dumps(handler({"inputs": image, "parameters": {"top_k": 2}})))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("endpoint") / "mixer", LABELS)


@pytest.fixture(scope="module")
def endpoint(folder):
    return EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def answer(folder, photo):
    return pipeline("image-classification", str(folder))(photo)


def encode(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


class Web:
    """A web server on this machine, which answers each path with what `pages` has for it."""

    def __init__(self, pages):
        web, self.requests = self, []

        class Pages(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                web.requests.append(self.path)
                page = pages.get(self.path, (404, b""))
                if callable(page):
                    page(self)
                    return
                status, content = page
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", content)
                    content = b""
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def public(monkeypatch):
    """Take this machine for a public one."""
    monkeypatch.setattr(handler, "is_public", lambda address: True)


def test_the_server_loads_the_file_where_the_package_is_missing(folder, photo, answer, tmp_path):
    (folder / "handler.py").write_bytes(Path(handler.__file__).read_bytes())
    photo.save(tmp_path / "photo.png")
    output, _ = run_without_package(SERVER, folder, "photo.png", folder=tmp_path)
    answers = json.loads(output.splitlines()[-1])
    assert [entry["label"] for entry in answers] == [entry["label"] for entry in answer[:2]]
    assert [entry["score"] for entry in answers] == pytest.approx([entry["score"] for entry in answer[:2]], abs=1e-6)


def test_an_image_comes_as_bytes_as_text_or_decoded(endpoint, photo, answer):
    content = encode(photo)
    text = base64.b64encode(content).decode()
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for image in (photo, content, bytearray(content), text, lines, f"data:image/png;base64,{text}"):
        result = endpoint({"inputs": image})
        assert result == answer
        assert json.loads(json.dumps(result)) == answer
    assert endpoint({"inputs": [text, photo], "parameters": None}) == [answer, answer]
    assert endpoint({"inputs": [content]}) == [answer]


def test_parameters_are_those_of_the_pipeline(endpoint, photo, answer):
    assert endpoint({"inputs": photo, "parameters": {"top_k": 1}}) == answer[:1]
    raw = endpoint({"inputs": photo, "parameters": {"function_to_apply": "none", "top_k": None}})
    weights = np.exp([entry["score"] for entry in raw])
    assert weights / weights.sum() == pytest.approx([entry["score"] for entry in answer], abs=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("photo.jpg", 'expected {"inputs"'),
        ({"image": "x"}, 'expected {"inputs"'),
        ({"inputs": None}, "expected an image: .* got NoneType"),
        ({"inputs": {"url": "http://photo"}}, "expected an image: .* got dict"),
        ({"inputs": []}, "between 1 and 64 images in a request, got 0"),
        ({"inputs": ["x"] * 65}, "between 1 and 64 images in a request, got 65"),
        ({"inputs": [["x"]]}, "expected an image: .* got list"),
        ({"inputs": b"no image"}, "expected an image in one of JPEG, .* got none or a damaged one"),
        ({"inputs": "bm8gaW1hZ2U="}, "expected an image in one of JPEG, .* got none or a damaged one"),
        ({"inputs": "data:text/plain,hello"}, "expected base64 text, a data: URL or .* got 'data:text/plain,hello'"),
        ({"inputs": "x" * 1001}, "got 'x{79}...$"),
        (
            {"inputs": b"", "parameters": {"candidate_labels": []}},
            "top_k and function_to_apply, got {'candidate_labels'",
        ),
        ({"inputs": b"", "parameters": {"top_k": 0}}, "top_k has to be a whole number from 1 on, got 0"),
        ({"inputs": b"", "parameters": {"top_k": "3"}}, "top_k has to be a whole number from 1 on, got '3'"),
        ({"inputs": b"", "parameters": {"function_to_apply": "tanh"}}, "one of softmax, sigmoid, none, got 'tanh'"),
    ],
)
def test_bad_input_is_one_clear_line(data, message, endpoint):
    with pytest.raises(ValueError, match=message) as error:
        endpoint(data)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_no_input_is_taken_for_a_file_of_the_server(endpoint, photo, tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    photo.save(path)
    monkeypatch.chdir(tmp_path)
    for image in (str(path), "photo.png", path.as_uri(), f"data:{path}", f"FILE://{path}"):
        with pytest.raises(ValueError, match="expected base64 text|expected an image in one of"):
            endpoint({"inputs": image})
    with pytest.raises(ValueError, match="got PosixPath|got WindowsPath"):
        endpoint({"inputs": path})


def test_damaged_and_huge_images_are_refused(endpoint, photo, monkeypatch):
    content = encode(photo, "JPEG")
    for damaged in (content[: len(content) // 2], encode(photo)[:-30], content[:20], encode(photo, "EPS")):
        with pytest.raises(ValueError, match="got none or a damaged one"):
            endpoint({"inputs": damaged})
    monkeypatch.setattr(handler, "MAX_PIXELS", 1199)
    with pytest.raises(ValueError, match="may have 1,199 pixels, got one of 40 x 30"):
        endpoint({"inputs": content})


def test_an_address_on_the_web_is_fetched(endpoint, photo, answer, public):
    pages = {"/a%20b.png?size=%2F1": (200, encode(photo)), "/moved": (302, "/a b.png?size=%2F1")}
    with Web(pages) as web:
        for path in (*pages, "/a b.png?size=%2F1#part"):
            assert endpoint({"inputs": web.address + path}) == answer
        assert endpoint({"inputs": [web.address.replace("http", "HTTP") + "/moved", photo]}) == [answer, answer]


def test_what_an_address_may_not_do(endpoint, photo, tmp_path, public, monkeypatch):
    monkeypatch.setattr(handler, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(handler, "MAX_BYTES", 1000)
    photo.save(tmp_path / "photo.png")

    def send_for_ever(page, start=b"HTTP/1.1 200 OK\r\n\r\n"):
        page.wfile.write(start)
        while True:
            time.sleep(0.02)
            try:
                page.wfile.write(b"x")
            except OSError:
                return

    pages = {
        "/large": (200, bytes(1001)),
        "/slow": send_for_ever,
        "/slow-header": partial(send_for_ever, start=b"HTTP/1.1 200 OK\r\nX-Header: "),
        "/loop": (302, "/loop"),
        "/file": (302, (tmp_path / "photo.png").as_uri()),
        "/ftp": (302, "ftp://127.0.0.1/photo.png"),
        "/page": (200, b"<html>secret</html>"),
    }
    with Web(pages) as web:
        for path, message in {
            "/large": "holds more than 1,000 bytes",
            "/slow": "took more than 0.3 s",
            "/slow-header": "took more than 0.3 s",
            "/loop": "is redirected too often",
            "/file": "is no address that starts with http:// or https://",
            "/ftp": "is no address that starts with http:// or https://",
            "/page": "got none or a damaged one",
            "/missing": "answers with the status 404",
        }.items():
            with pytest.raises(ValueError, match=message) as error:
                endpoint({"inputs": web.address + path})
            assert "secret" not in str(error.value)
        assert web.requests.count("/loop") == 4
        with pytest.raises(ValueError, match="cannot be reached"):
            endpoint({"inputs": web.address.replace("http", "https")})
    for address, message in {
        web.address: "cannot be reached",
        "http://": "is no address",
        "https://[": "Invalid IPv6 URL",
        "http://a:b/": "Port could not be cast",
    }.items():
        with pytest.raises(ValueError, match=message):
            endpoint({"inputs": address})


def test_machines_beside_the_server_are_not_reached(endpoint, photo):
    with Web({"/photo.png": (200, encode(photo))}) as web:
        port = web.server.server_port
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "2130706433", "user@127.0.0.1"):
            with pytest.raises(ValueError, match="is no public machine|cannot be reached"):
                endpoint({"inputs": f"http://{host}:{port}/photo.png"})
    assert not web.requests
    for address in (
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "::1",
        "fe80::1%eth0",
        "::ffff:127.0.0.1",
        "fd00::1",
    ):
        assert not handler.is_public(address)
    assert handler.is_public("8.8.8.8")


def test_only_a_folder_of_this_machine_is_loaded(folder):
    with pytest.raises(ValueError, match="alice/mixer is no folder"):
        EndpointHandler("alice/mixer")
    # As in its own folder, where the server gives none
    (folder / "handler.py").write_bytes(Path(handler.__file__).read_bytes())
    spec = importlib.util.spec_from_file_location("handler_of_a_repository", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.EndpointHandler().classifier.model.config.id2label == dict(enumerate(LABELS))
