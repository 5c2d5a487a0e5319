"""EmbedServe: an autoscaling text-embedding service on Ray Serve.

Importing the package loads neither Ray nor torch. Import the public names from its modules.
"""

__version__ = "0.1.0"
