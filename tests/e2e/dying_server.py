"""`jaxllm serve` on a device that fails at the step of any request whose prompt ends with token 13."""

from jaxllm.cli import main
from jaxllm.runner import Runner

collect = Runner.collect


def failing(self, handle):
    if any(row.request.prompt[-1] == 13 for row in handle.plan.rows):
        raise RuntimeError("the device has fallen off the bus")
    return collect(self, handle)


Runner.collect = failing
main()
