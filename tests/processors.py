"""Runs the tests of batch invariance, prefixes and fidelity as other processors would run them.

    python tests/processors.py [arguments of pytest]

oneDNN, MKL and torch choose their kernels by the processor, and can be held to those of an older
one by the environment; threads are part of it. What a processor has beyond this one cannot be run:
the first line says which this one is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from support.processor import own_processor

TESTS = (
    "tests/runner/test_batch_invariance.py",
    "tests/behaviour/models/test_fidelity.py",
    "tests/behaviour/models/test_long_texts_on_a_cpu.py",
    "tests/behaviour/models/test_prefixes_of_decoders.py",
    "tests/behaviour/test_same_bits.py",
    "tests/behaviour/kinds/test_sparse.py",
    "tests/behaviour/kinds/test_multi_vector.py",
    "tests/behaviour/kinds/test_bge_m3.py",
    "tests/model/verify/test_firsts.py",
    "tests/layers/cpu/test_encoder_layer.py",
)
PROCESSORS: Mapping[str, Mapping[str, str]] = {
    "AVX2, 2 threads of MKL": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_NUM_THREADS": "2",
    },
    "AVX-512, 5 threads of OpenMP": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "OMP_NUM_THREADS": "5",
    },
    "AVX-512 with VNNI, MKL's slowest code, 1 thread": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
        "MKL_CBWR": "COMPATIBLE",
        "OMP_NUM_THREADS": "1",
    },
    "AVX-512 with bfloat16, 5 threads of MKL": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "MKL_NUM_THREADS": "5",
    },
}
AT_A_TIME = 2


def run(processor: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    return subprocess.run(
        [*command, *sys.argv[1:]],
        env={**os.environ, **PROCESSORS[processor]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main() -> int:
    own = own_processor()
    print(f"This machine has {own}.", flush=True)
    failed = 0
    with ThreadPoolExecutor(AT_A_TIME) as runs:
        for processor, done in zip(PROCESSORS, runs.map(run, PROCESSORS), strict=True):
            failed += done.returncode != 0
            lines = done.stdout.splitlines()
            print(f"As a processor with {processor}, on {own}:", flush=True)
            print("\n".join(lines if done.returncode else lines[-1:]), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
