from pathlib import Path

import pytest

from serve_app.engines.cpu_features import CpuFeatures, cpu_model
from serve_app.errors import ConfigurationError

LISTED = "model name\t: bf16_avx\nflags\t\t: fpu {} sse\n"


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


def cpu(tmp_path: Path, flags: str) -> CpuFeatures:
    file = tmp_path / "cpuinfo"
    file.write_text(LISTED.format(flags), "utf-8")
    return CpuFeatures.detect(file)


@pytest.mark.parametrize(
    ("precision", "flags", "native"),
    [
        ("fp32", "sse2", True),
        ("bf16", "avx512f avx512_vnni", False),
        ("bf16", "avx512f avx512_bf16", True),
        ("bf16", "amx_bf16", True),
        ("bf16", "avx512_bf16_not", False),
        ("fp16", "avx512_bf16 amx_bf16 f16c", False),
        ("fp16", "avx512_fp16", True),
        ("fp16", "amx_fp16", True),
        ("int8", "avx512f avx2", False),
        ("int8", "avx512f avx512_vnni", True),
        ("int8-fast", "avx2", False),
        ("int8-fast", "avx2 avx_vnni", True),
    ],
)
def test_flags_decide(tmp_path: Path, precision: str, flags: str, native: bool) -> None:
    assert (cpu(tmp_path, flags).unsupported_reason(precision) is None) == native


@pytest.mark.parametrize(
    ("precision", "limit", "native"),
    [
        ("fp32", "SSE41", True),
        ("bf16", "AVX2", False),
        ("bf16", "avx512_core_vnni", False),
        ("bf16", "AVX512_CORE_BF16", True),
        ("bf16", "AVX512_CORE_AMX", True),
        ("bf16", "ALL", True),
        ("fp16", "AVX512_CORE_BF16", False),
        ("fp16", "AVX512_CORE_FP16", True),
        ("fp16", "DEFAULT", True),
        ("int8", "AVX512_CORE", False),
        ("int8-fast", "AVX2_VNNI", False),
        ("int8-fast", "AVX512_CORE_VNNI", True),
    ],
)
def test_the_limit_of_onednn_decides_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, limit: str, native: bool
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    features = cpu(tmp_path, "avx512_bf16 avx512_fp16 amx_bf16 avx512_vnni")
    assert (features.unsupported_reason(precision) is None) == native


def test_an_os_that_lists_no_flags_computes_fp32_only(tmp_path: Path) -> None:
    (tmp_path / "without_flags").write_text("processor : 0\nFeatures : asimd\n", "utf-8")
    for name in ("missing", "without_flags"):
        features = CpuFeatures.detect(tmp_path / name)
        assert features.unsupported_reason("fp32") is None
        assert features.unsupported_reason("bf16") is not None


#: `/proc/cpuinfo` of a Neoverse N1 (no bf16) and a V1.
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm asimddp{}
CPU implementer\t: 0x41
"""


@pytest.mark.parametrize(
    ("more", "precision", "engine", "native"),
    [
        ("", "fp32", "openvino", True),
        ("", "fp16", "openvino", True),
        ("", "fp16", "torch", True),
        ("", "bf16", "torch", False),
        (" sve svebf16", "bf16", "torch", False),
        (" sve i8mm bf16", "bf16", "torch", True),
        (" sve i8mm bf16", "bf16", "openvino", False),
        (" sve i8mm bf16", "int8", "openvino", False),
    ],
)
def test_features_of_an_arm_cpu(
    tmp_path: Path, more: str, precision: str, engine: str, native: bool
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(ARM.format(more), "utf-8")
    reason = CpuFeatures.detect(file).unsupported_reason(precision, engine)
    assert (reason is None) == native
    if reason is not None:
        assert "FEAT_BF16" in reason or "OpenVINO" in reason


def test_the_error_names_what_is_missing_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu(tmp_path, "avx512f").require("fp32")
    with pytest.raises(
        ConfigurationError, match=r"neither AVX512-BF16 nor AMX-BF16.*`precision: fp32`"
    ):
        cpu(tmp_path, "avx512f").require("bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(ConfigurationError, match=r"`ONEDNN_MAX_CPU_ISA=AVX2`.*`precision: fp32`"):
        cpu(tmp_path, "avx512_bf16").require("bf16")


def test_the_cpu_has_a_name(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: A CPU @ 2.0GHz\nmodel name\t: B\n", "utf-8")
    assert cpu_model(file) == "A CPU @ 2.0GHz"
    assert cpu_model(tmp_path / "missing") != ""
