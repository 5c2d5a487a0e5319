"""Simulates autoscaling: a trace of texts, the scheduler's packing, and a policy."""
