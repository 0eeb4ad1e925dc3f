# SPDX-License-Identifier: Apache-2.0
"""The card of an exported model."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..configuration_mixer import MixerConfig, to_pair
from ..utils import format_bytes
from .formats import FORMATS, program_files
from .transformers_js import DTYPE_NAMES


# What `ExportedModel.from_pretrained` needs beside the name
LOADING = {
    "openvino": ', device="cpu", config={"INFERENCE_PRECISION_HINT": "f32"}',
    "torch": ", trust_remote_code=True",
}
IN_PYTHON = """```python
from PIL import Image
from transformers import AutoImageProcessor
from transformers.exporters import ExportedModel

model = ExportedModel.from_pretrained("{name}"{options})
inputs = AutoImageProcessor.from_pretrained("{name}")(Image.open("photo.jpg"), return_tensors="pt")
{answer}
```

`hf-mixer predict {name} photo.jpg` does the same, `hf-mixer evaluate` measures it."""
IN_JAVASCRIPT = """```js
{code}
```

The program resizes images itself, as Pillow does, so that the answers in fp32 and fp16 are those of Python. A list of images has
to have one size. `q8` is smaller and less exact."""
CLASSIFIER = """import {{ pipeline }} from '@huggingface/transformers';

const classifier = await pipeline('image-classification', '{name}', {{ dtype: '{dtype}' }});
console.log(await classifier('photo.jpg'));"""
# The pipeline would apply a softmax
OUTPUTS = """import {{ pipeline, RawImage }} from '@huggingface/transformers';

const {{ model, processor }} = await pipeline('image-classification', '{name}', {{ dtype: '{dtype}' }});
const {{ pixel_values }} = await processor([await RawImage.read('photo.jpg')]);
console.log((await model({{ pixel_values }})).logits{function}.tolist());"""
CARD = """---
{metadata}
---

# {name}

An MLP-Mixer for images of {size} pixels in patches of {patch_size}, exported from `{source}` with `hf-mixer export` for
{runtime}. It needs no code of its own.

{usage}

| type | file | size | largest difference to the model |
|---|---|---|---|
{programs}

The difference is that of an output, over the largest output.{quantization}
"""


def write_card(
    folder: Path,
    source: str,
    base_model: str | None,
    config: MixerConfig,
    format: str,
    files: dict[str, str],
    differences: dict[str, float],
    recipe: str | None,
) -> None:
    """
    Write the card of an export: how it is run, and how it compares with the model that it was made of.

    Args:
        folder (`Path`):
            The folder with the export.
        source (`str`), base_model (`str`, *optional*):
            What was exported, and its name on the Hub.
        config ([`MixerConfig`]), format (`str`):
            The configuration of the model, and the format of its programs.
        files (`dict[str, str]`), differences (`dict[str, float]`):
            For the type of each program its file, and the largest difference of an output, over the largest output.
        recipe (`str`, *optional*):
            How the model was quantized.
    """
    data = ModelCardData(
        library_name="transformers.js" if format == "transformers.js" else "transformers",
        pipeline_tag="image-classification" if config.num_labels else "image-feature-extraction",
        tags=["mlp-mixer", "vision", *(["onnx"] if format == "transformers.js" else [format])],
        base_model=base_model,
        base_model_relation="quantized" if base_model and "int8" in files else None,
    )
    name = folder.name
    is_single_label = bool(config.num_labels) and config.problem_type in (None, "single_label_classification")
    if format == "transformers.js":
        function = ".sigmoid()" if config.problem_type == "multi_label_classification" else ""
        template = CLASSIFIER if is_single_label else OUTPUTS
        code = template.format(name=name, dtype=DTYPE_NAMES[next(iter(files))], function=function)
        usage = IN_JAVASCRIPT.format(code=code)
    else:
        answer = "print(model(**inputs).logits)"
        if is_single_label:
            answer = "print(model.config.id2label[int(model(**inputs).logits.argmax())])"
        usage = IN_PYTHON.format(name=name, options=LOADING.get(format, ""), answer=answer)
    rows = []
    for dtype, file in files.items():
        size = sum(path.stat().st_size for path in program_files(folder / file, format))
        rows.append(f"| {dtype} | `{file}` | {format_bytes(size)} | {differences[dtype]:.1e} |")
    text = CARD.format(
        metadata=data.to_yaml(),
        name=name,
        size="x".join(map(str, to_pair(config.image_size))),
        patch_size="x".join(map(str, to_pair(config.patch_size))),
        source=base_model or Path(source).name,
        runtime=FORMATS[format].runtime,
        usage=usage,
        programs="\n".join(rows),
        quantization=f" int8: {recipe}." if recipe else "",
    )
    ModelCard(text).save(folder / "README.md")
