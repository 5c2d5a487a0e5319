"""The command `embedserve`: one module per subcommand, each a thin layer over the package."""
