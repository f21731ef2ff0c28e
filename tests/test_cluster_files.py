"""The files of `cluster/`: each against its tool's own schema or parser, and against what every one of them promises."""

from __future__ import annotations

import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
# Not the __pycache__ that importing spot_notice leaves beside them.
FILES = sorted(path for path in CLUSTER.iterdir() if path.is_file())
CLOUDS = ("aws.yaml", "gcp.yaml")
KUBERAY = {"raycluster.yaml": "RayCluster", "rayjob.yaml": "RayJob"}
SCRIPTS = ("slurm.sbatch", "submit.sh")
VALIDATOR = Path(__file__).parents[2] / "shared" / "tools" / "kuberay_validate.py"


def load(name: str) -> dict[str, Any]:
    """The first document of a YAML file."""
    found: dict[str, Any] = next(iter(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8"))))
    return found


def cluster_spec(name: str) -> dict[str, Any]:
    """The part of a KubeRay manifest that describes the cluster."""
    spec: dict[str, Any] = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)  # type: ignore[no-any-return]


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a tree with its path."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield f"{path}/{key}", value
        yield from walk(value, f"{path}/{key}")


# -- ray up


@pytest.mark.parametrize("name", CLOUDS)
def test_rays_own_autoscaler_takes_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load(name)))


def test_rays_own_check_refuses_a_misspelt_field() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(prepare_config(load("aws.yaml") | {"idle_timeout": 5}))


@pytest.mark.parametrize("name", CLOUDS)
def test_head_is_paid_for_certain_and_workers_only_when_needed(name: str) -> None:
    config = load(name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0 and not _is_spot(head["node_config"])
    assert config["idle_timeout_minutes"] <= 10
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in types.values())
    assert all(_is_spot(kind["node_config"]) for kind in types.values())
    gpus = [kind for kind in types.values() if kind["resources"]["GPU"]]
    machines = {kind["node_config"].get("InstanceType") or kind["node_config"]["machineType"] for kind in gpus}
    assert len(machines) == len(gpus) > 1, "where one kind of spot machine has run out, another is tried"
    assert any(kind["resources"]["GPU"] == 0 and kind["labels"]["vicc-role"] == "decode" for kind in types.values())


@pytest.mark.parametrize("name", CLOUDS)
def test_every_machine_asks_for_what_the_cloud_needs(name: str) -> None:
    wanted = {
        "aws.yaml": {"InstanceType", "IamInstanceProfile", "BlockDeviceMappings"},
        "gcp.yaml": {"machineType", "disks", "serviceAccounts"},
    }[name]
    for kind in load(name)["available_node_types"].values():
        assert wanted <= set(kind["node_config"])
        assert set(kind["resources"]) == {"CPU", "GPU"}, "given here, since guessing them asks the cloud"


@pytest.mark.parametrize("name", CLOUDS)
def test_nodes_show_a_token_and_pass_spot_notices_on(name: str) -> None:
    config = load(name)
    starts = config["head_start_ray_commands"][1], config["worker_start_ray_commands"][1]
    assert all("RAY_AUTH_MODE=token" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0], "the dashboard is reached through ssh only"
    assert f"--cloud {name.removesuffix('.yaml')}" in config["worker_start_ray_commands"][2]
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).is_file()


def _is_spot(node: dict[str, Any]) -> bool:
    aws = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return aws or any(entry.get("provisioningModel") == "SPOT" for entry in node.get("scheduling", []))


