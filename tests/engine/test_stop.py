import pytest

from jaxllm.core import FinishReason, Request, SamplingParams
from jaxllm.engine.stop import accept


def request(output=(), stop_ids=(9,), min_tokens=0, max_total=10) -> Request:
    made = Request("r", [1, 2], SamplingParams(max_tokens=None, min_tokens=min_tokens), stop_ids, max_total, seed=0)
    made.output = list(output)
    return made


@pytest.mark.parametrize(
    ("made", "drawn", "accepted", "finish"),
    [
        pytest.param(request(), [3], [3], None, id="goes on"),
        pytest.param(request(), [3, 4, 5], [3, 4, 5], None, id="goes on with several"),
        pytest.param(request(), [3, 9], [3, 9], FinishReason.STOP, id="a stop token belongs to the output"),
        pytest.param(request(), [9, 3, 9], [9], FinishReason.STOP, id="nothing behind a stop token does"),
        pytest.param(request(stop_ids=(8, 9)), [9], [9], FinishReason.STOP, id="any of several"),
        pytest.param(request(stop_ids=()), [9], [9], None, id="no stop tokens"),
        pytest.param(request(min_tokens=2), [9, 3], [9, 3], None, id="too early to stop"),
        pytest.param(request(min_tokens=2), [9, 9, 9], [9, 9], FinishReason.STOP, id="min_tokens counts the stop"),
        pytest.param(request([3], min_tokens=2), [9], [9], FinishReason.STOP, id="min_tokens counts what was there"),
        pytest.param(request([3] * 7), [4], [4], FinishReason.LENGTH, id="full"),
        pytest.param(request([3] * 6), [4, 5, 6], [4, 5], FinishReason.LENGTH, id="nothing behind the limit"),
        pytest.param(request([3] * 7), [9], [9], FinishReason.STOP, id="stop comes before length"),
        pytest.param(request([3] * 7, min_tokens=99), [9], [9], FinishReason.LENGTH, id="length needs no min_tokens"),
    ],
)
def test_accept(made, drawn, accepted, finish):
    assert accept(made, drawn) == (accepted, finish)
