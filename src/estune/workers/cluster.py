"""A Ray cluster: joining one or starting one for this run, what an engine needs of it, and how many have room."""

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

_REACH = 10  # seconds for a cluster's head to answer
_STORE = 512 << 20  # bytes of shared memory for prompts and completions under way


def prepare(config: ESConfig) -> None:
    """What Ray reads when it is imported; what the user set stays.

    A cluster for this run alone listens on the loopback interface, and to a token that nobody else has. One that is
    joined is joined with its token, where one is set (https://docs.ray.io/en/latest/ray-security/token-auth.html).
    """
    usual = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }  # the second as Ray will do soon
    has_token = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not config.ray_address:
        usual |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
        usual |= {} if has_token else {"RAY_AUTH_TOKEN": secrets.token_hex(16)}
    elif has_token or Path("~/.ray/auth_token").expanduser().is_file():
        usual |= {"RAY_AUTH_MODE": "token"}
    for name, value in usual.items():
        os.environ.setdefault(name, value)


def connect(config: ESConfig) -> str:
    """Join the cluster at `ray_address`, or one that this process has joined, or start one for it alone; this node's id.

    Raises:
        ConfigError: no cluster is there, or it has no room for an engine.
    """
    import ray

    if not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if config.ray_address:
            _join(config.ray_address, quiet)
        else:
            quiet |= {"address": "local"}  # not one that someone started here
            with guarded(ConfigError, "workers: Ray does not start on this machine"):
                ray.init(
                    num_cpus=cores(),
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    object_store_memory=_STORE,
                    **quiet,
                )
    if not config.ray_address and room(config) == 0:
        wanted = ", ".join(f"{value:g} {name}" for name, value in _wanted(config).items())
        raise ConfigError(
            f"workers: one engine needs {wanted} on one node, and no node here has that; see vllm_tensor_parallel_size"
        )
    return str(ray.get_runtime_context().get_node_id())


def resources(config: ESConfig) -> dict[str, Any]:
    """Ray's options for the actor of one engine: its GPUs on one node, or its part of the processors."""
    wanted = _wanted(config)
    return {
        "num_cpus": wanted["CPU"],
        "num_gpus": wanted.get("GPU", 0),
        "scheduling_strategy": "SPREAD",
    }


def threads(config: ESConfig) -> int:
    """Processor cores that one engine may keep busy: its part of a node's, by processors or by GPUs."""
    wanted = _wanted(config)
    if "GPU" in wanted:
        return int(
            min(
                max(1, node["CPU"] * wanted["GPU"] // node["GPU"])
                for node in _nodes()
                if node.get("GPU")
            )
        )
    return max(1, int(wanted["CPU"]))


def room(config: ESConfig) -> int:
    """Engines that the cluster's nodes have room for, if nothing else runs there."""
    wanted = _wanted(config)
    return sum(
        min(int(node.get(name, 0) // amount) for name, amount in wanted.items())
        for node in _nodes()
    )


def only_on(node: str) -> dict[str, Any]:
    """Ray's options for an actor that must run on `node`."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _wanted(config: ESConfig) -> dict[str, float]:
    """What one engine takes."""
    nodes = _nodes()
    on_gpus = (
        config.engine != "fake"
        and config.device.startswith(("auto", "cuda"))
        and any(node.get("GPU") for node in nodes)
    )
    if on_gpus:
        return {"CPU": 1, "GPU": config.vllm_tensor_parallel_size}
    part = min((node["CPU"] for node in nodes if node.get("CPU")), default=1) / math.ceil(
        (config.num_workers or 1) / max(1, len(nodes))
    )
    return {"CPU": part // 1 if part >= 1 else part}  # Ray takes fractions of one processor only


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _join(address: str, quiet: dict[str, Any]) -> None:
    import ray

    advice = (
        "start one with: ray start --head, and add machines with: ray start --address HEAD:6379"
    )
    with guarded(ConfigError, f"ray_address: no Ray cluster could be joined at {address}", advice):
        _reach(address)
        ray.init(address=address, **quiet)


def _reach(address: str) -> None:
    """Raises OSError when nobody answers at HOST:PORT; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH).close()
