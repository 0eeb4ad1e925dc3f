# SPDX-License-Identifier: Apache-2.0
"""A page that shows a trained model, here or as a Space on the Hub."""
