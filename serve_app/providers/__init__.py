"""Models that providers run: texts → calls of their APIs → vectors."""
