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
"""Image processor class for MLP-Mixer."""

from transformers.image_processing_backends import TorchvisionBackend
from transformers.utils import auto_docstring, requires_backends

# transformers looks for the keyword arguments of a processor in its own file
from .image_processing_pil_mixer import MixerImageConversion, MixerImageProcessorKwargs  # noqa: F401


@auto_docstring(
    custom_intro="""
    Image processor for MLP-Mixer on torchvision, which also runs on accelerators. Its arguments and defaults are those
    of [`MixerImageProcessorPil`]. Without torchvision it raises an `ImportError`.
    """
)
class MixerImageProcessor(MixerImageConversion, TorchvisionBackend):
    def __init__(self, **kwargs):
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)


__all__ = ["MixerImageProcessor"]
