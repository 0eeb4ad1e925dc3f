# SPDX-License-Identifier: Apache-2.0
"""
Publish a trained model on the Hub: weights, settings, code, results and a card
made from them, in one commit.

    hf-mixer publish outputs/photos your-name/photos-mixer --dry-run
    hf-mixer publish outputs/photos your-name/photos-mixer

First the files are loaded in a process without hf_mixer, as whoever downloads
them will, and a prediction is compared. Code in the folder that is not that of
hf_mixer is neither run nor sent, unless --trust-code says so. Files that are
not on the list stay behind, and the folder remains as it is.

The card is made of what training and evaluation left behind. Its generated
sections are renewed, and whatever you write around them stays, here or on the
Hub, as do the metadata that you set. Where an edit contradicts what is
generated, both are shown, and nothing is sent; --overwrite-card takes what is
generated. A README.md of which nothing was generated goes up as it is, with
the card beside it as MODEL_CARD.md.

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
from pathlib import Path


# What may show images of the data
DATA_PICTURES = ("predictions.png", "mistakes.png", "example.png", "example.jpg")


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
    parser.add_argument(
        "--license",
        help="licence of the model, such as apache-2.0 (default: the one in your card, else the base model's)",
    )
    parser.add_argument(
        "--base_model",
        "--base-model",
        help="the model on the Hub that it descends from (default: what training started from)",
    )
    parser.add_argument(
        "--overwrite-card",
        "--overwrite_card",
        action="store_true",
        help="replace edits of the card that contradict what is generated",
    )
    parser.add_argument(
        "--collection", help="add the model to this collection: its address or slug, or a title under your name"
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


def print_release(folder: Path, release: Path, left_out: list[str], is_dry_run: bool) -> None:
    """Print the files that go up, with their sizes and where they are from if not from `folder`, and what stays behind."""
    from ..publishing.card import NO_PURPOSE
    from ..publishing.merging import parse_card
    from ..publishing.saving import CARD_NAME, OTHER_CARD_NAME
    from ..utils import format_bytes

    card_name = OTHER_CARD_NAME if (release / OTHER_CARD_NAME).exists() else CARD_NAME
    paths = sorted(path for path in release.rglob("*") if path.is_file())
    sizes = {path.relative_to(release).as_posix(): path.stat().st_size for path in paths}
    for name, size in sizes.items():
        origin = "  (exported)" if "/" in name else "  (from hf_mixer)"
        if name == card_name:
            origin = "  (renewed)" if (folder / name).is_file() else "  (made from the folder)"
        elif (folder / name).is_file():
            origin = ""
        elif name == CARD_NAME:
            origin = "  (as it is on the Hub)"
        print(f"{format_bytes(size):>10}  {name}{origin}")
    print(f"{format_bytes(sum(sizes.values())):>10}  in {len(sizes)} files")
    if left_out:
        print(f"Stays behind: {', '.join(left_out)}")
    if card_name != CARD_NAME:
        print(f"Nothing in {CARD_NAME} was generated, so it stays as it is. The card is {card_name}.")
    pictures = [name for name in DATA_PICTURES if name in sizes]
    if pictures:
        print(f"Images of the data are in {', '.join(pictures)}: remove what is not for others from the folder.")
    if "evaluation.json" not in sizes:
        print("The card has no pictures of results: `hf-mixer evaluate` would bring them into the folder.")
    card = (release / card_name).read_text(encoding="utf-8", errors="replace")
    if "license" not in parse_card(card).metadata:
        condition = (
            "Unless your card on the Hub or that of the base model names a licence"
            if is_dry_run
            else "Without a licence"
        )
        print(f"{condition}, nobody may use the model: give --license, such as --license apache-2.0.")
    if NO_PURPOSE in card:
        print('The card does not say what the model is meant for. Write it under "About this model": it stays there.')


def publish_folder(arguments: argparse.Namespace, release: Path) -> None:
    """Fill the empty folder `release`, check that it runs, and publish it."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    from ..hub_errors import clear_errors
    from ..progress import quiet_libraries
    from ..publishing.card import read_base_model, read_folder
    from ..publishing.exports import find_extra_files
    from ..publishing.merging import CardConflict
    from ..publishing.release import find_model_files, prepare_release
    from ..publishing.remote_code import check_remote_code
    from ..publishing.saving import find_base_model, read_cards
    from ..publishing.upload import (
        add_to_collection,
        check_collection,
        check_options,
        connect,
        fetch_cards,
        find_license,
        publish,
    )
    from ..utils import is_hub_id

    quiet_libraries()
    # What is wrong here is said before the Hub is asked
    validate_repo_id(arguments.repo_id)
    check_options(arguments.revision, arguments.create_pr, arguments.tag)
    if arguments.base_model and not is_hub_id(arguments.base_model):
        raise ValueError(f"--base_model {arguments.base_model!r} is no model on the Hub: expected OWNER/NAME")
    find_model_files(arguments.folder, arguments.trust_code)
    find_extra_files(arguments.folder, arguments.extras, arguments.trust_code)
    api, repo_id = None, arguments.repo_id
    cards: dict[str, str] = {}
    licence = arguments.license
    if not arguments.dry_run:
        api, user = connect(arguments.token)
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        with clear_errors(repo_id):
            cards = fetch_cards(api, repo_id, arguments.revision)
        if arguments.collection:
            with clear_errors(f"the collection {arguments.collection}", is_upload=False):
                check_collection(api, arguments.collection)
    own_cards = [*cards.values(), *read_cards(arguments.folder).values()]
    base_model = arguments.base_model or find_base_model(own_cards)
    ancestor = base_model or read_base_model(arguments.folder)
    if api is not None and licence is None and ancestor is not None and is_hub_id(ancestor):
        with clear_errors(ancestor, is_upload=False):
            licence = find_license(api, ancestor)
    # A pull request goes into the branch that the card then lies on
    branch = None if (arguments.revision or "").startswith("refs/pr/") else arguments.revision
    token = arguments.token or get_token()
    if arguments.extras:
        print(f"Preparing {', '.join(arguments.extras)} ...", flush=True)
    pinned = arguments.tag or branch
    try:
        left_out = prepare_release(
            arguments.folder,
            release,
            repo_id,
            pinned,
            token,
            arguments.extras,
            arguments.trust_code,
            license=licence,
            base_model=base_model,
            given=[key for key, value in (("license", arguments.license), ("base_model", base_model)) if value],
            cards=cards,
            overwrite_card=arguments.overwrite_card,
        )
    except CardConflict as conflict:
        print(conflict.diff)
        raise
    print_release(arguments.folder, release, left_out, arguments.dry_run)
    print("Loading these files without hf_mixer ...", flush=True)
    task = read_folder(arguments.folder)[0].task
    check_remote_code(arguments.folder, release, task)
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
        cards=cards,
    )
    if publication.sent:
        print(f"Changed {', '.join(publication.sent)}")
    else:
        print("The Hub had all of this already: nothing was sent.")
    print(publication.url)
    print_kept(repo_id, publication.kept)
    if arguments.collection:
        with clear_errors(f"the collection {arguments.collection}", is_upload=False):
            address = add_to_collection(api, repo_id, arguments.collection, arguments.private)
        print(f"In the collection {address}")
    print("\nfrom transformers import pipeline")
    arguments_of_pipeline = f'"{repo_id}", revision="{publication.oid}", trust_remote_code=True'
    name = "classifier" if task == "image-classification" else "extractor"
    print(f'{name} = pipeline("{task}", {arguments_of_pipeline})')


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
    from ..temporary_folders import temporary_folder
    from ..utils import one_line_errors

    try:
        with one_line_errors(), temporary_folder("mixer-release-") as release:
            publish_folder(arguments, release)
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on where this one stopped")


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
