"""Starts the service as a desktop application starts its sidecar: `embed_server.py --port 8421`.

Copy it to where `scriptPath` points, and run it with a Python that has `embedserve` installed.
"""

import os
import stat
import sys

from embedserve_client.command.main import main

#: A configuration file, or the name of a packaged one.
CONFIG = "multilingual"

arguments = ["serve", CONFIG, "--standalone", *sys.argv[1:]]
stdin = os.fstat(0).st_mode
if stat.S_ISFIFO(stdin) or stat.S_ISSOCK(stdin):  # a pipe, which ends with the application
    arguments.append("--until-eof")
sys.exit(main(arguments))
