"""/v1/messages and /v1/messages/count_tokens."""

from fastapi import APIRouter
from starlette.responses import Response

from jaxllm.server.http.dialects import tokenized
from jaxllm.server.http.errors import MESSAGES_PATH
from jaxllm.server.http.generation import Generation
from jaxllm.server.http.link import EngineLink
from jaxllm.server.http.messages.events import MessageAnswer
from jaxllm.server.http.messages.reading import CountTokensRequest, MessagesRequest
from jaxllm.server.http.traffic import Traffic


def messages_router(link: EngineLink, traffic: Traffic) -> APIRouter:
    router = APIRouter(prefix=MESSAGES_PATH)

    @router.post("")
    async def create(body: MessagesRequest) -> Response:
        answer = MessageAnswer(body, (await link.connect()).name)
        return Generation(link, traffic, answer, body.to_chat().generate_requests(answer.id))

    @router.post("/count_tokens")
    async def count_tokens(body: CountTokensRequest) -> dict[str, int]:
        counted = await tokenized(link, body.to_chat(), body)
        return {"input_tokens": len(counted.token_ids)}

    return router
