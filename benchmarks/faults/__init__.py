"""Faults under load: a service runs, one fault at a time is injected, every request is counted."""
