from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Results of sums depend on the number of threads; recorded values are for one.
torch.set_num_threads(1)
# A warning given once a process would make failures depend on the order of tests.
torch.set_warn_always(True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("SKELPIPE_REAL_DATA")
    if not folder:
        pytest.skip("SKELPIPE_REAL_DATA does not name a folder of real recordings")
    if not Path(folder).is_dir():
        pytest.skip(f"SKELPIPE_REAL_DATA names no folder: {folder}")
    return Path(folder)
