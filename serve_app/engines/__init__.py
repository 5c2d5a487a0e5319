"""Engines, which run a model, and the parity check against sentence-transformers."""
