# SPDX-License-Identifier: Apache-2.0
"""What a model answers about the example image that travels with it."""

from pathlib import Path
from typing import Any

from PIL import Image

import transformers

from ..checkpoints import load_checkpoint
from ..data.labels import MULTI_LABEL, REGRESSION, problem_type_of


def answer_example(folder: Path, example: str) -> str:
    """Return what the classifier in `folder` says of its image `example`, as the quick start of the card prints it, rounded."""
    model, image_processor = load_checkpoint(str(folder))
    classifier = transformers.pipeline("image-classification", model=model.float(), image_processor=image_processor)
    problem_type = problem_type_of(model.config)
    options: dict[str, Any] = {"function_to_apply": "none"} if problem_type == REGRESSION else {}
    if problem_type in (REGRESSION, MULTI_LABEL):
        options["top_k"] = model.config.num_labels
    with Image.open(folder / example, formats=("PNG", "JPEG")) as image:
        answers = classifier(image, **options)
    if problem_type == MULTI_LABEL:
        thresholds = model.config.label_thresholds or [0.5] * model.config.num_labels
        label2id = model.config.label2id
        answers = [answer for answer in answers if answer["score"] >= thresholds[label2id[answer["label"]]]]
    rounded = ({"label": answer["label"], "score": float(f"{answer['score']:.3g}")} for answer in answers)
    return f"[{', '.join(map(str, rounded))}]".replace("}, {", "},\n {")
