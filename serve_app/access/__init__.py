"""Access: whose request it is, what it may do, and how much of it. Knows neither HTTP nor Ray."""
