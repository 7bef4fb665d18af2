"""Tests of what an admitted but older PyTorch cannot do."""

import pytest
import torch
from torch.torch_version import TorchVersion

since_2_13 = pytest.mark.skipif(TorchVersion(torch.__version__) < "2.13", reason="PyTorch before 2.13 fails to compile it")