# -- KubeRay


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_manifest_is_whole(name: str) -> None:
    document, spec = load(name), cluster_spec(name)
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", KUBERAY[name])
    assert spec["rayVersion"] == version("ray")
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    for group in [head, *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {"requests", "limits"} <= set(container["resources"])
        assert container["startupProbe"] and container["livenessProbe"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts) == set(volumes)
        shm = volumes[next(name for name, path in mounts.items() if path == "/dev/shm")]["emptyDir"]
        assert shm["medium"] == "Memory"
        assert _gib(shm["sizeLimit"]) >= 0.25 * _gib(container["resources"]["limits"]["memory"])
    groups = spec["workerGroupSpecs"]
    assert all(group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"] for group in groups)
    gpus = ["nvidia.com/gpu" in g["template"]["spec"]["containers"][0]["resources"]["limits"] for g in groups]
    assert sorted(gpus) == [False, True]


def test_job_and_cluster_have_the_same_workers() -> None:
    assert cluster_spec("rayjob.yaml")["workerGroupSpecs"] == cluster_spec("raycluster.yaml")["workerGroupSpecs"]


def test_lasting_cluster_keeps_its_memory_outside_of_the_head() -> None:
    documents = list(yaml.safe_load_all((CLUSTER / "raycluster.yaml").read_text(encoding="utf-8")))
    redis = documents[0]["spec"]["gcsFaultToleranceOptions"]
    host = redis["redisAddress"].split(":")[0]
    assert {(d["kind"], d["metadata"]["name"]) for d in documents[1:]} == {("Service", host), ("Deployment", host)}
    password = redis["redisPassword"]["valueFrom"]["secretKeyRef"]
    (container,) = documents[2]["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == password


def test_job_resumes_and_leaves_nothing_behind() -> None:
    spec = load("rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] > 0
    assert "s3://YOUR-BUCKET/runs" in spec["entrypoint"]


@pytest.mark.skipif(not VALIDATOR.exists(), reason="KubeRay's schemas are not on this machine")
def test_kuberays_schema_takes_the_manifests() -> None:
    files = [str(CLUSTER / name) for name in KUBERAY]
    told = subprocess.run([sys.executable, str(VALIDATOR), *files], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
    assert all(f"{kind} ok" in told.stdout for kind in KUBERAY.values())


def _gib(amount: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([KMG])i", amount).groups()  # type: ignore[union-attr]
    return float(number) * {"K": 2**-20, "M": 2**-10, "G": 1.0}[unit]


# -- Slurm and shell


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_scripts_parse(name: str) -> None:
    assert subprocess.run(["bash", "-n", str(CLUSTER / name)]).returncode == 0
    if shutil.which("shellcheck"):
        told = subprocess.run(["shellcheck", "--shell=bash", str(CLUSTER / name)], capture_output=True, text=True)
        assert told.returncode == 0, told.stdout


SLURM = {
    "scontrol": '[[ $1 == show ]] && { echo node1; echo node2; } || echo "scontrol $*" >> "$CALLS"',
    "srun": 'if [[ " $* " == *" hostname "* ]]; then echo "10.0.0.1 fe80::1"; exit; fi\n'
    'echo "$RAY_TMPDIR" > "$ARGV.tmpdir"; printf "%s\\n" "$@" > "$ARGV"; sleep "$SLEEP"; exit "$STATUS"',
}


def slurm_job(folder: Path, sleep: str = "0", status: int = 0, **settings: str) -> subprocess.Popen[str]:
    """The batch script started with Slurm's own commands replaced by ones that write down what they were asked."""
    programs = folder / "bin"
    programs.mkdir()
    for name, body in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    (folder / "runs" / "mine").mkdir(parents=True)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RUNS": str(folder / "runs"),
        "NAME": "mine",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "16",
        "SLURM_GPUS_ON_NODE": "4",
        "CALLS": str(folder / "calls"),
        "ARGV": str(folder / "argv"),
        "SLEEP": sleep,
        "STATUS": str(status),
    } | settings
    command = ["bash", str(CLUSTER / "slurm.sbatch"), "exp.yaml", "--set", "optim.lr=0.3"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_slurm_starts_ray_as_ray_wants_it(tmp_path: Path) -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    job = slurm_job(tmp_path)
    assert job.wait(20) == 0, job.stdout and job.stdout.read()
    argv = (tmp_path / "argv").read_text().split("\n")[:-1]
    ray = argv[argv.index("symmetric-run") + 1 :]
    split = ray.index("--")
    context = symmetric_run.make_context("_", ray[:split], resilient_parsing=True)
    assert context.params["address"] == "10.0.0.1:20077" and context.params["min_nodes"] == 2
    assert curate_and_validate_ray_start_args(ray[:split]) == ["--num-cpus=16", "--num-gpus=4", "--disable-usage-stats"]
    verb = ray[split + 1 :]
    assert verb[:5] == ["vicc", "train", "exp.yaml", "--address", "10.0.0.1:20077"]
    assert "train.workers=8" in verb and verb[-1] == "optim.lr=0.3"


def test_slurm_tells_the_runs_failure(tmp_path: Path) -> None:
    assert slurm_job(tmp_path, status=2).wait(20) == 2
    assert not (tmp_path / "calls").exists()


def _time_is_up(job: subprocess.Popen[str], begun: Path) -> None:
    """SIGUSR1, as --signal=B:USR1@300 sends it, when the run has begun."""
    for _ in range(100):
        if begun.exists():
            break
        threading.Event().wait(0.05)
    threading.Event().wait(0.2)
    job.send_signal(10)


def test_slurm_job_goes_back_into_the_queue_when_its_time_is_up(tmp_path: Path) -> None:
    job = slurm_job(tmp_path, sleep="1.5", status=130)
    try:
        _time_is_up(job, tmp_path / "argv")
        assert job.wait(20) == 0
    finally:
        job.kill()
    assert (tmp_path / "runs" / "mine" / "stop").exists()
    assert (tmp_path / "calls").read_text() == "scontrol requeue 77\n"


def test_slurm_job_goes_back_when_the_run_has_no_folder_to_be_told_in(tmp_path: Path) -> None:
    job = slurm_job(tmp_path, sleep="1.5", status=130, NAME="absent")
    try:
        _time_is_up(job, tmp_path / "argv")
        assert job.wait(20) == 0
    finally:
        job.kill()
    assert "scontrol requeue 77\n" in (tmp_path / "calls").read_text()


def test_slurm_nodes_refuse_a_temporary_folder_that_somebody_made(tmp_path: Path) -> None:
    """Its name cannot be known before, it is closed to others, and the files of the run are not."""
    names = set()
    for attempt in ("one", "two"):
        (tmp_path / attempt).mkdir()
        (tmp_path / "node").mkdir()
        assert slurm_job(tmp_path / attempt, TMPDIR=str(tmp_path / "node")).wait(20) == 0
        argv = (tmp_path / attempt / "argv").read_text().split("\n")
        script = argv[argv.index("-c") + 1]
        name = (tmp_path / attempt / "argv.tmpdir").read_text().strip()
        names.add(name)
        assert Path(name).parent == tmp_path / "node"

        def start(name: str = name, script: str = script) -> int:
            command = ["bash", "-c", script, "bash", "true"]
            return subprocess.run(command, env=os.environ | {"RAY_TMPDIR": name}, stderr=subprocess.DEVNULL).returncode

        assert start() == 0
        assert Path(name).stat().st_mode & 0o777 == 0o700
        assert start() != 0
        shutil.rmtree(tmp_path / "node")
    assert len(names) == 2
    assert "umask" not in (CLUSTER / "slurm.sbatch").read_text()


# -- the notice of a spot machine


class Metadata(http.server.BaseHTTPRequestHandler):
    """A cloud's metadata service, whose notice comes with the second question."""

    asked = 0

    def do_PUT(self) -> None:
        self._answer(200, "a-token")

    def do_GET(self) -> None:
        type(self).asked += 1
        google = self.path.startswith("/computeMetadata")
        refused = not (
            self.headers["Metadata-Flavor"] == "Google" if google else self.headers["X-aws-ec2-metadata-token"]
        )
        gone = type(self).asked > 1
        if refused:
            self._answer(403, "")
        elif google:
            self._answer(200, "TRUE" if gone else "FALSE")
        else:
            self._answer(200 if gone else 404, '{"action": "terminate"}')

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", "110"), ("gcp", "25")])
def test_spot_notice_drains_the_node(cloud: str, seconds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/told\n')
    (tmp_path / "ray").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    spec = importlib.util.spec_from_file_location("spot_notice", CLUSTER / "spot_notice.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WAIT", 0.01)
    Metadata.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        words = ["--cloud", cloud, "--address", "h:1", "--metadata", base, "--node", "ab"]
        monkeypatch.setattr(sys, "argv", ["spot_notice.py", *words])
        assert module.main() == 0
        server.shutdown()
    told = (tmp_path / "told").read_text()
    assert "drain-node --address h:1 --node-id ab" in told and f"--deadline-remaining-seconds {seconds}" in told
    assert Metadata.asked == 2


# -- all of them


def test_container_is_pinned_to_the_lock() -> None:
    text = (CLUSTER / "Containerfile").read_text(encoding="utf-8")
    assert re.search(r"^FROM docker\.io/library/debian:trixie-slim$", text, re.MULTILINE)  # whose Python is 3.13
    assert "--requirement requirements.lock" in text
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())
    assert "/etc/profile.d/" in text, "else login shells, as KubeRay's, do not find its Python"
    assert re.search(r"^USER \d+$", text, re.MULTILINE), "by a number, so that Kubernetes sees that it is not root"


HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.mark.skipif(not HADOLINT.is_file(), reason="hadolint is not installed (the extra 'dev')")
def test_container_is_linted() -> None:
    file = CLUSTER / "Containerfile"
    done = subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_package_of_the_lock_is_pinned_by_what_its_files_hold() -> None:
    """pip and uv then refuse any other file of that version; and no line says which registry it came from."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    packages = text.replace("\\\n", " ").splitlines()
    assert len(packages) > 100
    for line in packages:
        assert re.match(r"[a-z0-9.-]+==\S+ ", line)
        assert re.search(r" --hash=sha256:[0-9a-f]{64}( |$)", line)
    assert "://" not in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_and_no_machine_of_ours(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|/home/(?!ray)", text)
    assert not [f"{place}/" for place in (ROOT.parent, Path.home()) if place != Path("/") and f"{place}/" in text]
    assert "s3://bucket" in text or not re.search(r"s3://(?!YOUR-BUCKET)", text)


def test_machines_only() -> None:
    """No setting of what is learnt, however a file would spell it."""
    from vicc_ray.config import Experiment

    learnt = set(Experiment.model_fields) - {"name", "runs", "data", "train", "model", "scale"}
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in learnt if re.search(rf"--set\s+'?{word}[.=]", text)]
