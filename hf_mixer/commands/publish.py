# SPDX-License-Identifier: Apache-2.0
"""
Publish a trained model on the Hub: weights, settings, code, results and a card made from them, in one commit.

    python scripts/publish.py outputs/photos your-name/photos-mixer --dry-run
    python scripts/publish.py outputs/photos your-name/photos-mixer

First the folder is loaded in a process without hf_mixer, as whoever downloads it will, and a prediction is compared. Files
that are not on the list stay behind, and the folder remains as it is. The card is always made anew; a README.md in the
folder stays behind. Afterwards the commit is downloaded and compared. After an interruption, the same command finishes: what
the Hub has is not sent again.
"""

import argparse
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.utils import validate_repo_id

from ..publishing.release import Release, find_files, prepare_release
from ..publishing.remote_code import check_as_stranger
from ..publishing.upload import check_options, connect, publish
from ..utils import one_line_errors


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a folder that scripts/train.py wrote")
    parser.add_argument("repo_id", metavar="REPO_ID", help="NAMESPACE/NAME, or NAME under your own name")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--revision", help="branch to commit to, created if it does not exist (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--tag", help="a new tag for the commit, such as v1.0")
    parser.add_argument("--dry-run", action="store_true", help="check all, print what would go up, and send nothing")
    parser.add_argument("--token", help="token for the Hub (default: HF_TOKEN, or the one you logged in with)")
    return parser.parse_args(arguments)


def format_size(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def print_release(release: Release) -> None:
    """Print the files with their sizes, and what stays behind."""
    sizes = {name: release.size(name) for name in release.files}
    for name, size in sizes.items():
        made = "  (made anew)" if isinstance(release.files[name], bytes) else ""
        print(f"{format_size(size):>10}  {name}{made}")
    print(f"{format_size(sum(sizes.values())):>10}  in {len(sizes)} files")
    if release.left_out:
        print(f"Stays behind: {', '.join(release.left_out)}")


def run(arguments: argparse.Namespace) -> None:
    with one_line_errors():
        # What is wrong here is said before the Hub is asked
        validate_repo_id(arguments.repo_id)
        check_options(arguments.revision, arguments.create_pr, arguments.tag)
        find_files(arguments.folder)
        api, repo_id = None, arguments.repo_id
        if not arguments.dry_run:
            api, user = connect(arguments.token)
            repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        token = arguments.token or get_token()
        # A pull request goes into the branch that the card then lies on
        branch = None if (arguments.revision or "").startswith("refs/pr/") else arguments.revision
        release = prepare_release(arguments.folder, repo_id, arguments.tag or branch, token)
        print_release(release)
        if "evaluation.json" not in release.files:
            print(
                "The card has no confusion matrix and no top-5: scripts/evaluate.py would bring them into the folder."
            )
        print("Loading these files without hf_mixer ...", flush=True)
        check_as_stranger(arguments.folder, release.files)
        print("They load, and predict the same.", flush=True)
        if api is None:
            print(f"Nothing was sent. Without --dry-run, what differs in {repo_id} would go up in one commit.")
            return
        publication = publish(
            api,
            repo_id,
            release,
            private=arguments.private,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            tag=arguments.tag,
        )
    if publication.sent:
        print(f"Changed {', '.join(publication.sent)}")
    else:
        print("The Hub had all of this already: nothing was sent.")
    print(publication.url)
    if publication.kept:
        print(f"Also in the repository, not from this folder: {', '.join(publication.kept)}")
    print("\nfrom transformers import pipeline")
    arguments_of_pipeline = f'"{repo_id}", revision="{publication.oid}", trust_remote_code=True'
    print(f'classifier = pipeline("image-classification", {arguments_of_pipeline})')


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
