"""The images of docker/Dockerfile, built for real and without an engine: by buildah, in chroots.

The base image is made here too: a Debian by debootstrap, with the Python of the tests in /usr/local.
Root, and Debian's packages buildah and debootstrap, are needed.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_hydrogen.horovod_build.__main__ import cache_folder
from tests.compose_file import ROOT

BASE = "localhost/hydrogen-base"
_RELEASE = "bookworm"
# What Python's own modules are linked against.
_LIBRARIES = "libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,libuuid1,zlib1g"
_BUNDLE = Path("etc/ssl/certs/ca-certificates.crt")
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class Buildah:
    """buildah with a store of its own, which outlives the checkout.

    Args:
        log: what it writes.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        store = cache_folder() / "images"
        store.mkdir(parents=True, exist_ok=True)
        self._command = [
            "buildah",
            *("--root", str(store / "storage"), "--runroot", str(store / "run"), "--storage-driver", "vfs"),
        ]

    def __call__(self, *arguments: str) -> str:
        """Run a command to its end; returns the last line of its output."""
        with self._log.open("a") as log:
            log.write(f"+ buildah {' '.join(arguments)}\n")
            log.flush()
            done = subprocess.run(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                check=False,
            )
            log.write(done.stdout)
        if done.returncode:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])
            raise AssertionError(f"buildah {arguments[0]} ended with {done.returncode}\n{tail}")
        return done.stdout.strip().rpartition("\n")[2]

    def start(self, container: Container, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Run a command in a container, and go on."""
        with log.open("wb") as output:
            return subprocess.Popen(
                self._run(container, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(self, container: Container, *command: str) -> str:
        """Run a command in a container to its end; returns its output."""
        done = subprocess.run(
            self._run(container, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def container(self, image: str) -> Iterator[Container]:
        """A container of an image: its root, in which commands run."""
        name = self("from", "--pull=never", image)
        try:
            yield Container(name)
        finally:
            self("rm", name)

    def _run(self, container: Container, command: tuple[str, ...]) -> list[str]:
        return [
            *self._command,
            *("run", "--isolation", "chroot", "--network", "host", "--hostname", "localhost"),
            *(container.name, "--", *command),
        ]


@dataclass(frozen=True)
class Container:
    """A container of buildah's."""

    name: str


def missing_means() -> str:
    """Why images cannot be built here; nothing where they can."""
    if os.getuid() != 0:
        return "images are built in chroots, which takes root"
    if programs := [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]:
        return f"apt-get install {' '.join(programs)} first"
    if Path(sys.base_prefix) == Path("/usr"):
        return "the Python of this machine is Debian's own: the images' is one in a folder of its own"
    return ""


def build_base(buildah: Buildah) -> None:
    """Make the base image, unless it is there."""
    if (
        BASE
        in subprocess.run([*buildah._command, "images"], capture_output=True, text=True, check=True).stdout
    ):
        return
    root = cache_folder() / "images" / "base"
    shutil.rmtree(root, ignore_errors=True)
    _shell("debootstrap", "--variant=minbase", f"--include=ca-certificates,{_LIBRARIES}", _RELEASE, str(root))
    python = root / "usr/local"
    shutil.copytree(sys.base_prefix, python, symlinks=True, dirs_exist_ok=True)
    for packages in python.glob("lib/python3.*/site-packages"):
        shutil.rmtree(packages)
    for script in python.joinpath("bin").iterdir():
        if script.is_file() and not script.name.startswith("python"):
            script.unlink()  # they name the folder that Python comes from
    for name in ("python", "python3"):
        link = python / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"python{sys.version_info.major}.{sys.version_info.minor}")
    _shell("chroot", str(root), "ldconfig")
    _shell("chroot", str(root), "/usr/local/bin/python", "-m", "ensurepip", "--default-pip")
    _trust_what_this_machine_trusts(root)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(root), "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    buildah("commit", "--quiet", container, BASE)
    buildah("rm", container)
    shutil.rmtree(root)


def _trust_what_this_machine_trusts(root: Path) -> None:
    """Where packages come through a proxy of this machine's, it has a certificate of its own."""
    known = _BUNDLE
    theirs = set(_CERTIFICATE.findall((root / known).read_text()))
    for number, text in enumerate(set(_CERTIFICATE.findall(Path("/", known).read_text())) - theirs):
        (root / f"usr/local/share/ca-certificates/machine-{number}.crt").write_text(text + "\n")
    _shell("chroot", str(root), "update-ca-certificates")
    pip = configparser.ConfigParser()
    pip.read("/etc/pip.conf")
    pip.read_dict({"global": {"cert": f"/{_BUNDLE}", "timeout": "180"}})
    with (root / "etc/pip.conf").open("w") as settings:
        pip.write(settings)


def build_images(buildah: Buildah) -> dict[str, str]:
    """Build both targets of the Dockerfile; target -> image."""
    build_base(buildah)
    images = {target: f"localhost/airflow-hydrogen-{target}" for target in ("spark", "airflow")}
    for target, image in images.items():
        buildah(
            "build",
            *("--isolation", "chroot", "--network", "host", "--pull=never", "--format", "docker"),
            # Without an engine's cache of layers the stage would be built a second time.
            *(
                ("--build-context", f"spark=container-image://{images['spark']}")
                if target == "airflow"
                else ()
            ),
            *("--build-arg", f"PYTHON_IMAGE={BASE}", "--target", target, "--tag", image),
            *("--file", str(ROOT / "docker/Dockerfile"), str(ROOT)),
        )
    return images


def _shell(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
