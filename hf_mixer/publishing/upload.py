# SPDX-License-Identifier: Apache-2.0
"""Send files to the Hub in one commit, and check what arrived."""

import re
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from tqdm import tqdm

from .errors import clear_errors, is_transient, retry
from .release import CARD_NAME, Release


COMMIT_MESSAGE = "Upload MLP-Mixer with hf_mixer"
# Pull requests that may hold these files already, when the same command runs again
NUM_PULL_REQUESTS = 20


@dataclass(frozen=True)
class Publication:
    """
    What the Hub holds now.

    Attributes:
        oid (`str`):
            The commit.
        url (`str`):
            Its page, or that of the pull request.
        sent (`list[str]`):
            The files that this commit changes; empty where the Hub had them all.
        kept (`list[str]`):
            Files of the repository that are not from the folder, and stay.
    """

    oid: str
    url: str
    sent: list[str]
    kept: list[str]


def connect(token: str | None = None) -> tuple[HfApi, str]:
    """
    Return a client of the Hub and the name of the user, after a look at what the token allows.

    Raises:
        `PermissionError`: there is no token, it is not valid, or it only reads.
        `ConnectionError`: the Hub cannot be reached.
    """
    if constants.is_offline_mode():
        raise ConnectionError("HF_HUB_OFFLINE is set: unset it to publish")
    token = token or get_token()
    if token is not None and not token.isascii():
        raise PermissionError("the token holds characters that no token has: copy it again from where it was made")
    if token is None:
        raise PermissionError(
            "no token for the Hub: log in with `hf auth login`, set HF_TOKEN or pass --token. Tokens with the role `write` "
            "are made at https://huggingface.co/settings/tokens"
        )
    api = HfApi(token=token)
    with clear_errors("whoami"):
        account = retry(api.whoami)
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PermissionError(
            f"the token of {account['name']} only reads: make one with the role `write` at "
            "https://huggingface.co/settings/tokens"
        )
    return api, account["name"]


