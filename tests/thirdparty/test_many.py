"""With two hundred installed plugins, listing stays fast and imports none of them."""

from __future__ import annotations

import json
from pathlib import Path

from prefixes import Prefix

NUMBER = 200


def test_two_hundred_plugins_are_listed_quickly(tmp_path: Path) -> None:
    prefix = Prefix(tmp_path)
    body = "\n".join(f"def function_{line}(x):\n    return x + {line}\n" for line in range(100))
    for number in range(NUMBER):
        metadata = f"Metadata-Version: 2.1\nName: mf-many-{number}\nVersion: 1.2\nRequires-Dist: metaforge>=0.1\n"
        readme = "\n" + "What a plugin's authors say of it.\n" * 100
        points = f"[metaforge.learners]\nmany-{number} = mf_many_{number}:Many\n"
        source = f'import torch\n\n\nclass Many:\n    """Plugin {number}."""\n\n\n{body}'
        prefix.put(f"mf-many-{number}", points, source, metadata=metadata + readme)
    assert prefix.cost("list-plugins", times=4) < 0.6
    rows = json.loads(prefix.run("list-plugins", "--json", "--kind", "learner").stdout)
    summaries = {
        row["summary"] for row in rows if row["distribution"].startswith("mf-many") and row["state"] == "ready"
    }
    assert summaries == {f"Plugin {number}." for number in range(NUMBER)}
    assert prefix.imported() == []
