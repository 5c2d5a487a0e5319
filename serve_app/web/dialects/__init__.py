"""One file for each wire format: how a body becomes a job, and a result or an error a body."""
