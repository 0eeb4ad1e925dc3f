# SPDX-License-Identifier: Apache-2.0
"""Putting a trained model on the Hub."""

from .card import create_card
from .saving import save_card


__all__ = ["create_card", "save_card"]
