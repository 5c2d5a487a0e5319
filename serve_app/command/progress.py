"""Progress of a command, for people."""


def print_step(label: str, text: str) -> None:
    """Prints a line of progress."""
    print(f"{label:>9}  {text}", flush=True)
