# SPDX-License-Identifier: Apache-2.0
"""What a classifier gets right, in figures and pictures."""
