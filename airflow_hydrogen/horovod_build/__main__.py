"""Builds Horovod for the frameworks of one Python environment and installs it there.

Horovod 0.28.1 has no wheels, and it needs `horovod-0.28.1.patch` to build against the frameworks of
today. A build takes a few minutes, so its wheel is kept in a cache outside the checkout. The wheel's
version names what it was built from (`0.28.1+tf2.21.0.k1f0c3a9b77de`): an environment that has that
very version needs nothing, and a wheel of that version in the cache is only installed.

    airflow-hydrogen-build-horovod                              # for the environment that it is installed in
    airflow-hydrogen-build-horovod --python .venv/bin/python    # for another one

`python -m airflow_hydrogen.horovod_build` is the same. It needs the standard library alone.

The environment must hold TensorFlow, PyTorch or both, and what a build without isolation needs: pip,
setuptools, wheel, packaging, cmake<4, and Horovod's own requirements.

Environment variables:
    AIRFLOW_HYDROGEN_CACHE: the cache folder instead of ~/.cache/airflow-hydrogen.
    HOROVOD_GPU_OPERATIONS, HOROVOD_NCCL_HOME, HOROVOD_CUDA_HOME, ...: passed on, for builds with NCCL.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
PATCH = Path(__file__).with_name(f"horovod-{VERSION}.patch")
LOG_TAIL_LINES = 40
MEMORY_PER_JOB_BYTES = 2 << 30  # one compiler process with PyTorch's headers takes up to that much
PASSED_ON = ("HOROVOD_GPU", "HOROVOD_NCCL_", "HOROVOD_CUDA_", "HOROVOD_ROCM_", "HOROVOD_BUILD_")

PROBE = """
import importlib.metadata as metadata, importlib.util, json, platform, sys, sysconfig
def version(*names):
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
needed = ["pip", "setuptools", "wheel", "packaging", "cloudpickle", "psutil", "yaml"]
needed += ["cffi"] if version("torch") else []
print(json.dumps({
    "python": sys.implementation.cache_tag,
    "platform": sysconfig.get_platform() + "-" + "".join(platform.libc_ver()),
    "tensorflow": version("tensorflow", "tensorflow-cpu"),
    "torch": version("torch"),
    "horovod": version("horovod"),
    "missing": [name for name in needed if importlib.util.find_spec(name) is None],
    "scripts": sysconfig.get_path("scripts"),
}))
"""

VERIFY = """
import importlib, sys
for framework in sys.argv[1:]:
    hvd = importlib.import_module("horovod." + framework)
    if not hvd.gloo_built():
        sys.exit(f"horovod.{framework} was built without Gloo")
"""


@dataclass(frozen=True)
class Target:
    """The environment to build for, as the probe found it."""

    python: str
    """Path of the interpreter; not resolved, or a virtual environment would be left."""
    tag: str
    platform: str
    tensorflow: str | None
    torch: str | None
    horovod: str | None
    missing: tuple[str, ...]
    scripts: str

    @property
    def frameworks(self) -> tuple[str, ...]:
        return tuple(name for name in ("tensorflow", "torch") if getattr(self, name))

    def local_version(self, patch: bytes, passed_on: dict[str, str]) -> str:
        """Returns the local part of the wheel's version: what it was built from, in words and as a hash."""
        inputs: list[object] = [
            VERSION,
            SDIST_SHA256,
            hashlib.sha256(patch).hexdigest(),
            sorted(passed_on.items()),
        ]
        inputs += [self.tag, self.platform, self.tensorflow, self.torch]
        words = [f"tf{self.tensorflow}"] if self.tensorflow else []
        words += [f"torch{self.torch}"] if self.torch else []
        # A leading letter keeps a hash of digits alone from being read as a number.
        words.append("k" + hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12])
        return re.sub(r"[^a-z0-9]+", ".", ".".join(words).lower())


def fail(message: str) -> NoReturn:
    """Ends the program with one line on standard error."""
    sys.exit(f"airflow-hydrogen-build-horovod: {message}")


