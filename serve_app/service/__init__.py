"""From a job to a result: validation, truncation, look-up, dimensions. Knows neither HTTP nor Ray."""
