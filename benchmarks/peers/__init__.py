"""The servers and libraries that are measured: one module each, run in its own process."""
