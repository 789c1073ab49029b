"""StepPlan -> packed array -> compiled program -> packed array -> StepOutput.

plan.py decides the sizes, table.py compiles every program there will be, programs.py says what they compute,
packing.py how they are spoken to, state.py what the device keeps between steps.
"""

from jaxllm.runner.runner import Handle, Runner

__all__ = ["Handle", "Runner"]
