"""Engines, which run a model, and the parity gate against sentence-transformers."""
