# SPDX-License-Identifier: Apache-2.0
"""Predictions as a data set: its card, and its way to the Hub."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from ..evaluation.prediction_files import DATA_FOLDER, STATE_NAME
from ..hub_errors import clear_errors
from .release import CARD_NAME
from .upload import connect
from .wording import code, plain


DATA_FILES = f"{DATA_FOLDER}/*.parquet"


def write_prediction_card(folder: Path, model: str, data: str, split: str, columns: dict[str, str]) -> None:
    """
    Write the card of a folder of predictions, which also tells `datasets` where the files are. One that is there stays.

    Args:
        folder (`Path`):
            The folder.
        model (`str`), data (`str`):
            What was used, and what was predicted, as the reader knows them.
        split (`str`):
            What `load_dataset` calls the predictions.
        columns (`dict[str, str]`):
            What the columns of the predictions hold.
    """
    if (folder / CARD_NAME).exists():
        return
    metadata = DatasetCardData(
        task_categories=["image-classification"],
        tags=["hf_mixer", "predictions"],
        configs=[{"config_name": "default", "data_files": [{"split": split, "path": DATA_FILES}]}],
    )
    rows = "\n".join(f"| {code(name)} | {plain(meaning)} |" for name, meaning in columns.items())
    text = (
        f"---\n{metadata.to_yaml()}\n---\n\n# Predictions of {plain(model)}\n\n"
        f"What the model {code(model)} says of the images of {plain(data)}, written by `hf-mixer predict`: one row for every image, in "
        "the order of the data.\n\n"
        f"| Column | Meaning |\n| --- | --- |\n{rows}\n\n"
        f"Other columns are those of the data. `{STATE_NAME}` says what the predictions depend on.\n"
    )
    DatasetCard(text, ignore_metadata_errors=False).save(folder / CARD_NAME)


def push_predictions(folder: Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """
    Bring the files of a folder of predictions to a data set on the Hub, in one commit. What the Hub has is not sent again.

    Args:
        repo_id (`str`):
            `namespace/name`. The data set is created if it does not exist.
        private (`bool`, *optional*, defaults to `False`):
            Create it as a private one. An existing public one is refused.

    Returns:
        `str`: the page of the data set.

    Raises:
        `ValueError`: the data set is public, or holds something else than predictions.
        `PermissionError`, `ConnectionError`, `OSError`: see `clear_errors`.
    """
    api, _ = connect(token)
    with clear_errors(repo_id):
        api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        check_repository(api, repo_id, private)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[CARD_NAME, STATE_NAME, DATA_FILES],
            delete_patterns=DATA_FILES,
            commit_message="Upload predictions with hf_mixer",
        )
    return f"{api.endpoint}/datasets/{repo_id}"


def check_repository(api: HfApi, repo_id: str, private: bool) -> None:
    """Refuse a data set that is public and should not be, or that holds what a person made."""
    if private and not api.dataset_info(repo_id).private:
        raise ValueError(
            f"{repo_id} exists and is public. Make it private in its settings first, choose another name, or leave out "
            "--private. Nothing was sent."
        )
    files = set(map(str, api.list_repo_files(repo_id, repo_type="dataset"))) - {".gitattributes"}
    if files and STATE_NAME not in files:
        raise ValueError(
            f"{repo_id} holds something else than predictions ({', '.join(sorted(files)[:3])}): choose another name. "
            "Nothing was sent."
        )
