# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other implementations: loading, converting into our folders, and back."""

from .conversion import convert_checkpoint, export_checkpoint, verify_conversion
from .loading import load_checkpoint


__all__ = ["convert_checkpoint", "export_checkpoint", "load_checkpoint", "verify_conversion"]
