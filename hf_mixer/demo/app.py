# SPDX-License-Identifier: Apache-2.0
"""
A demo Space: drop an image, see its labels or values and what the model looked at.

`space.json` beside this file says which model to load. It needs `saliency.py` beside it, and nothing of hf_mixer.
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import joblib
import torch
from PIL import Image
from saliency import draw_saliency, is_regression, occlusion_map, read_outputs

from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor


logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
MAX_FILE_SIZE = "20mb"
MAX_PIXELS = 64_000_000
TOP_K = 5
# Forward passes for the map, along each side of the image: what a Space without an accelerator does in seconds.
MAX_WINDOWS = 8
# What the page says by kind of model: what it does, what its answer is called, and what the colors of the map stand for
TEXTS = {
    "single_label_classification": (
        "tells {number} labels apart",
        "Labels",
        "Orange: covering this part makes the first label less likely. Purple: it makes it more likely.",
    ),
    "multi_label_classification": (
        "tells which of {number} labels an image shows",
        "Labels that it sees",
        "Orange: covering this part makes the most likely label less likely. Purple: it makes it more likely.",
    ),
    "regression": (
        "estimates {outputs} from an image",
        "Estimate",
        "Orange: covering this part makes {first} smaller. Purple: it makes it larger.",
    ),
}


def load(settings: dict):
    """Return the model and the image processor that `settings`, the contents of `space.json`, name."""
    model_id, revision = settings["model"], settings["revision"]
    if revision is None:
        # A folder: beside this file, or anywhere on the disk
        model_id = str(HERE / model_id)
    options = {"revision": revision, "trust_remote_code": True}
    model = AutoModelForImageClassification.from_pretrained(model_id, **options).eval()
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return model.to(device), AutoImageProcessor.from_pretrained(model_id, **options)


def refuse(message: str) -> gr.Error:
    """Return an error that the visitor sees until it is closed."""
    return gr.Error(message, duration=None, print_exception=False)


def open_image(path: str) -> Image.Image:
    """Decode an uploaded file, or raise an error that the visitor can read."""
    limit = f"The limit is {MAX_PIXELS // 10**6} megapixels: make it smaller and try again."
    try:
        image = Image.open(path)
    except Image.DecompressionBombError:
        raise refuse(f"This image is far too large. {limit}") from None
    except Exception:  # as below; the log has what it was, which may be no fault of the file
        logger.warning("An upload cannot be opened", exc_info=True)
        raise refuse("This file is no image that can be read. Try a JPEG, PNG or WebP file.") from None
    if image.width * image.height > MAX_PIXELS:
        megapixels = image.width * image.height / 1e6
        raise refuse(f"This image has {megapixels:.0f} megapixels ({image.width} x {image.height}). {limit}")
    try:
        image.load()
    except Exception:  # Pillow's plugins raise whatever a broken file makes them stumble over
        logger.warning("An upload cannot be decoded", exc_info=True)
        raise refuse("This image is damaged and cannot be read to its end.") from None
    return image


def warn_of_conversion(image: Image.Image, conversion: dict) -> None:
    """Tell the visitor where an image would have been converted before the training, and is not here."""
    color = conversion.get("flatten_transparency")
    if color and image.has_transparency_data:
        gr.Warning(f"The model learned from images without transparency, put on {color}. Do the same to this one.")
    if conversion.get("scale_16_bit") and (image.mode.startswith("I") or image.mode == "F"):
        gr.Warning("The model learned from images scaled to 8 bits. Do the same to this one, which has more.")


class Demo:
    """
    The model behind the page.

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

    def predict(self, path: str | None) -> Iterator[tuple[dict[str, float] | str | None, Image.Image | None]]:
        """Yield what `describe` says as soon as it is known, then the same with the map."""
        if path is None:
            yield None, None
            return
        image = open_image(path)
        warn_of_conversion(image, self.conversion)
        try:
            pixel_values = self.processor(image, return_tensors="pt")["pixel_values"]
        except ValueError as error:
            raise refuse(str(error)) from error
        with torch.inference_mode():
            outputs = read_outputs(self.model, pixel_values.to(self.model.device))[0]
        answer = self.describe(outputs)
        yield answer, None

        window = -(-max(self.model.config.grid) // MAX_WINDOWS)
        saliency = occlusion_map(self.model, pixel_values, window=window)
        normalized = self.processor.do_normalize
        mean, std = (self.processor.image_mean, self.processor.image_std) if normalized else (0.0, 1.0)
        # What is smaller than that may be rounding
        weakest = 1e-4 * abs(outputs[0].item()) if self.problem_type == "regression" else 1e-4
        yield answer, draw_saliency(pixel_values, saliency, mean, std, weakest)


def build(demo: Demo, title: str, examples: list[str]) -> gr.Blocks:
    """Lay out the page."""
    words = {"number": f"{len(demo.names):,}", "outputs": ", ".join(demo.names), "first": demo.names[0]}
    purpose, caption, colors = (text.format(**words) for text in TEXTS[demo.problem_type])
    num_shown = TOP_K if demo.problem_type == "single_label_classification" else None
    with gr.Blocks(title=title) as page:
        gr.Markdown(f"# {title}\nAn MLP-Mixer that {purpose}. Give it an image.")
        with gr.Row():
            with gr.Column(min_width=320):
                upload = gr.Image(
                    label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=320
                )
                # `predict` opens the file and tells the visitor what is wrong with it. A subclass that overrides the method
                # would be another component to Gradio 6.31, without a frontend.
                upload.preprocess = lambda payload: payload.path if payload is not None else None  # type: ignore[method-assign]
                if examples:
                    gr.Examples(examples, upload)
            with gr.Column(min_width=320):
                answer = gr.Label(label=caption, num_top_classes=num_shown)
                gr.Markdown(f"**What the model looked at.** {colors} The image is drawn as the model sees it.")
                saliency = gr.Image(
                    label="What the model looked at", show_label=False, format="png", interactive=False, buttons=[]
                )
        upload.change(demo.predict, upload, [answer, saliency], api_name="predict")
    return page


def limit_threads() -> None:
    """Let torch use the cores of this container only, unless the user says how many: it does not look at quotas."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), joblib.cpu_count()))


def main():
    limit_threads()
    settings = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
    examples = sorted(str(path) for path in (HERE / "examples").glob("*"))
    page = build(Demo(*load(settings), settings["conversion"]), settings["title"], examples)
    page.launch(max_file_size=MAX_FILE_SIZE, show_error=True, allowed_paths=[str(HERE / "examples")])


if __name__ == "__main__":
    main()
