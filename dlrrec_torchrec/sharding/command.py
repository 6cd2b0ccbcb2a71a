"""`dlrrec plan`: where embedding tables go on given devices. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dlrrec_torchrec.config import ModelConfig, TrainConfig, load_config, table_settings, variant
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.config.flags import add_command, add_flags, at_least, given_settings, pair, run_settings
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.paths import run_paths


def add_plan(commands: Any) -> None:
    """Add `plan` to the `dlrrec` parser's sub-commands."""
    plan = add_command(
        commands,
        "plan",
        "say where embedding tables go on given devices, what they take, and what would fit; needs no GPU",
        "dlrrec plan --run-dir runs/demo --world-size 64 --device h200\n"
        "dlrrec plan --table user=1e9,64 item=1e7,64,1,dtype=fp16 --world-size 64 --device h200\n"
        "dlrrec plan --config configs/demo.yaml --set model.user_id=true model.tables.user.rows=1e8 --json",
    )
    plan.add_argument("--world-size", type=at_least(1), default=1, help="ranks in all (default: 1)")
    plan.add_argument("--local-world-size", type=at_least(1), help="ranks of a node (default: up to 8)")
    plan.add_argument("--device", help="what a rank has, such as h200 (default: what is here)")
    plan.add_argument("--hbm", type=float, help="GB of device memory, if not the device's own")
    plan.add_argument("--ddr", type=float, help="GB of host memory for each rank, if not the device's own")
    plan.add_argument(
        "--table",
        nargs="+",
        action="extend",
        type=pair,
        default=[],
        metavar="NAME=ROWS,DIM,POOLING,KEY=VALUE",
        help="settings of a table, or a table that the model does not have; without --config and --run-dir, "
        "only these are planned for",
    )
    plan.add_argument("--variant", help="variant of the configuration (default: none)")
    plan.add_argument("--json", action="store_true", help="machine-readable output")
    add_flags(plan, TrainConfig, "train", only=("batch_size", "table_optimizer"))
    add_flags(plan.add_argument_group("model"), ModelConfig, "model")
    plan.set_defaults(action=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.distributed.ranks import Ranks, resolve_device
    from dlrrec_torchrec.sharding.advice import make_plan
    from dlrrec_torchrec.sharding.describe import to_json, to_text
    from dlrrec_torchrec.sharding.devices import named_device, rank_device
    from dlrrec_torchrec.sharding.request import run_request

    tables = {
        f"model.tables.{name}.{key}": value
        for name, text in arguments.table
        for key, value in table_settings(text, f"--table {name}").items()
    }
    of_run = bool(arguments.config or arguments.run_dir)
    if of_run:
        config, folder = run_settings(arguments, tables)
        shards = run_paths(folder, config.seeds)[0].shards
    else:
        config, shards = load_config(None, tables | given_settings(arguments)), None
    if arguments.variant:
        config = variant(config, arguments.variant)
    if of_run:
        check_settings(config.model)
    world, local = arguments.world_size, arguments.local_world_size
    if local is None:
        local = next((n for n in range(8, 1, -1) if world % n == 0), 1)
    if arguments.device:
        device = named_device(arguments.device, arguments.hbm, arguments.ddr)
    elif arguments.hbm or arguments.ddr:
        raise DataError("--hbm, --ddr: name the --device too")
    else:
        device = rank_device(Ranks(0, world, local, resolve_device("auto")))
    request = run_request(
        config,
        device,
        world_size=world,
        local_world_size=local,
        shards=shards if shards and (shards / "manifest.json").exists() else None,
        model=of_run,
    )
    plan = make_plan(request)
    print(json.dumps(to_json(plan), indent=1) if arguments.json else to_text(plan))
    return 0
