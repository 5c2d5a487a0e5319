"""The scheduler that feeds an engine: queues, batches, the batch budget and load measurement."""
