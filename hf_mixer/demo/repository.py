# SPDX-License-Identifier: Apache-2.0
"""The repository on the Hub that a Space loads its model from."""

import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from transformers.utils import CONFIG_NAME

from ..configuration_mixer import MixerConfig
from ..hub_errors import clear_errors
from ..publishing.upload import find_commit


def find_same_model(folder: Path, repo_id: str, revision: str | None = None) -> str:
    """
    Return the commit of a repository that holds the model in `folder`.

    Args:
        folder (`Path`):
            The trained model.
        repo_id (`str`), revision (`str`, *optional*):
            The repository on the Hub, and a commit, a tag or branch of it, by default `main`.

    Raises:
        `ValueError`: the repository holds another model: other labels, or weights with other checksums.
        `ConnectionError`, `PermissionError`, `OSError`: as `clear_errors` raises them.
    """
    api = HfApi()
    with clear_errors(repo_id, is_upload=False):
        commit = find_commit(api, repo_id, revision)
        theirs = MixerConfig.from_pretrained(hf_hub_download(repo_id, CONFIG_NAME, revision=commit))
        report = api.verify_repo_checksums(repo_id, revision=commit, local_dir=folder)
    ours = MixerConfig.from_pretrained(folder)
    differing = [mismatch["path"] for mismatch in report.mismatches] + report.extra_paths
    weights = fnmatch.filter(differing, "model*.safetensors*")
    if theirs.id2label != ours.id2label:
        reason = "its labels are other ones"
    elif weights:
        reason = f"{', '.join(sorted(weights))} differs"
    else:
        return commit
    raise ValueError(
        f"{repo_id} at {commit} is not the model in {folder}: {reason}. Publish the folder with `hf-mixer publish`, name its "
        "revision, or leave --repo_id out to put the model into the Space"
    )
