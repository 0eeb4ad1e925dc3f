# Copyright 2026 The hf_mixer authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Pictures of results."""

import math
import os
from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image


def save_contact_sheet(
    path: str | os.PathLike,
    images: Sequence[Image.Image],
    predictions: Sequence[str],
    labels: Sequence[str] | None = None,
    columns: int = 12,
) -> None:
    """
    Save a picture of images with the label predicted for each; wrong ones are red and name the right label.

    Args:
        path (`str` or `os.PathLike`):
            The file to write; its suffix chooses the format.
        images (`Sequence[Image.Image]`):
            The images, of any size.
        predictions (`Sequence[str]`):
            The label predicted for each.
        labels (`Sequence[str]`, *optional*):
            The right labels, where they are known.
        columns (`int`, *optional*, defaults to 12):
            Number of images side by side.
    """
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(columns, 1.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for index, axes in enumerate(grid):
        axes.set_axis_off()
        if index < len(images):
            label = predictions[index] if labels is None else labels[index]
            right = predictions[index] == label
            title = predictions[index] if right else f"{predictions[index]} (is {label})"
            axes.imshow(images[index], cmap="gray")
            axes.set_title(title, color="black" if right else "red", fontsize=9)
    figure.savefig(path, dpi=100)
