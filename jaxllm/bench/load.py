"""Sends requests to a server at a rate or a concurrency, from several processes, and records their times.

Every process runs one event loop with a share of the requests; the records come back through pipes. All of
them read the same monotonic clock.
"""

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier

import numpy as np

from jaxllm.bench.clients import BenchError, Client, Target, client_for
from jaxllm.bench.statistics import Record
from jaxllm.bench.workloads import Prompt
from jaxllm.errors import ConfigError
from jaxllm.loops import new_event_loop
from jaxllm.progress import Report

START_TIMEOUT = 120.0  # seconds for the client processes to import what they need


def arrival_offsets(count: int, request_rate: float, seed: int) -> list[float]:
    """Seconds after the start at which each request goes out: a Poisson process, or all zeros at rate inf."""
    if not request_rate > 0:
        raise ConfigError(f"request_rate={request_rate}: must be positive; inf sends all at once")
    if request_rate == float("inf"):
        return [0.0] * count
    gaps = np.random.default_rng(seed).exponential(1 / request_rate, count)
    gaps[0] = 0.0
    return np.cumsum(gaps).tolist()


def run_load(
    target: Target,
    prompts: Sequence[Prompt],
    *,
    request_rate: float = float("inf"),
    offsets: Sequence[float] | None = None,
    max_concurrency: int | None = None,
    num_processes: int | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> tuple[list[Record], float]:
    """Run every prompt; records in the order of the prompts, and the seconds from the first request to the last token.

    offsets: seconds after the start at which each goes out, in place of request_rate's.
    num_processes: client processes; by default one per 32 concurrent requests, at most 4 and the CPU's cores.
    Raises BenchError when no request completes.
    """
    concurrency = min(max_concurrency or len(prompts), len(prompts))
    if concurrency < 1:
        raise ConfigError(f"max_concurrency={max_concurrency}: must be positive, as must the number of prompts")
    count = num_processes or max(1, min(4, os.cpu_count() or 1, concurrency // 32))
    count = min(count, concurrency)
    offsets = arrival_offsets(len(prompts), request_rate, seed) if offsets is None else offsets
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    pipes: list[Connection] = []
    processes = []
    records: list[Record | None] = [None] * len(prompts)
    try:
        for index in range(count):
            here, there = context.Pipe(duplex=False)
            share = range(index, len(prompts), count)
            work = [(i, prompts[i], offsets[i]) for i in share]
            limit = concurrency // count + (index < concurrency % count)
            process = context.Process(target=_process, args=(target, work, limit, barrier, there), daemon=True)
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        done = 0
        while pipes:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)
                try:
                    index, record = pipe.recv()
                except EOFError:
                    pipes.remove(pipe)
                    continue
                records[index] = record
                done += 1
                if report:
                    report(done, len(prompts), "requests")
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
    complete = [record for record in records if record is not None]
    if len(complete) < len(prompts):
        raise BenchError(
            f"a client process ended after {len(complete)} of {len(prompts)} requests; see its error above"
        )
    finished = [record for record in complete if record.completed]
    if not finished:
        raise BenchError(f"none of {len(prompts)} requests completed; the first failed with: {complete[0].error}")
    seconds = max(record.arrivals[-1] for record in finished) - min(record.sent for record in complete)
    return complete, seconds


def _process(
    target: Target,
    work: list[tuple[int, Prompt, float]],
    limit: int,
    barrier: Barrier,
    pipe: Connection,
) -> None:
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_drive(target, work, limit, barrier, pipe))


async def _drive(
    target: Target, work: list[tuple[int, Prompt, float]], limit: int, barrier: Barrier, pipe: Connection
) -> None:
    slots = asyncio.Semaphore(limit)
    async with client_for(target) as client:
        await asyncio.to_thread(barrier.wait, START_TIMEOUT)
        start = time.monotonic()

        async def one(index: int, prompt: Prompt, offset: float) -> None:
            await asyncio.sleep(max(0.0, start + offset - time.monotonic()))
            async with slots:
                pipe.send((index, await _record(client, prompt)))

        await asyncio.gather(*(one(*item) for item in work))


async def _record(client: Client, prompt: Prompt) -> Record:
    """Run one request; what goes wrong is written into the record."""
    record = Record(num_prompt=len(prompt.token_ids), sent=time.monotonic())
    try:
        await client.run(prompt, record)
    except BenchError as error:
        record.error = str(error)
    except Exception as error:  # the load goes on: the run's report counts what failed
        record.error = f"{type(error).__name__}: {error}"
    else:
        if record.num_output != prompt.num_output:
            record.error = f"{record.num_output} tokens came, {prompt.num_output} were asked for"
    return record
