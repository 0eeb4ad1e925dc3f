# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on the way to the Hub, in one clear line that names the way out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session


# The Hub, or a proxy before it, may answer the same request later
TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
# No answer at all. Xet raises the last two.
BROKEN = (HTTPError, ConnectionError, TimeoutError)
# What huggingface_hub raises where an answer is not what it expects
GARBLED = (KeyError, IndexError, TypeError, AttributeError, AssertionError, ValueError, FileMetadataError)
# The status of an answer in the texts of Xet's errors, such as "(401 Unauthorized)"
STATUS_IN_TEXT = re.compile(r"\b([45]\d\d) ([A-Z]\w+(?: [A-Z]\w+)*)")
OVERTAKEN = "{} has received another commit in the meantime, and nothing was changed. Look at it, and {} to publish on top of it."
# Hosts that the Hub itself sends its clients to
HUB_HOSTS = ("huggingface.co", "hf.co")


class LoginPageError(ConnectionError):
    """A login page of the network answered in place of the Hub. The argument is its host."""


class GarbledAnswerError(ConnectionError):
    """An answer cannot be the Hub's. The argument says why."""


@dataclass
class Exchange:
    """What has passed between this process and the Hub, and what the user wants of it."""

    repo_id: str | None
    # Something is to be sent, not only read
    is_upload: bool
    # The option that makes a proposal of what may not be sent
    propose: str | None
    # What to do after a failure that may pass
    way_on: str
    # Anything was answered, and what goes up was announced: huggingface_hub uploads right after that
    has_answer: bool = False
    has_begun: bool = False

    def watch(self, response: Any) -> None:
        """Look at an answer before huggingface_hub does, which ignores many that are not the Hub's."""
        self.has_answer = True
        self.has_begun |= response.is_success and "/preupload/" in response.request.url.path
        host = find_login_page(response)
        if host is not None:
            raise LoginPageError(host)

    @property
    def run_again(self) -> str:
        if self.has_begun:
            return f"What has arrived is kept: {self.way_on} to finish."
        return f"Nothing was sent: {self.way_on}." if self.is_upload else f"{self.way_on[0].upper()}{self.way_on[1:]}."


def find_login_page(response: Any) -> str | None:
    """Return the host of the login page that an answer is, or leads to; none if it may be the Hub's own."""
    headers = response.headers
    if "x-repo-commit" in headers:  # a file, which may be a page
        return None
    is_page = response.is_success and headers.get("content-type", "").startswith("text/html")
    if is_page or response.status_code == 511:
        return response.url.host
    # huggingface_hub looks at where a file is, and does not go to another host for that
    if response.request.method == "HEAD" and response.has_redirect_location:
        target = urlsplit(urljoin(str(response.url), headers["location"])).hostname
        if target not in (None, response.url.host, *HUB_HOSTS):
            return target
    return None


@contextmanager
def clear_errors(
    repo_id: str | None,
    is_upload: bool = True,
    propose: str | None = None,
    way_on: str = "run the same command again",
) -> Iterator[None]:
    """
    Turn what huggingface_hub raises into one clear line that names the way out. Errors of our own pass.

    Args:
        repo_id (`str`, *optional*):
            The repository that this is about.
        is_upload (`bool`, *optional*, defaults to `True`):
            Whether the user wants to send something. If so, the line says whether anything was sent.
        propose (`str`, *optional*):
            The option of the command with which the user may propose what the token does not allow.
        way_on (`str`, *optional*, defaults to `"run the same command again"`):
            What the user is to do after a failure that may pass.

    Raises:
        `ConnectionError`: the Hub cannot be reached, keeps failing, or something else answers in its place.
        `PermissionError`: the token is not valid, or does not allow it.
        `OSError`: the disk is full, or the Hub refuses for another reason.
        `ValueError`: HF_ENDPOINT is no address.
    """
    exchange = Exchange(repo_id, is_upload, propose, way_on)
    hooks = get_session().event_hooks["response"]
    hooks.append(exchange.watch)
    try:
        yield
    except Exception as error:
        explained = explain(error, exchange)
        if explained is None:
            raise
        raise explained from error
    finally:
        hooks.remove(exchange.watch)


