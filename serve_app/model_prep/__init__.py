"""Model preparation: selects an engine, converts and calibrates the model, caches the result."""
