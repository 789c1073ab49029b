"""What requests pass before they are read: keys, sizes, names; and who may call from a browser."""

import contextlib
import json
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.config import ServerConfig
from jaxllm.errors import ConfigError
from jaxllm.server.access import Keys
from jaxllm.server.http.gate import OPEN

COMPLETIONS = "/v1/completions"
KEYS = tuple(secrets.token_urlsafe() for _ in range(3))
CLOSED = ("/v1/models", "/version", "/v1/nothing")


@pytest.fixture(scope="module")
def guarded(front_class):
    config = ServerConfig(
        api_key=KEYS[:2], max_request_bytes=1000, max_prompts=3, allowed_origins=("https://app.example",)
    )
    with contextlib.closing(front_class(config)) as front:
        yield front


@pytest.mark.parametrize("headers", [
    {}, {"authorization": "Bearer"}, {"authorization": KEYS[0]},
    {"authorization": f"Basic {KEYS[0]}"}, {"authorization": f"Bearer {KEYS[2]}"}, {"x-api-key": KEYS[2]},
    {"x-api-key": KEYS[0][:-1]}, {"x-api-key": ""}, {"authorization": f"Bearer {KEYS[0]},{KEYS[1]}"},
])  # fmt: skip
def test_without_a_key_nothing_is_answered(guarded, headers):
    for path in CLOSED:
        answer = guarded.client.get(path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
        assert not any(key in answer.text for key in KEYS)
    answer = guarded.client.post(COMPLETIONS, json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 401
    assert not guarded.engine.requests


@pytest.mark.parametrize("headers", [
    {"authorization": f"Bearer {KEYS[0]}"}, {"authorization": f"bearer {KEYS[1]}"}, {"x-api-key": KEYS[1]},
    {"x-api-key": KEYS[0], "authorization": "Bearer of something else"},
])  # fmt: skip
def test_any_key_will_do(guarded, headers):
    assert guarded.client.get("/v1/models", headers=headers).status_code == 200


def test_what_watchers_ask_is_open(guarded):
    for path in OPEN:
        assert guarded.client.get(path).status_code == 200


def test_a_refusal_of_messages_is_in_anthropics_form(guarded):
    answer = guarded.client.post("/v1/messages", json={})
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


def keyed(**headers):
    return {"x-api-key": KEYS[0], **headers}


def test_a_body_too_large(guarded):
    body = json.dumps({"prompt": "x" * 2000}).encode()
    for content in (body, iter([body[:700], body[700:]])):  # with its length, and in chunks without
        headers = keyed(**{"content-type": "application/json"})
        answer = guarded.client.post(COMPLETIONS, content=content, headers=headers)
        assert answer.status_code == 413
        assert "larger than 1000 bytes (--max-request-bytes)" in answer.json()["error"]["message"]
    assert guarded.client.post(COMPLETIONS, json={"prompt": "x"}, headers=keyed()).status_code == 200


@pytest.mark.parametrize(("path", "field", "rest"), [
    (COMPLETIONS, "prompt", {"max_tokens": 1}),
    ("/v1/embeddings", "input", {}),
    *((path, "input", {}) for path in ("/v1/classify", "/classify", "/pooling")),
    *((path, "text_2", {"text_1": "q"}) for path in ("/v1/score", "/score")),
    ("/v1/score", "text_1", {"text_2": ["d"] * 3}),
    ("/v1/score", "queries", {"documents": "d"}),
    ("/v1/score", "documents", {"queries": ["q"] * 3}),
    *((path, "documents", {"query": "q", "top_n": 1}) for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
])  # fmt: skip
def test_too_many_inputs(guarded, path, field, rest):
    def post(inputs):
        return guarded.client.post(path, json={field: inputs, **rest}, headers=keyed())

    forms = (["x"] * 4,) if field not in ("input", "prompt") else (["x"] * 4, [[1]] * 4)
    for inputs in forms:
        answer = post(inputs)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, field, "invalid_value")
        told = f"{field} has 4 entries: at most 3 here (--max-prompts); send several requests"
        assert error["message"] == told
        assert post(inputs[:3]).status_code == 200
    assert field not in ("input", "prompt") or post([1] * 4).status_code == 200, "one prompt of four tokens"


def test_more_prompts_than_the_queue_ever_holds(shared_front):
    """Told for good: a client that is told to come again would do so for ever."""
    answer = shared_front.post(COMPLETIONS, prompt=["x"] * 101, max_tokens=1)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "prompt")
    assert error["message"].startswith("prompt has 101 entries, and 100 requests can wait here (--max-queued)")
    assert len(shared_front.post(COMPLETIONS, prompt=["x"] * 100, max_tokens=1).json()["choices"]) == 100


def test_a_requests_name_goes_in_and_out(guarded):
    name = secrets.token_hex()
    for path, status in (("/v1/models", 200), ("/v1/nothing", 404), ("/health", 200)):
        answer = guarded.client.get(path, headers=keyed(**{"x-request-id": name}))
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, name)
    assert guarded.client.get("/v1/models", headers={"x-request-id": name}).headers["x-request-id"] == name  # 401
    for stream in (False, True):
        body = {"prompt": "x", "max_tokens": 1, "stream": stream}
        trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        headers = keyed(**{"x-request-id": name, "traceparent": trace, "tracestate": "a=b"})
        answer = guarded.client.post(COMPLETIONS, json=body, headers=headers)
        assert answer.headers.get_list("x-request-id") == [name]
        asked = list(guarded.engine.requests.values())[-1]
        assert (asked.client_request_id, asked.traceparent, asked.tracestate) == (name, trace, "a=b")
        assert name not in asked.request_id  # which has to be unique, and a client's name need not be


