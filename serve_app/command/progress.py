"""Progress of a command, for people."""


def print_step(label: str, text: str) -> None:
    """Prints a line of progress."""
    print(f"{label:>9}  {text}", flush=True)


def print_ready(url: str) -> None:
    """Prints the URL of a service, and a request to try it."""
    print_step("ready", f"{url}   (Ctrl-C stops it)")
    print(
        f"\n  curl {url}/v1/embeddings -H 'Content-Type: application/json' \\\n"
        """       -d '{"input": "Hello, world"}'\n""",
        flush=True,
    )
