"""The report of a suite: tables and plots, generated from its records."""
