"""The scheduler that keeps an engine busy: queues, batches, budgets and load."""
