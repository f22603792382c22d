"""Settings for all tests."""

import os
import signal

# The networks here are tiny: a second thread mostly waits, and beside the other processes of the tests it waits long.
# In the environment for the processes that tests start, too; it is read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests need no network: transformers, asked for a configuration that is not there, would look for it elsewhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell that starts the tests in the background has its children ignore Ctrl-C, and theirs, which tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # noqa: E402

torch.set_num_threads(1)
