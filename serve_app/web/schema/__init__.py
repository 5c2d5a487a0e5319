"""Field definitions, JSON Schema builders, the OpenAPI document, and the page at `/docs`."""
