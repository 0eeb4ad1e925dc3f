# SPDX-License-Identifier: Apache-2.0
"""
Whether a folder runs without this package: on the code that it carries, in a process of its own.

That process runs this very file, which therefore imports nothing of the package at its top.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import transformers


CLASSIFICATION = "image-classification"
SECRET_VARIABLE = re.compile("TOKEN|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def predict(model, image_processor) -> dict:
    """
    Return the labels and the logits for an image of noise, the same one in every process. Of a model without classifier,
    there are no labels, and the features stand for the logits.
    """
    shape = (47, 61, model.config.num_channels)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    inputs = image_processor(image, input_data_format="channels_last", return_tensors="pt")
    with torch.inference_mode():
        outputs = model(inputs["pixel_values"].to(model.dtype))
    if "logits" not in outputs:
        return {"labels": [], "logits": outputs.last_hidden_state.float().flatten().tolist()}
    logits = outputs.logits[0]
    labels = [model.config.id2label[index] for index in range(len(logits))]
    return {"labels": labels, "logits": logits.float().tolist()}


def predict_without_package(folder: Path, task: str) -> dict:
    """
    Return what `predict` does in a process that finds no hf_mixer, no token or key, and no cache.

    Raises:
        `ValueError`: the folder does not load there.
        `OSError`: there is no space for temporary files.
    """
    from ..temporary_folders import temporary_folder

    program = "import runpy, sys; sys.modules['hf_mixer'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    with temporary_folder("mixer-remote-code-") as temporary:
        environment = {name: value for name, value in os.environ.items() if not SECRET_VARIABLE.search(name)}
        environment |= {"HF_HOME": str(temporary), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment |= {"HF_MODULES_CACHE": str(temporary / "modules")}
        result = subprocess.run(
            [sys.executable, "-c", program, __file__, task, str(folder.resolve())],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=temporary,
            env=environment,
        )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        if "No space left on device" in reason:
            raise OSError(f"no space left in {tempfile.gettempdir()}: free some, or set TMPDIR to another folder")
        raise ValueError(f"the folder does not run without hf_mixer, with the code that it carries: {reason}")
    return json.loads(result.stdout.splitlines()[-1])


def check_remote_code(source: Path, folder: Path, task: str = CLASSIFICATION) -> None:
    """
    Load `folder` as somebody without this package does, and compare a prediction with that of `source`, the folder it
    comes from, on this package; `task` is that of the pipeline. Only the code of `folder` runs, in a process of its own.

    Raises:
        `ValueError`: one of them does not load, or the predictions differ.
        `OSError`: there is no space for temporary files.
    """
    from ..checkpoints import load_checkpoint
    from ..modeling_mixer import MixerForImageClassification, MixerModel

    model_class = MixerForImageClassification if task == CLASSIFICATION else MixerModel
    expected = predict(*load_checkpoint(str(source), model_class))
    actual = predict_without_package(folder, task)
    if actual["labels"] != expected["labels"]:
        raise ValueError(f"the code in the folder gives the labels {actual['labels']}, here {expected['labels']}")
    difference = float(np.abs(np.subtract(actual["logits"], expected["logits"])).max())
    if not difference <= 1e-5 * max(1.0, float(np.abs(expected["logits"]).max())):
        raise ValueError(
            f"the code in the folder predicts something else than hf_mixer: logits differ by {difference:.2g}. Save the "
            "model and its image processor again with `save_pretrained`, which brings the code up to date."
        )


if __name__ == "__main__":
    loaded = transformers.pipeline(sys.argv[-2], sys.argv[-1], trust_remote_code=True, device="cpu")
    print(json.dumps(predict(loaded.model, loaded.image_processor)))
