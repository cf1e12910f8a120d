"""Which stream PyTorch's dropout draws from: its Mersenne Twister on every processor. Builds that link MKL's vector statistics
library would draw from MCG31 on Intel; the CPU build that Terra is compared with does not contain it."""

import subprocess
from pathlib import Path

import torch


def test_torch_has_no_vector_statistics_library():
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"

    def holds(text):
        return subprocess.run(["grep", "-qF", text, library], env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}).returncode == 0

    assert holds("mkl_sparse_d_"), "MKL is not linked statically: look for another sign"
    assert not holds("viRngBernoulli"), "this torch draws dropout from MKL's MCG31 on Intel processors"
