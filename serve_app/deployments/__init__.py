"""Ray Serve deployments: thin wrappers that connect the plain classes through handles."""
