"""Eviction policies of L1: what leaves a cache that is full."""

from collections.abc import Callable, Mapping

from serve_app.cache.eviction.base import EvictionPolicy
from serve_app.cache.eviction.lfu import LFU
from serve_app.cache.eviction.lru import LRU
from serve_app.cache.eviction.s3_fifo import S3FIFO
from serve_app.config.deployments import EvictionName

POLICIES: Mapping[EvictionName, Callable[[], EvictionPolicy]] = {
    "s3-fifo": S3FIFO,
    "lru": LRU,
    "lfu": LFU,
}
