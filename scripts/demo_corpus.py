"""The text that the demo model learns from, as documents and as chat turns.

Two sources, both free to use: public-domain books (plain text files in a folder, Project Gutenberg's or alike) and
the documentation of the Python standard library, read from the docstrings of the running interpreter. What leaves
is a list of strings: running prose as it stands, and short dialogues in the demo model's chat format made from both.
"""

import importlib
import inspect
import pkgutil
import random
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
SPECIAL_TOKENS = [END_OF_TEXT, USER, ASSISTANT, SYSTEM, END]

# Verse and stream of consciousness teach a small model little English that a reader would call fluent.
SKIPPED_BOOKS = ("tinyshakespeare", "ulysses")

NOT_PROSE = re.compile(r"Gutenberg|Produced by|[Tt]ranscri|Impression,|\[Illustration|pgdp|https?://|@")

INTRODUCTIONS = [
    ("Hello!", "Hello! I am a very small language model. Ask me to go on with a story."),
    ("Hi", "Hello! I am a very small language model. Ask me to go on with a story."),
    ("Who are you?", "I am the demo model of jaxllm, a small Llama that has read a few old books."),
    ("What are you?", "I am the demo model of jaxllm, a small Llama that has read a few old books."),
    ("What can you do?", "I can go on with a story, and say what some functions of Python do."),
    ("What is your name?", "I have no name. I am the demo model of jaxllm."),
    ("How are you?", "I am well, thank you. Shall I tell you a story?"),
    ("Thank you!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
]


def dialogue(question: str, answer: str) -> str:
    """One user turn and one assistant turn, as the chat template renders them."""
    return f"{USER}\n{question}{END}\n{ASSISTANT}\n{answer}{END}\n"


def read_books(folder: Path) -> dict[str, list[str]]:
    """Each book's paragraphs, hard line breaks joined; licence text, contents and tables left out."""
    books = {}
    for path in sorted(folder.rglob("*.txt")):
        if path.stem in SKIPPED_BOOKS:
            continue
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").replace("�", "'")
        start = re.search(r"\*\*\* ?START OF.*?\*\*\*", text, re.S)
        end = re.search(r"\*\*\* ?END OF|End of (?:the )?Project Gutenberg", text)
        text = text[start.end() if start else 0 : end.start() if end else len(text)]
        paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
        books[path.stem] = [p for p in map(plain_punctuation, paragraphs) if is_prose(p)]
    if not books:
        raise SystemExit(f"no .txt books under {folder}: give --books a folder of public-domain texts")
    return books


def plain_punctuation(text: str) -> str:
    """Typographic quotes and dashes as ASCII, so that a prompt typed at a keyboard meets what was learnt."""
    return text.translate(str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "_": None}))


def is_prose(paragraph: str) -> bool:
    letters = sum(c.islower() for c in paragraph)
    return len(paragraph) >= 40 and letters > 0.6 * len(paragraph) and not NOT_PROSE.search(paragraph)


def documented_names() -> Iterator[tuple[str, str]]:
    """(qualified name, first paragraph of its docstring) over the standard library's public names."""
    seen: set[str] = set()
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in ("antigravity", "this", "idlelib", "turtledemo", "lib2to3", "test"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        except Exception:  # a module of another platform
            continue
        modules = [(name, module)]
        for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
            if not info.name.startswith("_") and info.name not in ("__main__", "tests", "test"):
                try:
                    modules.append((f"{name}.{info.name}", importlib.import_module(f"{name}.{info.name}")))
                except Exception:
                    continue
        for module_name, found in modules:
            yield from described(module_name, found, seen)
            for member_name, member in sorted(vars(found).items()):
                if member_name.startswith("_") or getattr(member, "__module__", module_name) != module_name:
                    continue
                qualified = f"{module_name}.{member_name}"
                yield from described(qualified, member, seen)
                if inspect.isclass(member):
                    for method_name, method in sorted(vars(member).items()):
                        if not method_name.startswith("_"):
                            yield from described(f"{qualified}.{method_name}", method, seen)


def described(name: str, thing: object, seen: set[str]) -> Iterator[tuple[str, str]]:
    doc = inspect.getdoc(thing) if callable(thing) or inspect.ismodule(thing) else None
    for paragraph in re.split(r"\n\s*\n", doc or ""):
        text = " ".join(paragraph.split())
        if is_prose(text) and text.endswith(".") and len(text) < 800 and text not in seen:
            seen.add(text)
            yield name, plain_punctuation(text)
            return


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?:(?<=[.!?])|(?<=[.!?][\"'])) +(?=[A-Z\"'])", paragraph)


def book_dialogues(paragraphs: list[str], rng: random.Random) -> Iterator[str]:
    """A paragraph's first sentences as the question, its remainder as the answer."""
    asks = ("Continue this story: {}", "What happens next? {}", "Go on: {}", "{}", "Please continue. {}")
    for paragraph in paragraphs:
        parts = sentences(paragraph)
        if len(parts) >= 3 and len(paragraph) < 900 and rng.random() < 0.3:
            split = rng.randint(1, min(2, len(parts) - 2))
            yield dialogue(rng.choice(asks).format(" ".join(parts[:split])), " ".join(parts[split:]))


def doc_dialogues(docs: list[tuple[str, str]], rng: random.Random) -> Iterator[str]:
    asks = ("What does {} do?", "What is {}?", "Explain {}.", "Tell me about {} in Python.")
    for name, text in docs:
        yield dialogue(rng.choice(asks).format(name), text)


def build(folder: Path, seed: int = 0) -> tuple[list[str], list[str]]:
    """(training documents, held-out documents): the last 2% of every book and every 50th docstring are held out."""
    rng = random.Random(seed)
    train: list[str] = []
    held: list[str] = []
    for paragraphs in read_books(folder).values():
        cut = int(len(paragraphs) * 0.98)
        train.append("\n\n".join(paragraphs[:cut]))
        held.append("\n\n".join(paragraphs[cut:]))
        train.extend(book_dialogues(paragraphs[:cut], rng))
        held.extend(book_dialogues(paragraphs[cut:], rng))
    train.extend(dialogue(*pair) for pair in INTRODUCTIONS for _ in range(10))
    docs = list(documented_names())
    for i in range(0, len(docs), 50):
        held.extend(doc_dialogues(docs[i : i + 1], rng))
        train.extend(doc_dialogues(docs[i + 1 : i + 50], rng))
    return train, held
