"""The subcommands that the service adds to `embedserve`."""
