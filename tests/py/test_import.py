import re

import terra
from terra import _C


def test_version():
    """Programs parse torch.__version__: it is PyTorch's, with Terra's own behind it."""
    release, local = terra.__version__.split("+")
    assert re.fullmatch(r"\d+\.\d+\.\d+", release)
    assert local == "terra" + _C.__version__
