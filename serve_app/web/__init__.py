"""HTTP: the Starlette application, its limits, and the dialects it speaks. Knows no Ray."""
