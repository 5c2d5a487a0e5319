"""EmbedServe: an autoscaling text-embedding service on Ray Serve.

Importing the package loads nothing of Ray or torch; import what you need from its modules.
"""

__version__ = "0.1.0"
