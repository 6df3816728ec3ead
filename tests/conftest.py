"""The tests' tensors are small: a second thread costs more in waiting than it computes, most of all on a busy machine."""

import torch

torch.set_num_threads(1)
