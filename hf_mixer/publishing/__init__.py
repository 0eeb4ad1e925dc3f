# SPDX-License-Identifier: Apache-2.0
"""Putting a trained model on the Hub."""
