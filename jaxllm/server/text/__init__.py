"""Text on one side, token ids on the other: the engine speaks tokens, whoever faces a person uses this room.

tokenizer     Tokenizer: encode, decode, chat prompts, and the bytes each token stands for
detokenizer   TextStream: the text of one request, token by token, with its stop strings
chat          chat templates: messages to a prompt
stop_strings  StopStrings: finding strings in text that comes in pieces
answer        AnswerReader: what of a chat's answer is content, reasoning and tool calls
reasoning/, tools/, harmony  its parsers, one per format, on reading's Reader
"""

from jaxllm.server.text.answer import AnswerFormat, AnswerReader
from jaxllm.server.text.detokenizer import TextStream
from jaxllm.server.text.tokenizer import Tokenizer

__all__ = ["AnswerFormat", "AnswerReader", "TextStream", "Tokenizer"]
