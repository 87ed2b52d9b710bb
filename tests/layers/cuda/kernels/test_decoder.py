"""The source of the Triton kernels, where there may be no Triton; on a GPU `test_fusion`."""

from __future__ import annotations

import ast
from pathlib import Path

from millpond.layers import cuda

SOURCE = Path(cuda.__file__).with_name("kernels") / "decoder.py"
KERNELS = {"_rms_norm", "_rotate", "_silu_times"}


def is_kernel(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        "triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list
    )


def test_a_kernel_s_annotations_are_names_that_triton_knows() -> None:
    """It looks annotations up, and refuses to compile a kernel with any other."""
    kernels = [node for node in ast.parse(SOURCE.read_text()).body if is_kernel(node)]
    assert {kernel.name for kernel in kernels} == KERNELS  # type: ignore[attr-defined]
    for kernel in kernels:
        assert isinstance(kernel, ast.FunctionDef)
        annotations = {ast.unparse(arg.annotation) for arg in kernel.args.args if arg.annotation}
        assert annotations == {"tl.tensor", "tl.constexpr"}
