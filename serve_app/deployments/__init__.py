"""Ray Serve deployments: thin wrappers that connect the plain classes through handles."""

from serve_app.deployments.replica_keepalive import use_keepalive

# Here, because Ray imports this package in each replica before it creates the replica's server.
use_keepalive()
