"""Autoscaling by tokens: reports of replicas → number of replicas."""

from serve_app.autoscale.token_policy import TokenPolicy as TokenPolicy

__all__ = ["TokenPolicy"]