@pytest.mark.parametrize("name", ["", "x" * 257, "caf\xe9"])
def test_a_name_that_cannot_be_is_replaced(guarded, name):
    answer = guarded.client.get(
        "/v1/models", headers=[(b"x-api-key", KEYS[0].encode()), (b"x-request-id", name.encode())]
    )
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] not in ("", name)


def test_pages_of_allowed_origins_may_call(guarded):
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    answer = guarded.client.options(COMPLETIONS, headers={"origin": "https://app.example", **preflight})
    assert answer.status_code == 200  # without a key: browsers send none here
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in answer.headers["access-control-allow-headers"]
    answer = guarded.client.get("/v1/models", headers=keyed(origin="https://app.example"))
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    refused = guarded.client.get("/v1/models", headers={"origin": "https://app.example"})
    assert "access-control-allow-origin" in refused.headers  # or the page could not read that it is refused
    answer = guarded.client.options(COMPLETIONS, headers={"origin": "https://evil.example", **preflight})
    assert "access-control-allow-origin" not in answer.headers


def test_no_page_may_call_by_default(shared_front):
    answer = shared_front.client.get("/v1/models", headers={"origin": "https://app.example"})
    assert answer.status_code == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_every_name_of_the_model_is_listed(shared_front):
    assert [card["id"] for card in shared_front.get("/v1/models").json()["data"]] == ["scripted", "other-name"]
    assert shared_front.get("/v1/models/other-name").json()["root"] == "/models/scripted"


@given(
    st.lists(st.text(st.characters(codec="ascii", exclude_categories=("C", "Z")), min_size=1), min_size=1), st.data()
)
def test_keys_admit_their_own_alone(keys, data):
    admitted = Keys(keys)
    other = data.draw(st.text().filter(lambda text: text.strip() not in keys))
    for key in keys:
        assert admitted.admit(f"Bearer {key}", None)
        assert admitted.admit(None, key)
        assert admitted.identify(f"Bearer {key}", other) == Keys([key]).identify(None, key)
    assert len({admitted.identify(None, key) for key in keys}) == len(set(keys))
    assert not admitted.admit(f"Bearer {other}", other)
    assert not admitted.admit(None, None)
    assert admitted.identify(f"Bearer {other}", None) is None
    assert Keys().admit(None, None)


def test_keys_of_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n  two \n")
    keys = Keys.of(ServerConfig(api_key=("zero",), api_key_file=str(file)))
    assert all(keys.admit(None, key) for key in ("zero", "one", "two"))
    assert not keys.admit(None, "# ours")
    file.write_text("# none yet\n")
    with pytest.raises(ConfigError, match="holds no key"):
        Keys.of(ServerConfig(api_key_file=str(file)))
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.of(ServerConfig(api_key_file=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("key", ["", "two words", "clé", "line\n"])
def test_keys_that_no_header_carries(key):
    with pytest.raises(ConfigError) as raised:
        Keys.of(ServerConfig(api_key=(key,)))
    assert not key or key not in str(raised.value)


def test_keys_are_not_shown():
    assert KEYS[0] not in repr(ServerConfig(api_key=KEYS))
