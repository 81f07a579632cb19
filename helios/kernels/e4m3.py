"""The numbers of eight bits that products and attention read: 4 bits of exponent, 3 of mantissa."""

from __future__ import annotations

import torch

__all__ = ["E4M3", "E4M3_MAX"]

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
"""The largest of them."""