def find_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def passes_through_hub(error: BaseException) -> bool:
    """Whether an error was raised in a call of huggingface_hub, and not by what calls it."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").split(".")[0] == "huggingface_hub":
            return True
        trace = trace.tb_next
    return False


def explain(error: Exception, exchange: Exchange) -> Exception | None:
    """Return an error with a message for the user; none if the error is not one of the Hub or of the way to it."""
    causes = list(find_causes(error))
    # Xet's errors carry no number, only the text
    if any("No space left on device" in str(cause) for cause in causes):
        return OSError(
            "the disk is full. Free some space, or set TMPDIR and HF_HOME to folders on another disk, and "
            f"{exchange.way_on}."
        )
    if not (isinstance(error, BROKEN) or passes_through_hub(error)) or isinstance(error, HFValidationError):
        return None
    endpoint = constants.ENDPOINT
    if not re.match(r"https?://[^\s/\[\]]", endpoint):
        return ValueError(
            f"HF_ENDPOINT is {endpoint!r}, which is no address of a Hub: expected one such as https://huggingface.co. Set "
            "it to that, or unset it."
        )
    for cause in causes:
        if isinstance(cause, OfflineModeIsEnabled):
            return ConnectionError("HF_HUB_OFFLINE is set: unset it to reach the Hub")
        if isinstance(cause, LoginPageError):
            return ConnectionError(
                f"a login page of the network ({cause}) answered in place of the Hub: log in there with a browser, then "
                f"{exchange.way_on}"
            )
        if isinstance(cause, GarbledAnswerError):
            return explain_garbled(str(cause), exchange)
    answers = [cause for cause in causes if isinstance(cause, HfHubHTTPError)]
    if answers:
        response = answers[0].response
        messages = [" ".join(answer.server_message.split()) for answer in answers if answer.server_message]
        reason = messages[0] if messages else response.reason_phrase
        # Without a token, what does not exist is answered like what needs one
        is_unknown = any(isinstance(answer, RepositoryNotFoundError) for answer in answers)
        if is_unknown and not (response.status_code == 401 and "authorization" in response.request.headers):
            return explain_unknown(exchange, is_gated=any(isinstance(answer, GatedRepoError) for answer in answers))
        if any(isinstance(answer, RevisionNotFoundError) for answer in answers) and not exchange.is_upload:
            return ValueError(f"{exchange.repo_id} has no such branch, tag or commit on the Hub ({reason})")
        return explain_status(response.status_code, reason, exchange)
    broken = [cause for cause in causes if isinstance(cause, BROKEN) or "CAS Client Error" in str(cause)]
    if broken:
        reason = str(broken[0]) or type(broken[0]).__name__
        status = STATUS_IN_TEXT.search(reason)
        if status is not None and not isinstance(broken[0], HTTPError):
            return explain_status(int(status[1]), status[2], exchange)
        return explain_broken(reason, exchange)
    has_no_number = isinstance(error, OSError) and error.errno is None
    if exchange.has_answer and (isinstance(error, GARBLED) or has_no_number):
        # A sentence of huggingface_hub's own says enough, and what follows may advise its arguments
        is_sentence = isinstance(error, OSError | ValueError)
        reason = re.split(r"\. | \(", str(error))[0] if is_sentence else f"{type(error).__name__}: {error}"
        return explain_garbled(reason.strip(" .:"), exchange)
    return None


def explain_unknown(exchange: Exchange, is_gated: bool) -> Exception:
    """Say that a repository does not exist, or is not for this user."""
    name = exchange.repo_id
    if is_gated:
        return PermissionError(
            f"{name} is gated on the Hub: ask for access on its page, and log in with `hf auth login`"
        )
    if exchange.is_upload:
        return PermissionError(f"{name} does not exist, or the token does not let you see it. Is the name right?")
    return PermissionError(
        f"{name} is no repository on the Hub that you may read: check the name, or log in with `hf auth login` if it is "
        "private"
    )


def explain_status(status: int, reason: str, exchange: Exchange) -> Exception:
    """Say what an answer of the Hub, or of the servers that keep its files, means."""
    answer = f"the Hub answered {status} ({reason})"
    name = exchange.repo_id
    if status in TRANSIENT_STATUS:
        return ConnectionError(f"{answer}. {exchange.run_again}")
    if status == 401:
        return PermissionError(
            f"the token is not valid or has expired ({answer}). Make another at https://huggingface.co/settings/tokens and "
            "log in with `hf auth login`, or set HF_TOKEN"
        )
    if status == 403 and exchange.is_upload:
        proposal = f"or propose it with {exchange.propose}, " if exchange.propose else ""
        return PermissionError(
            f"the token does not allow this{f' on {name}' if name else ''}: {answer}. Choose a name under your own, {proposal}or make a token "
            "that may write at https://huggingface.co/settings/tokens"
        )
    if status == 403:
        return PermissionError(
            f"the token does not let you read {name}: {answer}. Ask for access on its page, or make a token that may read "
            "it at https://huggingface.co/settings/tokens"
        )
    if status == 412 and exchange.is_upload and name is not None:
        return OSError(OVERTAKEN.format(name, exchange.way_on))
    return OSError(
        f"{f'{name}: ' if name else ''}{answer}{'. Nothing was sent.' if exchange.is_upload and not exchange.has_begun else ''}"
    )


def explain_broken(reason: str, exchange: Exchange) -> Exception:
    """Say why no answer came."""
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return ConnectionError(
            f"another machine answered in place of the Hub ({reason}): log in to this network with a browser, or set "
            f"SSL_CERT_FILE to the certificates of its proxy, then {exchange.way_on}"
        )
    if urlsplit(constants.ENDPOINT).hostname not in HUB_HOSTS:
        reason = f"{reason.rstrip('.')}; HF_ENDPOINT is {constants.ENDPOINT}"
    return ConnectionError(f"the connection to the Hub failed ({reason.rstrip('.')}). {exchange.run_again}")


def explain_garbled(reason: str, exchange: Exchange) -> Exception:
    """Say that an answer cannot be the Hub's."""
    return ConnectionError(
        f"the Hub answered something that is no answer of a Hub: {reason}. {exchange.run_again} If it stays so, see "
        "whether a proxy is in the way, or HF_ENDPOINT set."
    )
