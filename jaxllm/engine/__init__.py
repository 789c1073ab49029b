"""The loop: requests in, steps to the runner, deltas out.

intake     Intake: what a client asks for, checked, as a Request
scheduler  Scheduler: who computes what in the next step
groups     Samples, Beams: requests that are answered by several sequences
stop       accept: when a request ends by its tokens
engine     Engine: plan, submit, commit; driven by whoever holds it
client     EngineClient: the engine in a thread of its own, for servers
"""

from jaxllm.engine.client import EngineClient, Observer
from jaxllm.engine.engine import Engine

__all__ = ["Engine", "EngineClient", "Observer"]
