# SPDX-License-Identifier: Apache-2.0
"""How fast Mixers run, beside timm's and beside what the device can do."""
