"""Turns jobs into results: validation, truncation, cache lookup, dimensions."""
