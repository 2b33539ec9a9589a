"""`metaforge config`: the resolved configuration of a run, with the origin of every value."""

from __future__ import annotations

from metaforge.cli import options
from metaforge.cli.output import handle_errors, print_answer, print_json


@handle_errors
def config(
    learner: options.Learner = None,
    dataset: options.Dataset = None,
    backbone: options.Backbone = None,
    adapter: options.Adapter = None,
    regularizer: options.RegularizerSet = None,
    optimizer: options.Optimizer = None,
    schedule: options.Schedule = None,
    hook: options.HookSet = None,
    preset: options.PresetSet = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    steps: options.Steps = None,
    budget: options.Budget = None,
    seed: options.Seed = None,
    device: options.Device = None,
    init_from: options.InitFrom = None,
    freeze: options.Freeze = None,
    as_json: options.AsJson = False,
) -> None:
    """Print the configuration that `train` would use with the same flags, with the origin of every value.

    The output is a valid run file.
    """
    plugins = (learner, dataset, backbone, adapter, regularizer, optimizer, schedule, hook, preset)
    flags = options.RunFlags(*plugins, steps, budget, seed, device, config, settings, init_from, freeze)
    _, resolved = flags.resolve(complete=False)
    if as_json:
        print_json({"values": resolved.to_dict(), "origins": dict(resolved.origins), "notes": list(resolved.notes)})
        return
    print_answer(resolved.to_annotated_toml())
