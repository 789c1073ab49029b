"""StepPlan -> packed array -> compiled program -> packed array -> StepOutput.

plan.py decides the sizes, table.py compiles every program there will be, programs.py says what they compute,
packing.py how they are spoken to, state.py what the device keeps between steps. encode.py is all of that for models
that generate nothing and so keep nothing.
"""

from typing import Any

from jaxllm.config import EngineConfig
from jaxllm.runner import encode, plan
from jaxllm.runner.compiling import Progress
from jaxllm.runner.encode import EncodeRunner
from jaxllm.runner.plan import MemoryPlan
from jaxllm.runner.runner import Handle, Runner

__all__ = ["EncodeRunner", "Handle", "Runner", "load", "plan_memory"]


def load(config: EngineConfig, *, model_class: Any = None, progress: Progress | None = None) -> Runner | EncodeRunner:
    """The runner that the model needs, ready. progress(done, total, what) is told."""
    kind = EncodeRunner if _pools(config, model_class) else Runner
    return kind.load(config, model_class=model_class, progress=progress)


def plan_memory(
    config: EngineConfig, *, model_class: Any = None, programs: bool = False, progress: Progress | None = None
) -> MemoryPlan:
    """The memory plan of an engine, without loading its weights; programs: with what each of them takes."""
    kind = encode if _pools(config, model_class) else plan
    return kind.plan_memory(config, model_class=model_class, programs=programs, progress=progress)


def _pools(config: EngineConfig, model_class: Any) -> bool:
    return plan.find_architecture(config, model_class).config.pooling is not None
