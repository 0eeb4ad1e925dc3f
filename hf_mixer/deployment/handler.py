# SPDX-License-Identifier: Apache-2.0
"""
The handler of Inference Endpoints: images in, labels out.

It lies beside the weights in a repository, and runs where this package is missing: it imports transformers and PIL alone.
Whoever reaches the endpoint chooses its inputs. So none of them is taken for a path, an address on the web is fetched from
public machines only, and sizes and times are bounded.
"""

import base64
import binascii
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from PIL import Image

from transformers import pipeline


MAX_IMAGES = 64
MAX_PIXELS = 64_000_000
# Of one image on the web: bytes, seconds from the first connection to the last byte, and redirections
MAX_BYTES = 20_000_000
MAX_SECONDS = 10.0
MAX_REDIRECTIONS = 3
# Others of Pillow's start programs or read fonts
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FUNCTIONS = ("softmax", "sigmoid", "none")
PORTS = {"http": 80, "https": 443}
# What stands for itself in an address, and what is escaped already
KEPT_CHARACTERS = "/?%:@!$&'()*+,;=~"


class EndpointHandler:
    """
    What the server makes once, and calls for every request.

    Args:
        path (`str`, *optional*):
            The folder of the repository on this machine, by default that of this file. Its code is run.

    Raises:
        `ValueError`: there is no such folder.
    """

    def __init__(self, path: str = ""):
        folder = Path(path or Path(__file__).parent)
        # Anything else would be looked up on the Hub, and its code run
        if not folder.is_dir():
            raise ValueError(f"{path} is no folder: expected that of the repository on this machine")
        self.classifier: Any = pipeline("image-classification", str(folder), trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """
        Args:
            data (`dict`):
                `"inputs"`: an image, as bytes of a file, their base64 text, a `data:` URL, an address that starts with
                `http://` or `https://`, or a PIL image, which the server makes of requests with the type of an image; or
                a list of these. `"parameters"`, if any: `"top_k"` (default 5) and `"function_to_apply"` (`"softmax"`,
                `"sigmoid"` or `"none"`, by default that of the model), as in the pipeline.

        Returns:
            `list`: `{"label": str, "score": float}` for the `top_k` labels, the best first; for a list of images a list of
            these lists.

        Raises:
            `ValueError`: something else was given, or an image cannot be read.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('expected {"inputs": an image or a list of images, "parameters": {...}}')
        inputs, parameters = data["inputs"], read_parameters(data.get("parameters"))
        if not isinstance(inputs, list):
            return self.classifier(read_image(inputs), **parameters)
        if not 0 < len(inputs) <= MAX_IMAGES:
            raise ValueError(f"expected between 1 and {MAX_IMAGES} images in a request, got {len(inputs)}")
        return self.classifier([read_image(image) for image in inputs], **parameters)


def read_parameters(parameters: Any) -> dict[str, Any]:
    """Return the arguments of the pipeline that a request names."""
    parameters = parameters or {}
    if not isinstance(parameters, dict) or parameters.keys() - {"top_k", "function_to_apply"}:
        raise ValueError(f"parameters may have top_k and function_to_apply, got {shorten(parameters)}")
    top_k, function = parameters.get("top_k"), parameters.get("function_to_apply")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ValueError(f"top_k has to be a whole number from 1 on, got {shorten(top_k)}")
    if function is not None and function not in FUNCTIONS:
        raise ValueError(f"function_to_apply has to be one of {', '.join(FUNCTIONS)}, got {shorten(function)}")
    return {name: value for name, value in parameters.items() if value is not None}


def read_image(image: Any) -> Image.Image:
    """Return an image in any of the forms that a request may have."""
    if isinstance(image, str):
        image = fetch(image) if image.lower().startswith(("http://", "https://")) else decode(image)
    if isinstance(image, bytes | bytearray):
        return open_image(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected an image: bytes, base64 text or an http(s) address, got {type(image).__name__}")
    return image


def open_image(content: bytes | bytearray) -> Image.Image:
    """Return the image in a file."""
    try:
        image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
        is_small = image.width * image.height <= MAX_PIXELS
        if is_small:
            image.load()
    except Exception as error:  # Pillow's decoders raise errors of all kinds for damaged files
        raise ValueError(
            f"expected an image in one of {', '.join(IMAGE_FORMATS)}, got none or a damaged one"
        ) from error
    if not is_small:
        raise ValueError(f"images may have {MAX_PIXELS:,} pixels, got one of {image.width} x {image.height}")
    return image


def decode(text: str) -> bytes:
    """Return the bytes in base64 text or in a `data:` URL."""
    kind, comma, content = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
    try:
        if comma and not kind.lower().endswith(";base64"):
            raise ValueError("a data: URL that is not in base64")
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"expected base64 text, a data: URL or an http(s) address, got {shorten(text)}") from error


def fetch(url: str) -> bytes:
    """
    Return what an address on the web holds.

    Raises:
        `ValueError`: it is not public, answers with something else, or takes too long or too much.
    """
    deadline = time.monotonic() + MAX_SECONDS
    try:
        for _ in range(1 + MAX_REDIRECTIONS):
            status, location, content = request(url, deadline)
            if status == 200:
                return content
            if location is None:
                raise ValueError(f"{shorten(url)} answers with the status {status}")
            url = urljoin(url, location)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        reason = f"took more than {MAX_SECONDS:g} s" if time.monotonic() >= deadline else "cannot be reached"
        raise ValueError(f"{shorten(url)} {reason}") from error
    raise ValueError(f"{shorten(url)} is redirected too often")


def request(url: str, deadline: float) -> tuple[int, str | None, bytes]:
    """Return the status of an answer, where it redirects to, and its content."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError(f"{shorten(url)} is no address that starts with http:// or https://")
    connection = http.client.HTTPConnection(parts.hostname, parts.port or PORTS[parts.scheme])
    sock = connect(connection.host, connection.port, deadline)

    def end() -> None:
        with suppress(OSError):  # the other side was faster
            sock.shutdown(socket.SHUT_RDWR)

    # The time limit of a socket starts anew with every byte
    timer = threading.Timer(deadline - time.monotonic(), end)
    timer.start()
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            sock = secured = context.wrap_socket(sock, server_hostname=parts.hostname, do_handshake_on_connect=False)
            secured.do_handshake()
        connection.sock = sock
        target = quote(f"{parts.path or '/'}?{parts.query}".removesuffix("?"), safe=KEPT_CHARACTERS)
        connection.request("GET", target, headers={"Host": parts.netloc.rpartition("@")[2], "User-Agent": "hf_mixer"})
        with connection.getresponse() as response:
            status = response.status
            location = response.getheader("Location") if 300 <= status < 400 else None
            content = response.read(MAX_BYTES + 1) if status == 200 else b""
    finally:
        timer.cancel()
        sock.close()
    if time.monotonic() >= deadline:
        raise TimeoutError
    if len(content) > MAX_BYTES:
        raise ValueError(f"{shorten(url)} holds more than {MAX_BYTES:,} bytes")
    return status, location, content


def connect(host: str, port: int, deadline: float) -> socket.socket:
    """Return a connection to a machine on the web, not to one inside the network of the server."""
    failure = OSError(f"no address of {host}")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not is_public(str(address[0])):
            raise ValueError(f"{host} is no public machine, and images are fetched from public ones only")
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet."""
    return ipaddress.ip_address(address).is_global


def shorten(value: Any) -> str:
    """Return what was given, for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
