"""The deployments against Ray's own schema and preparation, and the KubeRay manifest against Ray's reading of it."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.paths import ROOT


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def prepared(name: str) -> dict[str, Any]:
    """The file as Ray's launcher fills it in, which its schema then accepts."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name))
    validate_config(config)
    return config


def test_ray_accepts_the_cluster_file() -> None:
    config = prepared("ray_cluster.yaml")
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["gpu"]["resources"]["GPU"] > 0
    assert sum(kind["max_workers"] for kind in types.values()) <= config["max_workers"]


def test_ray_accepts_the_file_for_machines_of_ones_own() -> None:
    config = prepared("deploy/on_premise.yaml")
    given = read("deploy/on_premise.yaml")
    kind = config["available_node_types"]["local.cluster.node"]
    workers = len(given["provider"]["worker_ips"])
    assert (kind["min_workers"], kind["max_workers"]) == (workers, workers)
    assert given["file_mounts"] == read("ray_cluster.yaml")["file_mounts"]
    assert given["setup_commands"] == read("ray_cluster.yaml")["setup_commands"]


@pytest.mark.parametrize("name", ["ray_cluster.yaml", "deploy/on_premise.yaml"])
def test_the_start_commands_have_options_that_ray_knows(name: str) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    config = read(name)
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        for part in re.findall(r"ray start ([^;']*(?:'\$\w+'[^;']*)?)", command):
            options = {word.split("=")[0] for word in shlex.split(part) if word.startswith("--")}
            assert options and options <= known, command


def test_rays_autoscaler_reads_the_kuberay_manifest() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    job = read("deploy/rayjob.yaml")
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]}
    )
    types = config["available_node_types"]
    assert {name: kind["resources"].get("CPU") for name, kind in types.items()} == {
        "headgroup": 0,
        "cpu": 15,
        "gpu": 90,
    }
    assert types["gpu"]["resources"]["GPU"] == 8 and "GPU" not in types["cpu"]["resources"]
    assert (config["max_workers"], config["idle_timeout_minutes"]) == (34, 5)


def test_the_kuberay_manifest_runs_what_there_is() -> None:
    from pipeline.config_loading import load_config

    job = read("deploy/rayjob.yaml")["spec"]
    python, module, package, command, config, *overrides = shlex.split(job["entrypoint"])
    assert (python, module, package, command) == ("python", "-m", "pipeline", "run")
    loaded = load_config(str(ROOT / Path(config).relative_to("/app")), overrides)
    assert loaded.run.startswith("s3://")
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={job['rayClusterSpec']['rayVersion']}" in pins
    pods = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    containers = [container for pod in pods for container in pod["template"]["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1
    assert all(container["resources"]["limits"] for container in containers)


def test_the_kuberay_manifest_against_the_operators_own_schema() -> None:
    """With KUBERAY_CRD naming the operator's ray.io_rayjobs.yaml, which is a megabyte and not kept here."""
    path = os.environ.get("KUBERAY_CRD")
    if not path:
        pytest.skip("KUBERAY_CRD does not name a KubeRay release's crds/ray.io_rayjobs.yaml")
    import jsonschema

    crd = yaml.safe_load(Path(path).read_text())
    schema = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    strict, manifest = _strict(json.loads(json.dumps(schema))), read("deploy/rayjob.yaml")
    jsonschema.validate(manifest, strict)
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(manifest, strict)


def _strict(node: Any) -> Any:
    """The schema as a server with strict field validation applies it: unknown fields refused, its own types known."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    node = {key: _strict(value) for key, value in node.items()}
    fields = node.get("properties")
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if node.get("type") == "object" and isinstance(fields, dict) and "metadata" not in fields and not open_ended:
        node["additionalProperties"] = False
    return node


def test_the_image_has_what_the_manifest_and_the_pins_need() -> None:
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert {"pyproject.toml", "constraints.txt", "pipeline", "dataprep", "train", "eval", "configs"} <= copied
    kept = {line[1:] for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert kept == copied and all((ROOT / name).exists() for name in copied)
