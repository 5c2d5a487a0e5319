"""Redis and Valkey: clients that fail fast, and the embedded server. Knows nothing of vectors."""
