"""`python -m benchmarks.faults`: the command `embedserve faults`."""

import argparse
import sys

from .command import DESCRIPTION, EPILOG, add_arguments

parser = argparse.ArgumentParser(
    prog="python -m benchmarks.faults",
    description=DESCRIPTION,
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
)
add_arguments(parser)
arguments = parser.parse_args()
sys.exit(arguments.run(arguments))
