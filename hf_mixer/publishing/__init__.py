# SPDX-License-Identifier: Apache-2.0
"""Putting a trained model on the Hub."""

from .card import create_card, write_card


__all__ = ["create_card", "write_card"]
