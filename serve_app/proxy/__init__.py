"""HAProxy in front of the Ingress: a launcher that completes the configuration that Ray writes."""
