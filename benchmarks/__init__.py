"""Benchmarks of embedding servers: seeded workloads, a load generator, recorded results."""
