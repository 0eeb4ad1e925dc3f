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
"""PyTorch MLP-Mixer model."""

import torch
from torch import nn

from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mixer import MixerConfig, to_pair
from .layers_mixer import MixerLayer, has_matrix_units, is_plain
from .resizing_mixer import (
    MixerResizingMixin,
    check_plain,
    check_size,
    replace_weights,
    resize_patch_decoder,
    weights_of,
)


class MixerPatchEmbeddings(nn.Module):
    """
    This class turns `pixel_values` of shape `(batch_size, num_channels, height, width)` into the initial
    `hidden_states` (patch embeddings) of shape `(batch_size, num_patches, hidden_size)`, patches in raster order.
    """

    def __init__(self, config: MixerConfig):
        super().__init__()
        self.image_size = to_pair(config.image_size)
        self.patch_size = to_pair(config.patch_size)
        self.num_channels = config.num_channels
        self.num_patches = config.num_patches
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        _, num_channels, height, width = pixel_values.shape
        if num_channels != self.num_channels:
            raise ValueError(
                "Make sure that the channel dimension of the pixel values match with the one set in the configuration."
                f" Expected {self.num_channels} but got {num_channels}."
            )
        if (height, width) != self.image_size:
            way_out = "Resize the images, for instance with the model's image processor"
            if height % self.patch_size[0] == 0 and width % self.patch_size[1] == 0:
                way_out += f", or resize the model with `model.resize_image_size(({height}, {width}))`"
            raise ValueError(
                f"Input image size ({height}x{width}) doesn't match model ({self.image_size[0]}x{self.image_size[1]}):"
                f" token mixing has weights for one number of patches only. {way_out}."
            )
        if has_matrix_units(pixel_values) and is_plain(self.projection, nn.Conv2d):
            # As one product of matrices. A training step of B/16 in bfloat16, 8 images, spends 3 ms on the convolution and 17 ms
            # on its gradient, of 620 ms, and 1 ms on each of these (two cores of an Intel Xeon with AMX, torch 2.13). 256
            # images on an H200 take 2.16 ms with the convolution and 0.22 ms with the product (torch 2.11).
            num_rows, num_columns = height // self.patch_size[0], width // self.patch_size[1]
            patches = pixel_values.unflatten(3, (num_columns, -1)).unflatten(2, (num_rows, -1))
            patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
            return nn.functional.linear(patches, self.projection.weight.flatten(1), self.projection.bias)
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class MixerEmbeddings(nn.Module):
    """
    Construct the patch embeddings. Optionally, also the mask token. A Mixer needs no position embeddings: token mixing
    tells the positions apart.
    """

    def __init__(self, config: MixerConfig, use_mask_token: bool = False):
        super().__init__()
        self.patch_embeddings = MixerPatchEmbeddings(config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.BoolTensor | None = None) -> torch.Tensor:
        embeddings = self.patch_embeddings(pixel_values)

        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("`bool_masked_pos` needs a mask token: use a model built with `use_mask_token=True`.")
            if bool_masked_pos.shape != embeddings.shape[:2]:
                raise ValueError(
                    f"`bool_masked_pos` has to be of shape (batch_size, num_patches) = {tuple(embeddings.shape[:2])}, "
                    f"got {tuple(bool_masked_pos.shape)}."
                )
            embeddings = torch.where(
                bool_masked_pos.bool().unsqueeze(-1), self.mask_token.to(embeddings.dtype), embeddings
            )

        return embeddings


@auto_docstring
class MixerPreTrainedModel(MixerResizingMixin, PreTrainedModel):
    config: MixerConfig
    base_model_prefix = "mixer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MixerEmbeddings", "MixerLayer"]
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": MixerLayer}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize the weights as Google's `models_mixer.py` does, and the classifier with `initializer_range`."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            if module is getattr(self, "classifier", None):
                init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            else:
                # Lecun-normal as Flax has it: cut off at two standard deviations, then scaled to a variance of 1 / fan_in.
                # `init.lecun_normal_` cuts off at the absolute value 2, which leaves the weights 14 % too large.
                std = module.weight[0].numel() ** -0.5 / 0.87962566103423978
                init.trunc_normal_(module.weight, mean=0.0, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, MixerEmbeddings):
            if module.mask_token is not None:
                init.zeros_(module.mask_token)
        else:
            super()._init_weights(module)


