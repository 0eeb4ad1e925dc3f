# SPDX-License-Identifier: Apache-2.0
"""Labelled images: files, data sets, their labels, and how they reach the model."""

from .datasets import load_image_dataset, prepare_image_dataset
from .images import ImageConversion, ImageDataError, ImageTransform, collate_images


__all__ = [
    "ImageConversion",
    "ImageDataError",
    "ImageTransform",
    "collate_images",
    "load_image_dataset",
    "prepare_image_dataset",
]
