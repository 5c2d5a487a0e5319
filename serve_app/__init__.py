"""EmbedServe: an autoscaling text-embedding service on Ray Serve.

Importing the package loads neither Ray nor torch. Import the public names from its modules.
"""

import sys

# OpenVINO reports each import and each conversion to Intel, unless this package is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = "0.1.0"
