# SPDX-License-Identifier: Apache-2.0
"""
The model behind the demo: what it says of an image, and why.

This file travels alone, into the demo Space: it needs transformers, torch and Gradio, and nothing of this package.
"""

import html
import math
from collections.abc import Iterator
from functools import lru_cache

import gradio as gr
import torch
from PIL import Image
from saliency import (
    ACCELERATOR_BUDGET,
    CPU_BUDGET,
    choose_stride,
    draw_image,
    draw_saliency,
    find_first,
    find_windows,
    is_regression,
    measure_falls,
    read_outputs,
    spread_falls,
)
from uploads import find_upload, open_image, refuse


# Images whose answers are kept, for those who click on one label after the other
NUM_KEPT = 16
# A change of the logarithm of a probability, or of a value in proportion, that may be rounding
WEAKEST = 1e-4
# What stands under the map: what covering a part does, the ends of the scale, and what the colors stand for
SCALE = """<div class="scale">
<p>What covering a part of the image does to <b>{name}</b></p>
<div class="colors"></div>
<p class="ends"><span>{left}</span><span>no change</span><span>{right}</span></p>
<p class="quiet">{words}</p>
</div>"""
OF_LABEL = "Orange parts speak for this label, purple parts against it. Click another label above to see its map."
OF_VALUE = "Orange parts make the value larger, purple parts make it smaller."


class Demo:
    """
    What the page shows of a model.

    Args:
        model (`MixerForImageClassification`), processor (`MixerImageProcessor` or `MixerImageProcessorPil`):
            The model, in evaluation mode, and its image processor.
        conversion (`dict`, *optional*):
            What the training did to transparent and 16-bit images, as `training_run.json` has it.
    """

    def __init__(self, model, processor, conversion: dict | None = None):
        self.model, self.processor, self.conversion = model, processor, conversion or {}
        config = model.config
        self.names = [config.id2label[index] for index in range(config.num_labels)]
        kind = config.problem_type or "single_label_classification"
        self.problem_type = "regression" if is_regression(config) else kind
        self.budget = CPU_BUDGET if model.device.type == "cpu" else ACCELERATOR_BUDGET
        # Gradio names an uploaded file by its content, so what is kept of a path stays true
        self.look = lru_cache(NUM_KEPT)(self.look_at)
        self.falls: dict[str, torch.Tensor] = {}

    def look_at(self, path: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """
        Return of an image file the input of the model, of shape `(1, num_channels, height, width)`, the outputs, of shape
        `(num_labels,)`, and what the visitor should know of it.
        """
        image = open_image(path)
        try:
            pixel_values = self.processor(image, return_tensors="pt")["pixel_values"]
        except ValueError as error:
            raise refuse(str(error)) from error
        with torch.inference_mode():
            outputs = read_outputs(self.model, pixel_values.to(self.model.device))[0].cpu()
        return pixel_values, outputs, self.find_conversions(image)

    def find_conversions(self, image: Image.Image) -> list[str]:
        """Say where an image would have been converted before the training, and is not here."""
        found = []
        color = self.conversion.get("flatten_transparency")
        if color and image.has_transparency_data:
            found.append(
                f"The model learned from images without transparency, put on {color}. Do the same to this one."
            )
        if self.conversion.get("scale_16_bit") and (image.mode.startswith("I") or image.mode == "F"):
            found.append("The model learned from images scaled to 8 bits. Do the same to this one, which has more.")
        return found

    def describe(self, outputs: torch.Tensor) -> dict[str, float] | str:
        """
        Return what the page shows of the outputs for one image, of shape `(num_labels,)`: the scores of the labels, of
        several at a time those that reach their thresholds, or a line of text.
        """
        if self.problem_type == "regression":
            return ", ".join(f"{name}: {value:,.6g}" for name, value in zip(self.names, outputs.tolist()))
        scores = dict(zip(self.names, outputs.exp().tolist()))
        if self.problem_type == "single_label_classification":
            return scores
        thresholds = self.model.config.label_thresholds or [0.5] * len(self.names)
        present = {name: scores[name] for name, threshold in zip(self.names, thresholds) if scores[name] >= threshold}
        return present or "none of its labels"

    def predict(self, upload: dict | None) -> tuple[dict[str, float] | str | None, None, str]:
        """Return what `describe` says of an uploaded image, and a map and a scale that are empty."""
        path = find_upload(upload)
        if path is None:
            return None, None, ""
        _, outputs, conversions = self.look(path)
        for text in conversions:
            gr.Warning(html.escape(text))
        return self.describe(outputs), None, ""

    def explain(self, upload: dict | None) -> Iterator:
        """Yield, as the last thing, the image as the model sees it and the map of its first label, and the scale."""
        yield from self.draw(find_upload(upload), None)

    def explain_chosen(self, upload: dict | None, event: gr.SelectData) -> Iterator:
        """Yield, as the last thing, the same for the label that the visitor has clicked on."""
        yield from self.draw(find_upload(upload), event.value)

    def draw(self, path: str | None, name: str | None) -> Iterator:
        """Yield nothing new until the map is complete: between two yields Gradio can end what nobody waits for."""
        if path is None:
            yield None, ""
            return
        pixel_values, outputs, _ = self.look(path)
        height, width = pixel_values.shape[2:]
        stride = choose_stride(self.model.config, height, width, self.budget)
        windows = find_windows(height, width, 2 * stride, stride)
        if path not in self.falls:
            batches = []
            for batch in measure_falls(self.model, pixel_values, windows):
                batches.append(batch)
                yield gr.skip(), gr.skip()
            self.falls[path] = torch.cat(batches)
            while len(self.falls) > NUM_KEPT:
                self.falls.pop(next(iter(self.falls)))

        index = self.names.index(name) if name in self.names else find_first(self.model.config, outputs)
        saliency = spread_falls(self.falls[path][:, index], windows, height, width)
        weakest = (self.problem_type == "regression" and WEAKEST * abs(outputs[index].item())) or WEAKEST
        strongest = max(saliency.abs().max().item(), weakest)
        picture = draw_image(pixel_values, self.processor)
        yield (picture, draw_saliency(picture, saliency, strongest)), self.describe_scale(index, strongest)

    def describe_scale(self, index: int, strongest: float) -> str:
        """Return the scale of the map of a label or value as HTML; `strongest` is the fall that has the full color."""
        name = html.escape(self.names[index])
        if self.problem_type == "regression":
            ends = {"left": f"+{strongest:,.3g}", "right": f"-{strongest:,.3g}"}
            return SCALE.format(name=name, words=OF_VALUE, **ends)
        factor = math.exp(min(strongest, 100.0))
        if factor > 1000:
            text = "over 1,000 times"
        elif factor >= 1.1:
            text = f"{factor:,.{0 if factor >= 10 else 1}f} times"
        else:
            text = f"{100 * (factor - 1):.2g} %"
        ends = {"left": f"{text} more likely", "right": f"{text} less likely"}
        return SCALE.format(name=name, words=OF_LABEL, **ends)
