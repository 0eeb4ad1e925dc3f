# SPDX-License-Identifier: Apache-2.0
"""The card of an exported model."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..configuration_mixer import MixerConfig, to_pair
from ..utils import is_hub_id
from .formats import FORMATS
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
import {{ pipeline }} from '@huggingface/transformers';

const classifier = await pipeline('image-classification', '{name}', {{ dtype: '{dtype}' }});
console.log(await classifier('photo.jpg'));
```

The program resizes images itself, as Python does, so that it answers the same. One call takes images of one size."""
CARD = """---
{metadata}
---

# {name}

An MLP-Mixer for images of {size} pixels in patches of {patch_size}, exported from `{source}` with `hf-mixer export` for
{runtime}. It needs no code of its own.

{usage}

| type | largest difference to the model |
|---|---|
{differences}

The difference is that of an output, over the largest output.{quantization}
"""


def write_card(
    folder: Path, source: str, config: MixerConfig, format: str, differences: dict[str, float], recipe: str | None
) -> None:
    """Write the card of an export: how it is run, and how it compares with the model that it was made of."""
    is_quantized = "int8" in differences
    data = ModelCardData(
        library_name="transformers.js" if format == "transformers.js" else "transformers",
        pipeline_tag="image-classification" if config.num_labels else "image-feature-extraction",
        tags=["mlp-mixer", "vision", *(["onnx"] if format == "transformers.js" else [format])],
        base_model=source if is_hub_id(source) else None,
        base_model_relation="quantized" if is_quantized and is_hub_id(source) else None,
    )
    name = folder.name
    answer = "print(model(**inputs).logits)"
    if config.num_labels and config.problem_type in (None, "single_label_classification"):
        answer = "print(model.config.id2label[int(model(**inputs).logits.argmax())])"
    last = DTYPE_NAMES[list(differences)[-1]]
    usage = IN_JAVASCRIPT.format(name=name, dtype=last)
    if format != "transformers.js":
        usage = IN_PYTHON.format(name=name, options=LOADING.get(format, ""), answer=answer)
    text = CARD.format(
        metadata=data.to_yaml(),
        name=name,
        size="x".join(map(str, to_pair(config.image_size))),
        patch_size="x".join(map(str, to_pair(config.patch_size))),
        source=Path(source).name if not is_hub_id(source) else source,
        runtime=FORMATS[format].runtime,
        usage=usage,
        differences="\n".join(f"| {dtype} | {difference:.1e} |" for dtype, difference in differences.items()),
        quantization=f" int8: {recipe}." if recipe else "",
    )
    ModelCard(text).save(folder / "README.md")
