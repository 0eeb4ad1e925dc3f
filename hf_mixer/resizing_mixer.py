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
"""
Weights of an MLP-Mixer for another image size or patch size. A grid is the number of patches along the height and
along the width.
"""

from typing import Any

import torch
from torch import nn


METHODS = ("block_diagonal", "interpolate")


def check_size(name: str, size: Any) -> tuple[int, int]:
    """
    Return `size` as `(height, width)`; an integer stands for both.

    Raises:
        `ValueError`: `size` is not a positive integer or a pair of them. The message calls it `name`.
    """
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or any(type(side) is not int or side <= 0 for side in pair):
        raise ValueError(f"`{name}` has to be a positive integer or a pair (height, width) of them, got {size!r}.")
    return pair[0], pair[1]


def check_plain(name: str, module: nn.Module, expected: type[nn.Module]):
    """
    Refuse a module whose weights cannot be replaced, such as a quantized one or one with LoRA around it.

    Raises:
        `ValueError`: the type of `module` is not `expected`.
    """
    if type(module) is not expected:
        raise ValueError(
            f"`{name}` has to be a plain `nn.{expected.__name__}` to be resized, got `{type(module).__name__}`. "
            "Merge or dequantize first, for instance with `model.merge_and_unload()` or `model.dequantize()`."
        )


def choose_method(grid: tuple[int, int], new_grid: tuple[int, int], method: str | None = None) -> str:
    """
    Return `method`, by default `"block_diagonal"` where `new_grid` is a multiple of `grid` along both axes, else
    `"interpolate"`.

    Raises:
        `ValueError`: `method` is unknown, or needs a multiple of the grid.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"Unknown method {method!r}, expected one of {', '.join(map(repr, METHODS))} or None.")
    is_multiple = all(new % old == 0 for old, new in zip(grid, new_grid))
    if method == "block_diagonal" and not is_multiple:
        raise ValueError(
            f'`method="block_diagonal"` needs a grid of patches that is a multiple of {grid}, got {new_grid}. Use '
            '`method="interpolate"`.'
        )
    return method or ("block_diagonal" if is_multiple else "interpolate")


def interpolation_matrix(old: int, new: int, mode: str = "bilinear") -> torch.Tensor:
    """
    Return the matrix of shape `(new, old)`, in float64, of interpolation along one axis, from `old` to `new` values.
    Every row sums to 1. `mode` is one of `torch.nn.functional.interpolate`, used with `align_corners=False`, and with
    antialiasing where the axis shrinks.
    """
    # The second axis keeps its length: torch 2.13 antialiases an image that is one pixel wide wrongly.
    identity = torch.eye(old, dtype=torch.float64)[None, None]
    return nn.functional.interpolate(identity, (new, old), mode=mode, align_corners=False, antialias=new < old)[0, 0]


def token_resampling(grid: tuple[int, int], new_grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the matrices that bring tokens of `new_grid` onto `grid`, of shape `(num_patches, new_num_patches)`, and
    back, of shape `(new_num_patches, num_patches)`, both in float64. Every row of both sums to 1.

    Along each axis one of them goes from the fewer patches to the more by bicubic interpolation (no antialiasing), the
    other is its pseudo-inverse. Thus enlarging the grid and going back gives the same weights.

    Chosen by measurement: a Mixer with 4 layers, 8 x 8 patches and `hidden_size=128`, trained on CIFAR-10 for 1178
    steps on one CPU core, has a top-1 accuracy of 56.7 % on the test images of 32 pixels. Resized without training to
    48 and to 24 pixels, on test images of these sizes, it keeps 44.7 % and 50.5 %. Bilinear interpolation with its
    pseudo-inverse keeps 42.3 % and 48.0 %. Antialiased bicubic interpolation in both directions keeps 43.1 % and
    51.2 %, but its logits change by 0.36 on average from 32 to 48 pixels and back, against 1e-7 here. A copy of the
    nearest patch, rescaled, keeps 42.6 % and 45.7 %. After 100 steps of training it is 58.0 % and 54.6 % here, 57.3 %
    and 54.8 % with antialiasing.
    """
    to_old, to_new = [], []
    for old, new in zip(grid, new_grid):
        enlarge = interpolation_matrix(min(old, new), max(old, new), mode="bicubic")
        shrink = torch.linalg.pinv(enlarge)
        to_old.append(shrink if new > old else enlarge)
        to_new.append(enlarge if new > old else shrink)
    return torch.kron(*to_old), torch.kron(*to_new)


