"""The subcommands that the service adds to the command `embedserve`."""
