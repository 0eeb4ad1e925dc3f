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
"""Integers and 8-bit floats in place of wider types, by torchao."""

import tempfile

from transformers import PreTrainedModel, TorchAoConfig


QUANTIZED = ("int8", "float8")


def quantize(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """
    Return a copy of a model whose linear layers compute in 8 bits: weights are rounded once, per output channel,
    activations in every batch, per token. It is what `from_pretrained` returns with a `quantization_config`:

    ```python
    >>> from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    >>> from transformers import TorchAoConfig

    >>> config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    >>> model = MixerForImageClassification.from_pretrained("outputs/photos", quantization_config=config)
    ```

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. The patch embedding, the norms and the classifier keep its type.
        dtype (`str`):
            `"int8"`, or `"float8"` (e4m3, for GPUs since Ada and Hopper).

    Returns:
        [`~transformers.PreTrainedModel`]: on the device of `model`, in evaluation mode.

    Raises:
        `ValueError`: `dtype` is another one.
        `ImportError`: torchao is not installed.
    """
    if dtype not in QUANTIZED:
        raise ValueError(f"`dtype` has to be one of {', '.join(QUANTIZED)}, got {dtype!r}")
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            PerRow,
        )
    except ImportError as error:
        raise ImportError('8 bits need torchao: `pip install "hf_mixer[quantization]"`') from error

    if dtype == "int8":
        how = Int8DynamicActivationInt8WeightConfig()
    else:
        how = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return type(model).from_pretrained(
            folder, dtype=model.dtype, device_map={"": model.device}, quantization_config=TorchAoConfig(how)
        )


__all__ = ["quantize"]
