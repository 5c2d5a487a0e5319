"""All faults, by name."""

from . import client_faults, memory_faults, operator_faults, process_faults, valkey_faults
from .fault import Fault

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        *process_faults.FAULTS,
        *memory_faults.FAULTS,
        *valkey_faults.FAULTS,
        *client_faults.FAULTS,
        *operator_faults.FAULTS,
    )
}
