"""Engines: what runs a model, and the gate that compares them with sentence-transformers."""
