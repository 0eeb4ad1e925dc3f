# SPDX-License-Identifier: Apache-2.0
"""
Send files to the Hub in one commit, and check what arrived.

huggingface_hub tries again what may take long: listing and uploading files. After any other failure the user runs the same
command again, which sends only what the Hub does not have.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, constants, get_token
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..hub_errors import OVERTAKEN, GarbledAnswerError, clear_errors
from .saving import CARD_NAME, OTHER_CARD_NAME, decode_card


COMMIT_MESSAGE = "Upload MLP-Mixer with hf_mixer"
# Pull requests that may hold these files already, when the same command runs again
NUM_PULL_REQUESTS = 20


@dataclass(frozen=True)
class Publication:
    """What the Hub holds now: the commit, and its page or that of the pull request."""

    oid: str
    url: str
    # The files that this commit changes; empty where the Hub had them all
    sent: list[str]
    # Files of the repository that are not from the folder, and stay
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
    with clear_errors(None):
        match api.whoami():
            case {"name": str(name), "auth": {"accessToken": {"role": "read"}}}:
                raise PermissionError(
                    f"the token of {name} only reads: make one with the role `write` at "
                    "https://huggingface.co/settings/tokens"
                )
            case {"name": str(name)}:
                return api, name
        raise GarbledAnswerError("it does not say whose token this is")


def find_commit(api: HfApi, repo_id: str, revision: str | None) -> str:
    """Return the commit of a branch, a tag or the reference of a pull request."""
    return check_commit(api.model_info(repo_id, revision=revision).sha)


def check_commit(oid: object) -> str:
    if not isinstance(oid, str) or not re.fullmatch("[0-9a-f]{40}", oid):
        raise GarbledAnswerError(f"{oid!r} is no commit")
    return oid


def publish(
    api: HfApi,
    repo_id: str,
    folder: Path,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    cards: dict[str, str] | None = None,
) -> Publication:
    """
    Bring a repository to hold the files of a folder, in one commit with what differs, and compare the hashes of what the Hub
    then holds. Called again after an interruption, it finishes; called again after success, it sends nothing.

    Args:
        api (`HfApi`):
            The client, with a token that may write.
        repo_id (`str`):
            `namespace/name`. The repository is created if it does not exist.
        folder (`Path`):
            A folder that holds what goes up, the card among it, and nothing else.
        private (`bool`, *optional*, defaults to `False`):
            Create the repository as a private one. An existing public one is refused.
        revision (`str`, *optional*):
            The branch, created from `main` if it does not exist, or the reference of an open pull request, `refs/pr/N`.
        create_pr (`bool`, *optional*, defaults to `False`):
            Open a pull request instead of committing to the branch.
        tag (`str`, *optional*):
            Tag the commit.
        cards (`dict[str, str]`, *optional*):
            What `fetch_cards` returned when the card in the folder was made. If the Hub has others by now, nothing is sent.

    Raises:
        `ValueError`: the repository, the revision or the tag is in the way.
        `PermissionError`, `ConnectionError`, `OSError`: see `clear_errors`.
    """
    branch = revision or constants.DEFAULT_REVISION
    with clear_errors(repo_id, propose=None if create_pr else "--create-pr"):
        if branch.startswith("refs/pr/") and not api.repo_exists(repo_id):
            raise ValueError(f"{repo_id} does not exist, so it has no pull request {branch}. Nothing was sent.")
        validate_card(api, folder)
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"{repo_id} exists and is public. Make it private in its settings first, choose another name, or leave out "
                "--private."
            )
        head, tagged = prepare_branch(api, repo_id, branch, tag)
        changed, kept = compare(api, repo_id, folder, head)
        if cards is not None and head is not None and fetch_cards(api, repo_id, head) != cards:
            raise RuntimeError(OVERTAKEN.format(repo_id, "run the same command again"))
        finished: tuple[str, str] | None = None
        if head is not None and not changed:
            finished = head, f"{api.endpoint}/{repo_id}/commit/{head}"
        elif create_pr:
            finished = find_pull_request(api, repo_id, folder)
        if tagged is not None and (finished is None or tagged != finished[0]):
            raise ValueError(
                f"{repo_id} has a tag {tag} already, at {tagged}. Choose another, or delete it with "
                f"`hf repos tag delete {repo_id} {tag}`. Nothing was sent."
            )
        oid, url = finished or commit(api, repo_id, folder, changed, branch, head, create_pr)
        if tag is not None and tagged is None:
            api.create_tag(repo_id, tag=tag, revision=oid, exist_ok=True)
    return Publication(oid, url, sent=[] if finished else changed, kept=kept)


def check_options(revision: str | None, create_pr: bool, tag: str | None) -> None:
    """
    Refuse what cannot be done, before the Hub is asked.

    Raises:
        `ValueError`: git would not take the name of the branch or the tag, or a pull request would be tagged.
    """
    for option, name in (("--revision", revision), ("--tag", tag)):
        if name is None:
            continue
        is_valid = re.fullmatch(r"\w[\w.+-]*(/[\w+-][\w.+-]*)*", name) and ".." not in name
        # A tag `main` would hide the branch
        if not is_valid or name.endswith((".", ".lock")) or (option, name) == ("--tag", "main"):
            raise ValueError(
                f"{option} {name!r} is not a valid name: use letters, digits, '.', '-', '_' and '/', such as v1.0. "
                "Nothing was sent."
            )
    if create_pr and tag is not None:
        raise ValueError("--tag names a commit of your own: leave it out with --create-pr. Nothing was sent.")


def validate_card(api: HfApi, folder: Path) -> None:
    """
    Ask the Hub about the metadata of the card, before anything is there.

    `ModelCard.validate` asks as well, but up to huggingface_hub 2.1 it asks huggingface.co, whatever HF_ENDPOINT says. Use it
    as soon as transformers 5.17, which needs huggingface_hub 1, is no longer supported.

    Raises:
        `ValueError`: the card is no UTF-8, or the Hub would refuse it.
    """
    try:
        content = (folder / CARD_NAME).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{CARD_NAME} is no UTF-8 text ({error}): save it as UTF-8. Nothing was sent.") from None
    body = {"content": content, "repoType": "model"}
    response = get_session().post(
        f"{api.endpoint}/api/validate-yaml", json=body, headers=build_hf_headers(token=api.token)
    )
    try:
        hf_raise_for_status(response)
    except BadRequestError as error:
        raise ValueError(
            f"the Hub refuses the metadata of the card: {error.server_message}. Nothing was sent."
        ) from None


def prepare_branch(api: HfApi, repo_id: str, branch: str, tag: str | None) -> tuple[str | None, str | None]:
    """
    Return the commit at the head of a branch, created where there is none, and that of a tag. None stands for a
    repository without commits, and for a tag that does not exist.
    """
    refs = api.list_repo_refs(repo_id)
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
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    return find_commit(api, repo_id, branch), tagged


def compare(api: HfApi, repo_id: str, folder: Path, revision: str | None) -> tuple[list[str], list[str]]:
    """
    Compare the hashes of a folder's files with those that the Hub reports for a revision.

    Returns:
        `tuple[list[str], list[str]]`: the names of the files that the Hub does not have, or has with another content, and of
        those that only the Hub has.
    """
    if revision is None:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()), []
    report = api.verify_repo_checksums(repo_id, revision=revision, local_dir=folder)
    changed = sorted([*report.extra_paths, *(mismatch["path"] for mismatch in report.mismatches)])
    return changed, [name for name in report.missing_paths if name != ".gitattributes"]


# What follows is called within `clear_errors`.


def fetch_cards(api: HfApi, repo_id: str, revision: str | None = None) -> dict[str, str]:
    """
    Return the cards of a repository, by their names; none where it does not exist. A branch that does not exist is going to
    start with those of `main`.
    """
    try:
        info = find_model(api, repo_id, revision)
    except RepositoryNotFoundError:
        return {}
    names = {file.rfilename for file in info.siblings or []}.intersection((CARD_NAME, OTHER_CARD_NAME))
    paths = {name: api.hf_hub_download(repo_id, name, revision=info.sha) for name in names}
    return {name: decode_card(Path(path).read_bytes()) for name, path in paths.items()}


def find_model(api: HfApi, repo_id: str, revision: str | None) -> ModelInfo:
    try:
        return api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        return api.model_info(repo_id)


def find_license(api: HfApi, base_model: str) -> str | None:
    """Return the licence in the card of a model on the Hub; nothing where there is no such model or it names none."""
    try:
        metadata = api.model_info(base_model).card_data
    except RepositoryNotFoundError:
        return None
    licence = metadata.license if metadata is not None else None
    return licence if isinstance(licence, str) else None


def name_collection(collection: str) -> str | None:
    """Return the slug of a collection that is given by it or by its address; nothing for a title."""
    slug = re.sub(r"^https?://[^/]+/collections/|[?#].*", "", collection).rstrip("/")
    return slug if re.fullmatch(r"[\w.-]+/[\w.-]+", slug) else None


def check_collection(api: HfApi, collection: str) -> None:
    """Ask the Hub for a collection before anything is sent, unless it is a title, under which one can be created."""
    slug = name_collection(collection)
    if slug is not None:
        api.get_collection(slug)


def add_to_collection(api: HfApi, repo_id: str, collection: str, private: bool = False) -> str:
    """
    Add a model to a collection, if it is not in it, and return its address.

    Args:
        collection (`str`):
            The address of a collection, its slug, or the title of one of the user's, which is created where there is none.
        private (`bool`, *optional*, defaults to `False`):
            Create it as a private one.

    Raises:
        `PermissionError`: the token may not change the collection.
    """
    slug = name_collection(collection)
    try:
        if slug is None:
            slug = api.create_collection(collection, private=private, exists_ok=True).slug
        api.add_collection_item(slug, item_id=repo_id, item_type="model", exists_ok=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 403:
            raise
        raise PermissionError(
            f"the model is published, but there is no collection {collection!r}, or the token may not add to it "
            f"({error.server_message}): give the address of one of yours, or a title, under which one is made"
        ) from None
    return f"{api.endpoint}/collections/{slug}"


def find_pull_request(api: HfApi, repo_id: str, folder: Path) -> tuple[str, str] | None:
    """Return the commit and the page of a recent pull request that holds all the files, if there is one."""
    refs = api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or []
    commits = {int(ref.ref.removeprefix("refs/pr/")): ref.target_commit for ref in refs}
    for number in sorted(commits, reverse=True)[:NUM_PULL_REQUESTS]:
        changed, _ = compare(api, repo_id, folder, commits[number])
        if not changed and is_open(api, repo_id, number):
            return commits[number], f"{api.endpoint}/{repo_id}/discussions/{number}"
    return None


def is_open(api: HfApi, repo_id: str, number: int) -> bool:
    """Whether a pull request is neither closed nor merged; a Hub that does not know its discussions cannot close one."""
    try:
        return api.get_discussion_details(repo_id, number).status in ("open", "draft")
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        return True


def commit(
    api: HfApi, repo_id: str, folder: Path, changed: list[str], branch: str, head: str | None, create_pr: bool
) -> tuple[str, str]:
    """
    Send the changed files and commit them on top of `head`. Return the commit and its page.

    Raises:
        `RuntimeError`: the Hub does not hold what was sent.
    """
    additions = [CommitOperationAdd(name, folder / name) for name in changed]
    for addition in additions:
        # One after the other, so that what was complete before an interruption is complete after it
        api.preupload_lfs_files(repo_id, [addition], revision=branch, create_pr=create_pr, free_memory=False)
    info = api.create_commit(
        repo_id, additions, commit_message=COMMIT_MESSAGE, revision=branch, create_pr=create_pr, parent_commit=head
    )
    oid = check_commit(info.oid)
    different, _ = compare(api, repo_id, folder, oid)
    if different:
        raise RuntimeError(
            f"{repo_id} at {oid} differs from what was sent: {', '.join(different)}. Run the same command again: it sends "
            "them anew."
        )
    return oid, info.pr_url or info.commit_url
