"""The engine: what runs a model, and the scheduler that keeps it fed."""
