"""Settings for all tests."""

import math
import os
import signal
import sys

# The networks here are tiny: a second thread mostly waits, and beside the other processes of the tests it waits long.
# In the environment for the processes that tests start, too; it is read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where the user has asked for no bytecode, every process that tests start would compile all of PyTorch that it imports,
# which takes 10 s of it; the README's command installs without, so that only what is used is compiled, once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Tests need no network: transformers, asked for a configuration that is not there, would look for it elsewhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell that starts the tests in the background has its children ignore Ctrl-C, and theirs, which tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import torch  # noqa: E402
from processes import search_little  # noqa: E402

from autocompress.codec import state_coder  # noqa: E402
from autocompress.constraints.rate_distortion import projection  # noqa: E402

torch.set_num_threads(1)

_COMPILED_FROM = {module: module.COMPILED_FROM for module in (state_coder, projection)}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves the compiled code of large networks to its own tests and to slow ones.

    In a fresh clone every process of the tests would have to compile it, which takes half a minute. Where any file
    within the target will do, few are tried: looking for the best is most of what compressing a tiny network takes.
    """
    compiles = item.path.stem.startswith("test_compiled") or item.get_closest_marker("slow") is not None
    for module, least in _COMPILED_FROM.items():
        module.COMPILED_FROM = least if compiles else math.inf
    search_little(item.get_closest_marker("any_file") is not None)
