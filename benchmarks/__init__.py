"""Measures embedding servers: seeded workloads, a load generator, and records of what came out."""
