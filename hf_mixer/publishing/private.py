# SPDX-License-Identifier: Apache-2.0
"""What no file that goes up may hold: tokens, passwords and keys, and the names that this machine has for itself."""

import codecs
import json
import re
import socket
from collections.abc import Collection
from pathlib import Path

from .foreign import MAX_BYTES, WEIGHTS_SUFFIX


# All lengths are bounded, as a file can be made for a search that never ends.
# Before a value: not what stands for one in documentation, nor what `hide_tokens` writes
REAL = rb"(?!\S{0,99}(?i:your|xxx|\*\*\*|\.\.\.|placeholder|redacted|change_?me))"
PASSWORD = rb"(?i:secret|passw(?:or)?d|passphrase)"
# Tokenizers have other tokens
NAME = (
    rb"(?i:api[_ -]?key|access[_-]?key|secret[_-]?key|(?-i:[A-Z]_KEY)|secret|passw(?:or)?d|passphrase"
    rb"|token(?<!pad_token)(?<!eos_token)(?<!bos_token)(?<!unk_token)(?<!sep_token)(?<!cls_token)(?<!mask_token))"
)
ASSIGNED = rb"\\?[\"']?[ \t]*[:=][ \t]*" + REAL
# Letters and digits together, as few words have them
MIXED = rb"(?=[^\s\"']{0,99}\d)(?=[^\s\"']{0,99}[A-Za-z])[\w+/~!#%^&@.=-]"
END = rb"(?=[\s\"',;}\]\\]|$)"
KEYS = (
    # After an equals sign or in quotes
    NAME + rb"\\?[\"']?[ \t]*(?:=[ \t]*|[:=][ \t]*\\?[\"'])" + REAL + MIXED + rb"{8,999}" + END,
    PASSWORD + ASSIGNED + rb"\\?[\"']" + REAL + rb"[^\s\"'<>${}\\]{8,999}\\?[\"']",
    # After a colon, where a sentence may go on: if it begins a line or an entry, has a name of several parts, or is long
    rb"(?:\w[_-]|(?m:^|[,;{])[\s\\\"'-]{0,9})" + NAME + ASSIGNED + MIXED + rb"{8,999}" + END,
    NAME + ASSIGNED + MIXED + rb"{16,999}" + END,
    # Alone on a line, as settings have it
    rb"(?m:^)[ \t]*[\w-]*"
    + PASSWORD
    + ASSIGNED
    + rb"(?!\S{0,99}(?i:passw|token|secret|key))[\w+/~!#%^&@=-]{8,999}[,;]?[ \t\r]*(?m:$)",
    # In the environment of a command
    rb"\b[A-Z_]*(?:API_KEY|TOKEN|SECRET|PASSWORD)=" + REAL + rb"[^\s\"'*$<{]{8,999}",
)
# Several patterns are searched for one after another, which is faster than all of them together
SECRETS = {
    "a Hugging Face token": (rb"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",),
    "a GitHub token": (rb"\b(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}",),
    "an AWS access key": (rb"\bAKIA[0-9A-Z]{16}\b",),
    # Of Google, OpenAI, GitLab, Slack, and PyPI, and JSON Web Tokens
    "an API key or a token of another service": (
        rb"\b(?:AIza[\w-]{35}|sk-[\w-]{20}|glpat-[\w-]{20}|xox[a-z]-[\w-]{10}|pypi-[\w-]{40})",
        rb"\beyJ[\w-]{10,999}\.[\w-]{10,999}\.[\w-]{10}",
    ),
    "the value of a token": (
        rb"--\w*token[= ][\"']?" + REAL + rb"[\w-]{8,999}",
        rb"\bBearer " + REAL + MIXED + rb"{16,999}",
    ),
    "a password in an address": (rb"\w://[^\s/:@\"']+:[^\s/:@\"']+@",),
    "a private key": (rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",),
    "an API key, a password or a token": KEYS,
}


def refuse_private(
    directory: Path, folder: Path, token: str | None = None, written_by_people: Collection[str] = ()
) -> None:
    """
    Refuse files in `directory` that hold secrets or say on which machine they were made. Of weights the header is searched.

    Args:
        directory (`Path`):
            The files that go up.
        folder (`Path`):
            Where they come from. Its path must not occur in them, nor that of the user's home, nor the name of this machine.
        token (`str`, *optional*):
            The token in use, which must not occur either.
        written_by_people (`Collection[str]`, *optional*):
            Names of files that may speak of this machine, as people wrote them.

    Raises:
        `ValueError`: a file holds such a name, `token`, or what looks like a token, a password or a key.
    """
    secrets = {"the token in use": (re.escape(token.encode()),), **SECRETS} if token else SECRETS
    local = describe_machine(folder)
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name, content = path.relative_to(directory).as_posix(), read_text(path)
        for kind, patterns in (secrets if name in written_by_people else {**secrets, **local}).items():
            match = next((match for pattern in patterns if (match := re.search(pattern, content))), None)
            if match is not None:
                line = content.count(b"\n", 0, match.start()) + 1
                revoke = ", and revoke it" if kind in secrets else ""
                raise ValueError(f"{name}, line {line}, holds {kind}. Nothing was sent. Remove it from there{revoke}.")


def read_text(path: Path) -> bytes:
    """Return the text in a file: all of it, or what of weights and pictures is text."""
    with path.open("rb") as file:
        if path.suffix == WEIGHTS_SUFFIX:
            # The header has text in it, the tensors that follow have not
            content = file.read(min(int.from_bytes(file.read(8), "little"), MAX_BYTES))
        else:
            content = file.read()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.replace(b"\0", b"")
    if b"\0" in content:
        # As searching all of it takes a second for 15 MB
        content = b"\n".join(re.findall(rb"[\t\n\r -~]{8,999}", content))
    return content


def describe_machine(folder: Path) -> dict[str, tuple[bytes, ...]]:
    """Return patterns of what tells one machine and its user from others."""
    patterns: dict[str, tuple[bytes, ...]] = {}
    for kind, path in (("the path of your home folder", Path.home()), ("the path of the folder", folder.resolve())):
        if len(path.parts) > 1:
            # As it is, and as JSON writes it
            forms = {str(path), path.as_posix(), json.dumps(str(path))[1:-1]}
            patterns[kind] = tuple(
                rb"(?<![\w.-])" + re.escape(form.encode()) + rb"(?![\w-])" for form in sorted(forms)
            )
    host = socket.gethostname().split(".")[0]
    # Others are words as well, or what the model is called after
    if len(host) > 5 and re.search(r"[\d-]", host) and host.lower() not in str(folder.resolve()).lower():
        patterns["the name of this machine"] = (rb"(?i)\b" + re.escape(host.encode()) + rb"\b",)
    return patterns