def publish(
    api: HfApi,
    repo_id: str,
    release: Release,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
) -> Publication:
    """
    Bring a repository to hold `release`, in one commit with what differs, and compare what the Hub then serves. Called
    again after an interruption, it finishes; called again after success, it sends nothing.

    Args:
        api (`HfApi`):
            The client, with a token that may write.
        repo_id (`str`):
            `namespace/name`. The repository is created if it does not exist.
        release (`Release`):
            The files.
        private (`bool`, *optional*, defaults to `False`):
            Create the repository as a private one. An existing public one is refused.
        revision (`str`, *optional*):
            The branch, created from `main` if it does not exist, or the reference of an open pull request, `refs/pr/N`.
        create_pr (`bool`, *optional*, defaults to `False`):
            Open a pull request instead of committing to the branch.
        tag (`str`, *optional*):
            Tag the commit.

    Raises:
        `ValueError`: the repository, the revision or the tag is in the way.
        `PermissionError`, `ConnectionError`, `OSError`, `RuntimeError`: see `clear_errors`.
    """
    branch = revision or constants.DEFAULT_REVISION
    check_options(revision, create_pr, tag)
    with clear_errors(repo_id):
        if branch.startswith("refs/pr/") and not retry(lambda: api.repo_exists(repo_id)):
            raise ValueError(f"{repo_id} does not exist, so it has no pull request {branch}. Nothing was sent.")
        retry(lambda: validate_card(api, release))
        retry(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
        if private and not retry(lambda: api.model_info(repo_id)).private:
            raise ValueError(
                f"{repo_id} exists and is public. Make it private in its settings first, choose another name, or leave out "
                "--private."
            )
        head, tagged = prepare_branch(api, repo_id, branch, tag)

        remote = list_hashes(api, repo_id, head)
        changed = find_changed(release, remote)
        there: tuple[str, str] | None = None
        if head is not None and not changed:
            there = head, f"{api.endpoint}/{repo_id}/commit/{head}"
        elif create_pr:
            there = find_pull_request(api, repo_id, release)
        if tagged is not None and (there is None or tagged != there[0]):
            raise ValueError(
                f"{repo_id} has a tag {tag} already, at {tagged}. Choose another, or delete it with "
                f"`hf repos tag delete {repo_id} {tag}`. Nothing was sent."
            )
        oid, url = there or commit(api, repo_id, release, changed, branch, head, create_pr)
        verify(api, repo_id, release, oid)
        if tag is not None and tagged is None:
            retry(lambda: api.create_tag(repo_id, tag=tag, revision=oid, exist_ok=True))
    kept = sorted(remote.keys() - release.files.keys() - {".gitattributes"})
    return Publication(oid, url, sent=[] if there else changed, kept=kept)


def check_options(revision: str | None, create_pr: bool, tag: str | None) -> None:
    """
    Refuse what cannot be done, before anything is sent.

    Raises:
        `ValueError`: a name is not valid, or a pull request would be tagged.
    """
    if revision is not None:
        check_reference("revision", revision)
    if tag is not None:
        check_reference("tag", tag)
        if create_pr:
            raise ValueError("--tag names a commit of your own: leave it out with --create-pr. Nothing was sent.")


def check_reference(kind: str, name: str) -> None:
    """
    Refuse what git would not take as the name of a branch or a tag.

    Raises:
        `ValueError`: the name is not valid, or a tag would hide the main branch.
    """
    is_valid = re.fullmatch(r"\w[\w.+-]*(/[\w+-][\w.+-]*)*", name) is not None
    if not is_valid or ".." in name or name.endswith((".", ".lock")) or (kind == "tag" and name == "main"):
        raise ValueError(
            f"--{kind} {name!r} is not a valid name: use letters, digits, '.', '-', '_' and '/', such as v1.0. Nothing was "
            "sent."
        )


def validate_card(api: HfApi, release: Release) -> None:
    """
    Ask the Hub about the metadata of the card, before anything is there. `ModelCard.validate` does so as well, but asks
    huggingface.co whatever HF_ENDPOINT says, up to huggingface_hub 2.

    Raises:
        `ValueError`: the Hub would refuse the card.
    """
    with release.open(CARD_NAME) as file:
        body = {"content": file.read().decode(), "repoType": "model"}
    response = get_session().post(
        f"{api.endpoint}/api/validate-yaml", json=body, headers=build_hf_headers(token=api.token)
    )
    try:
        hf_raise_for_status(response)
    except BadRequestError:
        messages = [str(entry.get("message")) for entry in response.json().get("errors", [])]
        raise ValueError(
            f"the Hub refuses the metadata of the card: {'; '.join(messages)}. Nothing was sent."
        ) from None


def prepare_branch(api: HfApi, repo_id: str, branch: str, tag: str | None) -> tuple[str | None, str | None]:
    """
    Return the commit at the head of a branch, created where there is none, and that of a tag. None stands for a
    repository without commits, and for a tag that does not exist.
    """
    refs = retry(lambda: api.list_repo_refs(repo_id))
    tags = {ref.name for ref in refs.tags}
    branches = {ref.name for ref in refs.branches}
    if branch in tags or (branch not in branches and re.fullmatch("[0-9a-f]{40}", branch)):
        kind = "tag" if branch in tags else "commit"
        raise ValueError(f"--revision has to be a branch, but {branch} is a {kind}. Nothing was sent.")
    # A tag may be an object of its own, with a hash that is not the commit's
    tagged = find_commit(api, repo_id, tag) if tag in tags else None
    if branch == constants.DEFAULT_REVISION and branch not in branches:
        return None, tagged
    if branch not in branches and not branch.startswith("refs/pr/"):
        retry(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True))
    return find_commit(api, repo_id, branch), tagged


def find_commit(api: HfApi, repo_id: str, revision: str | None) -> str:
    """Return the commit that a branch, a tag or the reference of a pull request points to."""
    oid = retry(lambda: api.model_info(repo_id, revision=revision)).sha
    if oid is None:
        raise ValueError(f"{repo_id} does not say which commit {revision} is")
    return oid


def list_hashes(api: HfApi, repo_id: str, revision: str | None) -> dict[str, str]:
    """Return, for each file, the SHA-256 of its content where the Hub knows it, else git's SHA-1."""
    if revision is None:
        return {}
    tree = retry(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=revision)))
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in tree if isinstance(file, RepoFile)}


