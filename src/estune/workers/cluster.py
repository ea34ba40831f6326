"""Join a Ray cluster or start one for this run, and count the engines for which it has room."""

import logging
import math
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from estune.common.guard import guarded
from estune.common.resources import cores
from estune.config import ESConfig
from estune.errors import ConfigError

_CONNECT_SECONDS = 10  # how long a cluster's head may take to accept a connection
_STORE_BYTES = 512 << 20  # shared memory for prompts and completions in progress


def prepare(config: ESConfig) -> None:
    """Set the variables that Ray reads when it is imported, except those that the user set.

    A cluster started for this run listens on the loopback interface only, and requires a random
    token. A cluster that the run joins may require a token too, which the user then gives in a
    variable or a file (https://docs.ray.io/en/latest/ray-security/token-auth.html).
    """
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default
    }
    has_token = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not config.ray_address:
        settings |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
        if not has_token:
            settings["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
    elif has_token or Path("~/.ray/auth_token").expanduser().is_file():
        settings["RAY_AUTH_MODE"] = "token"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def connect(config: ESConfig) -> str:
    """Join the cluster at `ray_address` or start one; return Ray's id of this machine.

    If this process has already joined a cluster, it stays in that one.

    Raises:
        ConfigError: there is no such cluster, or it has no room for an engine.
    """
    import ray

    if not ray.is_initialized():
        if config.ray_address:
            _join(config.ray_address)
        else:
            _start()
    _check_room(config)
    return str(ray.get_runtime_context().get_node_id())


def resources(config: ESConfig) -> dict[str, Any]:
    """Return Ray's options for the actor of one engine: its GPUs on one node, or its cores."""
    needed = _needed(config)
    return {
        "num_cpus": needed["CPU"],
        "num_gpus": needed.get("GPU", 0),
        "scheduling_strategy": "SPREAD",
    }


def threads(config: ESConfig) -> int:
    """Return how many threads one engine may use: its share of its node's cores."""
    needed = _needed(config)
    if "GPU" not in needed:
        return max(1, int(needed["CPU"]))
    with_gpus = [node for node in _nodes() if node.get("GPU")]
    return int(min(max(1, node["CPU"] * needed["GPU"] // node["GPU"]) for node in with_gpus))


def room(config: ESConfig) -> int:
    """Return how many engines fit on the cluster's nodes if nothing else runs there."""
    needed = _needed(config)
    return sum(
        min(int(node.get(name, 0) // amount) for name, amount in needed.items())
        for node in _nodes()
    )


def _check_room(config: ESConfig) -> None:
    """Raise ConfigError if no node has room for an engine, unless nodes may join later."""
    if room(config) or (config.ray_address and config.num_workers):
        return
    needed = ", ".join(f"{value:g} {name}" for name, value in _needed(config).items())
    where, wait = "no node here has that", ""
    if config.ray_address:
        where = f"no node of the cluster at {config.ray_address} has that"
        wait = "add a node, or set num_workers to wait until one joins; "
    raise ConfigError(
        f"workers: one engine needs {needed} on one node, and {where}; "
        f"{wait}see vllm_tensor_parallel_size"
    )


def only_on(node: str) -> dict[str, Any]:
    """Return Ray's options for an actor that must run on `node`."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _needed(config: ESConfig) -> dict[str, float]:
    """Return the resources that one engine needs, by Ray's names: GPUs, or a share of cores."""
    nodes = _nodes()
    may_use_gpus = config.engine != "fake" and config.device.startswith(("auto", "cuda"))
    if may_use_gpus and any(node.get("GPU") for node in nodes):
        return {"CPU": 1, "GPU": config.vllm_tensor_parallel_size}
    per_node = math.ceil((config.num_workers or 1) / max(1, len(nodes)))
    share = min((node["CPU"] for node in nodes if node.get("CPU")), default=1) / per_node
    return {"CPU": share // 1 if share >= 1 else share}  # Ray allows fractions below 1 only


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each live node."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _start() -> None:
    """Start a cluster on this machine for this run alone."""
    with guarded(ConfigError, "workers: Ray does not start on this machine"):
        _init(
            "local",  # start a cluster even if another one runs on this machine
            num_cpus=cores(),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=_STORE_BYTES,
        )


def _join(address: str) -> None:
    advice = (
        "start one with: ray start --head, and add machines with: ray start --address HEAD:6379"
    )
    with guarded(ConfigError, f"ray_address: no Ray cluster could be joined at {address}", advice):
        _check_reachable(address)
        _init(address)


def _init(address: str, **settings: Any) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
