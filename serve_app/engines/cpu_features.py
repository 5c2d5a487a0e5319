"""The precisions that a CPU computes natively.

`/proc/cpuinfo` lists the instruction sets of the CPU. oneDNN, the kernel library of both OpenVINO
and PyTorch, uses them up to the limit in `ONEDNN_MAX_CPU_ISA`. Without native instructions the
libraries emulate a precision: OpenVINO at bf16 then takes 30 times as long as at fp32, PyTorch at
fp16 three times. Without VNNI, sums of int8 products saturate, which gives other vectors. Such a
precision is therefore rejected before anything is computed.
"""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from serve_app.errors import ConfigurationError

#: The precisions that quantize a model: the careful one and the fast one.
INT8_PRECISIONS = ("int8", "int8-fast")
#: For each precision, the instruction sets that compute it natively, by their names in
#: `/proc/cpuinfo`. Any CPU computes a precision that isn't listed.
_X86 = {
    "bf16": {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"},
    "fp16": {"avx512_fp16": "AVX512-FP16", "amx_fp16": "AMX-FP16"},
    "int8": {"avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI"},
}
_ARM = {"bf16": {"bf16": "FEAT_BF16"}, "fp16": {"asimdhp": "FEAT_FP16"}}
_BELOW_BF16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)
#: For each precision, the values of `ONEDNN_MAX_CPU_ISA` that exclude those instruction sets. Of
#: those for int8, AVX2_VNNI excludes only one of them, which may be the only one of the CPU.
_EXCLUDING_LIMITS = {
    "bf16": _BELOW_BF16,
    "fp16": _BELOW_BF16 | {"AVX512_CORE_BF16"},
    "int8": _BELOW_BF16 - {"AVX512_CORE_VNNI"},
}


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """The instruction sets of a CPU and the limit that oneDNN observes."""

    flags: frozenset[str]  #: as in `/proc/cpuinfo`
    max_isa: str = ""  #: `ONEDNN_MAX_CPU_ISA`; empty: no limit
    is_arm: bool = False

    @classmethod
    def detect(cls, cpuinfo: Path = Path("/proc/cpuinfo")) -> Self:
        """Returns the features of this machine's CPU; no flags if the OS doesn't list them."""
        text = cpuinfo.read_text("utf-8") if cpuinfo.is_file() else ""
        flags = re.search(r"^(flags|Features)\s*:(.*)$", text, re.MULTILINE)
        return cls(
            frozenset(flags[2].split()) if flags else frozenset(),
            os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(),
            is_arm=flags is not None and flags[1] == "Features",
        )

    def unsupported_reason(self, precision: str, engine: str = "torch") -> str | None:
        """Returns why an engine can't compute a precision natively; None: it can."""
        precision = "int8" if precision in INT8_PRECISIONS else precision
        if self.is_arm and precision == "int8":
            return "OpenVINO's int8 was measured on x86 CPUs only."
        names = (_ARM if self.is_arm else _X86).get(precision)
        if names is None:
            return None
        if self.is_arm and (engine, precision) == ("openvino", "bf16"):
            return "OpenVINO doesn't compute bf16 on Arm CPUs: it would use fp32 instead."
        if names.keys().isdisjoint(self.flags):
            missing = " nor ".join(names.values())
            lacks = f"neither {missing}" if len(names) > 1 else f"no {missing}"
            return f"This CPU can't compute {precision} natively: it has {lacks}."
        if self.max_isa in _EXCLUDING_LIMITS[precision]:
            return (
                f"oneDNN can't compute {precision} natively with `ONEDNN_MAX_CPU_ISA="
                f"{self.max_isa}`, which excludes {' and '.join(names.values())}."
            )
        return None

    def require(self, precision: str, engine: str = "torch") -> None:
        """Checks that an engine computes a precision natively on this CPU.

        Raises:
            ConfigurationError: it would be emulated.
        """
        if reason := self.unsupported_reason(precision, engine):
            raise ConfigurationError(f"{reason} Set `precision: fp32`, which every CPU computes.")


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the name of this machine's CPU, such as `AMD EPYC 9R14`; its type if it has none."""
    text = cpuinfo.read_text("utf-8") if cpuinfo.is_file() else ""
    name = re.search(r"^model name\s*:(.*)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()
