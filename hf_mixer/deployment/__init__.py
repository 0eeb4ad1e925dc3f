# SPDX-License-Identifier: Apache-2.0
"""Mixers outside of PyTorch: ONNX Runtime, OpenVINO, ExecuTorch and the browser."""

from .export import Export, export_model
from .runtime import load_exported


__all__ = ["Export", "export_model", "load_exported"]