def find_changed(release: Release, remote: dict[str, str]) -> list[str]:
    """Return the names of the files that the Hub does not have, or has with another content."""
    changed = []
    for name in release.files:
        with release.open(name) as file:
            content_hash = git_hash(file.read()) if len(remote.get(name, "")) == 40 else sha256(file)
            same = remote.get(name) == content_hash
        if not same:
            changed.append(name)
    return changed


def sha256(file: BinaryIO) -> str:
    return sha_fileobj(file).hex()


def find_pull_request(api: HfApi, repo_id: str, release: Release) -> tuple[str, str] | None:
    """Return the commit and the page of a recent pull request that holds all the files, if there is one."""
    refs = retry(lambda: api.list_repo_refs(repo_id, include_pull_requests=True))
    pull_requests = sorted(refs.pull_requests or [], key=lambda ref: int(ref.ref.rsplit("/", 1)[1]))
    for ref in reversed(pull_requests[-NUM_PULL_REQUESTS:]):
        same = not find_changed(release, list_hashes(api, repo_id, ref.target_commit))
        if same and is_open(api, repo_id, int(ref.ref.rsplit("/", 1)[1])):
            return ref.target_commit, f"{api.endpoint}/{repo_id}/discussions/{ref.ref.rsplit('/', 1)[1]}"
    return None


def is_open(api: HfApi, repo_id: str, number: int) -> bool:
    """Whether a pull request is neither closed nor merged; a Hub that does not know its discussions cannot close one."""
    try:
        return retry(lambda: api.get_discussion_details(repo_id, number)).status in ("open", "draft")
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        return True


def commit(
    api: HfApi,
    repo_id: str,
    release: Release,
    changed: list[str],
    branch: str,
    head: str | None,
    create_pr: bool,
) -> tuple[str, str]:
    """Send the changed files and commit them on top of `head`. Return the commit and its page."""
    additions = [CommitOperationAdd(name, release.files[name]) for name in changed]
    # The client itself tries each blob again; those that arrive are not sent another time
    for addition in additions:
        # One after the other, so that what was complete before an interruption is complete after it
        api.preupload_lfs_files(repo_id, [addition], revision=branch, create_pr=create_pr, free_memory=False)
    tries = 0

    def send() -> tuple[str, str]:
        nonlocal tries
        tries += 1
        if tries > 1:
            # Only the answer may have been lost
            landed = (
                find_pull_request(api, repo_id, release) if create_pr else find_head(api, repo_id, branch, release)
            )
            if landed is not None:
                return landed
        info = api.create_commit(
            repo_id, additions, commit_message=COMMIT_MESSAGE, revision=branch, create_pr=create_pr, parent_commit=head
        )
        return info.oid, info.pr_url or info.commit_url

    return retry(send)


def find_head(api: HfApi, repo_id: str, branch: str, release: Release) -> tuple[str, str] | None:
    """Return the head of a branch and its page if it holds all the files."""
    oid = find_commit(api, repo_id, branch)
    if find_changed(release, list_hashes(api, repo_id, oid)):
        return None
    return oid, f"{api.endpoint}/{repo_id}/commit/{oid}"


def verify(api: HfApi, repo_id: str, release: Release, oid: str) -> None:
    """
    Download a commit into an empty cache and compare every file.

    Raises:
        `RuntimeError`: a file differs.
        `OSError`: there is no space for the files.
    """
    with tempfile.TemporaryDirectory(prefix="mixer-verify-") as cache:
        for name in tqdm(release.files, "Comparing what the Hub serves", unit="file"):
            try:
                path = retry(partial(api.hf_hub_download, repo_id, name, revision=oid, cache_dir=cache))
            except EntryNotFoundError as error:
                if is_transient(error):
                    raise
                raise RuntimeError(f"{repo_id} at {oid} lacks {name}, although it was sent") from None
            with open(path, "rb") as served, release.open(name) as local:
                if sha256(served) != sha256(local):
                    raise RuntimeError(f"{name} differs: the Hub serves another content in {repo_id} at {oid}")
