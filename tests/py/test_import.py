import os
import re
import subprocess
import sys

import terra
from terra import _C


def test_version():
    """Programs parse torch.__version__: it is PyTorch's, with Terra's own behind it."""
    release, local = terra.__version__.split("+")
    assert re.fullmatch(r"\d+\.\d+\.\d+", release)
    assert local == "terra" + _C.__version__


def test_more_executors_than_there_can_be():
    done = subprocess.run([sys.executable, "-c", "import terra"], env={**os.environ, "TERRA_EXECUTORS": "65"}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "TERRA_EXECUTORS=65: from 1 to 64, or 0 for one per NUMA node" in done.stderr
