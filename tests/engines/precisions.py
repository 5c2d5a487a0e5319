"""Marks for tests that compute at a precision, which not every CPU does natively."""

import pytest

from serve_app.engines.cpu_features import CpuFeatures

_CPU = CpuFeatures.detect()


def needs(precision: str) -> pytest.MarkDecorator:
    """Skips a test on a CPU that would emulate the precision, and says what the CPU lacks."""
    reason = _CPU.unsupported_reason(precision)
    return pytest.mark.skipif(reason is not None, reason=reason or "")


#: The precisions of OpenVINO, as parameters of a test or fixture.
OPENVINO_PRECISIONS = (
    "fp32",
    pytest.param("bf16", marks=needs("bf16")),
    pytest.param("int8", marks=needs("int8")),
)
