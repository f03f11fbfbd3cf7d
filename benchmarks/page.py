"""The size of a run's page, the time to write it, and the time a browser needs to open it.

    python benchmarks/page.py

The run is synthetic: networks that grow from each other by single morphs, each with a learning curve of 6 epochs and a
predicted score. Headless Chromium opens the page --repeats times, timed from the start of the navigation to the end of
the load event, when everything is drawn. Writes results/page.json; without a browser or its driver, not these times.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe

from morphnas.graph import Graph, Limits, cnn, densenet, neighbours, resnet
from morphnas.report import write_report
from morphnas.run.store import Run
from morphnas.search.trial import Proposal, Trial
from morphnas.train.recipe import Epoch, Outcome, Recipe

RESULTS = Path(__file__).parent / "results" / "page.json"
EPOCHS = 6


def searched(n: int) -> Run:
    """A synthetic run of n networks."""
    draw, shape = random.Random(0), (3, 32, 32)
    starts = [cnn(shape, 10, width=16), resnet(shape, 10, width=16), densenet(shape, 10, width=8)]
    limits = Limits(max_depth=60, max_params=3_000_000)
    trials: list[Trial] = []
    for i in range(n):
        parent = trials[draw.randrange(len(trials))] if i >= len(starts) else None
        fitting = [] if parent is None else list(neighbours(parent.graph, limits))
        morphs = (draw.choice(fitting),) if fitting else ()
        graph: Graph = starts[i] if parent is None else parent.graph
        for morph in morphs:
            graph = morph.grow(graph)
        score = -0.9 + 0.0006 * i + draw.gauss(0, 0.05)
        curve = tuple(Epoch(e + 1.0, -score, score - 0.3 / (e + 1), 0.9 + 0.1 * score) for e in range(EPOCHS))
        outcome = Outcome("finished", curve[-1].score, curve[-1].metric, 6.0, EPOCHS, EPOCHS, curve, examples=5000)
        why: dict[str, Any] = {"reason": "acquisition", "acquisition": "ei", "mean": score, "sd": 0.05}
        why |= {"nearest": [[0, 3.5], [1, 4.5]], "budget": {"seconds": 10_000.0 - 6.5 * i}}
        proposal = Proposal(starts[i] if parent is None else parent.id, morphs, Recipe(epochs=EPOCHS), why)
        trials.append(Trial(i, proposal, graph, outcome, True))
    return Run(
        Path("run"), {"best": max(trials, key=lambda t: t.score or -9).id, "time_limit": 10_000.0}, tuple(trials)
    )


def opened(file: Path, repeats: int) -> list[float]:
    """Seconds to open the page, of each repetition; empty without a browser."""
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (browser and driver):
        return []
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(argument)
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    script = "return performance.timing.loadEventEnd - performance.timing.navigationStart"
    try:
        seconds = []
        for _ in range(repeats):
            session.get("about:blank")
            session.get(file.as_uri())
            seconds.append(session.execute_script(script) / 1000)
        return seconds
    finally:
        session.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, nargs="*", default=[15, 100, 1000])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="30 networks, once, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.networks, args.repeats = [30], 1
    pages = []
    for n in args.networks:
        run = searched(n)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            file = write_report(run, Path(folder) / "page.html")
            write_seconds = time.perf_counter() - start
            seconds = opened(file, args.repeats)
            page: dict[str, Any] = {
                "networks": n,
                "bytes": file.stat().st_size,
                "seconds_to_write": round(write_seconds, 3),
            }
        if seconds:
            page |= {"seconds_to_open": round(statistics.median(seconds), 3), "slowest": round(max(seconds), 3)}
        print(page, flush=True)
        pages.append(page)
    if not args.smoke:
        result = describe() | {"repeats": args.repeats, "pages": pages}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
