# SPDX-License-Identifier: Apache-2.0
"""
A demo Space: drop an image, see its labels or values and what the model looked at.

`space.json` beside this file says which model to load. It needs `answers.py`, `saliency.py` and `uploads.py` beside it, and
nothing of hf_mixer.
"""

import html
import json
import os
from pathlib import Path
from typing import Any


# Libraries read them when they are imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
import joblib
import torch
from answers import Demo
from saliency import PICTURE_SIZE
from uploads import MAX_FILE_SIZE, refuse_address

from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor


HERE = Path(__file__).parent
PAPER = "https://huggingface.co/papers/2105.01601"
TOP_K = 5
# How long an image stays on the server, in seconds
KEEP_UPLOADS = 3600
# What the page says by kind of model: what it does, and what its answer is called
TEXTS = {
    "single_label_classification": ("An MLP-Mixer that tells {number} labels apart.", "Labels"),
    "multi_label_classification": (
        "An MLP-Mixer that tells which of {number} labels an image shows.",
        "Labels that it sees",
    ),
    "regression": ("An MLP-Mixer that estimates {names} from an image.", "Estimate"),
}
HEADER = """<header>
<h1>{title}</h1>
<p>{purpose} Give it an image, see what it makes of it and what it looked at.</p>
<p class="quiet">{links}</p>
</header>"""
FONTS = ["system-ui", "sans-serif"]


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


def write_header(demo: Demo, settings: dict) -> str:
    """Return the head of the page as HTML: its title, what the model does, and links to its card and the paper."""
    text, _ = TEXTS[demo.problem_type]
    purpose = text.format(number=f"{len(demo.names):,}", names=", ".join(demo.names))
    name = html.escape(settings["name"])
    if settings["revision"] is not None:
        name = f'<a href="https://huggingface.co/{html.escape(settings["model"])}" target="_blank" rel="noopener">{name}</a>'
    links = f'Model: {name} · Paper: <a href="{PAPER}" target="_blank" rel="noopener">MLP-Mixer</a>'
    return HEADER.format(title=html.escape(settings["title"]), purpose=html.escape(purpose), links=links)


def build(demo: Demo, settings: dict, examples: list[str]) -> gr.Blocks:
    """Lay out the page."""
    num_shown = TOP_K if demo.problem_type == "single_label_classification" else None
    with gr.Blocks(title=settings["title"], delete_cache=(KEEP_UPLOADS, KEEP_UPLOADS)) as page:
        gr.HTML(write_header(demo, settings))
        with gr.Row():
            with gr.Column(min_width=300):
                upload = gr.Image(label="Image", sources=["upload", "clipboard"], height=380, elem_classes="upload")
                if examples:
                    gr.Examples(examples, upload)
            with gr.Column(min_width=300):
                answer = gr.Label(label=TEXTS[demo.problem_type][1], num_top_classes=num_shown, elem_classes="answer")
                saliency = gr.ImageSlider(
                    label="What the model looked at",
                    format="png",
                    interactive=False,
                    buttons=["fullscreen"],
                    max_height=PICTURE_SIZE,
                    slider_position=30,
                )
                scale = gr.HTML()

        # Labels and maps wait in lines of their own. A map ends when another image or label is chosen. Files are opened by
        # `find_upload` alone.
        request: dict[str, Any] = {"inputs": upload, "preprocess": False}
        maps = {**request, "outputs": [saliency, scale], "concurrency_id": "map"}
        predicted = upload.change(demo.predict, outputs=[answer, saliency, scale], api_name="predict", **request)
        explained = predicted.success(demo.explain, api_name="explain", **maps)
        chosen = answer.select(
            demo.explain_chosen, api_visibility="private", trigger_mode="always_last", cancels=explained, **maps
        )
        upload.change(None, cancels=[explained, chosen])
    return page


def limit_threads() -> None:
    """Let torch use the cores of this container only, unless the user says how many: it does not look at quotas."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), joblib.cpu_count()))


def main():
    limit_threads()
    gr.processing_utils.async_ssrf_protected_download = refuse_address
    settings = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
    examples = sorted(str(path) for path in (HERE / "examples").glob("*"))
    page = build(Demo(*load(settings), settings["conversion"]), settings, examples)
    page.launch(
        max_file_size=MAX_FILE_SIZE,
        theme=gr.themes.Default(primary_hue="orange", secondary_hue="purple", font=FONTS, font_mono=FONTS),
        css_paths=HERE / "style.css",
        footer_links=["api", "gradio"],
        # Nothing of a visitor is kept, and nothing leaves this machine
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