def interpolate_token_mixing(
    weights: dict[str, torch.Tensor], grid: tuple[int, int], new_grid: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """
    Interpolate the weights of a token-mixing MLP for another grid: `fc1.weight` of shape `(token_mlp_dim,
    num_patches)`, `fc2.weight` of shape `(num_patches, token_mlp_dim)` and `fc2.bias`. The hidden width stays, and so
    does the bias of `fc1`, which is not returned.
    """
    to_old, to_new = token_resampling(grid, new_grid)
    return {
        "fc1.weight": weights["fc1.weight"] @ to_old,
        "fc2.weight": to_new @ weights["fc2.weight"],
        "fc2.bias": to_new @ weights["fc2.bias"],
    }


def tile_token_mixing(
    weights: dict[str, torch.Tensor], grid: tuple[int, int], new_grid: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """
    Repeat the weights of a token-mixing MLP as the blocks of a block-diagonal one, as in appendix C of the
    [paper](https://huggingface.co/papers/2105.01601): one block for each sub-image of `grid` patches. The sub-images
    do not mix, and the hidden width grows by their number. `new_grid` is a multiple of `grid` along both axes.
    """
    (height, width), (new_height, new_width) = grid, new_grid
    num_rows, num_columns = new_height // height, new_width // width
    num_blocks = num_rows * num_columns
    # For each token of the large grid, its position among the tokens sorted by sub-image
    positions = torch.arange(new_height * new_width).view(num_rows, num_columns, height, width)
    positions = positions.transpose(1, 2).flatten()
    return {
        "fc1.weight": torch.block_diag(*[weights["fc1.weight"]] * num_blocks)[:, positions],
        "fc1.bias": weights["fc1.bias"].repeat(num_blocks),
        "fc2.weight": torch.block_diag(*[weights["fc2.weight"]] * num_blocks)[positions],
        "fc2.bias": weights["fc2.bias"].repeat(num_blocks)[positions],
    }


def resize_patch_projection(weight: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """
    Resize the kernels of the patch embeddings, as in [FlexiViT](https://huggingface.co/papers/2212.08013), so that a
    patch resized by bilinear interpolation gives the same token: exactly where the patch grows, else as closely as
    possible on average over patches of white noise (not exactly even for a constant patch). `weight` has the shape
    `(hidden_size, num_channels, patch_height, patch_width)`, `patch_size` is the new one.
    """
    rows, columns = (
        torch.linalg.pinv(interpolation_matrix(old, new)) for old, new in zip(weight.shape[-2:], patch_size)
    )
    return rows.T @ weight @ columns


def resize_patch_decoder(
    weights: dict[str, torch.Tensor], patch_size: tuple[int, int], new_patch_size: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """
    Resize the output patches of a linear decoder, which has a `weight` of shape `(num_channels * patch_height *
    patch_width, hidden_size)` and a `bias`, by bilinear interpolation.
    """
    resize = torch.kron(*(interpolation_matrix(old, new) for old, new in zip(patch_size, new_patch_size)))
    pixels = patch_size[0] * patch_size[1]
    weight = resize @ weights["weight"].unflatten(0, (-1, pixels))
    bias = weights["bias"].unflatten(0, (-1, pixels)) @ resize.T
    return {"weight": weight.flatten(0, 1), "bias": bias.flatten()}


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters of `module` by name, on the CPU and in float64."""
    return {name: parameter.detach().cpu().double() for name, parameter in module.named_parameters()}


def replace_weights(module: nn.Module, weights: dict[str, torch.Tensor]):
    """
    Give `module` parameters of other shapes, by name, with the device, the data type and `requires_grad` of the
    present ones. Linear and convolutional layers record their new sizes.
    """
    for name, weight in weights.items():
        owner_name, _, attribute = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        old = getattr(owner, attribute)
        new = weight.to(device=old.device, dtype=old.dtype, memory_format=torch.contiguous_format)
        setattr(owner, attribute, nn.Parameter(new, requires_grad=old.requires_grad))
        if attribute == "weight" and isinstance(owner, nn.Linear):
            owner.out_features, owner.in_features = weight.shape
        elif attribute == "weight" and isinstance(owner, nn.Conv2d):
            owner.kernel_size = owner.stride = tuple(weight.shape[-2:])


class MixerResizingMixin:
    """Adds to every model class the methods that fit it to another image size or patch size."""

    config: Any
    base_model: Any

    @torch.no_grad()
    def resize_image_size(self, image_size: int | tuple[int, int], method: str | None = None):
        """
        Fit the token-mixing weights to another image size, in place. The patch size stays, so that the number of
        patches changes. The parameters are new objects: build the optimizer, and compile, after this.

        Args:
            image_size (`int` or pair of `int`):
                The new height and width of the images, in pixels: multiples of the patch size.
            method (`str`, *optional*):
                `"block_diagonal"` repeats the weights for every sub-image of the present size, as in appendix C of the
                [paper](https://huggingface.co/papers/2105.01601): the logits are the mean of those of the sub-images,
                and `token_mlp_dim` grows by their number. `"interpolate"` interpolates the weights over the grid of
                patches, enlarging or shrinking it; `token_mlp_dim` stays. Defaults to the first where the new grid is
                a multiple of the present one along both axes, else to the second.

        Returns:
            [`MixerPreTrainedModel`]: the model itself, its configuration updated.

        Raises:
            `ValueError`: the patches do not tile `image_size`, `method` is unknown or does not fit `image_size`, or a
            token-mixing linear is not a plain `nn.Linear`.

        Example:

        ```python
        >>> model.resize_image_size(448).config.grid
        (28, 28)
        ```"""
        base, config = self.base_model, self.config
        patch_embeddings = base.embeddings.patch_embeddings
        new_size, patch_size, grid = check_size("image_size", image_size), patch_embeddings.patch_size, config.grid
        if new_size[0] % patch_size[0] or new_size[1] % patch_size[1]:
            raise ValueError(
                f"`image_size` has to be a multiple of the patch size {patch_size} along each axis, got {image_size}. "
                "Choose a multiple, or change the patch size first with `model.resize_patch_size`."
            )
        new_grid = (new_size[0] // patch_size[0], new_size[1] // patch_size[1])
        method = choose_method(grid, new_grid, method)
        if new_grid == grid:
            return self

        for index, layer in enumerate(base.layers):
            for name in ("fc1", "fc2"):
                check_plain(f"layers.{index}.token_mixing.{name}", getattr(layer.token_mixing, name), nn.Linear)
        resize = tile_token_mixing if method == "block_diagonal" else interpolate_token_mixing
        for layer in base.layers:
            replace_weights(layer.token_mixing, resize(weights_of(layer.token_mixing), grid, new_grid))

        config.image_size = image_size if isinstance(image_size, int) else new_size
        config.token_mlp_dim = base.layers[0].token_mixing.fc1.out_features
        patch_embeddings.image_size, patch_embeddings.num_patches = new_size, config.num_patches
        return self

    @torch.no_grad()
    def resize_patch_size(self, patch_size: int | tuple[int, int]):
        """
        Fit the patch embeddings to another patch size, in place, as in
        [FlexiViT](https://huggingface.co/papers/2212.08013). The grid of patches stays, so that the image size
        changes. Images enlarged patch by patch, by bilinear interpolation, give the same tokens as before. The decoder
        of [`MixerForMaskedImageModeling`] follows where it reconstructs images of the input's size.

        Args:
            patch_size (`int` or pair of `int`):
                The new height and width of a patch, in pixels.

        Returns:
            [`MixerPreTrainedModel`]: the model itself, its configuration updated.

        Raises:
            `ValueError`: `patch_size` is not a positive integer or a pair of them, or a layer to resize is not a plain
            `nn.Conv2d` or `nn.Linear`.

        Example:

        ```python
        >>> model.resize_patch_size(20).config.image_size
        280
        ```"""
        config, patch_embeddings = self.config, self.base_model.embeddings.patch_embeddings
        new_size, grid = check_size("patch_size", patch_size), config.grid
        if new_size == patch_embeddings.patch_size:
            return self

        projection = patch_embeddings.projection
        check_plain("embeddings.patch_embeddings.projection", projection, nn.Conv2d)
        replace_weights(projection, {"weight": resize_patch_projection(weights_of(projection)["weight"], new_size)})

        image_size = (grid[0] * new_size[0], grid[1] * new_size[1])
        is_square = isinstance(config.image_size, int) and image_size[0] == image_size[1]
        config.patch_size = patch_size if isinstance(patch_size, int) else new_size
        config.image_size = image_size[0] if is_square else image_size
        patch_embeddings.patch_size, patch_embeddings.image_size = new_size, image_size
        return self
