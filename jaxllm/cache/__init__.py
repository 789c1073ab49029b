"""Host bookkeeping of the cache: which pages exist, who holds them, what they contain."""

from jaxllm.cache.pages import PagePool
from jaxllm.cache.prefix import PrefixIndex
from jaxllm.cache.space import CacheSpace, tokens_at_most

__all__ = ["CacheSpace", "PagePool", "PrefixIndex", "tokens_at_most"]
