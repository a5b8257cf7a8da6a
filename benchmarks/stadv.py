"""stAdv in batches beside L-BFGS on one image at a time, and plain Adam: seconds and strength.

    python benchmarks/stadv.py --checkpoint checkpoints/<name> --data_path data/cifar10

Keeps the numbers in benchmarks/results/stadv, and writes all that lie there to docs/benchmarks.md.
The same model and images, bounds in pixels. Chunk by chunk of the images all contenders run in turn
(A B C, A B C, ...), at every bound; seconds are summed over the chunks, and their spread is that of
the chunks' ratios. `by evaluate.py` stadv runs on the evaluator's faster copies of the model.
`L-BFGS` is the original: scipy's L-BFGS-B, tau .05, on each image to its end. `Adam` is the usual
bounded version: 100 steps, all images at once, the flow cut back to the bound.
An image counts as fooled if the model itself, as it was loaded, gets what was found wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pages import put_section
from pgd import machine
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.attacks.smoothness import smoothness
from robustbench_gpm.checkpoint import load
from robustbench_gpm.core import Samples, UserError, pick_device
from robustbench_gpm.datasets import LoadOptions, load_split
from robustbench_gpm.deformation import identity_flow, warp
from robustbench_gpm.fast import copies
from robustbench_gpm.files import safe_name, write_text
from robustbench_gpm.losses import margin
from robustbench_gpm.tasks import Classification
from robustbench_gpm.verdict import Verifier

Contender = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
BOUNDS = (0.1, 0.2, 0.4, 0.8)
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/stadv"
SAID = """## stAdv in batches against L-BFGS, one image at a time

Robust accuracy at each bound on the largest move, and the seconds that all contenders took in
turn on the same images in one process. `L-BFGS` is the original attack: scipy's L-BFGS-B with tau
= 0.05 until it converges; `Adam` is a hundred steps of a tenth of the bound, with the same tau.
On a robust model both hardly leave the flow at rest, where the price of smoothness outweighs what
a pixel gains; `stadv` goes on without the price. In parentheses the ratios of the chunks.

