"""Benchmark: `prompt-tune serve` under load, against calling `Detector` in a loop.

Both run in a process of their own, on the same bundle, images and device, each for the same time at every number of
clients: threads that send a request, wait for its answer, and send the next. Answers are counted only if their rows are
those of `Detector.detect` at the batch size that they name, which is checked for one of each image and size.
"""

import http.client
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from PIL import Image
from places import TESTS
from served import Served, served

N_IMAGES = 8
WARM_UP = 1.0  # seconds before each measurement


def photos(side: int) -> list[bytes]:
    """JPEG files of random scenes."""
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(N_IMAGES):
        coarse = generator.integers(0, 256, (side // 32 + 1, side // 32 + 1, 3)).repeat(32, 0).repeat(32, 1)
        file = io.BytesIO()
        Image.fromarray(coarse[:side, :side].astype(np.uint8)).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    return contents


def measure(make: Callable[[], Callable[[int], None]], clients: int, seconds: float) -> list[float]:
    """Seconds of each call, from threads that call one after another.

    Args:
        make: Makes a thread's function, which is called with the number of an image.
        clients: How many threads.
        seconds: For how long, after a while for warming up.
    """
    times: list[float] = []
    begin = time.perf_counter() + WARM_UP
    end = begin + seconds

    def run(number: int) -> None:
        call = make()
        while (began := time.perf_counter()) < end:
            call(number % N_IMAGES)
            number += 1  # counted if it ends in time, whenever it began
            if begin <= (now := time.perf_counter()) <= end:
                times.append(now - began)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def loop(bundle: Path, device: str, threads: int, clients: int, seconds: float, side: int) -> list[float]:
    """Times of `Detector.detect` on files in memory."""
    from prompt_tune import Detector

    detector, contents = Detector(bundle, device=device, threads=threads), photos(side)

    def call(number: int) -> None:
        detector.detect(Image.open(io.BytesIO(contents[number])))

    return measure(lambda: call, clients, seconds)


def requests(server: Served, clients: int, seconds: float, side: int) -> list[float]:
    """Times of `POST /detect`."""
    contents = photos(side)

    def make() -> Callable[[int], None]:
        connection = http.client.HTTPConnection(*server.address, timeout=60)

        def call(number: int) -> None:
            ask(connection, contents[number])

        return call

    return measure(make, clients, seconds)


def ask(connection: http.client.HTTPConnection, content: bytes) -> dict[str, object]:
    """An answer of `POST /detect`."""
    connection.request("POST", "/detect", content, {"Content-Type": "image/jpeg"})
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise click.ClickException(f"status {response.status}: {body.decode()}")
    answer: dict[str, object] = json.loads(body)
    return answer


def check(server: Served, bundle: Path, device: str, side: int) -> int:
    """Compare answers under load with `Detector.detect`, bit for bit. Returns how many."""
    from prompt_tune import Detector

    detector, contents, lock = Detector(bundle, device=device), photos(side), threading.Lock()
    seen: dict[tuple[int, int], list[object]] = {}

    def run(number: int) -> None:
        connection = http.client.HTTPConnection(*server.address, timeout=60)
        for _ in range(4):
            answer = ask(connection, contents[number % N_IMAGES])
            with lock:
                seen[number % N_IMAGES, int(str(answer["batch"]))] = list(answer["detections"])  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2 * N_IMAGES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (number, batch), rows in seen.items():
        image = Image.open(io.BytesIO(contents[number]))
        found = detector.detect(image, batch=batch)[0]
        if [(row["score"], row["box"]) for row in rows] != list(  # type: ignore[index]
            zip(found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
        ):
            raise click.ClickException(f"image {number} in a batch of {batch}: other rows than Detector's")
    return len(seen)


def flat(server: Served, count: int, side: int, seconds: float) -> None:
    """Print the memory of the server over many requests, for a time at most."""
    connection, contents = http.client.HTTPConnection(*server.address, timeout=60), photos(side)
    began = time.monotonic()
    for number in range(count + 1):
        if number in {500, count} or (number and number % max(1, count // 5) == 0):
            click.echo(f"memory after {number:6} requests: {server.memory() / 1e6:.1f} MB")
        if time.monotonic() - began > seconds:
            click.echo(f"stopped after {number} requests: {seconds:g} s are over")
            return
        ask(connection, contents[number % N_IMAGES])


def row(what: str, clients: int, times: list[float], seconds: float) -> str:
    """A line of the table."""
    p50, p95, p99 = (1000 * np.percentile(times, part) for part in (50, 95, 99))
    return f"| {what} | {clients} | {len(times) / seconds:.1f} | {p50:.1f} | {p95:.1f} | {p99:.1f} |"


@click.command()
@click.option("--bundle", default=str(TESTS / "data" / "bundle"), show_default=True, help="What is served.")
@click.option("--clients", default="1,8,32", show_default=True, help="Numbers of clients.")
@click.option("--seconds", default=5.0, show_default=True, help="For each measurement.")
@click.option("--rounds", default=2, show_default=True, help="How many times each is measured, in turns.")
@click.option("--side", default=640, show_default=True, help="Of the images, in pixels.")
@click.option("--threads", default=0, show_default=True, help="CPU threads of ONNX Runtime; 0: all cores.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch-sizes", default="1,2,4,8", show_default=True)
@click.option("--requests", "count", default=10_000, show_default=True, help="Over which memory is looked at; 0: none.")
@click.option("--most-seconds", default=300.0, show_default=True, help="For these requests.")
def main(
    bundle: str,
    clients: str,
    seconds: float,
    rounds: int,
    side: int,
    threads: int,
    device: str,
    batch_sizes: str,
    count: int,
    most_seconds: float,
) -> None:
    """Measure requests a second and latency of the server and of a loop, and the server's memory."""
    numbers = [int(part) for part in clients.split(",")]
    options = ("--batch-sizes", batch_sizes, "--device", device, "--threads", str(threads))
    click.echo(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}, {bundle}, images of {side} px, {device}\n")
    click.echo("| what | clients | requests/s | p50 ms | p95 ms | p99 ms |\n| --- | --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as folder:
        for number in numbers:
            direct: list[float] = []
            over_http: list[float] = []
            for turn in range(rounds):  # in turns, so that other work on the machine slows both
                with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                    direct += alone.submit(loop, Path(bundle), device, threads, number, seconds, side).result()
                with served(Path(bundle), Path(folder) / f"log-{number}-{turn}", *options) as server:
                    over_http += requests(server, number, seconds, side)
            click.echo(row("`Detector.detect` in a loop", number, direct, seconds * rounds))
            click.echo(row("`POST /detect`", number, over_http, seconds * rounds))
        with served(Path(bundle), Path(folder) / "log", *options) as server:
            click.echo(f"checked: {check(server, Path(bundle), device, side)} answers have the bits of Detector.detect")
            if count:
                flat(server, count, side, most_seconds)


if __name__ == "__main__":
    sys.exit(main())
