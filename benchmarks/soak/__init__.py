"""A long run of mixed load on a service whose replicas come and go: does anything grow?"""
