"""What a structured answer may go on with: schemas, regular expressions, choices and grammars become token masks.

`Compiler` makes a `Constraint` of a request's StructuredOutputs; llguidance does the parsing. Nothing here knows the
device, and nothing here runs on the engine's loop but the constraints themselves.
"""

from jaxllm.constraints.compiler import Compiler
from jaxllm.constraints.vocabulary import Vocabulary

__all__ = ["Compiler", "Vocabulary"]
