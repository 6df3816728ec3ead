"""One thread: the tests' tensors are small, and a second thread waits longer than it computes."""

import signal

import torch

torch.set_num_threads(1)
# a shell's background jobs ignore Ctrl-C, and so would the programs that tests start and stop
signal.signal(signal.SIGINT, signal.default_int_handler)