```
python benchmarks/stadv.py --checkpoint FOLDER --data_path DIR --images 200 --chunk 100
```"""
HERE, EVALUATED, ORIGINAL, ADAM = "stadv", "by evaluate.py", "L-BFGS", "Adam"


def named(name: str) -> Contender:
    """An attack of the table, at its defaults."""

    def run(model: nn.Module, x: Tensor, y: Tensor, bound: float) -> Tensor:
        return ATTACKS[name](model, x, y, budget=bound, samples=Samples(range(len(x))))

    return run


def by_adam(model: nn.Module, x: Tensor, y: Tensor, bound: float) -> Tensor:
    """A hundred steps of a tenth of the bound; whoever is fooled on the way stays as he is."""
    flow, tenth = identity_flow(x).requires_grad_(), 0.1 * bound
    found, over = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    optimiser = torch.optim.Adam([flow], tenth)
    for _ in range(101):
        images = warp(x, flow)
        losses, fooled = margin.judged(model, images, y)
        found = torch.where(over[:, None, None, None], found, images.detach())
        over |= fooled
        optimiser.zero_grad()
        (0.05 * smoothness(flow, "diagonal") - losses).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            flow.clamp_(-bound, bound)
    return found


def as_evaluated(model: nn.Module, x: Tensor, y: Tensor, bound: float) -> Tensor:
    """stadv as evaluate.py runs it: on faster copies of the model, the making of them included."""
    faster, _ = copies(model, x[:16])
    verifier = Verifier(model, faster, Classification())
    outcome = verifier.attempt(ATTACKS["stadv"], bound, x, y, Samples(range(len(x))))
    return outcome.found.images


CONTENDERS = {
    HERE: named("stadv"),
    EVALUATED: as_evaluated,
    ORIGINAL: named("stadv-lbfgs"),
    ADAM: by_adam,
}


def measure(
    model: nn.Module, x: Tensor, y: Tensor, chunk: int
) -> dict[float, dict[str, dict[str, list[float]]]]:
    """For each bound and contender the seconds and the images left standing, chunk by chunk."""
    with torch.no_grad():
        right = model(x).argmax(1) == y
    xs, ys = x[right].split(chunk), y[right].split(chunk)
    results = {}
    for bound in BOUNDS:
        taken = {name: {"seconds": list[float](), "standing": list[float]()} for name in CONTENDERS}
        for images, labels in zip(xs, ys, strict=True):
            for name, contender in CONTENDERS.items():
                began = time.perf_counter()
                found = contender(model, images, labels, bound)
                taken[name]["seconds"].append(time.perf_counter() - began)
                with torch.no_grad():
                    left = int((model(found).argmax(1) == labels).sum())
                taken[name]["standing"].append(left)
        results[bound] = taken
        print(row(bound, taken, len(x)), flush=True)
    return results


def row(bound: float, taken: dict[str, dict[str, list[float]]], images: int) -> str:
    """A line of the table: robust accuracy and seconds of each, and ours as a ratio to L-BFGS."""
    cells = [
        f"{bound:g} px",
        *(
            f"{100 * sum(of['standing']) / images:.1f}, {sum(of['seconds']):.1f} s"
            for of in taken.values()
        ),
    ]
    theirs = taken[ORIGINAL]["seconds"]
    for name in (HERE, EVALUATED):
        ours = taken[name]["seconds"]
        each = [one / other for one, other in zip(ours, theirs, strict=True)]
        cells.append(f"{sum(ours) / sum(theirs):.3f} ({min(each):.3f} to {max(each):.3f})")
    return "| " + " | ".join(cells) + " |"


def header() -> str:
    """What stands above the rows."""
    names = [f"{name}, robust %" for name in CONTENDERS]
    cells = ["bound", *names, f"{HERE} / {ORIGINAL} (chunks)", f"{EVALUATED} / {ORIGINAL}"]
    return "| " + " | ".join(cells) + " |\n|" + "---|" * len(cells)


def section() -> str:
    """The page's section: every model that has been measured."""
    blocks = [SAID]
    for path in sorted(RESULTS.glob("*.json")):
        raw = json.loads(path.read_text(encoding="utf-8"))
        rows = [row(float(bound), of, raw["images"]) for bound, of in raw["bounds"].items()]
        about = f"{raw['title']}: {raw['images']} images, {raw['chunk']} a turn; {raw['machine']}."
        blocks.append("\n".join([about, "", header(), *rows]))
    return "\n\n".join(blocks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, compare, print; 2 after a mistake in the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a folder main.py wrote")
    parser.add_argument("--data_path", type=Path, help="where the checkpoint's data set lies")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--chunk", type=int, default=25, help="images a turn")
    parser.add_argument("--title", help="what the model is called on the page")
    given = parser.parse_args(arguments)
    try:
        checkpoint = load(given.checkpoint)
        options = LoadOptions(given.data_path, given.data_path or Path("data"), download=False)
        split = load_split(checkpoint.card.data_name, "test", options).limit(given.images)
    except UserError as error:
        print(f"stadv.py: {error}", file=sys.stderr)
        return 2
    model = checkpoint.model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    title = given.title or checkpoint.name
    print(f"{title}, {len(split)} images, {machine(pick_device('cpu'))}\n\n{header()}")
    raw = {
        "title": title,
        "images": len(split),
        "chunk": given.chunk,
        "machine": machine(pick_device("cpu")),
        "bounds": measure(model, *split.batch(slice(None)), given.chunk),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / f"{safe_name(title)}.json", json.dumps(raw, indent=1) + "\n")
    put_section(ROOT / "docs/benchmarks.md", "stadv.py", section(), title="Benchmarks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
