# SPDX-License-Identifier: Apache-2.0
"""What the Hub's refusals and failures mean, in one line each, and which of them are worth another try."""

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError


logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# Seconds before the second, third and fourth try
WAITS = (1, 2, 4)
TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def find_status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, if there is one."""
    return next((cause.response.status_code for cause in causes(error) if isinstance(cause, HfHubHTTPError)), None)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the Hub was busy, or the connection broke."""
    status = find_status(error)
    if status is not None:
        return status in TRANSIENT_STATUS
    # No answer at all, or a proxy's error page instead; Xet raises Python's own errors, or puts them into a text
    return any(
        isinstance(cause, HTTPError | JSONDecodeError | ConnectionError | TimeoutError)
        or (isinstance(cause, RuntimeError) and "CAS Client Error" in str(cause))
        for cause in causes(error)
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space. Xet's errors carry no number, only the text."""
    return any(
        getattr(cause, "errno", None) == errno.ENOSPC or "No space left on device" in str(cause)
        for cause in causes(error)
    )


def retry(call: Callable[[], Result]) -> Result:
    """Call until it succeeds, fails for good, or has failed four times. For requests that the client sends once."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            logger.warning("%s; trying again in %d s", describe(error), wait)
        time.sleep(wait)
    return call()


def describe(error: BaseException) -> str:
    """Say in a few words what went wrong between here and the Hub."""
    answers = [cause for cause in causes(error) if isinstance(cause, HfHubHTTPError)]
    if answers:
        messages = [" ".join(answer.server_message.split()) for answer in answers if answer.server_message]
        response = answers[0].response
        return f"the Hub answered {response.status_code} ({messages[0] if messages else response.reason_phrase})"
    cause = next((cause for cause in causes(error) if isinstance(cause, HTTPError)), error)
    return f"the connection to the Hub failed ({str(cause) or type(cause).__name__})"


@contextmanager
def clear_errors(repo_id: str) -> Iterator[None]:
    """
    Turn what huggingface_hub raises into one clear line that names the way out.

    Raises:
        `ConnectionError`: the Hub cannot be reached or keeps failing.
        `PermissionError`: the token is not valid, or does not allow it.
        `OSError`: the disk is full.
        `RuntimeError`: another refusal.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        status = find_status(error)
        if is_disk_full(error):
            raise OSError(
                "the disk is full. Free some space, or set TMPDIR and HF_HOME to folders on another disk, and run the same "
                "command again."
            ) from error
        if is_transient(error):
            raise ConnectionError(
                f"{describe(error)}. What has arrived is kept: run the same command again to finish."
            ) from error
        if status == 412:
            raise RuntimeError(
                f"{repo_id} has received another commit in the meantime, and nothing was changed. Look at it, and run the "
                "same command again to publish on top of it."
            ) from error
        if status == 403:
            raise PermissionError(
                f"the token does not allow this on {repo_id}: {describe(error)}. Choose a name under your own, or propose "
                "it with --create-pr, or make a token that may write to it at https://huggingface.co/settings/tokens"
            ) from error
        if status == 401:
            raise PermissionError(
                f"the token is not valid or has expired ({describe(error)}). Make another at "
                "https://huggingface.co/settings/tokens and log in with `hf auth login`, or set HF_TOKEN"
            ) from error
        if any(isinstance(cause, RepositoryNotFoundError) for cause in causes(error)):
            raise PermissionError(
                f"{repo_id} does not exist, or the token does not let you see it. Is the name right?"
            ) from error
        if status is not None:
            raise RuntimeError(f"{repo_id}: {describe(error)}") from error
        raise
