# SPDX-License-Identifier: Apache-2.0
"""
Show a trained model in the browser: drop an image, see its labels or values
and what the model looked at.

    hf-mixer demo outputs/photos --examples some_photos

The page appears at http://127.0.0.1:7860; Gradio's own variables, such as
GRADIO_SERVER_PORT, change that. Needs Gradio: `pip install "hf_mixer[demo]"`.

    hf-mixer demo outputs/photos --export-space space
    hf-mixer demo outputs/photos --export-space space --repo_id me/photos

A Space has the model in it, or loads it from the Hub. It then runs the code of
one commit: that of --revision, by default of the newest one.

    hf-mixer demo outputs/photos --export-page page --examples some_photos

A page has the model in it and runs it in the visitor's browser: a Space without
a server, or files for any web server. Images stay on the visitor's device.
Needs `pip install "hf_mixer[export]"`, and the network for two packages from
npm, which it keeps.
"""

import argparse
import importlib.util
import runpy
import sys
from pathlib import Path


MAX_EXAMPLES = 6


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the output folder of `hf-mixer train`")
    parser.add_argument("--examples", type=Path, help=f"a folder of images to offer, the first {MAX_EXAMPLES} of them")
    parser.add_argument(
        "--export-space", "--export_space", metavar="DIR", type=Path, help="write a Space, show nothing"
    )
    parser.add_argument(
        "--export-page", "--export_page", metavar="DIR", type=Path, help="write a page that runs in the browser"
    )
    parser.add_argument(
        "--repo_id", help="the repository on the Hub that the Space loads the model from, or that the page links to"
    )
    parser.add_argument("--revision", help="commit, tag or branch of that repository (default: main)")
    parsed = parser.parse_args(arguments)
    if parsed.export_space and parsed.export_page:
        parser.error("--export-space and --export-page are two ways to show the model: give one of them")
    if parsed.repo_id and not (parsed.export_space or parsed.export_page):
        parser.error("--repo_id is for --export-space and --export-page: without them the model in FOLDER is shown")
    if parsed.revision and not (parsed.repo_id and parsed.export_space):
        parser.error("--revision needs --repo_id and --export-space")
    return parsed


def find_examples(folder: Path | None) -> list[Path]:
    """Return the first images in `folder`, to offer them."""
    from ..data.images import find_images

    if folder is None:
        return []
    examples = find_images(folder)[:MAX_EXAMPLES]
    if not examples:
        raise ValueError(f"--examples {folder} holds no images")
    return examples


def describe_push(directory: Path, repo_id: str | None, sdk: str, license: str | None) -> str:
    """Say how a folder becomes a Space, and under which license."""
    name = repo_id or "NAME"
    none = "without a license: the card of the model names none. Add the line `license: ...` to its README.md"
    terms = f"under the license of the model, {license}" if license else none
    return (
        "These commands make a Space of it, "
        f"{terms}.\n    hf repos create {name} --repo-type space --space-sdk {sdk}\n"
        f"    hf upload {name} {directory} --repo-type space"
    )


def run(arguments: argparse.Namespace) -> None:
    from ..demo.space import export_space, read_license, write_space
    from ..progress import quiet_libraries
    from ..publishing.card import read_model
    from ..temporary_folders import temporary_folder
    from ..utils import one_line_errors

    quiet_libraries()
    with temporary_folder("mixer-demo-") as space:
        with one_line_errors():
            read_model(arguments.folder)  # which refuses a folder without one
            examples = find_examples(arguments.examples)
            if arguments.export_page is not None:
                from ..demo.page import export_page

                export_page(arguments.export_page, arguments.folder, arguments.repo_id, examples)
                print(
                    f"{arguments.export_page} is ready: `python -m http.server -d {arguments.export_page}` shows it at "
                    "http://localhost:8000."
                )
                print(
                    describe_push(arguments.export_page, arguments.repo_id, "static", read_license(arguments.folder))
                )
                return
            if arguments.export_space is not None:
                revision = None
                if arguments.repo_id is not None:
                    from ..demo.repository import find_same_model

                    revision = find_same_model(arguments.folder, arguments.repo_id, arguments.revision)
                export_space(arguments.export_space, arguments.folder, arguments.repo_id, revision, examples)
                print(f"{arguments.export_space} is ready: `python app.py` there runs it.")
                print(
                    describe_push(arguments.export_space, arguments.repo_id, "gradio", read_license(arguments.folder))
                )
                return
            if importlib.util.find_spec("gradio") is None:
                raise ValueError('this needs Gradio: `pip install "hf_mixer[demo]"`')
            write_space(space, arguments.folder, examples=examples)
        # The page is the Space that would be exported
        sys.path.insert(0, str(space))
        runpy.run_path(f"{space}/app.py", run_name="__main__")


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
