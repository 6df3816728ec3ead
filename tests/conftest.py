"""One thread: the tests' tensors are small, and a second thread waits longer than it computes."""

import torch

torch.set_num_threads(1)
