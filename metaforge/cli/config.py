"""`metaforge config`: the configuration of a run, with the origin of every value."""

from __future__ import annotations

from metaforge.cli import options
from metaforge.cli.output import guarded, put, put_json


@guarded
def config(
    learner: options.Learner = None,
    dataset: options.Dataset = None,
    backbone: options.Backbone = None,
    adapter: options.Adapter = None,
    regularizer: options.RegularizerSet = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    steps: options.Steps = None,
    budget: options.Budget = None,
    seed: options.Seed = None,
    device: options.Device = None,
    json: options.AsJson = False,
) -> None:
    """Show the configuration that the same flags give `train`, with the origin of every value; it is a run file."""
    flags = options.RunFlags(
        learner, dataset, backbone, adapter, regularizer, steps, budget, seed, device, config, settings
    )
    _, resolved = flags.resolved(complete=False)
    if json:
        put_json({"values": resolved.to_dict(), "origins": dict(resolved.origins), "notes": list(resolved.notes)})
        return
    put(resolved.to_annotated_toml())
