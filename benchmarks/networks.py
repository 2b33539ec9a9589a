"""`python -m benchmarks.networks`: every network of the zoo compared with plain PyTorch; writes `docs/networks.md`.

The comparisons are those of `metaforge check --backbone`. The compiled step takes most of the time, so it is compared
only with `--compiled`; what was compared earlier stays in the record.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.zoo import LAYERS, NETWORKS, PATTERNS, Entry
from metaforge.testing.networks import WAYS, check_network

RECORD = Path(__file__).parent / "records" / "networks.json"
PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
GROUPS: Mapping[str, Mapping[str, Entry]] = {
    "Layers of torch.nn": LAYERS,
    "Patterns": PATTERNS,
    "Networks of other libraries": NETWORKS,
}
_CONSOLE = Console(stderr=True)
TEXT = """\
<!-- Written by `python -m benchmarks.networks` from its record: edit that program, not this page. -->

# Networks

Any `nn.Module` can be a backbone, and the backbones `timm` and `torchvision` build those of these libraries by their
names, as in `--backbone timm:resnet18`. This page shows what was compared with plain PyTorch, and what is refused.

- **module**: the pure function that MetaForge makes of the network, against the untouched module: loss and first
  gradient of one batch in training, and in evaluation if there is no batch norm.
- **loop**, **vmap**, **fold**: the [plans](engine.md#plans). The meta-gradient of one inner step on all parameters,
  against plan `loop` on torch's own layers. **compiled**: the same in a compiled step by the automatic plan.
- A number is the largest relative difference, in float64. It counts as equal up to 1e-9, compiled up to 1e-6. Where
  rounding alone makes a larger difference, because the computation is ill-conditioned, the last column says so.
- **refused**: MetaForge raises an error, whose text is in the last column, and computes nothing. `auto` avoids a plan
  that is refused. An empty cell was not compared.
- **guard**: what the comparison before a run took (`engine.verify`): the module, and the automatic plan.

`metaforge check --backbone MODULE:CLASS --x-shape 3,64,64` prints these comparisons for a network of your own. Before
a run, a network that is not MetaForge's is compared by the module and the run's plan, once for each network and plan:
with `engine.verify = "always"` before each run, with `"off"` never.
"""


def run(groups: list[str], only: list[str] | None, *, compiled: bool) -> None:
    """Compare the networks, and write the record after each."""
    record: dict[str, Any] = json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else {}
    ways = [way for way in WAYS if compiled or way != "compiled"]
    for group in groups:
        for name, entry in GROUPS[group].items():
            if only is not None and name not in only:
                continue
            found: dict[str, Any] = record.get(name, {})
            found.pop("guard", None)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                start = time.perf_counter()
                for result in check_network(*entry, ways):
                    seconds, start = time.perf_counter() - start, time.perf_counter()
                    found[result.way] = {**result._asdict(), "seconds": round(seconds, 3)}
            record[name] = found
            _CONSOLE.print(name, {way: found[way]["status"] for way in WAYS if way in found})
            RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def page(record: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page for a record."""
    parts = [TEXT.rstrip()]
    for group, entries in GROUPS.items():
        rows = [_row(name, record[name]) for name in entries if name in record]
        head = f"| network | {' | '.join(WAYS)} | guard | message |\n|---|{'---:|' * (len(WAYS) + 1)}---|"
        parts += [f"## {group}", "\n".join([head, *rows])]
    return "\n\n".join(parts) + "\n"


def _row(name: str, found: Mapping[str, Any]) -> str:
    cells = [_cell(found.get(way)) for way in WAYS]
    messages = dict.fromkeys(found[way]["message"] for way in WAYS if way in found and found[way]["message"])
    equal = [plan for plan in ("fold", "vmap", "loop") if found.get(plan, {}).get("status") == "equal"]
    taken = [found[way]["seconds"] for way in ("module", *equal[:1]) if way in found]
    guard = f"{1000 * sum(taken):.0f} ms" if equal else ""
    text = "; ".join(message.replace("|", "\\|")[:200] for message in messages)
    return f"| {name} | {' | '.join(cells)} | {guard} | {text} |"


def _cell(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    if result["status"] == "equal":
        return "0" if result["difference"] == 0 else f"{result['difference']:.0e}"
    return f"**{result['status']}**" if result["status"] == "different" else "refused"


def main() -> None:
    """Compare networks, write the record, and write the page from it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--group", action="append", choices=[*GROUPS], help="the groups to compare; default: all")
    parser.add_argument("--only", nargs="*", help="names of the networks to compare")
    parser.add_argument("--compiled", action="store_true", help="compare compiled steps too")
    parser.add_argument("--page", action="store_true", help="compare nothing; write the page from the record")
    options = parser.parse_args()
    if not options.page:
        run(options.group or [*GROUPS], options.only, compiled=options.compiled)
    PAGE.write_text(page(json.loads(RECORD.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