def probe(python: str) -> Target:
    """Asks an interpreter what it has."""
    path = shutil.which(python)
    if path is None:
        fail(f"{python} is not an executable Python; name one with --python")
    done = subprocess.run([path, "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        fail(f"{path} does not run: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    return Target(
        python=os.path.abspath(path), tag=found.pop("python"), missing=tuple(found.pop("missing")), **found
    )


def cache_folder() -> Path:
    """Returns the folder for wheels and logs, which outlives the checkout."""
    if configured := os.environ.get("AIRFLOW_HYDROGEN_CACHE"):
        return Path(configured).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airflow-hydrogen"


def job_count() -> int:
    """Returns how many compilers may run at once, by cores and by memory."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory_bytes // MEMORY_PER_JOB_BYTES))


def build_environment(target: Target, local_version: str) -> dict[str, str]:
    """Returns the environment variables of a Gloo-only build for the target's frameworks."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")}
    env |= {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    for framework, name in (("tensorflow", "TENSORFLOW"), ("torch", "PYTORCH")):
        env[f"HOROVOD_{'WITH' if framework in target.frameworks else 'WITHOUT'}_{name}"] = "1"
    env |= {
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_CPU_OPERATIONS": "GLOO",
        "HOROVOD_LOCAL_VERSION": local_version,
        "PATH": target.scripts + os.pathsep + os.environ.get("PATH", os.defpath),
        # Under `make`, MAKEFLAGS is that make's, and Horovod would take its jobs from it.
        "MAKEFLAGS": f"-j{job_count()}",
    }
    return env


def check_tools(target: Target, env: dict[str, str]) -> None:
    """Stops with the name of what is missing, before the build does so in its own words."""
    if not target.frameworks:
        fail(f"{target.python} has neither tensorflow nor torch: install one first")
    if target.missing:
        fail(f"{target.python} lacks {', '.join(target.missing)}: pip install them first")
    for tool in ("g++", "make", "patch", "cmake"):
        if shutil.which(tool, path=env["PATH"]) is None:
            fail(f"{tool} is not on the PATH: install {'cmake<4 with pip' if tool == 'cmake' else tool}")


def build(target: Target, env: dict[str, str], wheels: Path, log: Path) -> None:
    """Builds the wheel into the cache; it appears there whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="horovod-") as scratch, log.open("w") as output:

        def run(*command: str, cwd: str | Path = scratch, env: dict[str, str] | None = None) -> None:
            print("+", *command, file=output, flush=True)
            subprocess.run(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True
            )

        pip = (target.python, "-m", "pip", "--disable-pip-version-check")
        no_deps = ("--no-deps", "--no-build-isolation")
        # pip checks the hash before it runs any of the sdist's code.
        requirement = Path(scratch, "horovod.txt")
        requirement.write_text(f"horovod=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
        run(*pip, "download", "--no-binary=horovod", *no_deps, "-r", str(requirement), "-d", "sdist")
        run("tar", "-xzf", f"sdist/horovod-{VERSION}.tar.gz")
        source = Path(scratch, f"horovod-{VERSION}")
        run("patch", "-p1", "-i", str(PATCH), cwd=source)
        run(*pip, "wheel", "--no-cache-dir", *no_deps, "-w", "dist", str(source), env=env)
        (wheel,) = Path(scratch, "dist").glob("*.whl")
        partial = wheels / f".{wheel.name}.partial"
        shutil.copyfile(wheel, partial)
        partial.replace(wheels / wheel.name)


def find_wheel(target: Target, local_version: str, cache: Path) -> Path:
    """Returns the wheel of that version, built first where the cache has none."""
    wheels, log = cache / "wheels", cache / "logs" / f"horovod-{VERSION}+{local_version}.log"
    wheels.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with (wheels / f".{local_version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second build of the same wheel waits for the first one's
        if not (found := list(wheels.glob(f"horovod-{VERSION}+{local_version}-*.whl"))):
            env = build_environment(target, local_version)
            check_tools(target, env)
            print(f"Building Horovod for {', '.join(target.frameworks)}: minutes; log: {log}", flush=True)
            try:
                build(target, env, wheels, log)
            except subprocess.CalledProcessError as error:
                tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                print(*tail, sep="\n", file=sys.stderr)
                fail(f"a step of the build ended with {error.returncode}; the whole log: {log}")
            found = list(wheels.glob(f"horovod-{VERSION}+{local_version}-*.whl"))
    return found[0]


def install(target: Target, wheel: Path) -> None:
    """Installs the wheel and proves that every framework's binding loads and has Gloo."""
    pip = [target.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--root-user-action=ignore", "--no-index", "--no-deps", "--force-reinstall"]
    if subprocess.run([*pip, *options, str(wheel)]).returncode:
        fail(f"pip could not install {wheel}")
    verified = subprocess.run(
        [target.python, "-c", VERIFY, *target.frameworks], capture_output=True, text=True
    )
    if verified.returncode:
        # Or the next run would find the version installed and call it good.
        subprocess.run([target.python, "-m", "pip", "uninstall", "--quiet", "--yes", "horovod"])
        print(verified.stderr, file=sys.stderr)
        fail(f"{wheel} does not work in {target.python}; remove it to build it anew")


def main() -> None:
    """Builds where needed, installs where needed, and says which."""
    parser = argparse.ArgumentParser(description="Build Horovod for an environment and install it there.")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    target = probe(parser.parse_args().python)
    passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    local_version = target.local_version(PATCH.read_bytes(), passed_on)
    if target.horovod == f"{VERSION}+{local_version}":
        print(f"Horovod {target.horovod} is installed")
        return
    install(target, find_wheel(target, local_version, cache_folder()))
    print(f"Horovod {VERSION}+{local_version} installed")


if __name__ == "__main__":
    main()