@auto_docstring(
    custom_intro="""
    The bare MLP-Mixer, which outputs the tokens after the last LayerNorm and their mean.
    """
)
class MixerModel(MixerPreTrainedModel):
    _auto_class = "AutoModel"

    def __init__(self, config: MixerConfig, use_mask_token: bool = False):
        r"""
        use_mask_token (`bool`, *optional*, defaults to `False`):
            Whether to have a mask token, for masked image modeling.
        """
        super().__init__(config)
        self.embeddings = MixerEmbeddings(config, use_mask_token=use_mask_token)
        self.layers = nn.ModuleList([MixerLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # Initialize weights and apply final processing
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            The images, as the image processor returns them. They are cast to the type of the weights.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
            Boolean masked positions. Indicates which patches are masked (1) and which aren't (0).

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`]: `last_hidden_state` of shape `(batch_size,
            num_patches, hidden_size)`, after the final LayerNorm, and `pooler_output` of shape `(batch_size,
            hidden_size)`, its mean over the patches. With `output_hidden_states=True` also `hidden_states`, a tuple of
            `num_hidden_layers + 1` tensors: the patch embeddings and the output of every layer, the last one before the
            final LayerNorm.

        Raises:
            `ValueError`: the images have another number of channels or another size than the configuration says, or
                `pixel_values` are no batch of normalized images.
        """
        if pixel_values is None:
            raise ValueError("You have to specify `pixel_values`.")
        if pixel_values.ndim != 4:
            raise ValueError(
                "Expected `pixel_values` of shape (batch_size, num_channels, height, width), got "
                f"{tuple(pixel_values.shape)}. A single image becomes a batch with `pixel_values[None]`."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"Expected `pixel_values` of floating-point numbers, got {pixel_values.dtype}. Rescale and normalize the "
                "images, for instance with the model's image processor."
            )
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)

        hidden_states = self.embeddings(pixel_values, bool_masked_pos=bool_masked_pos)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        sequence_output = self.norm(hidden_states)

        return BaseModelOutputWithPooling(last_hidden_state=sequence_output, pooler_output=sequence_output.mean(dim=1))


@auto_docstring(
    custom_intro="""
    MLP-Mixer with a linear decoder on top for masked image modeling, as proposed in
    [SimMIM](https://huggingface.co/papers/2111.09886).
    """
)
class MixerForMaskedImageModeling(MixerPreTrainedModel):
    _auto_class = "AutoModelForMaskedImageModeling"

    def __init__(self, config: MixerConfig):
        super().__init__(config)
        self.mixer = MixerModel(config, use_mask_token=True)
        self.encoder_stride = to_pair(config.encoder_stride or config.patch_size)
        self.decoder = nn.Linear(
            config.hidden_size, config.num_channels * self.encoder_stride[0] * self.encoder_stride[1]
        )
        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedImageModelingOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            The images, as the image processor returns them.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
            Boolean masked positions. Indicates which patches are masked (1) and which aren't (0). The loss is the
            mean absolute error of the masked pixels.

        Returns:
            [`~transformers.modeling_outputs.MaskedImageModelingOutput`]: `reconstruction` of the shape of
            `pixel_values` and, with `bool_masked_pos`, the `loss`.

        Raises:
            `ValueError`: `encoder_stride` differs from `patch_size`, so that reconstruction and image differ in size.
        """
        patch_size = self.mixer.embeddings.patch_embeddings.patch_size
        if bool_masked_pos is not None and patch_size != self.encoder_stride:
            raise ValueError(
                "When `bool_masked_pos` is provided, `patch_size` must be equal to `encoder_stride` to ensure that "
                "the reconstructed image has the same dimensions as the input. "
                f"Got `patch_size` = {patch_size} and `encoder_stride` = {self.encoder_stride}."
            )

        outputs: BaseModelOutputWithPooling = self.mixer(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)

        # Lay the pixels of every token out on the image
        num_rows, num_columns = self.config.grid
        stride_height, stride_width = self.encoder_stride
        reconstruction = self.decoder(outputs.last_hidden_state)
        reconstruction = reconstruction.view(
            -1, num_rows, num_columns, self.config.num_channels, stride_height, stride_width
        )
        reconstruction = reconstruction.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

        masked_im_loss = None
        if bool_masked_pos is not None:
            mask = bool_masked_pos.view(-1, 1, num_rows, num_columns)
            mask = mask.repeat_interleave(stride_height, 2).repeat_interleave(stride_width, 3)
            reconstruction_loss = nn.functional.l1_loss(pixel_values, reconstruction, reduction="none")
            masked_im_loss = (reconstruction_loss * mask).sum() / (mask.sum() + 1e-5) / self.config.num_channels

        return MaskedImageModelingOutput(
            loss=masked_im_loss, reconstruction=reconstruction, hidden_states=outputs.hidden_states
        )

    @torch.no_grad()
    def resize_patch_size(self, patch_size: int | tuple[int, int]):
        old_size, new_size = self.mixer.embeddings.patch_embeddings.patch_size, check_size("patch_size", patch_size)
        if new_size == old_size or self.encoder_stride != old_size:
            return super().resize_patch_size(patch_size)

        # Refuse before anything changes
        check_plain("decoder", self.decoder, nn.Linear)
        super().resize_patch_size(patch_size)
        replace_weights(self.decoder, resize_patch_decoder(weights_of(self.decoder), old_size, new_size))
        self.encoder_stride = new_size
        # CODEPATH: unset by default, then it is the patch size; a checkpoint may also name the stride.
        if self.config.encoder_stride is not None:
            self.config.encoder_stride = self.config.patch_size
        return self


@auto_docstring(
    custom_intro="""
    MLP-Mixer with an image classification head on top: a linear layer on the mean of the tokens, e.g. for ImageNet.
    With `config.num_labels = 0` there is no head, and the logits are the features.
    """
)
class MixerForImageClassification(MixerPreTrainedModel):
    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: MixerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mixer = MixerModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            The images, as the image processor returns them.
        labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*):
            Class indices (cross-entropy), floats for one label (mean squared error) or a float matrix (binary
            cross-entropy); `config.problem_type` says which, or is inferred from them.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`]: `logits` of shape `(batch_size, num_labels)`,
            before the softmax, and, with `labels`, the `loss`.
        """
        outputs: BaseModelOutputWithPooling = self.mixer(pixel_values, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))

        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)

        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


@auto_docstring(
    custom_intro="""
    MLP-Mixer as a backbone, which returns the tokens of chosen layers as feature maps, to be used with frameworks like
    UperNet or DPT.
    """
)
class MixerBackbone(BackboneMixin, MixerModel):
    _auto_class = "AutoBackbone"
    has_attentions = False

    def __init__(self, config: MixerConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            The images, as the image processor returns them.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`]: `feature_maps`, one of shape `(batch_size, hidden_size,
            height // patch_height, width // patch_width)` for each of `config.out_features`.
        """
        outputs: BaseModelOutputWithPooling = MixerModel.forward(self, pixel_values, **kwargs)

        feature_maps = []
        for stage_name, hidden_states in zip(self.stage_names, outputs.hidden_states):
            if stage_name in self.out_features:
                # CODEPATH: no checkpoint sets it to False; detectors that bring their own norms do, as with DINOv2.
                if self.config.apply_layernorm:
                    hidden_states = self.norm(hidden_states)
                feature_maps.append(hidden_states.transpose(1, 2).unflatten(2, self.config.grid).contiguous())

        return BackboneOutput(feature_maps=tuple(feature_maps), hidden_states=outputs.hidden_states)


__all__ = [
    "MixerBackbone",
    "MixerForImageClassification",
    "MixerForMaskedImageModeling",
    "MixerModel",
    "MixerPreTrainedModel",
]
