# SPDX-License-Identifier: Apache-2.0
"""
Publish a trained model on the Hub: weights, settings, code, results and a card
made from them, in one commit.

    hf-mixer publish outputs/photos your-name/photos-mixer --dry-run
    hf-mixer publish outputs/photos your-name/photos-mixer

First the files are loaded in a process without hf_mixer, as whoever downloads
them will, and a prediction is compared. Code in the folder that is not that of
hf_mixer is neither run nor sent, unless --trust-code says so. Files that are not on the list stay
behind, and the folder remains as it is.

The card is made anew. A README.md that you wrote or edited goes up as it is,
with the card beside it as MODEL_CARD.md; one on the Hub is not replaced.

Exports go up with it, into folders of their own, for ONNX Runtime, OpenVINO,
ExecuTorch and transformers.js, and so does a handler for Inference Endpoints:

    hf-mixer publish outputs/photos your-name/photos-mixer --with onnx handler

An export that FOLDER/onnx holds already, of any type, is compared with the
model and taken as it is. Others are made, in float32.

Afterwards the commit is compared by checksum. After an interruption, the same
command finishes: what the Hub has is not sent again.
"""

import argparse
import sys
import tempfile
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a folder that `hf-mixer train` wrote")
    parser.add_argument("repo_id", metavar="REPO_ID", help="NAMESPACE/NAME, or NAME under your own name")
    parser.add_argument(
        "--with",
        dest="extras",
        metavar="EXTRA",
        nargs="+",
        default=[],
        help="what else goes up: onnx, openvino, executorch, transformers.js, handler (default: nothing)",
    )
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--revision", help="branch to commit to, created if it does not exist (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--tag", help="a new tag for the commit, such as v1.0")
    parser.add_argument("--dry-run", action="store_true", help="check all, print what would go up, and send nothing")
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="run and send code of the folder that is not that of hf_mixer: only where you know who wrote it",
    )
    parser.add_argument("--token", help="token for the Hub (default: HF_TOKEN, or the one you logged in with)")
    return parser.parse_args(arguments)


def print_release(folder: Path, release: Path, left_out: list[str]) -> None:
    """Print the files that go up, with their sizes and where they are from if not from `folder`, and what stays behind."""
    from ..publishing.saving import CARD_NAME, choose_card_name
    from ..utils import format_bytes

    card_name = choose_card_name(folder)
    paths = sorted(path for path in release.rglob("*") if path.is_file())
    sizes = {path.relative_to(release).as_posix(): path.stat().st_size for path in paths}
    for name, size in sizes.items():
        origin = "  (exported)" if "/" in name else "  (from hf_mixer)"
        if name == card_name:
            origin = "  (made anew)"
        elif (folder / name).is_file():
            origin = ""
        print(f"{format_bytes(size):>10}  {name}{origin}")
    print(f"{format_bytes(sum(sizes.values())):>10}  in {len(sizes)} files")
    if left_out:
        print(f"Stays behind: {', '.join(left_out)}")
    if card_name != CARD_NAME:
        print(f"{CARD_NAME} goes up as it is in the folder: you wrote or edited it. The card is {card_name}.")
    if "mistakes.png" in sizes:
        print("mistakes.png shows images of the data: remove it from the folder if they are not for others.")
    if "evaluation.json" not in sizes:
        print("The card has no pictures of results: `hf-mixer evaluate` would bring them into the folder.")


def publish_folder(arguments: argparse.Namespace, release: Path) -> None:
    """Fill the empty folder `release`, check that it runs, and publish it."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    from ..progress import quiet_libraries
    from ..publishing.exports import find_extra_files
    from ..publishing.release import find_model_files, prepare_release
    from ..publishing.remote_code import check_remote_code
    from ..publishing.upload import check_options, connect, publish

    quiet_libraries()
    # What is wrong here is said before the Hub is asked
    validate_repo_id(arguments.repo_id)
    check_options(arguments.revision, arguments.create_pr, arguments.tag)
    find_model_files(arguments.folder, arguments.trust_code)
    find_extra_files(arguments.folder, arguments.extras, arguments.trust_code)
    api, repo_id = None, arguments.repo_id
    if not arguments.dry_run:
        api, user = connect(arguments.token)
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    # A pull request goes into the branch that the card then lies on
    branch = None if (arguments.revision or "").startswith("refs/pr/") else arguments.revision
    token = arguments.token or get_token()
    if arguments.extras:
        print(f"Preparing {', '.join(arguments.extras)} ...", flush=True)
    pinned = arguments.tag or branch
    left_out = prepare_release(
        arguments.folder, release, repo_id, pinned, token, arguments.extras, arguments.trust_code
    )
    print_release(arguments.folder, release, left_out)
    print("Loading these files without hf_mixer ...", flush=True)
    check_remote_code(arguments.folder, release)
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
    print_kept(repo_id, publication.kept)
    print("\nfrom transformers import pipeline")
    arguments_of_pipeline = f'"{repo_id}", revision="{publication.oid}", trust_remote_code=True'
    print(f'classifier = pipeline("image-classification", {arguments_of_pipeline})')


def print_kept(repo_id: str, kept: list[str]) -> None:
    """Print what stays in the repository that is not from this folder, and what may be of an earlier model."""
    from ..publishing.exports import EXPORTS

    if kept:
        print(f"Also in the repository, not from this folder: {', '.join(kept)}")
    exports = [format for format in EXPORTS if any(name.startswith(f"{format}/") for name in kept)]
    if exports:
        patterns = " ".join(f'"{format}/*"' for format in exports)
        print(
            f"What stays in {', '.join(exports)} is of an earlier publication, maybe of another model: publish again --with "
            f"{' '.join(exports)}, or delete it: hf repos delete-files {repo_id} {patterns}"
        )


def run(arguments: argparse.Namespace) -> None:
    from ..utils import one_line_errors

    try:
        with one_line_errors(), tempfile.TemporaryDirectory(prefix="mixer-release-") as release:
            publish_folder(arguments, Path(release))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on where this one stopped")


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
