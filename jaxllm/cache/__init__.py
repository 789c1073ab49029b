"""Host bookkeeping of the KV cache: which pages exist, who holds them, what they contain."""

from jaxllm.cache.pages import PagePool
from jaxllm.cache.prefix import PrefixIndex

__all__ = ["PagePool", "PrefixIndex"]
