"""`jaxllm convert`: a checkpoint in the form that loads fastest."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from jaxllm.cli.command import Given, app, command, engine_config
from jaxllm.config import EngineConfig
from jaxllm.errors import ConfigError
from jaxllm.interrupts import interrupts_held
from jaxllm.progress import progress

SOURCE = Annotated[str, typer.Argument(help="A Hugging Face checkpoint directory, or `demo`.", show_default=False)]
TARGET = Annotated[Path, typer.Argument(help="The directory to write; must not exist yet.", show_default=False)]


@command(app, only=("dtype", "load_format"), engine=EngineConfig)
def convert(source: SOURCE, target: TARGET, engine: Given) -> None:
    """Write a checkpoint as an Orbax directory: already cast and fused, so that it loads as fast as the disk reads.

    The tokenizer's files and config.json go with it: the directory is served by `--model TARGET` alone. With --dtype
    auto the weights stay of the type that they have.
    """
    engine["model"] = source
    config = engine_config(engine)
    if target.exists():
        raise ConfigError(f"{target} exists already: name a directory that does not, or remove it")
    target.mkdir(parents=True)  # before anything is loaded for it
    try:
        _convert(config, target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # half a checkpoint is none
        raise
    print(f"wrote {target}; serve it with: jaxllm serve --model {target}")


def _convert(config: EngineConfig, target: Path) -> None:
    from jaxllm import weights
    from jaxllm.models import registry

    path = weights.resolve_model_path(config.model)
    hf_config = weights.read_config(path)
    architecture = registry.resolve(hf_config)
    model = architecture.build(architecture.config.dtype if config.dtype == "auto" else config.dtype)
    with progress() as report:
        weights.load(model, path, load_format=config.load_format, seed=config.seed, progress=report)
    with interrupts_held():  # the writer's threads go on behind it, and complain
        weights.save_orbax(model, hf_config, path, target)
