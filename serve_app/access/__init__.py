"""Access control: API keys, what each key may use, and its quota. Knows neither HTTP nor Ray."""
