"""The precisions that a CPU computes natively.

`/proc/cpuinfo` lists the instruction sets of the CPU. oneDNN, the kernel library of both OpenVINO
and PyTorch, uses them up to the limit in `ONEDNN_MAX_CPU_ISA`. Without native instructions the
libraries emulate a precision: OpenVINO at bf16 then takes 30 times as long as at fp32, PyTorch at
fp16 three times. Such a precision is therefore rejected before anything is computed.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from serve_app.errors import ConfigurationError

#: For each precision, the instruction sets that compute it natively, by their flags in
#: `/proc/cpuinfo`. Any CPU computes a precision that isn't listed.
_INSTRUCTION_SETS = {
    "bf16": {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"},
    "fp16": {"avx512_fp16": "AVX512-FP16", "amx_fp16": "AMX-FP16"},
}
_BELOW_BF16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)
#: For each precision, the values of `ONEDNN_MAX_CPU_ISA` that exclude those instruction sets.
_EXCLUDING_LIMITS = {"bf16": _BELOW_BF16, "fp16": _BELOW_BF16 | {"AVX512_CORE_BF16"}}


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """The instruction sets of a CPU and the limit that oneDNN observes."""

    flags: frozenset[str]  #: as in `/proc/cpuinfo`
    max_isa: str = ""  #: `ONEDNN_MAX_CPU_ISA`; empty: no limit

    @classmethod
    def detect(cls, cpuinfo: Path = Path("/proc/cpuinfo")) -> Self:
        """Returns the features of this machine's CPU; no flags if the OS doesn't list them."""
        text = cpuinfo.read_text("utf-8") if cpuinfo.is_file() else ""
        flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
        return cls(
            frozenset(flags[1].split()) if flags else frozenset(),
            os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(),
        )

    def unsupported_reason(self, precision: str) -> str | None:
        """Returns what the CPU lacks for a precision, or None if the precision is native."""
        names = _INSTRUCTION_SETS.get(precision)
        if names is None:
            return None
        if names.keys().isdisjoint(self.flags):
            neither = " nor ".join(names.values())
            return f"This CPU can't compute {precision} natively: it has neither {neither}."
        if self.max_isa in _EXCLUDING_LIMITS[precision]:
            return (
                f"oneDNN can't compute {precision} natively with `ONEDNN_MAX_CPU_ISA="
                f"{self.max_isa}`, which excludes {' and '.join(names.values())}."
            )
        return None

    def require(self, precision: str) -> None:
        """Checks that the CPU computes a precision natively.

        Raises:
            ConfigurationError: it would be emulated.
        """
        if reason := self.unsupported_reason(precision):
            raise ConfigurationError(f"{reason} Set `precision: fp32`, which every CPU computes.")
