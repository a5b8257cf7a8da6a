"""What all tests share."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)  # tests run side by side, one core each


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
